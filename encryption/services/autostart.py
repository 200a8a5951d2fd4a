"""Starts what a host was to start when it came up, and could not: keys are never kept where a host comes up alone.

After a reboot libvirt tries each VM that is marked for autostart, finds no secret, and notes that the start failed; of
one that died with its host's daemon it notes that it crashed. Those notes are what counts here: a VM that was shut down
by its guest or by a person stays off.
"""

from contextlib import suppress

from inventory import events
from inventory.authorize import SYSTEM
from inventory.errors import ServiceError
from inventory.models import Host, PowerState, Severity, VirtualMachine
from inventory.services import connections, power
from inventory.services.connections import Hypervisor


def start_again(host: Host, hypervisor: Hypervisor) -> None:
    """For a host that answers again. Starts go the ordinary way, with all gates; one refused holds up no other."""
    waiting = VirtualMachine.objects.filter(
        host=host, is_present=True, is_autostarted=True, power_state=PowerState.OFF, wrapped_secrets__isnull=False
    )
    for vm in waiting.distinct():
        if hypervisor.virtual_machine(vm.uuid).is_down_by_failure:
            _start(vm, host)


def start_unlocked(vm: VirtualMachine) -> None:
    """For a VM whose keys can be had again: what `start_again` could not do for want of them. A host that does not
    answer is left to its return."""
    if not (vm.is_autostarted and vm.is_present and vm.power_state == PowerState.OFF):
        return
    with suppress(ServiceError), connections.open_host(vm.host) as hypervisor:
        if hypervisor.virtual_machine(vm.uuid).is_down_by_failure:
            _start(vm, vm.host)


def _start(vm: VirtualMachine, host: Host) -> None:
    try:
        job = power.power_on(vm_id=vm.pk, actor=SYSTEM)
    except ServiceError as exc:
        events.record(
            "vm.autostart_refused", f"{vm} is to start with {host}, but: {exc}", target=vm, actor=SYSTEM,
            severity=Severity.WARNING, code=exc.code,
        )  # fmt: skip
        return
    events.record(
        "vm.autostart_requested", f"{vm} is to start with {host}, which came up without its keys: they are sent again",
        target=vm, actor=SYSTEM, job=job, host=host.name,
    )  # fmt: skip
