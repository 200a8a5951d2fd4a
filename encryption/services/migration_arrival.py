"""After a migration: the VM's row and its secrets' rows follow it, the source is cleared, and history has its line."""

import posixpath

from django.db import transaction

from encryption.engine import migration as engine
from encryption.models import Purpose, Stage, WrappedSecret
from encryption.services import migration_cold, migration_files, migration_live
from encryption.services.migration_files import Layout, Move
from encryption.services.migration_place import RUNNING
from encryption.services.parts import opens, path_in
from inventory import events
from inventory.errors import Conflict
from inventory.jobs import Cancelled
from inventory.models import Severity, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import VmFacts


def arrive(move: Move, layout: Layout) -> None:
    """The row follows, then the source is cleared. Can be repeated."""
    vm, job = move.vm, move.job
    move.progress.checkpoint(arrived=True)
    migration_live.withdraw(move)
    with move.at_target():
        sync.refresh_uuids(move.target, move.there, [vm.uuid])
        facts = move.there.virtual_machine(vm.uuid)
        outcome = move.there.migration_outcome(vm.uuid) if facts.power in RUNNING else None
    sync.refresh_uuids(move.source, move.here, [vm.uuid])
    vm.refresh_from_db()
    if vm.host_id != move.target.pk:
        raise Conflict(
            "row_elsewhere",
            f"{vm} is on {move.target}, and its record is not",
            hint=f"undefine it on {move.source} if it is defined there again, refresh both hosts, then try again",
        )
    _move_secrets(vm, facts)
    move.progress.step(f"destroying the files on {move.source.name}")
    if job.checkpoint["is_live"]:
        migration_files.destroy_old(move, layout)
    else:
        migration_cold.destroy_old(move, layout)
    if job.checkpoint["autostart"]:
        with move.at_target():
            move.there.set_autostart(vm.uuid, is_on=True)
    _record(move, outcome)


def _move_secrets(vm: VirtualMachine, facts: VmFacts) -> None:
    with transaction.atomic():
        for row in WrappedSecret.objects.select_for_update().filter(virtual_machine=vm).exclude(stage=Stage.DETACHED):
            if row.purpose == Purpose.VTPM:
                path = connections.vtpm_state_path(vm) or ""
            elif opens(facts, row):
                path = path_in(facts, row)
            else:
                continue
            if path == row.path:
                continue
            if row.plain_path and row.purpose != Purpose.VTPM:
                row.plain_path = posixpath.join(posixpath.dirname(path), posixpath.basename(row.plain_path))
            row.path = path
            row.save(update_fields=["path", "plain_path"])


def _record(move: Move, outcome: connections.MigrationOutcome | None) -> None:
    kept, vm = move.job.checkpoint, move.vm
    is_live, uses_tls, mode = bool(kept["is_live"]), bool(kept["uses_tls"]), str(kept["mode"])
    seconds = None if outcome is None else outcome.milliseconds // 1000
    downtime = None if outcome is None else outcome.downtime_milliseconds
    how = "powered off" if not is_live else "encrypted" if uses_tls else "NOT encrypted"
    text = f"{vm} migrated from {move.source} to {move.target}, {how}"
    fell_back = is_live and not uses_tls and mode == engine.Mode.OPPORTUNISTIC
    if fell_back:
        text += ": encrypted vMotion is opportunistic, and the two hosts cannot do TLS"
    if outcome is not None:
        text += f"; {outcome.milliseconds / 1000:.1f} s, the guest stood still for {downtime} ms"
    events.record_once(
        "vm.migrated", text, target=vm, job=move.job, severity=Severity.WARNING if fell_back else Severity.INFO,
        source=move.source.name, target_host=move.target.name, live=is_live, encrypted=is_live and uses_tls, mode=mode,
        fell_back=fell_back, seconds=seconds, downtime_ms=downtime,
        sent_bytes=None if outcome is None else outcome.sent_bytes,
    )  # fmt: skip


def record_failure(move: Move, error: Exception) -> None:
    if isinstance(error, Cancelled):
        code, text = "cancelled", "it was cancelled"
    else:
        code, text = getattr(error, "code", ""), getattr(error, "message", "")
    events.record_once(
        "vm.migration_failed", f"{move.vm} stays on {move.source}: its migration to {move.target} ended, {text}",
        target=move.vm, job=move.job, severity=Severity.INFO if code == "cancelled" else Severity.ERROR, code=code,
        source=move.source.name, target_host=move.target.name,
    )  # fmt: skip
