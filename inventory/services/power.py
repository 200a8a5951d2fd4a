"""Power of virtual machines: asked for by a person, done by a worker, and the steps that other apps add to a start."""

from collections.abc import Callable
from typing import Final
from uuid import UUID

from django.db import transaction

from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.engine.hypervisor import Hypervisor, Power
from inventory.errors import Conflict
from inventory.jobs import JobKind, Progress
from inventory.models import Host, Job, PowerState, VirtualMachine
from inventory.services import connections, sync
from inventory.services.virtual_machines import vm_of

POWER_ON: Final = jobs.register(JobKind("inventory.power_on", "Power on"))
SHUT_DOWN: Final = jobs.register(JobKind("inventory.shut_down", "Shut down guest"))
POWER_OFF: Final = jobs.register(JobKind("inventory.power_off", "Power off"))
REBOOT: Final = jobs.register(JobKind("inventory.reboot", "Reboot guest"))

# On the worker, with the host connected: raising ServiceError or HypervisorError stops the start.
StartStep = Callable[[VirtualMachine, Hypervisor, Job], None]
_START_STEPS: Final[list[StartStep]] = []
_AFTER_START: Final[list[StartStep]] = []


# Asked when a start is requested, of what is known then; raises ServiceError to forbid it.
StartGuard = Callable[[VirtualMachine], None]
_START_GUARDS: Final[list[StartGuard]] = []


def register_start_guard(guard: StartGuard) -> None:
    """`guard` refuses a start at once, where the person still looks on. Its start step must refuse again."""
    _START_GUARDS.append(guard)


def register_start_step(step: StartStep) -> None:
    """`step` runs before every start of a VM, in the order of registration: gates, keys."""
    _START_STEPS.append(step)


def register_after_start(step: StartStep) -> None:
    """`step` runs after every start, good or bad, once all steps before it have begun: taking keys back."""
    _AFTER_START.append(step)


def power_on(*, vm_id: UUID, actor: Actor) -> Job:
    """Raises NotFound, Refused, Conflict (`vm_running`, `vm_not_present`, `host_disconnected`, `target_busy`)."""
    return _start(POWER_ON, vm_id, actor, wants_running=False)


def shut_down(*, vm_id: UUID, actor: Actor) -> Job:
    """Asks the guest to shut down. The job ends once it has been asked; the guest may take its time or refuse."""
    return _start(SHUT_DOWN, vm_id, actor, wants_running=True)


def power_off(*, vm_id: UUID, actor: Actor) -> Job:
    """Like pulling the plug: what the guest has not written is lost."""
    return _start(POWER_OFF, vm_id, actor, wants_running=True)


def reboot(*, vm_id: UUID, actor: Actor) -> Job:
    """Asks the guest to reboot; see `shut_down`."""
    return _start(REBOOT, vm_id, actor, wants_running=True)


@transaction.atomic
def _start(kind: JobKind, vm_id: UUID, actor: Actor, *, wants_running: bool) -> Job:
    vm = vm_of(vm_id)
    authorize(actor, kind.name, vm)
    if not vm.is_present:
        raise Conflict(
            "vm_not_present",
            f"{vm} is no longer on {vm.host}",
            hint="refresh the host; remove the VM from the inventory if it is gone for good",
        )
    if vm.host.state != Host.State.CONNECTED:
        raise Conflict(
            "host_disconnected", f"{vm.host}, the host of {vm}, is not connected", hint="connect the host first"
        )
    if wants_running and vm.power_state in {PowerState.OFF, PowerState.CRASHED}:
        raise Conflict("vm_not_running", f"{vm} is not running")
    if not wants_running and vm.is_running:
        raise Conflict("vm_running", f"{vm} is running already")
    if kind is POWER_ON:
        for guard in _START_GUARDS:
            guard(vm)
    job = jobs.start(kind, target=vm, actor=actor)
    events.record(f"vm.{kind.name.partition('.')[2]}_requested", f"{kind.label} of {vm} requested", target=vm,
                  actor=actor, job=job)  # fmt: skip
    return job


def run_power_on(job: Job, progress: Progress) -> None:
    """Steps of other apps, start, steps after it. A VM that runs already is as wanted (a job that was resumed)."""
    vm = vm_of(job.target_id)
    progress.step("connecting to the host")
    with connections.open_host(vm.host) as hypervisor:
        try:
            try:
                if hypervisor.virtual_machine(vm.uuid).power in {Power.ON, Power.PAUSED}:
                    return
                for step in _START_STEPS:
                    step(vm, hypervisor, job)
                progress.step("starting")
                hypervisor.power_on(vm.uuid)
            finally:
                for step in _AFTER_START:
                    step(vm, hypervisor, job)
        finally:
            sync.refresh_virtual_machine(vm, hypervisor)


def run_shut_down(job: Job, progress: Progress) -> None:
    _run(job, progress, lambda hypervisor, uuid: hypervisor.shut_down(uuid))


def run_power_off(job: Job, progress: Progress) -> None:
    _run(job, progress, lambda hypervisor, uuid: hypervisor.power_off(uuid))


def run_reboot(job: Job, progress: Progress) -> None:
    _run(job, progress, lambda hypervisor, uuid: hypervisor.reboot(uuid), needs_running=True)


def _run(job: Job, progress: Progress, act: Callable[[Hypervisor, UUID], None], *, needs_running: bool = False) -> None:
    vm = vm_of(job.target_id)
    progress.step("connecting to the host")
    with connections.open_host(vm.host) as hypervisor:
        if hypervisor.virtual_machine(vm.uuid).power not in {Power.ON, Power.PAUSED}:
            sync.refresh_virtual_machine(vm, hypervisor)
            if needs_running:
                raise Conflict("vm_not_running", f"{vm} is not running")
            return
        progress.step("asking the host")
        try:
            act(hypervisor, vm.uuid)
        finally:
            sync.refresh_virtual_machine(vm, hypervisor)
