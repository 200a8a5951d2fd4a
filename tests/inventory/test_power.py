"""Power: checked before, done by the worker, with the steps that other apps add."""

from collections.abc import Callable
from uuid import uuid4

import pytest
from django.contrib.auth.models import User

from inventory import jobs
from inventory.engine.hypervisor import Hypervisor, Power, SecretMissing
from inventory.errors import Conflict, NotFound, Refused, Untrusted
from inventory.jobs import Progress
from inventory.models import Event, Host, Job, JobStatus, PowerState, VirtualMachine
from inventory.services import power, sync
from tests.fakes import FakeHypervisor, vm

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_broker_and_no_steps(sent: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_START_STEPS", [])
    monkeypatch.setattr(power, "_AFTER_START", [])


@pytest.fixture
def machine(host: Host, hypervisor: FakeHypervisor) -> VirtualMachine:
    hypervisor.add(vm("vm"))
    sync.sync_host(host, hypervisor)
    Event.objects.all().delete()
    return VirtualMachine.objects.get()


def run(job: Job, work: Callable[[Job, Progress], None]) -> Job:
    jobs.run(str(job.pk), work)
    job.refresh_from_db()
    return job


def set_power(hypervisor: FakeHypervisor, machine: VirtualMachine, state: Power) -> None:
    hypervisor.change(machine.uuid, power=state)
    sync.refresh_virtual_machine(machine, hypervisor)
    Event.objects.all().delete()


def test_power_on(machine: VirtualMachine, hypervisor: FakeHypervisor, alice: User) -> None:
    job = run(power.power_on(vm_id=machine.pk, actor=alice), power.run_power_on)
    machine.refresh_from_db()
    assert (job.status, machine.power_state) == (JobStatus.SUCCEEDED, PowerState.ON)
    found = list(Event.objects.order_by("id").values_list("kind", "actor", "job_id"))
    assert found == [("vm.power_on_requested", "alice", job.pk), ("vm.powered_on", "alice", job.pk)]


@pytest.mark.parametrize(
    ("ask", "work", "call", "after"),
    [
        (power.power_off, power.run_power_off, "power_off", PowerState.OFF),
        (power.shut_down, power.run_shut_down, "shut_down", PowerState.ON),
        (power.reboot, power.run_reboot, "reboot", PowerState.ON),
    ],
)
def test_the_others(
    machine: VirtualMachine,
    hypervisor: FakeHypervisor,
    alice: User,
    ask: Callable[..., Job],
    work: Callable[[Job, Progress], None],
    call: str,
    after: PowerState,
) -> None:
    set_power(hypervisor, machine, Power.ON)
    assert run(ask(vm_id=machine.pk, actor=alice), work).status == JobStatus.SUCCEEDED
    machine.refresh_from_db()
    assert (machine.power_state, call in hypervisor.calls) == (after, True)


def test_refused_by_what_is_known(machine: VirtualMachine, hypervisor: FakeHypervisor, alice: User) -> None:
    for ask in (power.power_off, power.shut_down, power.reboot):
        with pytest.raises(Conflict) as caught:
            ask(vm_id=machine.pk, actor=alice)
        assert caught.value.code == "vm_not_running"
    set_power(hypervisor, machine, Power.ON)
    for change, code in (
        ({}, "vm_running"),
        ({"is_present": False}, "vm_not_present"),
    ):
        VirtualMachine.objects.update(**change)
        with pytest.raises(Conflict) as caught:
            power.power_on(vm_id=machine.pk, actor=alice)
        assert caught.value.code == code
    VirtualMachine.objects.update(is_present=True, power_state=PowerState.OFF)
    Host.objects.update(state=Host.State.DISCONNECTED)
    with pytest.raises(Conflict) as caught:
        power.power_on(vm_id=machine.pk, actor=alice)
    assert caught.value.code == "host_disconnected"
    with pytest.raises(NotFound):
        power.power_on(vm_id=uuid4(), actor=alice)
    assert not Job.objects.exists()


def test_twice_is_busy(machine: VirtualMachine, alice: User) -> None:
    power.power_on(vm_id=machine.pk, actor=alice)
    with pytest.raises(Conflict) as caught:
        power.power_on(vm_id=machine.pk, actor=alice)
    assert caught.value.code == "target_busy"


def test_who_may_not(machine: VirtualMachine, charlie: User) -> None:
    for ask in (power.power_on, power.power_off, power.shut_down, power.reboot):
        with pytest.raises(Refused):
            ask(vm_id=machine.pk, actor=charlie)
    assert not Job.objects.exists()


def test_steps_run_in_order_around_the_start(machine: VirtualMachine, hypervisor: FakeHypervisor, alice: User) -> None:
    seen: list[str] = []

    def step(name: str) -> power.StartStep:
        def note(vm: VirtualMachine, hypervisor: Hypervisor, job: Job) -> None:
            seen.append(f"{name} {hypervisor.virtual_machine(vm.uuid).power}")

        return note

    power.register_start_step(step("gate"))
    power.register_start_step(step("keys"))
    power.register_after_start(step("withdraw"))
    run(power.power_on(vm_id=machine.pk, actor=alice), power.run_power_on)
    assert seen == ["gate off", "keys off", "withdraw on"]


def test_a_gate_stops_the_start_and_keys_are_taken_back(
    machine: VirtualMachine, hypervisor: FakeHypervisor, alice: User
) -> None:
    seen: list[str] = []

    def gate(vm: VirtualMachine, hypervisor: Hypervisor, job: Job) -> None:
        raise Untrusted("host_not_attested", "kvm-a has no good verdict")

    power.register_start_step(gate)
    power.register_after_start(lambda vm, hypervisor, job: seen.append("withdrawn"))
    job = run(power.power_on(vm_id=machine.pk, actor=alice), power.run_power_on)
    assert (job.status, job.error_code, seen) == (JobStatus.FAILED, "host_not_attested", ["withdrawn"])
    assert "power_on" not in hypervisor.calls


def test_what_libvirt_says_is_told(machine: VirtualMachine, hypervisor: FakeHypervisor, alice: User) -> None:
    hypervisor.failures["power_on"] = SecretMissing("secret_missing", "VM vm: a key is not on host kvm-a")
    job = run(power.power_on(vm_id=machine.pk, actor=alice), power.run_power_on)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "secret_missing")


def test_resumed_after_the_start_was_done(machine: VirtualMachine, hypervisor: FakeHypervisor, alice: User) -> None:
    job = power.power_on(vm_id=machine.pk, actor=alice)
    hypervisor.change(machine.uuid, power=Power.ON)
    assert run(job, power.run_power_on).status == JobStatus.SUCCEEDED
    assert "power_on" not in hypervisor.calls


def test_a_lost_host(machine: VirtualMachine, hypervisor: FakeHypervisor, alice: User) -> None:
    job = power.power_on(vm_id=machine.pk, actor=alice)
    hypervisor.is_reachable = False
    ended = run(job, power.run_power_on)
    assert (ended.status, ended.error_code) == (JobStatus.FAILED, "connection_refused")
