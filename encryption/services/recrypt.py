"""Shallow recrypt: a new KEK for a VM, the same data keys and the same data. The VM may run all the while.

Order of writes: the new KEK is active at the KMS; then one transaction wraps every data key anew and names the new
KEK; then the VM's metadata says the same. A kill between the two leaves metadata under the old KEK, which still opens
the VM (the old KEK is not taken away); the resumed job writes it.
"""

from typing import Final
from uuid import UUID

from django.db import transaction

from encryption.engine import keywrap
from encryption.models import Key, KmsCluster, Stage, VmSecurity, WrappedSecret
from encryption.services import locks, vm_metadata
from encryption.services.key_access import fetched_key, make_key, new_key_name
from encryption.services.release import open_secrets
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, NotFound, ServiceError
from inventory.jobs import Progress
from inventory.models import LIVE_STATUSES, Job, Severity, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import HypervisorError
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
    _security(vm)
    params = {"kms_cluster": str(_cluster(kms_cluster_id).pk)} if kms_cluster_id else {}
    return _requested(jobs.start(RECRYPT, target=vm, actor=actor, params=params), vm, actor)


@transaction.atomic
def recrypt_provider(*, cluster_id: UUID, actor: Actor) -> Job:
    """A new KEK for every VM whose KEK is this provider's: one job, a result for each VM."""
    cluster = _cluster(cluster_id)
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


def run_recrypt_vm(job: Job, progress: Progress) -> None:
    """Worker side of `recrypt_vm`."""
    vm = VirtualMachine.objects.select_related("host").filter(pk=job.target_id).first()
    if vm is None:
        raise NotFound("vm_not_found", f"{job.target_name} is no longer in the inventory")
    chosen = job.params.get("kms_cluster")
    progress.step("creating a key at the key provider")
    _recrypt(vm, _cluster(UUID(chosen)) if chosen else None, job)


def run_recrypt_vms(job: Job, progress: Progress) -> None:
    """Worker side of `recrypt_provider`: VM after VM; one that fails does not hold up the others."""
    cluster = _cluster(job.target_id)
    done: dict[str, str] = dict(job.checkpoint.get("results", {}))
    secured = VmSecurity.objects.filter(key__cluster=cluster).select_related("virtual_machine__host")
    vms = [row.virtual_machine for row in secured.order_by("virtual_machine__name")]
    waiting = [vm for vm in vms if str(vm.pk) not in done]
    progress.step("recrypting", total=len(done) + len(waiting))
    for vm in waiting:
        progress.advance(len(done))
        try:
            _refuse_busy(vm)
            _recrypt(vm, None, job)
            done[str(vm.pk)] = "ok"
        except (ServiceError, HypervisorError) as exc:
            done[str(vm.pk)] = exc.code
            events.record(
                "key.recrypt_failed", f"{vm} keeps its key: {exc}", target=vm, actor=job.actor, job=job,
                severity=Severity.ERROR, code=exc.code,
            )  # fmt: skip
        progress.checkpoint(results=done)
    failed = sorted(code for code in done.values() if code != "ok")
    if failed:
        raise Conflict(
            "some_failed",
            f"{len(failed)} of {len(done)} VMs keep their keys ({', '.join(sorted(set(failed)))})",
            hint="see the events of each",
        )


def _recrypt(vm: VirtualMachine, cluster: KmsCluster | None, job: Job) -> None:
    security = _security(vm)
    old = security.key
    assert old is not None  # noqa: S101  _security has seen it
    name = new_key_name(vm, job.pk)
    if old.name != name:
        new = make_key(cluster or old.cluster, vm, name=name, job=job)
        _rewrap(vm, security, new, job)
    _write_metadata(vm)


def _refuse_busy(vm: VirtualMachine) -> None:
    """A job over many VMs claims none of them. NOT excluded: one that begins right after this look; each of its secrets
    then names the KEK that wraps it, so nothing is lost."""
    busy = Job.objects.filter(target_id=vm.pk, status__in=LIVE_STATUSES).first()
    if busy is not None:
        raise Conflict("target_busy", f"{vm} is busy: {jobs.label(busy)}", hint="recrypt it by itself afterwards")


def _rewrap(vm: VirtualMachine, security: VmSecurity, new: Key, job: Job) -> None:
    """All of the VM's data keys under the new KEK, in one transaction: never two KEKs for parts of one VM."""
    rows = list(vm.wrapped_secrets.select_related("key__cluster", "virtual_machine"))
    if any(row.stage != Stage.IN_USE for row in rows):
        raise Conflict(
            "change_unfinished", f"an encryption change of {vm} is not finished", hint="apply it again first"
        )
    opened = open_secrets(rows)
    locks.release(vm, actor=job.actor, job=job)
    with fetched_key(new) as kek:
        wrapped = {one.row.pk: keywrap.wrap(kek, one.data_key) for one in opened}
    old = security.key
    with transaction.atomic():
        for row in rows:
            row.wrapped, row.key = wrapped[row.pk], new
        WrappedSecret.objects.bulk_update(rows, ["wrapped", "key"])
        security.key = new
        security.save(update_fields=["key", "changed_at"])
        events.record(
            "vm.recrypted", f"{vm} has the new key {new} instead of {old}", target=vm, actor=job.actor, job=job,
            key_id=new.key_id, old_key_id=str(old), secrets=len(rows),
        )  # fmt: skip


def _write_metadata(vm: VirtualMachine) -> None:
    security = _security(vm)
    key = security.key
    assert key is not None  # noqa: S101  _security has seen it
    rows = list(vm.wrapped_secrets.select_related("key"))
    element = vm_metadata.element(vm, security.policy, key, rows)
    with connections.open_host(vm.host) as hypervisor:
        hypervisor.redefine(vm.uuid, lambda xml: set_metadata(xml, vm_metadata.NAMESPACE, element))
        sync.refresh_virtual_machine(vm, hypervisor)


def _security(vm: VirtualMachine) -> VmSecurity:
    found = VmSecurity.objects.select_related("key__cluster", "policy").filter(virtual_machine=vm).first()
    if found is None or found.key is None:
        raise Conflict("not_encrypted", f"{vm} is not encrypted", hint="encrypt it by its VM Options")
    return found


def _cluster(cluster_id: UUID) -> KmsCluster:
    found = KmsCluster.objects.filter(pk=cluster_id).first()
    if found is None:
        raise NotFound("key_provider_not_found", f"there is no key provider {cluster_id}")
    return found
