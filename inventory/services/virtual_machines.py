"""One virtual machine's row: finding it, and dropping one that is gone for good."""

from collections.abc import Callable
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from inventory import alarms, events
from inventory.authorize import VIEW, Actor, authorize
from inventory.errors import Conflict, NotFound
from inventory.models import LIVE_STATUSES, Job, TargetKind, VirtualMachine

REMOVE: Final = "inventory.remove_vm"

# Asked before rows of virtual machines are deleted; raises ServiceError to forbid it.
RemovalGuard = Callable[[QuerySet[VirtualMachine]], None]
_GUARDS: Final[list[RemovalGuard]] = []


def register_removal_guard(guard: RemovalGuard) -> None:
    """Lets an app above forbid that rows go while something hangs on them (keys)."""
    _GUARDS.append(guard)


def virtual_machine(*, vm_id: UUID, actor: Actor) -> VirtualMachine:
    """With its host and the places above. Raises NotFound, Refused."""
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    return vm


def vm_of(vm_id: UUID) -> VirtualMachine:
    found = VirtualMachine.objects.select_related("host__cluster__datacenter").filter(pk=vm_id).first()
    if found is None:
        raise NotFound("vm_not_found", f"there is no virtual machine {vm_id}")
    return found


def remove_from_inventory(*, vm_id: UUID, actor: Actor) -> None:
    """Drops the row of a VM that its host no longer has. Raises Conflict `vm_present` and `target_busy`."""
    vm = vm_of(vm_id)
    authorize(actor, REMOVE, vm)
    with transaction.atomic():
        rows = VirtualMachine.objects.select_for_update().filter(pk=vm.pk)
        if rows.filter(is_present=True).exists():
            raise Conflict(
                "vm_present",
                f"{vm} is on {vm.host}",
                hint="only a VM that its host no longer has can be removed from the inventory",
            )
        refuse_removal(rows)
        events.record("vm.removed", f"{vm} removed from the inventory", target=vm, actor=actor, uuid=str(vm.uuid))
        rows.delete()
        alarms.drop_alarms(TargetKind.VIRTUAL_MACHINE, [vm.pk])


def refuse_removal(rows: QuerySet[VirtualMachine]) -> None:
    """Raises where a live job is at work on one of the rows, or an app above still needs one."""
    jobs = Job.objects.filter(
        status__in=LIVE_STATUSES, target_kind=TargetKind.VIRTUAL_MACHINE, target_id__in=rows.values("id")
    )
    if (busy := jobs.first()) is not None:
        raise Conflict(
            "target_busy", f"{busy.target_name} is busy", hint="wait for it in Recent Tasks, or cancel it there"
        )
    for guard in _GUARDS:
        guard(rows)
