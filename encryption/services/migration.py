"""Migration of a VM to another host: the hosts to choose from, the plan, and the job that moves it.

The job is `migration_run.py`. What is shown here comes from rows; the job asks both hosts again.
"""

from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from encryption.engine import luks, migration
from encryption.engine.migration import MovingFile, MovingVm, Target, Tls
from encryption.engine.migration import Plan as Plan  # the shape that delivery code shows
from encryption.models import MigrationProbe, Purpose, Stage, WrappedSecret
from encryption.services import vmotion
from inventory import events, jobs
from inventory.authorize import VIEW, Actor, authorize, visible
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import LIVE_STATUSES, Datastore, Firmware, Host, Job, PowerState, VirtualMachine
from inventory.services import connections
from inventory.services.sync import Moving
from inventory.services.virtual_machines import vm_of

MIGRATE: Final = jobs.register(jobs.JobKind("encryption.migrate_vm", "Migrate VM", queue="crypto"))
ACTION: Final = "encryption.migrate_vm"
NVRAM: Final = "NVRAM"
_FOLDERS: Final = frozenset({"dir", "fs", "netfs"})


@dataclass(frozen=True, slots=True)
class TargetChoice:
    """A host as the dialog offers it, with the datastores to choose from; `plan` is with `datastore`, which is the
    roomiest one where storage is not shared."""

    host: Host
    probe: MigrationProbe | None
    datastores: tuple[Datastore, ...]
    datastore: Datastore | None
    plan: Plan

    @property
    def is_possible(self) -> bool:
        return not self.plan.refusals


def migration_targets(*, vm_id: UUID, actor: Actor) -> list[TargetChoice]:
    """All other hosts that the actor may see: those that it can go to first, of its own cluster before others."""
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    current = observe(vm)
    hosts = visible(Host.objects.select_related("cluster").prefetch_related("datastores"), actor)
    hosts = hosts.exclude(pk=vm.host_id)
    probes = {row.target_id: row for row in MigrationProbe.objects.filter(source=vm.host)}
    found = [_choice(vm, current, host, probes.get(host.pk)) for host in hosts]
    return sorted(
        found, key=lambda one: (not one.is_possible, one.host.cluster_id != vm.host.cluster_id, one.host.name)
    )


def _choice(vm: VirtualMachine, current: MovingVm, host: Host, probe: MigrationProbe | None) -> TargetChoice:
    stores = tuple(one for one in host.datastores.all() if _takes_files(one))
    known = _with_sharing(current, host)
    needs = any(file.is_shared is False and file.part != NVRAM for file in known.files)
    store = max(stores, key=lambda one: one.available_bytes, default=None) if needs else None
    return TargetChoice(host, probe, stores, store, migration.plan(known, _target(vm, host, store, probe)))


def plan_migration(*, vm_id: UUID, target_id: UUID, actor: Actor, datastore_id: UUID | None = None) -> Plan:
    """What would be done, from what is known now. Changes nothing. Raises NotFound, Invalid `datastore_unsupported`."""
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    host = host_of(target_id)
    authorize(actor, VIEW, host)
    return _plan(vm, host, datastore_id)


def _plan(vm: VirtualMachine, host: Host, datastore_id: UUID | None) -> Plan:
    store = None if datastore_id is None else datastore_of(host, datastore_id)
    probe = MigrationProbe.objects.filter(source=vm.host, target=host).first()
    return migration.plan(_with_sharing(observe(vm), host), _target(vm, host, store, probe))


@transaction.atomic
def migrate_vm(*, vm_id: UUID, target_id: UUID, actor: Actor, datastore_id: UUID | None = None) -> Job:
    """Starts the job. Without a datastore all its files must be on storage that both hosts see.

    Raises NotFound, Refused, Invalid `datastore_unsupported`, Conflict with the code of the plan's first refusal
    (`vm_not_present`, `target_disconnected`, `migration_tls_unavailable`, `datastore_needed` ...) or `target_busy`.
    """
    vm = vm_of(vm_id)
    authorize(actor, ACTION, vm)
    host = host_of(target_id)
    authorize(actor, ACTION, host)
    plan = _plan(vm, host, datastore_id)
    refuse(plan)
    params = {
        "source": str(vm.host_id),
        "target": str(host.pk),
        "datastore": str(datastore_id) if datastore_id else None,
    }
    job = jobs.start(MIGRATE, target=vm, actor=actor, params=params)
    events.record(
        "vm.migration_requested", f"Migration of {vm} from {vm.host} to {host} requested", target=vm, actor=actor,
        job=job, source=vm.host.name, target_host=host.name, mode=plan.mode.value,
    )  # fmt: skip
    return job


def refuse(plan: Plan) -> None:
    if plan.refusals:
        first = plan.refusals[0]
        raise Conflict(first.code, first.text, hint=first.hint)


def host_of(host_id: UUID | str) -> Host:
    found = Host.objects.select_related("cluster").filter(pk=host_id).first()
    if found is None:
        raise NotFound("host_not_found", f"there is no host {host_id}")
    return found


def datastore_of(host: Host, datastore_id: UUID | str) -> Datastore:
    found = Datastore.objects.filter(pk=datastore_id, host=host).first()
    if found is None:
        raise NotFound("datastore_not_found", f"{host} has no datastore {datastore_id}")
    if not _takes_files(found):
        raise Invalid(
            "datastore_unsupported", f"datastore {found} of {host} cannot take files", hint="choose a folder datastore"
        )
    return found


def _takes_files(store: Datastore) -> bool:
    return store.is_active and store.kind in _FOLDERS and bool(store.path)


def observe(vm: VirtualMachine) -> MovingVm:
    """The VM from its rows. Whether its files are shared depends on the target: `_with_sharing`."""
    secrets = list(vm.wrapped_secrets.all())
    ours = {(row.purpose, row.target) for row in secrets if row.stage != Stage.DETACHED}
    disks = [disk for disk in vm.disks.all() if disk.device in ("disk", "lun")]
    files = [
        MovingFile(
            disk.target, disk.source, disk.format,
            disk.capacity_bytes + (luks.PREFIX_BYTES if disk.is_encrypted and disk.capacity_bytes else 0),
            disk.is_encrypted, None,
        )
        for disk in disks
    ]  # fmt: skip
    if vm.firmware == Firmware.UEFI and vm.nvram_path:
        files.append(MovingFile(NVRAM, vm.nvram_path, "raw", 0, vm.is_nvram_encrypted, None))
    return MovingVm(
        name=vm.name,
        host=vm.host.name,
        host_is_connected=vm.host.state == Host.State.CONNECTED,
        is_present=vm.is_present,
        is_persistent=vm.is_persistent,
        is_running=vm.is_running,
        is_off=vm.power_state == PowerState.OFF,
        is_encrypted=vmotion.is_encrypted(vm),
        keys_are_ours=_keys_are_ours(vm, ours),
        is_changing=any(row.stage not in (Stage.IN_USE, Stage.DETACHED) for row in secrets),
        has_tpm=bool(vm.tpm_model),
        memory_bytes=vm.memory_bytes,
        files=tuple(files),
        mode=vmotion.chosen_mode(vm),
        has_managed_save=vm.has_managed_save,
        snapshot_count=vm.snapshot_count,
        cpu_model=vm.host.cpu_model,
        detached=tuple(row.path for row in secrets if row.stage == Stage.DETACHED),
    )


def _keys_are_ours(vm: VirtualMachine, ours: set[tuple[str, str]]) -> bool:
    named = {(Purpose.DISK.value, disk.target) for disk in vm.disks.all() if disk.is_encrypted}
    named |= {(Purpose.NVRAM.value, "")} if vm.is_nvram_encrypted else set()
    named |= {(Purpose.VTPM.value, "")} if vm.is_tpm_encrypted else set()
    return named <= ours


def _with_sharing(vm: MovingVm, host: Host) -> MovingVm:
    """A file in a folder that is a datastore of the target too may be shared; any other is not."""
    roots = [store.path.rstrip("/") for store in host.datastores.all() if store.path and store.is_active]

    def shared(path: str) -> bool | None:
        return None if any(path.startswith(f"{root}/") for root in roots) else False

    return replace(vm, files=tuple(replace(file, is_shared=shared(file.path)) for file in vm.files))


def _target(vm: VirtualMachine, host: Host, store: Datastore | None, probe: MigrationProbe | None) -> Target:
    there = VirtualMachine.objects.filter(host=host, is_present=True).exclude(pk=vm.pk)
    return Target(
        name=host.name,
        is_same=host.pk == vm.host_id,
        is_connected=host.state == Host.State.CONNECTED,
        is_reachable_by_hosts=bool(connections.migration_uri(host)),
        memory_free_bytes=host.memory_free_bytes,
        cpu_model=host.cpu_model,
        has_name=there.filter(name=vm.name).exists(),
        has_uuid=there.filter(uuid=vm.uuid).exists() or _kept_elsewhere(vm, host),
        knows_vtpm_folder=connections.vtpm_states_folder(host) is not None,
        tls=tls_of(probe),
        tls_code="" if probe is None else probe.code,
        tls_reason="" if probe is None else probe.reason,
        datastore="" if store is None else store.name,
        free_bytes=0 if store is None else store.available_bytes,
    )


def _kept_elsewhere(vm: VirtualMachine, host: Host) -> bool:
    """The record of a VM with this UUID that was on the target and is gone, but keys hang on it."""
    return (
        WrappedSecret.objects.filter(virtual_machine__host=host, virtual_machine__uuid=vm.uuid)
        .exclude(virtual_machine=vm)
        .exists()
    )


def tls_of(probe: MigrationProbe | None) -> Tls:
    if probe is None:
        return Tls.UNKNOWN
    return Tls.READY if probe.is_ready else Tls.NOT_READY


def moving(host: Host) -> Moving:
    """VMs that jobs bring to the host, until they say that those have arrived, or take from it, until the row is
    elsewhere or the job has ended. Two queries at most."""
    here = str(host.pk)
    live = Job.objects.filter(kind=MIGRATE.name, status__in=LIVE_STATUSES)
    found = {job.target_id: job for job in live.filter(Q(params__target=here) | Q(params__source=here))}
    if not found:
        return Moving()
    uuids = dict(VirtualMachine.objects.filter(pk__in=found).values_list("pk", "uuid"))
    return Moving(
        arriving=frozenset(
            uuid
            for pk, uuid in uuids.items()
            if found[pk].params["target"] == here and not found[pk].checkpoint.get("arrived")
        ),
        leaving=frozenset(
            uuid
            for pk, uuid in uuids.items()
            if found[pk].params["source"] == here and "layout" in found[pk].checkpoint
        ),
    )
