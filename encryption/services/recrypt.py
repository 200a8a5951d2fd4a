"""Shallow recrypt: a new KEK for a VM, the same data keys and the same data. The VM may run all the while.

Order of writes: the new KEK is active at the KMS; then one transaction wraps every data key anew and names the new
KEK; then the VM's metadata says the same. A kill between the two leaves metadata under the old KEK, which still opens
the VM (the old KEK is not taken away); the resumed job writes it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import OuterRef, Subquery
from django.utils import timezone

from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.models import OPENED_BY_SECRET, Key, KmsCluster, Stage, VmSecurity, WrappedSecret
from encryption.services import locks, vm_metadata
from encryption.services.key_access import KeySession, created_event, made_kek, new_key_name, used_key
from encryption.services.release import open_secrets
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, NotFound
from inventory.jobs import Progress
from inventory.models import Event, Job, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import Hypervisor
from inventory.services.definitions import set_metadata
from inventory.services.virtual_machines import vm_of

RECRYPT: Final = jobs.register(jobs.JobKind("encryption.recrypt_vm", "Recrypt VM"))
RECRYPT_ALL: Final = jobs.register(jobs.JobKind("encryption.recrypt_vms", "Recrypt VMs", queue="crypto"))
ACTION: Final = "encryption.recrypt_vm"
MAX_VMS: Final = 10_000


@transaction.atomic
def recrypt_vm(*, vm_id: UUID, actor: Actor, kms_cluster_id: UUID | None = None) -> Job:
    """A new KEK from the VM's own key provider, or from another one. Raises Conflict `not_encrypted`."""
    vm = vm_of(vm_id)
    authorize(actor, ACTION, vm)
    keyed_vm(vm)
    params = {"kms_cluster": str(cluster_of(kms_cluster_id).pk)} if kms_cluster_id else {}
    return _requested(jobs.start(RECRYPT, target=vm, actor=actor, params=params), vm, actor)


@transaction.atomic
def recrypt_provider(*, cluster_id: UUID, actor: Actor) -> Job:
    """A new KEK for every VM whose KEK is this provider's: one job, a result for each VM."""
    cluster = cluster_of(cluster_id)
    authorize(actor, ACTION, cluster)
    count = VmSecurity.objects.filter(key__cluster=cluster).count()
    if not count:
        raise Conflict("nothing_to_do", f"no VM has its key at {cluster}")
    if count > MAX_VMS:
        raise Conflict("too_many", f"{count} VMs have their keys at {cluster}, {MAX_VMS} fit in one job")
    return _requested(jobs.start(RECRYPT_ALL, target=cluster, actor=actor), cluster, actor)


def _requested(job: Job, target: VirtualMachine | KmsCluster, actor: Actor) -> Job:
    events.record("key.recrypt_requested", f"New keys requested for {target}", target=target, actor=actor, job=job)
    return job


@dataclass(frozen=True, slots=True)
class KeyedVm:
    """An encrypted VM, what is wanted of it, and the KEK that wraps its data keys."""

    vm: VirtualMachine
    security: VmSecurity
    key: Key


@dataclass(frozen=True, slots=True)
class NewKey:
    """A KEK that was made for a VM, and the VM's data keys under it: (row, wrapped)."""

    keyed: KeyedVm
    key_id: str
    name: str
    wrapped: tuple[tuple[WrappedSecret, bytes], ...]
    reason: str = ""


def run_recrypt_vm(job: Job, progress: Progress) -> None:
    """Worker side of `recrypt_vm`."""
    vm = VirtualMachine.objects.select_related("host").filter(pk=job.target_id).first()
    if vm is None:
        raise NotFound("vm_not_found", f"{job.target_name} is no longer in the inventory")
    keyed, chosen = keyed_vm(vm), job.params.get("kms_cluster")
    progress.step("creating a key at the key provider")
    keyed = renew_key(keyed, cluster_of(UUID(chosen)) if chosen else keyed.key.cluster, job)
    with connections.open_host(vm.host) as hypervisor:
        write_metadata(keyed, hypervisor)
        sync.refresh_virtual_machine(vm, hypervisor)


def renew_key(keyed: KeyedVm, cluster: KmsCluster, job: Job) -> KeyedVm:
    """A new KEK from this key provider for all data keys of the VM. Done once for a job, however often it is called;
    what the VM's definition carries is written by `write_metadata`."""
    with KeySession(cluster) as session:
        if has_key_of(job, keyed):
            return keyed
        rows = list(keyed.vm.wrapped_secrets.select_related("key__cluster", "virtual_machine"))
        made = new_key(keyed, rows, session, job, lambda name: made_kek(session, keyed.vm, name=name, job=job))
        (renewed,) = take_over([made], cluster, job)
        return renewed


def has_key_of(job: Job, keyed: KeyedVm) -> bool:
    """From before a kill: then only the metadata may be left to write."""
    return keyed.key.name == new_key_name(keyed.vm, job.pk)


def new_key(
    keyed: KeyedVm,
    rows: Sequence[WrappedSecret],
    session: KeySession,
    job: Job,
    make: Callable[[str], tuple[str, Secret]],
    reason: str = "",
) -> NewKey:
    """A KEK, and `rows`, all of the VM's data keys, under it. No row is written by this.

    `make` gives the identifier and the KEK of this name, once all data keys are open.
    """
    vm, name = keyed.vm, new_key_name(keyed.vm, job.pk)
    if any(row.stage != Stage.IN_USE for row in rows):
        raise Conflict(
            "change_unfinished", f"an encryption change of {vm} is not finished", hint="apply it again first"
        )
    opened = open_secrets(rows, session)
    if keyed.security.locked_at is not None:
        locks.release(vm, actor=job.actor, job=job)
    key_id, kek = make(name)
    wrapped = tuple((one.row, keywrap.wrap(kek, one.data_key)) for one in opened)
    return NewKey(keyed, key_id, name, wrapped, reason)


@transaction.atomic
def take_over(made: Sequence[NewKey], cluster: KmsCluster, job: Job) -> list[KeyedVm]:
    """One transaction names the new KEKs and writes the data keys under them: never two KEKs for parts of one VM."""
    known = {key.key_id: key for key in cluster.keys.filter(key_id__in=[one.key_id for one in made])}
    new = {one.key_id: known.get(one.key_id) or used_key(cluster, one.key_id, one.name) for one in made}
    Key.objects.bulk_create(key for key_id, key in new.items() if key_id not in known)
    rows, told = [], []
    for one in made:
        vm, key, secrets = one.keyed.vm, new[one.key_id], len(one.wrapped)
        for row, wrapped in one.wrapped:
            row.wrapped, row.key = wrapped, key
            rows.append(row)
        one.keyed.security.key = key
        if one.key_id not in known:
            told.append(created_event(key, vm, job))
        because = f": {one.reason}" if one.reason else ""
        recrypted = events.draft(
            "vm.recrypted", f"{vm} has the new key {key} instead of {one.keyed.key}{because}", target=vm,
            actor=job.actor, job=job,
            data={"key_id": key.key_id, "old_key_id": one.keyed.key.key_id, "secrets": secrets, "reason": one.reason},
        )  # fmt: skip
        told.append(recrypted)
    securities = VmSecurity.objects.filter(pk__in=[one.keyed.security.pk for one in made])
    VmSecurity.objects.bulk_update([one.keyed.security for one in made], ["key"])
    securities.update(changed_at=timezone.now())
    # A CASE with a branch for each row is slow to build, and is kept to what differs from row to row.
    WrappedSecret.objects.bulk_update(rows, ["wrapped"])
    key_of_vm = securities.filter(virtual_machine=OuterRef("virtual_machine")).values("key")
    WrappedSecret.objects.filter(pk__in=[row.pk for row in rows]).update(key=Subquery(key_of_vm))
    Event.objects.bulk_create(told)
    return [KeyedVm(one.keyed.vm, one.keyed.security, new[one.key_id]) for one in made]


def carried_secrets(vms: Iterable[VirtualMachine]) -> Mapping[UUID, list[WrappedSecret]]:
    """Of each VM what its definition carries: the wrapped keys of what it opens now."""
    found: dict[UUID, list[WrappedSecret]] = defaultdict(list)
    rows = WrappedSecret.objects.filter(virtual_machine__in=vms, stage__in=OPENED_BY_SECRET).select_related("key")
    for row in rows.exclude(stage=Stage.REPLACED, replaced_by__stage=Stage.SWITCHED):
        found[row.virtual_machine_id].append(row)
    return found


def write_metadata(
    keyed: KeyedVm, hypervisor: Hypervisor, carried: Mapping[UUID, Sequence[WrappedSecret]] | None = None
) -> None:
    """`carried`: of `carried_secrets`, where they were read with those of others."""
    vm = keyed.vm
    rows = (carried_secrets([vm]) if carried is None else carried).get(vm.pk, [])
    element = vm_metadata.element(vm, keyed.security.policy, keyed.key, rows)
    hypervisor.redefine(vm.uuid, lambda xml: set_metadata(xml, vm_metadata.NAMESPACE, element))


def keyed_vm(vm: VirtualMachine) -> KeyedVm:
    """The VM with its policy and KEK, read now. Raises Conflict `not_encrypted`."""
    found = VmSecurity.objects.select_related("key__cluster", "policy").filter(virtual_machine=vm).first()
    if found is None or found.key is None:
        raise Conflict("not_encrypted", f"{vm} is not encrypted", hint="encrypt it by its VM Options")
    return KeyedVm(vm, found, found.key)


def cluster_of(cluster_id: UUID) -> KmsCluster:
    found = KmsCluster.objects.filter(pk=cluster_id).first()
    if found is None:
        raise NotFound("key_provider_not_found", f"there is no key provider {cluster_id}")
    return found
