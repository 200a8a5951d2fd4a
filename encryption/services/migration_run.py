"""The job that moves a VM to another host. Order of writes, so that a kill at any point leaves exactly one VM:

1. both hosts are asked; what stands against the move is refused before anything is written;
2. the layout (new paths, old files) goes into the checkpoint, then files are made at the target, then keys sent there;
3. a running VM goes from daemon to daemon, which goes on without this worker; a powered-off one is copied, defined at
   the target, and only then undefined at the source;
4. once it is at the target and nowhere else: its row follows, then the source's files are destroyed. Before that, or
   where the move fails or is cancelled, what was made at the target is destroyed.

A job that runs again looks at both hosts (`_where`), never at what it remembers of the transfer.
"""

import logging
import posixpath
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import Final

from django.db import transaction

from encryption.engine import luks
from encryption.engine import migration as engine
from encryption.engine.migration import MovingFile, Plan, Target, Tls
from encryption.models import Purpose, Stage, VmSecurity, WrappedSecret
from encryption.services import migration, migration_cold, migration_files, migration_probes
from encryption.services.migration_files import Layout, Move
from encryption.services.parts import opens, path_in
from encryption.services.release import OpenedSecret, note_release, open_secrets, pass_gates, put_secret
from inventory import events
from inventory.errors import Conflict, ServiceError
from inventory.jobs import Cancelled, Progress
from inventory.models import Host, Job, Severity, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import DomainMissing, Hypervisor, HypervisorError, Migration, VmFacts
from inventory.services.definitions import BadDefinition, OwnFile, Traits, traits
from inventory.services.virtual_machines import vm_of

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.5
_SETTLE_SECONDS: Final = 60.0
_RUNNING: Final = frozenset({"on", "paused"})
_SAME_CPU: Final = frozenset({"host-passthrough", "maximum"})


class Place(StrEnum):
    SOURCE = "source"
    TARGET = "target"


def run_migrate_vm(job: Job, progress: Progress) -> None:
    """Worker side of `migration.migrate_vm`."""
    progress.step("looking at both hosts")
    with _opened(job, progress) as move:
        begun = job.checkpoint.get("layout")
        if begun is not None:
            layout = Layout.from_values(begun)
            if _where(move) is Place.TARGET:
                _arrived(move, layout)
                return
            _drop(move, layout)
        _begin(move)


@contextmanager
def _opened(job: Job, progress: Progress) -> Iterator[Move]:
    vm = vm_of(job.target_id)
    source, target = migration.host_of(job.params["source"]), migration.host_of(job.params["target"])
    chosen = job.params["datastore"]
    datastore = None if chosen is None else migration.datastore_of(target, chosen)
    with connections.open_host(source) as here, _open_target(target) as there:
        yield Move(job, progress, vm, source, target, datastore, here, there)


@contextmanager
def _open_target(target: Host) -> Iterator[Hypervisor]:
    """Errors of the opening are the target's; what fails later, `Move.at_target` tells apart."""
    try:
        opened = connections.opener(target.uri)
        hypervisor = opened.__enter__()
    except HypervisorError as exc:
        raise connections.translate(exc, target) from exc
    try:
        yield hypervisor
    finally:
        opened.__exit__(None, None, None)


def _begin(move: Move) -> None:
    vm = move.vm
    sync.refresh_virtual_machine(vm, move.here)
    facts = move.here.virtual_machine(vm.uuid)
    is_live = facts.power in _RUNNING
    xml = (move.here.live_definition(vm.uuid) if is_live else None) or move.here.definition(vm.uuid)
    try:
        found = traits(xml)
        shared = _shared(move, facts)
        layout, copied = migration_files.lay_out(move, xml, shared, is_live=is_live)
    except BadDefinition as exc:
        raise Conflict(exc.code, f"{vm}: {exc.message}", hint=exc.hint) from exc
    plan = _plan(move, facts, found, layout)
    migration.refuse(plan)
    _forget_earlier_stay(move)
    uses_tls = _uses_tls(move, plan)
    move.progress.checkpoint(
        layout=layout.as_values(),
        uses_tls=uses_tls,
        mode=plan.mode.value,
        is_live=is_live,
        autostart=facts.is_autostarted,
    )
    try:
        if is_live:
            _go_live(move, layout, copied, facts, uses_tls=uses_tls, may_fall_back=plan.may_fall_back)
        else:
            migration_cold.go(move, layout, copied, facts)
    except (Cancelled, ServiceError, HypervisorError) as exc:
        if _where(move) is Place.SOURCE:
            _drop(move, layout)
            _record_failure(move, exc)
            raise
    _arrived(move, layout)


def _shared(move: Move, facts: VmFacts) -> set[str]:
    paths = [disk.source for disk in facts.disks if disk.device in ("disk", "lun") and disk.source.startswith("/")]
    paths = [path for path in paths if not path.startswith("/dev/")]
    if facts.nvram_path and move.here.file_size(facts.nvram_path) is not None:
        paths.append(facts.nvram_path)
    return migration_files.shared_folders(move, {posixpath.dirname(path) for path in paths})


def _plan(move: Move, facts: VmFacts, found: Traits, layout: Layout) -> Plan:
    """As the service has planned, with what both hosts say now."""
    vm = move.vm
    known = migration.observe(vm)
    copied = {*layout.disks, *([migration.NVRAM] if layout.nvram else [])}
    sizes = {disk.target: disk.capacity_bytes for disk in facts.disks}

    def seen(file: MovingFile) -> MovingFile:
        size = sizes.get(file.part, 0)
        size += luks.PREFIX_BYTES if file.is_encrypted and size else 0
        return replace(file, size=size, is_shared=file.part not in copied)

    here = move.here.facts()
    current = replace(
        known,
        files=tuple(seen(file) for file in known.files),
        held_by=found.held_by,
        cpu_model=here.cpu_model,
        needs_same_cpu=found.cpu_mode in _SAME_CPU,
    )
    return engine.plan(current, _target(move, found))


def _target(move: Move, found: Traits) -> Target:
    vm, target = move.vm, move.target
    with move.at_target():
        there = move.there.facts()
        return Target(
            name=target.name,
            is_same=target.pk == move.source.pk,
            is_connected=True,
            is_reachable_by_hosts=bool(connections.migration_uri(target)),
            memory_free_bytes=there.memory_free_bytes,
            cpu_model=there.cpu_model,
            has_name=VirtualMachine.objects.filter(host=target, name=vm.name, is_present=True)
            .exclude(pk=vm.pk)
            .exists(),
            has_uuid=_facts(move.there, vm) is not None,
            knows_vtpm_folder=connections.vtpm_states_folder(target) is not None,
            tls=Tls.UNKNOWN,
            datastore="" if move.datastore is None else move.datastore.name,
            free_bytes=0 if move.datastore is None else move.there.free_bytes(move.datastore.path),
            machine=found.machine,
            machine_is_known=move.there.machine_is_known(
                architecture=found.architecture, machine=found.machine, domain_type=found.domain_type
            ),
            missing_media=tuple(path for path in found.media if move.there.file_size(path) is None),
        )


def _forget_earlier_stay(move: Move) -> None:
    """A record of this VM on the target, from before this console knew that it is the same, would stay in its way."""
    with transaction.atomic():
        stale = VirtualMachine.objects.filter(host=move.target, uuid=move.vm.uuid, is_present=False)
        for row in stale.exclude(pk=move.vm.pk):
            if WrappedSecret.objects.filter(virtual_machine=row).exists():
                raise Conflict(
                    "uuid_taken", f"{move.target} has a record of a VM with the UUID of {move.vm}, and keys hang on it",
                    hint="remove that VM from the inventory first",
                )  # fmt: skip
            VmSecurity.objects.filter(virtual_machine=row).delete()
            row.delete()


def _uses_tls(move: Move, plan: Plan) -> bool:
    """Tried before anything is written; *required* ends here where the pair cannot."""
    if not plan.tries_tls:
        return False
    move.progress.step("checking that both hosts can do TLS")
    row = migration_probes.fresh(move.source, move.target, job=move.job)
    if not row.is_ready and not plan.may_fall_back:
        raise migration_probes.failure(row)
    return row.is_ready


# A running VM


def _go_live(
    move: Move,
    layout: Layout,
    copied: list[OwnFile],
    facts: VmFacts,
    *,
    uses_tls: bool,
    may_fall_back: bool,
) -> None:
    rows = [
        row for row in move.vm.wrapped_secrets.select_related("key__cluster", "virtual_machine") if opens(facts, row)
    ]
    opened = _released(move, rows)
    if copied:
        move.progress.step("creating files on the target")
        migration_files.create(move, layout, copied, facts, opened)
    try:
        with move.at_target():
            for one in opened:
                put_secret(move.there, one)
        _transfer(move, layout, uses_tls=uses_tls, may_fall_back=may_fall_back)
    finally:
        _withdraw(move)


def _released(move: Move, rows: list[WrappedSecret]) -> list[OpenedSecret]:
    if not rows:
        return []
    told = pass_gates(move.target, purpose="migration")
    opened = open_secrets(rows)
    events.record(
        "key.released", f"Keys of {move.vm} sent to {move.target} for its migration", target=move.vm,
        actor=move.job.actor, job=move.job, host=move.target.name, secrets=len(rows),
        key_ids=sorted({row.key.key_id for row in rows}), gate=told,
    )  # fmt: skip
    note_release(move.vm, move.target, told)
    return opened


def _withdraw(move: Move) -> None:
    """QEMU has what it needs; neither libvirt keeps anything."""
    for secret_uuid in move.vm.wrapped_secrets.values_list("secret_uuid", flat=True):
        move.here.remove_secret(secret_uuid)
        with move.at_target():
            move.there.remove_secret(secret_uuid)


def _drop(move: Move, layout: Layout) -> None:
    """The VM stays where it is: the target keeps nothing of it."""
    _withdraw(move)
    migration_files.drop_new(move, layout)
    migration_cold.drop_state(move)


def _transfer(move: Move, layout: Layout, *, uses_tls: bool, may_fall_back: bool) -> None:
    request = Migration(
        destination=connections.migration_uri(move.target),
        uses_tls=uses_tls,
        edit=layout.edit if layout.changes_definition else None,
        copied_disks=tuple(sorted(layout.disks)),
    )
    move.progress.step(f"transferring to {move.target.name}{' under TLS' if uses_tls else ' in clear'}")
    try:
        _watched(move, lambda hypervisor: hypervisor.migrate(move.vm.uuid, request))
    except ServiceError as exc:
        if not (uses_tls and may_fall_back and exc.code.startswith("migration_tls")):
            raise
        move.progress.checkpoint(uses_tls=False)
        _transfer(move, layout, uses_tls=False, may_fall_back=False)


def _watched(move: Move, act: Callable[[Hypervisor], None]) -> None:
    """Runs `act` over a connection of its own and tells how far it is. A cancelled job breaks the migration off."""

    def work() -> None:
        with connections.open_host(move.source) as hypervisor:
            act(hypervisor)

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="migration")
    try:
        done: Future[None] = pool.submit(work)
        while not done.done():
            time.sleep(_POLL_SECONDS)
            try:
                _tell(move)
            except Cancelled:
                move.here.abort_migration(move.vm.uuid)
                if done.exception() is None:
                    return  # it was there already: what has happened is what counts
                raise
        done.result()
    finally:
        pool.shutdown(wait=False)


def _tell(move: Move) -> bool:
    """Whether a migration is under way."""
    found = move.here.migration(move.vm.uuid)
    if found is None:
        move.progress.advance(move.job.done)
        return False
    move.progress.step_total(found.total)
    move.progress.advance(found.done)
    return True


# After it


def _facts(hypervisor: Hypervisor, vm: VirtualMachine) -> VmFacts | None:
    try:
        return hypervisor.virtual_machine(vm.uuid)
    except DomainMissing:
        return None


def _where(move: Move) -> Place:
    """On which of the two hosts the VM is, once that is settled; what the other one has left of it is removed."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        try:
            is_moving = _tell(move)
        except Cancelled:  # asked of a job that was resumed, or again of one that is ending because of it
            move.here.abort_migration(move.vm.uuid)
            is_moving = move.here.migration(move.vm.uuid) is not None
        if not is_moving:
            with move.at_target():
                there = _facts(move.there, move.vm)
            place = _settled(move, _facts(move.here, move.vm), there)
            if place is not None:
                return place
            if time.monotonic() > deadline:
                raise Conflict(
                    "migration_unsettled", f"both {move.source} and {move.target} have {move.vm}",
                    hint="see on both hosts which one runs, and end the other with virsh destroy",
                )  # fmt: skip
        time.sleep(_POLL_SECONDS)


def _settled(move: Move, here: VmFacts | None, there: VmFacts | None) -> Place | None:
    """None: both have it, and the hosts are still at it."""
    if there is None:
        return Place.SOURCE
    if here is None:
        return Place.TARGET
    if there.power == "on" and here.power != "on":
        # The guest goes on there; here stands what it was before the switch, or a definition without its guest.
        if here.power in _RUNNING:
            move.here.power_off(move.vm.uuid)
        move.here.undefine(move.vm.uuid)
        return Place.TARGET
    if there.power == "off" and there.is_persistent:
        if here.power == "off" and move.job.checkpoint.get("copied"):
            move.here.undefine(move.vm.uuid)
            return Place.TARGET
        with move.at_target():
            move.there.undefine(move.vm.uuid)
        return Place.SOURCE
    return None


def _arrived(move: Move, layout: Layout) -> None:
    """The row follows, then the source is cleared. Can be repeated."""
    vm, job = move.vm, move.job
    move.progress.checkpoint(arrived=True)
    _withdraw(move)
    with move.at_target():
        sync.refresh_uuids(move.target, move.there, [vm.uuid])
        facts = move.there.virtual_machine(vm.uuid)
        outcome = move.there.migration_outcome(vm.uuid) if facts.power in _RUNNING else None
    sync.refresh_uuids(move.source, move.here, [vm.uuid])
    vm.refresh_from_db()
    if vm.host_id != move.target.pk:
        raise Conflict(
            "row_elsewhere",
            f"{vm} is on {move.target}, and its record is not",
            hint="refresh both hosts, then try again",
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


def _record_failure(move: Move, error: Exception) -> None:
    if isinstance(error, Cancelled):
        code, text = "cancelled", "it was cancelled"
    else:
        code, text = getattr(error, "code", ""), getattr(error, "message", "")
    events.record_once(
        "vm.migration_failed", f"{move.vm} stays on {move.source}: its migration to {move.target} ended, {text}",
        target=move.vm, job=move.job, severity=Severity.INFO if code == "cancelled" else Severity.ERROR, code=code,
        source=move.source.name, target_host=move.target.name,
    )  # fmt: skip
