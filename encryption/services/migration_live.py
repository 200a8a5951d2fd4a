"""Live migration: a running VM goes from daemon to daemon, peer to peer, and goes on without this worker.

Its disks are empty images at the target until QEMU has filled them; its keys are there for that time only.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from encryption.models import WrappedSecret
from encryption.services import migration_files
from encryption.services.migration_files import Layout, Move
from encryption.services.parts import opens
from encryption.services.release import OpenedSecret, note_release, open_secrets, pass_gates, put_secret
from inventory import events
from inventory.errors import ServiceError
from inventory.jobs import Cancelled
from inventory.services import connections
from inventory.services.connections import Hypervisor, Migration, VmFacts
from inventory.services.definitions import OwnFile

POLL_SECONDS: Final = 0.5


def go(
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
        withdraw(move)


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


def withdraw(move: Move) -> None:
    """QEMU has what it needs; neither libvirt keeps anything."""
    for secret_uuid in move.vm.wrapped_secrets.values_list("secret_uuid", flat=True):
        move.here.remove_secret(secret_uuid)
        with move.at_target():
            move.there.remove_secret(secret_uuid)


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
            time.sleep(POLL_SECONDS)
            try:
                tell(move)
            except Cancelled:
                _abort(move, done)
                if done.exception() is None:
                    return  # it was there already: what has happened is what counts
                raise
        done.result()
    finally:
        pool.shutdown(wait=False)


def _abort(move: Move, done: Future[None]) -> None:
    """Again and again: libvirt knows nothing to break off before both daemons have agreed."""
    while not done.done():
        move.here.abort_migration(move.vm.uuid)
        time.sleep(POLL_SECONDS)


def tell(move: Move) -> bool:
    """Whether a migration is under way."""
    found = move.here.migration(move.vm.uuid)
    if found is None:
        move.progress.advance(move.job.done)
        return False
    move.progress.step_total(found.total)
    move.progress.advance(found.done)
    return True
