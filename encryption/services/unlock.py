"""Unlock: tries whether the keys of a VM can be had again. Nothing is sent to a host by this."""

from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from encryption.models import KmsCluster, LockCause, VmSecurity
from encryption.services import adoption, autostart, locks, release
from inventory import events, jobs
from inventory.authorize import SYSTEM, Actor, authorize
from inventory.errors import Conflict, NotFound, ServiceError
from inventory.jobs import Progress
from inventory.models import Job, JobStatus, VirtualMachine
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
    security = security_of(vm)
    has_seen_definition = security is not None and security.lock_cause == LockCause.KEY_MISSING_ON_HOST
    if has_seen_definition:
        progress.step("reading its definition")
        with connections.open_host(vm.host) as hypervisor:
            release.refuse_unknown(vm, hypervisor.virtual_machine(vm.uuid), hypervisor, job)
    progress.step("fetching its keys from the key provider")
    error = try_again(vm, actor=job.actor, job=job, has_seen_definition=has_seen_definition)
    if error is not None:
        raise error


def start_what_waited(job_id: str) -> None:
    """After an Unlock that went well: starts the VM if its host was to start it and could not (see `autostart`).

    Not part of the job: while that lives, no other can be started for the VM.
    """
    job = Job.objects.filter(pk=job_id, status=JobStatus.SUCCEEDED).first()
    vm = VirtualMachine.objects.filter(pk=job.target_id).select_related("host").first() if job else None
    if vm is not None:
        autostart.start_unlocked(vm)


def unlock_of_provider(cluster_id: str) -> int:
    """When a key provider is back: tries its locked VMs once, the longest locked first; returns how many are free.

    Those that were to come up with their host, and waited, are started. A VM that waits for a secret on its host stays
    as it is.

    Ends with the first VM that finds the provider lost again. NOT tried: more than 1,000 VMs, which *Unlock* and a
    start still try.
    """
    cluster = KmsCluster.objects.filter(pk=UUID(cluster_id)).first()
    if cluster is None:
        return 0
    found = VirtualMachine.objects.filter(
        pk__in=cluster.keys.filter(wrapped_secrets__isnull=False).values("wrapped_secrets__virtual_machine"),
        security__locked_at__isnull=False,
    ).exclude(security__lock_cause=LockCause.KEY_MISSING_ON_HOST)
    free = adoption.adopt_foreign(cluster)
    for vm in found.select_related("host").order_by("security__locked_at")[:MOST]:
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


def locked_among(vms: QuerySet[VirtualMachine]) -> int:
    """How many of them are locked; one query."""
    return VmSecurity.objects.filter(virtual_machine__in=vms, locked_at__isnull=False).count()


def try_again(
    vm: VirtualMachine, *, actor: Actor | str, job: Job | None = None, has_seen_definition: bool = False
) -> ServiceError | None:
    """Whether its host may have the keys, and whether they can be had: locked or free by that. Why not, or None.

    Outside of a job of the VM, one that waited for its keys to come up with its host is started.
    """
    rows = list(vm.wrapped_secrets.select_related("key__cluster", "virtual_machine"))
    try:
        release.pass_gates(vm.host, purpose="unlock")
    except ServiceError as exc:
        parts = sorted({row.target or str(row.purpose) for row in rows})
        locks.lock_parts(vm, exc, parts, actor=actor, job=job)
        return exc
    _, failures = release.try_secrets(rows)
    if failures:
        locks.lock(vm, failures, actor=actor, job=job)
        return failures[0].error
    locks.release(vm, actor=actor, job=job, has_seen_definition=has_seen_definition)
    if job is None:
        autostart.start_unlocked(vm)
    return None
