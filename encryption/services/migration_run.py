"""The job that moves a VM to another host. Order of writes, so that a kill at any point leaves exactly one VM:

1. both hosts are asked; what stands against the move is refused before anything is written;
2. the layout (new paths, old files) goes into the checkpoint, then files are made at the target, then keys sent there;
3. a running VM goes from daemon to daemon, which goes on without this worker; a powered-off one is copied, defined at
   the target, and only then undefined at the source;
4. once it is at the target and nowhere else: its row follows, then the source's files are destroyed. Before that, or
   where the move fails or is cancelled, what was made at the target is destroyed.

A job that runs again looks at both hosts (`migration_place`), never at what it remembers of the transfer.
"""

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from django.db import transaction

from encryption.engine import luks
from encryption.engine import migration as engine
from encryption.engine.migration import MovingFile, Plan, Target, Tls
from encryption.models import VmSecurity, WrappedSecret
from encryption.services import (
    migration,
    migration_arrival,
    migration_cold,
    migration_files,
    migration_live,
    migration_probes,
)
from encryption.services.migration_files import Layout, Move
from encryption.services.migration_place import RUNNING, Place, facts_of, where
from inventory.errors import Conflict, ServiceError
from inventory.jobs import Cancelled, Progress
from inventory.models import Host, Job, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import Hypervisor, HypervisorError, VmFacts
from inventory.services.definitions import BadDefinition, Traits, traits
from inventory.services.virtual_machines import vm_of

_SAME_CPU: Final = frozenset({"host-passthrough", "maximum"})


def run_migrate_vm(job: Job, progress: Progress) -> None:
    """Worker side of `migration.migrate_vm`."""
    progress.step("looking at both hosts")
    with _opened(job, progress) as move:
        begun = job.checkpoint.get("layout")
        if begun is not None:
            layout = Layout.from_values(begun)
            if where(move) is Place.TARGET:
                migration_arrival.arrive(move, layout)
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
    is_live = facts.power in RUNNING
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
            migration_live.go(move, layout, copied, facts, uses_tls=uses_tls, may_fall_back=plan.may_fall_back)
        else:
            migration_cold.go(move, layout, copied, facts)
    except (Cancelled, ServiceError, HypervisorError) as exc:
        if where(move) is Place.SOURCE:
            migration_arrival.record_failure(move, exc)
            _drop(move, layout)
            raise
    migration_arrival.arrive(move, layout)


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
            has_uuid=facts_of(move.there, vm) is not None,
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


def _drop(move: Move, layout: Layout) -> None:
    """The VM stays where it is: the target keeps nothing of it."""
    migration_live.withdraw(move)
    migration_files.drop_new(move, layout)
    migration_cold.drop_state(move)
