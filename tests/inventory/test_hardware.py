"""What a host can give and what Windows 11 misses, by page and API; where the facts come from."""

from dataclasses import replace
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from inventory import jobs
from inventory.engine.abilities import HostAbilities
from inventory.engine.platform import Platform
from inventory.models import Cluster, Event, Host, TargetKind, VirtualMachine
from inventory.services import hosts, sync
from inventory.views import extensions
from tests.api_client import caller
from tests.fakes import GIB, FakeHypervisor, FakeSite, disk, vm

pytestmark = pytest.mark.django_db
URI = "qemu+tls://kvm-new/system"
CAN = HostAbilities(
    virtualization="kvm", cpu_vendor="Intel", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True, viommu=True,
    nested="vmx", nested_in_cpu="vmx", hyperv=("relaxed", "vapic"), secure_loader="/fw/CODE.ms.fd",
    plain_loader="/fw/CODE.fd",
)  # fmt: skip
SET = Platform(
    domain_type="kvm", arch="x86_64", chipset="q35", smm=True, nested="vmx", iommu="intel", interrupt_remapping=True
)


@pytest.fixture(autouse=True)
def _no_broker(sent: object) -> None:
    pass


def connect(cluster: Cluster, actor: User) -> Host:
    job = hosts.add_host(cluster_id=cluster.pk, name="kvm-new", uri=URI, actor=actor)
    jobs.run(str(job.pk), hosts.run_connect_host)
    return Host.objects.get()


@pytest.fixture
def machine(site: FakeSite) -> FakeHypervisor:
    machine = site.add(URI)
    machine.can = CAN
    return machine


def test_abilities_are_asked_for_when_a_host_is_connected_and_refreshed(
    machine: FakeHypervisor, cluster: Cluster, alice: User, client: Client
) -> None:
    host = connect(cluster, alice)
    assert host.known_abilities == CAN
    first = host.abilities_checked_at
    machine.can = replace(CAN, nested="")
    jobs.run(str(hosts.refresh_host(host_id=host.pk, actor=alice).pk), hosts.run_connect_host)
    host.refresh_from_db()
    assert host.known_abilities.nested == ""
    assert first is not None and host.abilities_checked_at is not None and host.abilities_checked_at > first
    client.force_login(alice)
    page = client.get(f"/inventory/host/{host.pk}/configure/abilities/").content.decode()
    assert "The processor has vmx, and the kernel does not pass it on" in page
    assert "Load kvm_intel with nested=1" in page
    assert page.count(">Yes<") == 8
    answer = caller(alice).get(f"/hosts/{host.pk}/abilities")
    found = {one["code"]: one for one in answer.body["abilities"]}
    assert answer.body["checked_at"]
    assert [found["kvm"]["is_there"], found["nested"]["is_there"]] == [True, False]
    assert found["secure_boot"]["text"] == "/fw/CODE.ms.fd"


@pytest.mark.parametrize(
    ("can", "code", "text"),
    [
        (replace(CAN, virtualization="qemu", nested="svm"), "nested", "svm, emulated in software"),
        (replace(CAN, virtualization="qemu"), "kvm", "VMs run in software emulation (TCG)"),
        (replace(CAN, nested="", nested_in_cpu=""), "nested", "VMs get none"),
        (replace(CAN, vtpm=False), "vtpm", "No emulated TPM 2.0 is offered by libvirt"),
        (replace(CAN, secure_boot=False), "secure_boot", "No such firmware is known to libvirt"),
        (replace(CAN, viommu=False), "viommu", "QEMU has none for q35"),
        (replace(CAN, hyperv=()), "hyperv", "None"),
    ],
)
def test_words(
    machine: FakeHypervisor, cluster: Cluster, alice: User, can: HostAbilities, code: str, text: str
) -> None:
    machine.can = can
    host = connect(cluster, alice)
    found = {one["code"]: one for one in caller(alice).get(f"/hosts/{host.pk}/abilities").body["abilities"]}
    assert found[code]["text"] == text
    assert all(bool(one["remedy"]) != one["is_there"] for one in found.values())


def test_a_host_that_cannot_be_asked(site: FakeSite, cluster: Cluster, alice: User, client: Client) -> None:
    site.add(URI)
    host = connect(cluster, alice)
    assert host.state == Host.State.CONNECTED
    client.force_login(alice)
    assert "has not been asked" in client.get(f"/inventory/host/{host.pk}/configure/abilities/").content.decode()
    assert caller(alice).get(f"/hosts/{host.pk}/abilities").body == {"checked_at": None, "abilities": []}


def test_the_card_and_the_api_of_windows_11(
    machine: FakeHypervisor, cluster: Cluster, alice: User, client: Client
) -> None:
    facts = vm(
        "win", vcpus=2, memory_bytes=4 * GIB, has_secure_boot=True, platform=SET,
        disks=(disk(capacity_bytes=64 * GIB), disk("sda", device="cdrom", capacity_bytes=99 * GIB)),
    )  # fmt: skip
    machine.add(facts)
    host = connect(cluster, alice)
    row = VirtualMachine.objects.get()
    assert row.known_platform == SET and row.has_vbs
    assert caller(alice).get(f"/virtual-machines/{row.pk}").body["has_vbs"] is True
    client.force_login(alice)
    assert "Ready for Windows 11" in client.get(f"/inventory/vm/{row.pk}/windows-11/").content.decode()
    assert caller(alice).get(f"/virtual-machines/{row.pk}/windows-11-readiness").body["is_ready"] is True
    machine.change(facts.uuid, vcpus=1, tpm=None)
    sync.sync_host(host, machine)
    page = client.get(f"/inventory/vm/{row.pk}/windows-11/").content.decode()
    assert "Not ready for Windows 11" in page and "Add a virtual TPM under VM Options" in page
    body = caller(alice).get(f"/virtual-machines/{row.pk}/windows-11-readiness").body
    assert body["is_ready"] is False
    assert [one["code"] for one in body["requirements"] if one["remedy"]] == ["tpm", "vcpus"]


def test_the_card_stands_behind_those_of_the_apps_above() -> None:
    vm_id = uuid4()
    urls = extensions.card_urls(TargetKind.VIRTUAL_MACHINE, vm_id)
    assert len(urls) > 1 and urls[-1] == reverse("inventory:windows-card", args=[vm_id])


def test_vbs_taken_away_behind_our_back_is_drift(machine: FakeHypervisor, cluster: Cluster, alice: User) -> None:
    facts = vm("win", has_secure_boot=True, platform=SET)
    machine.add(facts)
    host = connect(cluster, alice)
    machine.change(facts.uuid, platform=replace(SET, iommu=""))
    sync.sync_host(host, machine)
    event = Event.objects.filter(kind="vm.changed").get()
    assert (event.data["fields"], event.severity) == (["vbs"], "warning")
    assert not VirtualMachine.objects.get().has_vbs


def test_a_platform_that_becomes_known_is_no_change_to_tell(
    machine: FakeHypervisor, cluster: Cluster, alice: User
) -> None:
    facts = vm("old")
    machine.add(facts)
    host = connect(cluster, alice)
    machine.vms[facts.uuid] = replace(facts, platform=SET)
    sync.sync_host(host, machine)
    assert VirtualMachine.objects.get().known_platform == SET
    assert not Event.objects.filter(kind="vm.changed").exists()
