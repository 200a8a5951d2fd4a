"""Saved states: guests that were suspended to a file on their host. They are only ever thrown away here."""

from typing import Final
from uuid import UUID

from django.db import transaction

from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, Invalid
from inventory.jobs import JobKind, Progress
from inventory.models import Host, Job, Severity, VirtualMachine
from inventory.services import connections, sync
from inventory.services.virtual_machines import vm_of

DISCARD: Final = jobs.register(JobKind("inventory.discard_saved_state", "Discard saved state"))


@transaction.atomic
def discard_saved_state(*, vm_id: UUID, confirm: str, actor: Actor) -> Job:
    """Starts the job that deletes it. `confirm` repeats the VM's name: what only the guest's memory held is lost.

    Raises NotFound, Refused, Invalid (`confirmation_mismatch`), Conflict (`no_saved_state`, `host_disconnected`,
    `target_busy`).
    """
    vm = vm_of(vm_id)
    authorize(actor, DISCARD.name, vm)
    if not vm.is_present or not vm.has_managed_save:
        raise Conflict("no_saved_state", f"{vm} has no saved state", hint="refresh its host if it was made just now")
    if vm.host.state != Host.State.CONNECTED:
        raise Conflict(
            "host_disconnected", f"{vm.host}, the host of {vm}, is not connected", hint="connect the host first"
        )
    if confirm.strip() != vm.name:
        raise Invalid("confirmation_mismatch", f"that is not the name of {vm}", hint="type it as it is shown")
    job = jobs.start(DISCARD, target=vm, actor=actor)
    events.record("vm.discard_saved_state_requested", f"Discarding the saved state of {vm} requested", target=vm,
                  actor=actor, job=job)  # fmt: skip
    return job


def run_discard_saved_state(job: Job, progress: Progress) -> None:
    """Worker side. The file is overwritten where its place is known, then libvirt deletes it."""
    vm = vm_of(job.target_id)
    progress.step("connecting to the host")
    with connections.open_host(vm.host) as hypervisor:
        try:
            if hypervisor.virtual_machine(vm.uuid).has_managed_save:
                progress.step("overwriting and deleting the saved state")
                path = managed_save_path(vm)
                hypervisor.discard_managed_save(vm.uuid, path=path)
                how = "overwritten and deleted" if path else "deleted, not overwritten: where it lay is not known"
                events.record(
                    "vm.saved_state_discarded", f"The saved state of {vm} was {how}", target=vm, actor=job.actor,
                    job=job, severity=Severity.INFO if path else Severity.WARNING, path=path,
                )  # fmt: skip
        finally:
            sync.refresh_virtual_machine(vm, hypervisor)


def managed_save_path(vm: VirtualMachine) -> str:
    """libvirt's own name for it (qemuDomainManagedSavePath); empty where the host's folder is not known."""
    folder = connections.state_folder(vm.host)
    return "" if folder is None or "/" in vm.name else f"{folder}/save/{vm.name}.save"
