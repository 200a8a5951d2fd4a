"""What a host reports becomes rows and events: new, changed, gone, moved, back."""

from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from inventory import jobs
from inventory.engine.hypervisor import DatastoreFacts, Power, TpmFacts
from inventory.models import (
    Cluster,
    Datastore,
    Disk,
    Event,
    Host,
    PowerState,
    Severity,
    VirtualMachine,
    VmDefinition,
)
from inventory.services import definitions, sync, vm_rows
from tests.fakes import FakeHypervisor, FakeSite, disk, vm

pytestmark = pytest.mark.django_db
KIND = jobs.register(jobs.JobKind("tests.sync_job", "Test job"))


@pytest.fixture
def synced(host: Host, hypervisor: FakeHypervisor) -> FakeHypervisor:
    """Two VMs, known already; the events of that are forgotten."""
    hypervisor.add(vm("one"), vm("two", power=Power.ON))
    sync.sync_host(host, hypervisor)
    Event.objects.all().delete()
    return hypervisor


def told() -> list[str]:
    return list(Event.objects.order_by("id").values_list("kind", flat=True))


def row(name: str) -> VirtualMachine:
    return VirtualMachine.objects.get(name=name)


def test_first_round_tells_numbers_in_one_event(host: Host, hypervisor: FakeHypervisor) -> None:
    hypervisor.add(*(vm(f"vm{number}") for number in range(5)))
    assert sync.sync_host(host, hypervisor).new == 5
    event = Event.objects.get()
    assert (event.kind, event.data) == ("host.synced", {"virtual_machines": 5})
    found = row("vm3")
    assert (found.power_state, found.firmware, found.tpm_model, found.vcpus) == ("off", "uefi", "tpm-crb", 2)
    assert [(d.target, d.capacity_bytes) for d in found.disks.all()] == [("vda", 10 * 2**30)]
    assert Datastore.objects.get().path == "/images"


def test_nothing_new_writes_nothing(host: Host, synced: FakeHypervisor) -> None:
    before = row("one").last_changed_at
    assert sync.sync_host(host, synced).changed == 0
    assert (told(), row("one").last_changed_at) == ([], before)


def test_new_vm_is_discovered(host: Host, synced: FakeHypervisor) -> None:
    synced.add(vm("three"))
    sync.sync_host(host, synced)
    event = Event.objects.get()
    assert (event.kind, event.target_name, event.target_id) == ("vm.discovered", "three", row("three").pk)


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (Power.OFF, Power.ON, "vm.powered_on"),
        (Power.ON, Power.OFF, "vm.powered_off"),
        (Power.ON, Power.PAUSED, "vm.paused"),
        (Power.PAUSED, Power.ON, "vm.resumed"),
        (Power.ON, Power.CRASHED, "vm.crashed"),
    ],
)
def test_power(host: Host, hypervisor: FakeHypervisor, before: Power, after: Power, kind: str) -> None:
    facts = vm("one", power=before)
    hypervisor.add(facts)
    sync.sync_host(host, hypervisor)
    hypervisor.change(facts.uuid, power=after)
    sync.sync_host(host, hypervisor)
    assert told() == ["host.synced", kind]
    assert row("one").power_state == after.value


def test_drift_of_what_protects_a_vm_is_a_warning(host: Host, synced: FakeHypervisor) -> None:
    changed = (disk(is_encrypted=True, secret_uuid=uuid4(), source="/images/vda.luks"),)
    synced.change(row("one").uuid, disks=changed, tpm=TpmFacts("tpm-crb", "2.0", True, uuid4()))
    sync.sync_host(host, synced)
    event = Event.objects.get()
    assert (event.kind, event.severity) == ("vm.changed", Severity.WARNING)
    assert event.data == {"fields": ["is_tpm_encrypted", "disks", "disk_encryption"], "drift": True}
    assert row("one").disks.get().is_encrypted


def test_a_change_by_our_own_job_is_not_drift(host: Host, synced: FakeHypervisor, alice: object, sent: object) -> None:
    machine = row("one")
    job = jobs.start(KIND, target=machine, actor=alice)  # type: ignore[arg-type]
    synced.change(machine.uuid, tpm=TpmFacts("tpm-crb", "2.0", True, uuid4()))
    sync.refresh_virtual_machine(machine, synced)
    event = Event.objects.get()
    assert (event.severity, event.actor, event.job_id) == (Severity.INFO, "alice", job.pk)
    assert machine.is_tpm_encrypted


def test_other_changes(host: Host, synced: FakeHypervisor) -> None:
    synced.change(row("one").uuid, memory_bytes=5 * 2**30)
    synced.change(row("two").uuid, definition_sha256="f" * 64)
    sync.sync_host(host, synced)
    found = {event.target_name: (event.severity, event.data["fields"]) for event in Event.objects.all()}
    assert found == {"one": ("info", ["memory_bytes"]), "two": ("info", ["definition"])}


@pytest.mark.parametrize(
    ("fact", "value", "is_warning"),
    [
        ("has_managed_save", True, True), ("memory_snapshot_count", 1, True), ("dumps_core", False, True),
        ("snapshot_count", 2, False), ("is_autostarted", True, False),
    ],
)  # fmt: skip
def test_what_libvirt_keeps_beside_the_definition(
    host: Host, synced: FakeHypervisor, fact: str, value: object, is_warning: bool
) -> None:
    uuid = row("one").uuid
    synced.vms[uuid] = replace(synced.vms[uuid], **{fact: value})  # type: ignore[arg-type]
    sync.sync_host(host, synced)
    assert getattr(row("one"), fact) == value
    event = Event.objects.get(kind="vm.changed")
    assert event.data["fields"] == [fact]
    assert (event.severity == Severity.WARNING) is is_warning


def test_apps_above_are_told_of_changed_rows_only(
    host: Host, synced: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Host] = []
    monkeypatch.setattr(sync, "_CHANGED", [told.append])
    sync.sync_host(host, synced)
    assert told == []
    synced.change(row("one").uuid, vcpus=7)
    sync.refresh_uuids(host, synced, [row("one").uuid])
    assert told == [host]
    synced.change(row("one").uuid, vcpus=8)
    sync.sync_host(host, synced)
    assert told == [host, host]


def test_sizes_change_silently_and_unknown_ones_keep_the_last(host: Host, synced: FakeHypervisor) -> None:
    facts = synced.vms[row("one").uuid]
    synced.change(facts.uuid, disks=(disk(allocation_bytes=7),), definition_sha256=facts.definition_sha256)
    sync.sync_host(host, synced)
    assert (told(), row("one").disks.get().allocation_bytes) == ([], 7)
    synced.change(row("one").uuid, disks=(disk(capacity_bytes=0, allocation_bytes=0),), definition_sha256="a" * 64)
    sync.sync_host(host, synced)
    assert row("one").disks.get().allocation_bytes == 7


def test_disks_keep_their_rows(host: Host, synced: FakeHypervisor) -> None:
    machine = row("one")
    vda = machine.disks.get().pk
    synced.change(machine.uuid, disks=(disk("vda", source="/images/new.img"), disk("vdb")))
    sync.sync_host(host, synced)
    assert machine.disks.get(target="vda").pk == vda
    synced.change(machine.uuid, disks=(disk("vdb"),))
    sync.sync_host(host, synced)
    assert list(machine.disks.values_list("target", flat=True)) == ["vdb"]
    assert Disk.objects.filter(virtual_machine=row("two")).count() == 1


def test_gone_and_back_is_the_same_row(host: Host, synced: FakeHypervisor) -> None:
    machine = row("two")
    facts = synced.vms.pop(machine.uuid)
    sync.sync_host(host, synced)
    machine.refresh_from_db()
    assert (machine.is_present, machine.power_state) == (False, PowerState.UNKNOWN)
    assert told() == ["vm.gone"]
    sync.sync_host(host, synced)
    assert told() == ["vm.gone"]
    synced.add(facts)
    sync.sync_host(host, synced)
    machine.refresh_from_db()
    assert (machine.is_present, machine.power_state) == (True, PowerState.ON)
    assert told() == ["vm.gone", "vm.discovered"]


def test_refresh_of_one_that_is_gone(host: Host, synced: FakeHypervisor) -> None:
    machine = row("one")
    del synced.vms[machine.uuid]
    assert sync.refresh_virtual_machine(machine, synced).is_present is False
    assert row("two").is_present


def test_unreadable_definition_keeps_what_was_known(host: Host, synced: FakeHypervisor) -> None:
    machine = row("one")
    synced.change(machine.uuid, definition_sha256="", memory_bytes=0, disks=(), power=Power.ON)
    sync.sync_host(host, synced)
    machine.refresh_from_db()
    assert (machine.memory_bytes, machine.disks.count(), machine.power_state) == (2**30, 1, "on")


def test_facts_older_than_the_row_are_ignored(host: Host, synced: FakeHypervisor) -> None:
    VirtualMachine.objects.filter(name="one").update(
        power_state=PowerState.ON, last_changed_at=timezone.now() + timedelta(seconds=5)
    )
    sync.sync_host(host, synced)
    assert (row("one").power_state, told()) == ("on", [])


@pytest.fixture
def other(cluster: Cluster, site: FakeSite) -> Host:
    host = Host.objects.create(
        cluster=cluster, name="kvm-b", uri="qemu+tls://kvm-b/system", state=Host.State.CONNECTED,
        last_seen_at=timezone.now(),
    )  # fmt: skip
    site.add(host.uri)
    return host


def test_moved_vm_is_the_same_row(host: Host, synced: FakeHypervisor, other: Host, site: FakeSite) -> None:
    machine = row("two")
    target = site.hosts[other.uri]
    target.add(synced.vms.pop(machine.uuid))
    sync.sync_host(other, target)
    machine.refresh_from_db()
    assert (machine.host_id, machine.is_present) == (other.pk, True)
    event = Event.objects.get()
    assert (event.kind, event.data) == ("vm.moved", {"from": "kvm-a", "to": "kvm-b"})
    sync.sync_host(host, synced)
    assert told() == ["vm.moved"]


def test_moved_after_its_old_host_said_so(host: Host, synced: FakeHypervisor, other: Host, site: FakeSite) -> None:
    machine = row("two")
    target = site.hosts[other.uri]
    target.add(synced.vms.pop(machine.uuid))
    sync.sync_host(host, synced)
    sync.refresh_uuids(other, target, [machine.uuid])
    assert told() == ["vm.gone", "vm.moved"]
    assert VirtualMachine.objects.filter(uuid=machine.uuid).get().host_id == other.pk


def test_moved_from_a_host_that_died(host: Host, synced: FakeHypervisor, other: Host, site: FakeSite) -> None:
    machine = row("two")
    synced.is_reachable = False
    site.hosts[other.uri].add(synced.vms[machine.uuid])
    sync.sync_host(other, site.hosts[other.uri])
    assert VirtualMachine.objects.get(uuid=machine.uuid).host_id == other.pk


def test_a_copy_on_two_hosts_is_two_rows(host: Host, synced: FakeHypervisor, other: Host, site: FakeSite) -> None:
    machine = row("one")
    site.hosts[other.uri].add(synced.vms[machine.uuid])
    sync.sync_host(other, site.hosts[other.uri])
    assert VirtualMachine.objects.filter(uuid=machine.uuid).count() == 2


def test_one_that_is_only_arriving_waits(host: Host, synced: FakeHypervisor, other: Host, site: FakeSite) -> None:
    machine = row("two")
    target = site.hosts[other.uri]
    target.add(synced.vms[machine.uuid])
    target.change(machine.uuid, is_persistent=False, power=Power.PAUSED)
    sync.sync_host(other, target)
    assert VirtualMachine.objects.filter(uuid=machine.uuid).get().host_id == host.pk


def test_datastores(host: Host, synced: FakeHypervisor) -> None:
    kept = Datastore.objects.get().pk
    synced.pools = [
        DatastoreFacts("default", "dir", "/images", False, 1, 1),
        DatastoreFacts("fast", "logical", "/dev/vg", True, 2, 2),
    ]
    sync.sync_datastores(host, synced)
    assert dict(Datastore.objects.values_list("name", "is_active")) == {"default": False, "fast": True}
    assert Datastore.objects.get(name="default").pk == kept
    synced.pools = []
    sync.sync_datastores(host, synced)
    assert Datastore.objects.count() == 0


def test_queries_do_not_grow_with_the_number_of_vms(host: Host, hypervisor: FakeHypervisor) -> None:
    counts = []
    for number in (50, 2000):
        hypervisor.add(
            *(vm(f"vm{len(hypervisor.vms)}", definition="<domain/>") for _ in range(number - len(hypervisor.vms)))
        )
        sync.sync_host(host, hypervisor)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            sync.sync_host(host, hypervisor)
        counts.append(len(queries))
    assert counts[0] == counts[1]
    assert counts[0] <= 16


def test_definitions_are_stored_when_they_change(host: Host, hypervisor: FakeHypervisor) -> None:
    """What the host need not send again is known by its digest; one that is too long is noted, so that it is not asked
    for each time."""
    one, two = vm("one", definition="<domain/>"), vm("two", definition="x" * (vm_rows.MOST_CHARACTERS + 1))
    hypervisor.add(one, two)
    sync.sync_host(host, hypervisor)
    stored = {found.virtual_machine.name: found for found in VmDefinition.objects.select_related("virtual_machine")}
    assert (stored["one"].xml, stored["two"].xml) == ("<domain/>", "")
    assert definitions.stored_definition(row("one")) == "<domain/>"
    rows = VirtualMachine.objects.filter(host=host)
    assert set(vm_rows.kept_definitions(rows)) == {one.definition_sha256, two.definition_sha256}
    hypervisor.change(one.uuid, vcpus=8, definition="<domain>8</domain>")
    sync.sync_host(host, hypervisor)
    assert definitions.stored_definition(row("one")) == "<domain>8</domain>"
    hypervisor.change(one.uuid, vcpus=4, definition="")  # a host that did not send it
    sync.sync_host(host, hypervisor)
    assert definitions.stored_definition(row("one")) == "" and set(vm_rows.kept_definitions(rows)) == {
        two.definition_sha256
    }


def test_a_definition_goes_with_its_vm(host: Host, hypervisor: FakeHypervisor) -> None:
    one = vm("one", definition="<domain/>")
    hypervisor.add(one)
    sync.refresh_uuids(host, hypervisor, [one.uuid])
    assert VmDefinition.objects.get().sha256 == one.definition_sha256
    row("one").delete()
    assert not VmDefinition.objects.exists()
