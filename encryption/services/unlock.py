"""Unlock: tries whether the keys of a VM can be had again. Nothing is sent to a host by this."""

from typing import Final
from uuid import UUID

from django.db import transaction

from encryption.models import KmsCluster, LockCause, VmSecurity
from encryption.services import adoption, locks
from encryption.services.release import pass_gates, try_secrets
from inventory import events, jobs
from inventory.authorize import SYSTEM, Actor, authorize
from inventory.errors import Conflict, NotFound, ServiceError
from inventory.jobs import Progress
from inventory.models import Job, VirtualMachine
from inventory.services import connections
from inventory.services.virtual_machines import vm_of

UNLOCK: Final = jobs.register(jobs.JobKind("encryption.unlock_vm", "Unlock VM"))
ACTION: Final = "encryption.unlock_vm"
MOST: Final = 1000
_PROVIDER_LOST: Final = (LockCause.KMS_ERROR, LockCause.KMS_UNTRUSTED, LockCause.CONSOLE_KEY)


@transaction.atomic
def unlock_vm(*, vm_id: UUID, actor: Actor) -> Job:
    """Starts the job that fetches the VM's keys. It may also be asked of a VM that is not known to be locked, and of
    one whose keys this console does not have: its definition is then read again.

    Raises NotFound, Refused, Conflict (`not_encrypted`, `target_busy`).
    """
    vm = vm_of(vm_id)
    authorize(actor, ACTION, vm)
    if (
        not vm.wrapped_secrets.exists()
        and not VmSecurity.objects.filter(virtual_machine=vm, locked_at__isnull=False).exists()
    ):
        raise Conflict("not_encrypted", f"{vm} is not encrypted", hint="only an encrypted VM has keys to unlock")
    job = jobs.start(UNLOCK, target=vm, actor=actor)
    events.record("vm.unlock_requested", f"Unlock of {vm} requested", target=vm, actor=actor, job=job)
    return job


def run_unlock_vm(job: Job, progress: Progress) -> None:
    """Worker side of `unlock_vm`. It fails with what keeps the VM locked."""
    vm = VirtualMachine.objects.filter(pk=job.target_id).first()
    if vm is None:
        raise NotFound("vm_not_found", f"{job.target_name} is no longer in the inventory")
    if not vm.wrapped_secrets.exists():
        progress.step("reading its keys from its definition")
        with connections.open_host(vm.host) as hypervisor:
            error = adoption.adopt(vm, hypervisor, actor=job.actor, job=job, is_asked=True)
        if error is not None:
            raise error
        return
    progress.step("fetching its keys from the key provider")
    error = try_again(vm, actor=job.actor, job=job)
    if error is not None:
        raise error


def unlock_of_provider(cluster_id: str) -> int:
    """When a key provider is back: tries its locked VMs once, the longest locked first; returns how many are free.

    Ends with the first VM that finds the provider lost again. NOT tried: more than 1,000 VMs, which *Unlock* and a
    start still try.
    """
    cluster = KmsCluster.objects.filter(pk=UUID(cluster_id)).first()
    if cluster is None:
        return 0
    found = VirtualMachine.objects.filter(
        pk__in=cluster.keys.filter(wrapped_secrets__isnull=False).values("wrapped_secrets__virtual_machine"),
        security__locked_at__isnull=False,
    )
    free = adoption.adopt_foreign(cluster)
    for vm in found.order_by("security__locked_at")[:MOST]:
        if vm.security.lock_cause == LockCause.HOST_UNTRUSTED:
            continue  # that is tried when its host passes again
        error = try_again(vm, actor=SYSTEM)
        free += error is None
        if error is not None and locks.cause_of(error) in _PROVIDER_LOST:
            break
    return free


def security_of(vm: VirtualMachine) -> VmSecurity | None:
    """One query for a VM's row, however often it is asked."""
    found: VmSecurity | None = getattr(vm, "security", None)
    return found


def try_again(vm: VirtualMachine, *, actor: Actor | str, job: Job | None = None) -> ServiceError | None:
    """Whether its host may have the keys, and whether they can be had: locked or free by that. Why not, or None."""
    rows = list(vm.wrapped_secrets.select_related("key__cluster", "virtual_machine"))
    try:
        pass_gates(vm.host, purpose="unlock")
    except ServiceError as exc:
        parts = sorted({row.target or str(row.purpose) for row in rows})
        locks.lock_parts(vm, exc, parts, actor=actor, job=job)
        return exc
    _, failures = try_secrets(rows)
    if failures:
        locks.lock(vm, failures, actor=actor, job=job)
        return failures[0].error
    locks.release(vm, actor=actor, job=job)
    return None
