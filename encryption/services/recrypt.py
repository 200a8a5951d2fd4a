"""Shallow recrypt: a new KEK for a VM, the same data keys and the same data. The VM may run all the while.

Order of writes: the new KEK is active at the KMS; then one transaction wraps every data key anew and names the new
KEK; then the VM's metadata says the same. A kill between the two leaves metadata under the old KEK, which still opens
the VM (the old KEK is not taken away); the resumed job writes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, final
from uuid import UUID

from django.db import transaction

from encryption.engine import keywrap
from encryption.models import OPENED_BY_SECRET, Key, KmsCluster, Stage, VmSecurity, WrappedSecret
from encryption.services import locks, vm_metadata
from encryption.services.key_access import KeySession, fetched_key, new_key_name, session_key
from encryption.services.release import open_secrets
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, NotFound, ServiceError, Unavailable, Untrusted
from inventory.jobs import Progress
from inventory.models import LIVE_STATUSES, Job, Severity, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import HostUnreachable, Hypervisor, HypervisorError
from inventory.services.definitions import set_metadata
from inventory.services.virtual_machines import vm_of

RECRYPT: Final = jobs.register(jobs.JobKind("encryption.recrypt_vm", "Recrypt VM"))
RECRYPT_ALL: Final = jobs.register(jobs.JobKind("encryption.recrypt_vms", "Recrypt VMs", queue="crypto"))
ACTION: Final = "encryption.recrypt_vm"
MAX_VMS: Final = 10_000
_BATCH: Final = 20
_DONE: Final = "ok"


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
        return _with_new_key(keyed, session, job)


def run_recrypt_vms(job: Job, progress: Progress) -> None:
    """Worker side of `recrypt_provider` and of the schedule (`rotation.py`), over one connection to the key provider
    and one to each host in turn.

    A VM that fails does not hold up the others, nor does a host. A key provider that is lost ends the job: each
    further VM would only wait for it. After a kill, VMs that have their new key already are not given another one.
    """
    cluster = cluster_of(job.target_id)
    due: dict[str, str] | None = job.params.get("due")
    results: dict[str, str] = dict(job.checkpoint.get("results", {}))
    found = [vm for vm in _vms_at(cluster) if due is None or str(vm.pk) in due]
    waiting = [vm for vm in found if str(vm.pk) not in results]
    progress.step("recrypting", total=len(results) + len(waiting))
    with KeySession(cluster) as session:
        bulk = _Bulk(job, progress, session, results, due or {})
        for _, members in groupby(waiting, key=lambda vm: vm.host_id):
            lost = bulk.recrypt(list(members))
            progress.checkpoint(results=results)
            if lost is not None:
                raise lost
    failed = [code for code in results.values() if code != _DONE]
    if failed:
        raise Conflict(
            "some_failed",
            f"{len(failed)} of {len(results)} VMs keep their keys ({', '.join(sorted(set(failed)))})",
            hint="see the events of each",
        )


@final
class _Bulk:
    """One run of a job over many VMs. `results`: VM's id -> "ok" or the code of what failed."""

    def __init__(
        self, job: Job, progress: Progress, session: KeySession, results: dict[str, str], reasons: Mapping[str, str]
    ) -> None:
        self._job = job
        self._progress = progress
        self._session = session
        self._results = results
        self._reasons = reasons

    def recrypt(self, members: Sequence[VirtualMachine]) -> ServiceError | None:
        """VMs of one host. Returns what the key provider failed with, when it is lost for all."""
        host = members[0].host
        lost: ServiceError | None = None
        try:
            with connections.open_host(host) as hypervisor:
                for first in range(0, len(members), _BATCH):
                    # Only here the job can be cancelled: a batch that has new keys gets its metadata.
                    self._progress.advance(len(self._results))
                    lost = self._batch(members[first : first + _BATCH], hypervisor)
                    self._progress.checkpoint(results=self._results)
                    if lost is not None:
                        break
        except ServiceError as exc:  # no way to the host, or none any more
            for vm in members:
                if str(vm.pk) not in self._results:
                    self._fail(vm, exc)
        return lost

    def _batch(self, members: Sequence[VirtualMachine], hypervisor: Hypervisor) -> ServiceError | None:
        lost: ServiceError | None = None
        renewed = []
        for vm in members:
            try:
                _refuse_busy(vm)
                reason = self._reasons.get(str(vm.pk), "")
                renewed.append(_with_new_key(keyed_vm(vm), self._session, self._job, reason))
            except (Unavailable, Untrusted) as exc:
                lost = exc
                break
            except ServiceError as exc:
                self._fail(vm, exc)
        for keyed in renewed:
            try:
                write_metadata(keyed, hypervisor)
                self._results[str(keyed.vm.pk)] = _DONE
            except HostUnreachable:
                raise
            except (ServiceError, HypervisorError) as exc:
                self._fail(keyed.vm, exc)
        if renewed:
            sync.refresh_uuids(members[0].host, hypervisor, [keyed.vm.uuid for keyed in renewed])
        return lost

    def _fail(self, vm: VirtualMachine, error: ServiceError | HypervisorError) -> None:
        self._results[str(vm.pk)] = error.code
        has_new = VmSecurity.objects.filter(virtual_machine=vm, key__name=new_key_name(vm, self._job.pk)).exists()
        told = "has its new key, but its definition on the host names the old one" if has_new else "keeps its key"
        events.record(
            "key.recrypt_failed", f"{vm} {told}: {error}", target=vm, actor=self._job.actor, job=self._job,
            severity=Severity.ERROR, code=error.code,
        )  # fmt: skip


def _with_new_key(keyed: KeyedVm, session: KeySession, job: Job, reason: str = "") -> KeyedVm:
    """The VM with its KEK of this job, which it may have from before a kill. Made and fetched over one connection."""
    vm, name = keyed.vm, new_key_name(keyed.vm, job.pk)
    if keyed.key.name == name:
        return keyed
    rows = list(vm.wrapped_secrets.select_related("key__cluster", "virtual_machine"))
    if any(row.stage != Stage.IN_USE for row in rows):
        raise Conflict(
            "change_unfinished", f"an encryption change of {vm} is not finished", hint="apply it again first"
        )
    opened = open_secrets(rows, session)
    locks.release(vm, actor=job.actor, job=job)
    new = session_key(session, vm, name=name, job=job)
    with fetched_key(new, session) as kek:
        wrapped = {one.row.pk: keywrap.wrap(kek, one.data_key) for one in opened}
    security = keyed.security
    with transaction.atomic():
        # All data keys in one transaction: never two KEKs for parts of one VM.
        for row in rows:
            row.wrapped, row.key = wrapped[row.pk], new
        WrappedSecret.objects.bulk_update(rows, ["wrapped", "key"])
        security.key = new
        security.save(update_fields=["key", "changed_at"])
        events.record(
            "vm.recrypted", f"{vm} has the new key {new} instead of {keyed.key}" + (f": {reason}" if reason else ""),
            target=vm, actor=job.actor, job=job,
            key_id=new.key_id, old_key_id=keyed.key.key_id, secrets=len(rows), reason=reason,
        )  # fmt: skip
    return KeyedVm(vm, security, new)


def _refuse_busy(vm: VirtualMachine) -> None:
    """A job over many VMs claims none of them. NOT excluded: one that begins right after this look; each of its secrets
    then names the KEK that wraps it, so nothing is lost."""
    busy = Job.objects.filter(target_id=vm.pk, status__in=LIVE_STATUSES).first()
    if busy is not None:
        raise Conflict("target_busy", f"{vm} is busy: {jobs.label(busy)}", hint="recrypt it by itself afterwards")


def write_metadata(keyed: KeyedVm, hypervisor: Hypervisor) -> None:
    """The VM's definition carries the wrapped keys of what it opens now."""
    vm = keyed.vm
    rows = vm.wrapped_secrets.filter(stage__in=OPENED_BY_SECRET).select_related("key")
    rows = rows.exclude(stage=Stage.REPLACED, replaced_by__stage=Stage.SWITCHED)
    element = vm_metadata.element(vm, keyed.security.policy, keyed.key, rows)
    hypervisor.redefine(vm.uuid, lambda xml: set_metadata(xml, vm_metadata.NAMESPACE, element))


def keyed_vm(vm: VirtualMachine) -> KeyedVm:
    """The VM with its policy and KEK, read now. Raises Conflict `not_encrypted`."""
    found = VmSecurity.objects.select_related("key__cluster", "policy").filter(virtual_machine=vm).first()
    if found is None or found.key is None:
        raise Conflict("not_encrypted", f"{vm} is not encrypted", hint="encrypt it by its VM Options")
    return KeyedVm(vm, found, found.key)


def _vms_at(cluster: KmsCluster) -> list[VirtualMachine]:
    """All VMs whose KEK is this provider's, by host; VMs that share a KEK one after another."""
    found = VirtualMachine.objects.filter(security__key__cluster=cluster).select_related("host")
    return list(found.order_by("host_id", "security__key_id", "name"))


def cluster_of(cluster_id: UUID) -> KmsCluster:
    found = KmsCluster.objects.filter(pk=cluster_id).first()
    if found is None:
        raise NotFound("key_provider_not_found", f"there is no key provider {cluster_id}")
    return found
