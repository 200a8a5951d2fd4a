"""The checklist "Windows 11 ready" of a VM, from what its host last reported."""

from dataclasses import dataclass
from uuid import UUID

from inventory.authorize import VIEW, Actor, authorize
from inventory.engine import windows11
from inventory.engine.windows11 import Machine, Requirement
from inventory.engine.windows11 import State as RequirementState  # the shape that delivery code shows
from inventory.models import VirtualMachine
from inventory.services.virtual_machines import vm_of

__all__ = ["Readiness", "RequirementState", "readiness_of", "windows_readiness"]


@dataclass(frozen=True, slots=True)
class Readiness:
    vm: VirtualMachine
    requirements: tuple[Requirement, ...]

    @property
    def is_ready(self) -> bool:
        return windows11.is_ready(self.requirements)


def windows_readiness(*, vm_id: UUID, actor: Actor) -> Readiness:
    """Raises NotFound, Refused."""
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    return readiness_of(vm)


def readiness_of(vm: VirtualMachine) -> Readiness:
    """One query."""
    sizes = list(vm.disks.filter(device="disk").values_list("capacity_bytes", flat=True))
    machine = Machine(
        tpm_version=vm.tpm_version if vm.tpm_model else "",
        firmware=vm.firmware,
        has_secure_boot=vm.has_secure_boot,
        arch=vm.known_platform.arch,
        vcpus=vm.vcpus,
        memory_bytes=vm.memory_bytes,
        largest_disk=max(sizes, default=0),
        hard_disks=len(sizes),
    )
    return Readiness(vm, windows11.checklist(machine))
