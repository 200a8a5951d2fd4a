"""The event listener with real threads and a real database, on fake hosts. It waits for what must come."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from inventory.engine.hypervisor import Change, HostChange, Power
from inventory.models import Event, Host, VirtualMachine
from inventory.services import watch
from tests.fakes import FakeHypervisor, FakeSite, vm

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "DEBOUNCE_SECONDS", 0.02)
    monkeypatch.setattr(watch, "LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(watch, "FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(watch, "_RECONNECTED", [])

    changes = FakeHypervisor.changes

    def slowly(self: FakeHypervisor, *, idle_seconds: float = 0.5) -> Iterator[HostChange]:
        for change in changes(self, idle_seconds=idle_seconds):
            yield change
            if change.change is Change.IDLE:
                time.sleep(idle_seconds)

    monkeypatch.setattr(FakeHypervisor, "changes", slowly)


@pytest.fixture
def watching(host: Host, hypervisor: FakeHypervisor) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=watch.watch_all, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert not [found for found in threading.enumerate() if found.name.startswith("watch-")]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.02)


def state(host: Host) -> str:
    return Host.objects.values_list("state", flat=True).get(pk=host.pk)


def test_follows_a_host(host: Host, hypervisor: FakeHypervisor, watching: None) -> None:
    facts = vm("vm")
    hypervisor.add(facts)
    hypervisor.events.append(HostChange(Change.VM, facts.uuid))
    until(lambda: VirtualMachine.objects.filter(name="vm").exists())
    hypervisor.change(facts.uuid, power=Power.ON)
    hypervisor.events.append(HostChange(Change.VM, facts.uuid))
    until(lambda: Event.objects.filter(kind="vm.powered_on").exists())
    hypervisor.pools = []
    hypervisor.events.append(HostChange(Change.DATASTORES))
    until(lambda: not host.datastores.exists())


def test_lost_and_found_again(
    host: Host, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch, watching: None
) -> None:
    again: list[str] = []
    watch.register_reconnected(lambda host, hypervisor: again.append(host.name))
    until(lambda: Host.objects.filter(pk=host.pk, last_seen_at__isnull=False).exists())
    hypervisor.is_reachable = False
    until(lambda: state(host) == Host.State.DISCONNECTED)
    hypervisor.add(vm("new"))
    hypervisor.is_reachable = True
    until(lambda: state(host) == Host.State.CONNECTED and bool(again))
    until(lambda: VirtualMachine.objects.filter(name="new").exists())
    kinds = set(Event.objects.values_list("kind", flat=True))
    assert {"host.disconnected", "host.connected"} <= kinds


def test_added_edited_and_removed_hosts(host: Host, site: FakeSite, watching: None) -> None:
    uri = "qemu+tls://kvm-b/system"
    site.add(uri).add(vm("on-b"))
    other = Host.objects.create(cluster=host.cluster, name="kvm-b", uri=uri, state=Host.State.CONNECTED)
    until(lambda: VirtualMachine.objects.filter(name="on-b").exists())
    elsewhere = "qemu+tls://kvm-c/system"
    site.add(elsewhere).add(vm("on-c"))
    Host.objects.filter(pk=other.pk).update(uri=elsewhere)
    until(lambda: VirtualMachine.objects.filter(name="on-c").exists())
    other.delete()
    until(lambda: not [found for found in threading.enumerate() if found.name == f"watch-{other.pk}"])
