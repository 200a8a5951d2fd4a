"""A VM of the world, started or unlocked by the worker's jobs, which are run at once."""

from encryption.models import VmSecurity
from encryption.services import unlock
from inventory.models import Job
from inventory.services import power, sync
from tests.encryption.services.real_kms import run
from tests.encryption.world import World


def security(world: World) -> VmSecurity:
    return VmSecurity.objects.get(virtual_machine=world.vm)


def start(world: World) -> Job:
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    return run(power.power_on(vm_id=world.vm.pk, actor=world.actor), power.run_power_on)


def try_unlock(world: World) -> Job:
    return run(unlock.unlock_vm(vm_id=world.vm.pk, actor=world.actor), unlock.run_unlock_vm)
