"""Secure Boot and VBS through the page and the API: what is planned, what is refused, by whom it may be asked."""

import html
from dataclasses import replace
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.models import StoragePolicy
from inventory.engine.abilities import HostAbilities
from inventory.engine.platform import Platform
from inventory.models import Disk, Event, Host, Job, PowerState, VirtualMachine
from tests.api_client import caller

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
CAN = HostAbilities(
    virtualization="kvm", cpu_vendor="Intel", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True, viommu=True,
    nested="vmx", nested_in_cpu="vmx", secure_loader="/fw/CODE_4M.ms.fd", plain_loader="/fw/CODE_4M.fd",
)  # fmt: skip
PLATFORM = Platform(domain_type="kvm", arch="x86_64", chipset="q35", loader="/fw/CODE_4M.fd")
SET = replace(PLATFORM, smm=True, nested="vmx", iommu="intel", interrupt_remapping=True, remembers_vbs=True)


@pytest.fixture
def vm(host: Host) -> VirtualMachine:
    host.uri, host.abilities = "qemu:///system", CAN.as_row()
    host.save()
    made = VirtualMachine.objects.create(
        host=host, uuid=uuid4(), name="win-01", power_state=PowerState.OFF, firmware="uefi", nvram_path="/n/VARS.fd",
        platform=PLATFORM.as_text(), machine="pc-q35-7.2",
    )  # fmt: skip
    Disk.objects.create(
        virtual_machine=made, target="vda", format="raw", source="/i/vda.raw", capacity_bytes=2**30,
        allocation_bytes=2**20,
    )  # fmt: skip
    return made


def body(**hardware: object) -> dict[str, object]:
    return {"policy_id": str(StoragePolicy.objects.get(is_builtin=True, encrypts=False).pk)} | hardware


def test_the_plan_and_the_job(vm: VirtualMachine, alice: User, charlie: User) -> None:
    path = f"/virtual-machines/{vm.pk}/options"
    plan = caller(charlie).post(f"{path}/plan", body(vbs=True)).body
    assert [step["kind"] for step in plan["steps"]] == ["set_firmware", "set_vbs", "switch_definition"]
    assert [one["code"] for one in plan["warnings"]] == ["vbs_in_guest", "keys_enrolled"]
    assert "msinfo32" in plan["warnings"][0]["hint"]
    assert caller(charlie).post(path, body(vbs=True)).status == 403
    assert not Job.objects.exists()
    assert caller(alice).post(path, body(vbs=True)).status == 202
    assert Job.objects.get().params["vbs"] is True
    assert caller(alice).post(path, body(vbs=True)).code == "target_busy"
    assert Event.objects.get(kind="vm.options_requested").data["steps"][0] == "Switch Secure Boot on"


def hardware(**changes: object) -> dict[str, object]:
    return {"platform": replace(PLATFORM, **changes).as_text()}  # type: ignore[arg-type]


def can(**changes: object) -> dict[str, object]:
    return {"abilities": replace(CAN, **changes).as_row()}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("vm_changes", "host_changes", "wish", "code"),
    [
        ({"power_state": "on"}, {}, {"vbs": True}, "vbs_needs_power_off"),
        ({"firmware": "bios", "nvram_path": ""}, {}, {"vbs": True}, "vbs_needs_uefi"),
        (hardware(chipset="i440fx"), {}, {"vbs": True}, "vbs_needs_q35"),
        (hardware(passthrough=1), {}, {"vbs": True}, "vbs_with_passthrough"),
        (hardware(has_cpu_hot_add=True), {}, {"vbs": True}, "vbs_with_hotplug"),
        (hardware(has_memory_hot_add=True), {}, {"vbs": True}, "vbs_with_hotplug"),
        (hardware(iommu="virtio"), {}, {"vbs": True}, "vbs_with_other_viommu"),
        (hardware(domain_type="qemu"), {}, {"vbs": True}, "vbs_in_emulation"),
        (hardware(loader="/fw/CODE.fd"), {}, {"secure_boot": True}, "firmware_of_other_size"),
        ({}, can(nested=""), {"vbs": True}, "nested_not_on_host"),
        ({}, can(viommu=False), {"vbs": True}, "viommu_not_on_host"),
        ({}, can(smm=False), {"secure_boot": True}, "smm_not_on_host"),
        ({}, can(secure_boot=False, secure_loader=""), {"secure_boot": True}, "secure_boot_not_on_host"),
        ({"has_secure_boot": True}, can(plain_loader=""), {"secure_boot": False}, "plain_uefi_not_on_host"),
        ({}, {"abilities": {}}, {"vbs": True}, "host_not_asked"),
        ({"has_secure_boot": True}, {}, {"vbs": True, "secure_boot": False}, "vbs_needs_secure_boot"),
        (
            {"platform": SET.as_text(), "has_secure_boot": True}, {}, {"secure_boot": False}, "vbs_needs_secure_boot",
        ),
        ({"snapshot_count": 1}, {}, {"vbs": True}, "snapshots_present"),
    ],
)  # fmt: skip
def test_refused(
    vm: VirtualMachine,
    alice: User,
    client: Client,
    vm_changes: dict[str, object],
    host_changes: dict[str, object],
    wish: dict[str, object],
    code: str,
) -> None:
    VirtualMachine.objects.filter(pk=vm.pk).update(**vm_changes)
    Host.objects.filter(pk=vm.host_id).update(**host_changes)
    path = f"/virtual-machines/{vm.pk}/options"
    plan = caller(alice).post(f"{path}/plan", body(**wish)).body
    assert code in [one["code"] for one in plan["refusals"]]
    answer = caller(alice).post(path, body(**wish))
    assert (answer.status, answer.code) == (409, code)
    assert "win-01" in answer.body["message"] and answer.body["hint"]
    client.force_login(alice)
    policy = str(body()["policy_id"])
    sent = {"policy": policy, "disk-vda": policy} | {name: "on" if value else "off" for name, value in wish.items()}
    page = client.post(reverse("encryption:vm-options", args=[vm.pk]), sent)
    assert page.status_code == 409
    assert answer.body["message"] in html.unescape(page.content.decode())
    assert not Job.objects.exists()


def test_unset_of_what_is_set(vm: VirtualMachine, alice: User) -> None:
    VirtualMachine.objects.filter(pk=vm.pk).update(platform=SET.as_text(), has_secure_boot=True)
    plan = caller(alice).post(f"/virtual-machines/{vm.pk}/options/plan", body(vbs=False)).body
    assert [step["kind"] for step in plan["steps"]] == ["unset_vbs", "switch_definition"]
    assert [one["code"] for one in plan["warnings"]] == ["vbs_off_in_guest"]
