"""VM Options of many VMs at once: each has its own plan, its own digest and its own job; one that is refused holds up
no other. A vTPM is removed of one VM at a time only, as its name has to be typed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from encryption.services import options
from encryption.services.options import PlannedChange, Vmotion, Wish
from inventory.authorize import VIEW, Actor, authorize
from inventory.errors import Invalid, ServiceError
from inventory.models import Job, VirtualMachine
from inventory.services.virtual_machines import vm_of

MOST_VMS: Final = 200


@dataclass(frozen=True, slots=True)
class ManyWish:
    """What all of them shall be; None: each as it is. `disks_policy_id` is for every hard disk."""

    policy_id: UUID | None = None
    disks_policy_id: UUID | None = None
    add_vtpm: bool = False
    secure_boot: bool | None = None
    vbs: bool | None = None
    encrypted_vmotion: Vmotion | None = None


@dataclass(frozen=True, slots=True)
class VmPlan:
    """`change` None: the wish cannot even be planned for this VM, and `error` says why."""

    vm: VirtualMachine
    change: PlannedChange | None
    error: ServiceError | None = None


@dataclass(frozen=True, slots=True)
class VmResult:
    """`job` None: nothing was begun, and `error` says why."""

    vm: VirtualMachine
    job: Job | None
    error: ServiceError | None = None


def plan_many(*, vm_ids: Sequence[UUID], wish: ManyWish, actor: Actor) -> tuple[VmPlan, ...]:
    """Changes nothing. Raises Invalid `no_vms`, `too_many_vms`; NotFound."""
    authorize(actor, VIEW)
    found = []
    for vm in _vms(vm_ids, actor):
        try:
            wanted = _wish_for(vm, wish, actor)
            change = options.plan_options(vm_id=vm.pk, wish=wanted, actor=actor, with_definition=False)
            found.append(VmPlan(vm, change))
        except ServiceError as exc:
            found.append(VmPlan(vm, None, exc))
    return tuple(found)


def apply_many(
    *, vm_ids: Sequence[UUID], wish: ManyWish, approved: Mapping[UUID, str], actor: Actor
) -> tuple[VmResult, ...]:
    """A job for each VM. `approved`: the digest of each plan that was seen; of a VM that is left out the plan as of
    now. Raises Invalid `no_vms`, `too_many_vms`; NotFound."""
    found = []
    for vm in _vms(vm_ids, actor):
        try:
            wanted = _wish_for(vm, wish, actor)
            seen = approved.get(vm.pk, "")
            found.append(VmResult(vm, options.apply_options(vm_id=vm.pk, wish=wanted, approved=seen, actor=actor)))
        except ServiceError as exc:
            found.append(VmResult(vm, None, exc))
    return tuple(found)


def _vms(vm_ids: Sequence[UUID], actor: Actor) -> list[VirtualMachine]:
    if not vm_ids:
        raise Invalid("no_vms", "no virtual machine was chosen", hint="choose them in a list of virtual machines")
    if len(vm_ids) > MOST_VMS:
        raise Invalid("too_many_vms", f"{len(vm_ids)} VMs are too many at once", hint=f"choose at most {MOST_VMS}")
    found = [vm_of(vm_id) for vm_id in dict.fromkeys(vm_ids)]
    for vm in found:
        authorize(actor, VIEW, vm)
    return found


def _wish_for(vm: VirtualMachine, wish: ManyWish, actor: Actor) -> Wish:
    now = options.vm_options(vm_id=vm.pk, actor=actor)
    disks = {disk.target: policy.pk for disk, policy in now.disks_with_policies if not disk.is_read_only}
    if wish.disks_policy_id is not None:
        disks = dict.fromkeys(disks, wish.disks_policy_id)
    return Wish(
        policy_id=wish.policy_id or now.policy.pk,
        disks=disks,
        vtpm=True if wish.add_vtpm and not now.current.has_tpm else None,
        secure_boot=wish.secure_boot,
        vbs=wish.vbs,
        encrypted_vmotion=wish.encrypted_vmotion,
    )
