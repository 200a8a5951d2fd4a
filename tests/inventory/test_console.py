"""Console text: asked for at most every two seconds, read by a worker, shown with its age."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import User

from inventory.errors import NotFound, Refused
from inventory.models import Event, Host, VirtualMachine
from inventory.services import console
from tests.fakes import FakeHypervisor

pytestmark = pytest.mark.django_db
Sent = list[tuple[str, list[str], str]]


@pytest.fixture
def machine(host: Host) -> VirtualMachine:
    return VirtualMachine.objects.create(host=host, uuid=uuid4(), name="vm")


def test_asked_once_then_shown(machine: VirtualMachine, hypervisor: FakeHypervisor, alice: User, sent: Sent) -> None:
    assert console.console_text(vm_id=machine.pk, actor=alice).text is None
    console.console_text(vm_id=machine.pk, actor=alice)
    assert sent == [("inventory.read_console", [str(machine.pk)], "control")]
    hypervisor.console[machine.uuid] = "login: "
    console.read_console(str(machine.pk))
    shown = console.console_text(vm_id=machine.pk, actor=alice)
    assert (shown.text, shown.problem, shown.age_seconds is not None) == ("login: ", "", True)
    told = Event.objects.get(kind="vm.console_read")
    assert (told.actor, told.target_id) == ("alice", machine.pk)


def test_why_there_is_none(machine: VirtualMachine, hypervisor: FakeHypervisor, alice: User, sent: Sent) -> None:
    console.read_console(str(machine.pk))
    shown = console.console_text(vm_id=machine.pk, actor=alice)
    assert shown.text is None
    assert "does not keep its console" in shown.problem
    assert "add a log" in shown.problem


def test_who_may_not(machine: VirtualMachine, alice: User, charlie: User, sent: Sent) -> None:
    with pytest.raises(Refused):
        console.console_text(vm_id=machine.pk, actor=charlie)
    with pytest.raises(NotFound):
        console.console_text(vm_id=uuid4(), actor=alice)
    assert sent == []
    assert not Event.objects.exists()
