"""Compliance through its URLs and over REST: shown with findings and evidence, asked for, refused."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.models import Compliance, Key, KmsCluster, LockCause, StoragePolicy, VmSecurity
from inventory.models import Host, Job, VirtualMachine
from tests.api_client import Caller, caller

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
FINDING = {
    "code": "disk_plain", "part": "vda", "expected": "encrypted by Gold", "observed": "in clear",
    "evidence": "vda: /i/vda.raw: no <LUKS> header", "remedy": "apply its VM Options again", "is_unknown": False,
}  # fmt: skip


@pytest.fixture
def call(alice: User) -> Caller:
    return caller(alice)


@pytest.fixture
def policy(db: None) -> StoragePolicy:
    return StoragePolicy.objects.create(name="Gold")


@pytest.fixture
def plain_vm(host: Host) -> VirtualMachine:
    return VirtualMachine.objects.create(host=host, uuid=uuid4(), name="plain")


@pytest.fixture
def vm(host: Host, policy: StoragePolicy) -> VirtualMachine:
    made = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app-01")
    key = Key.objects.create(cluster=KmsCluster.objects.create(name="KMS"), key_id="7")
    VmSecurity.objects.create(virtual_machine=made, policy=policy, key=key)
    return made


def pages_of(vm: VirtualMachine) -> dict[str, str]:
    return {
        "options": reverse("encryption:vm-options", args=[vm.pk]),
        "card": reverse("encryption:vm-card", args=[vm.pk]),
        "list": reverse("inventory:vms", args=["host", vm.host_id]),
        "summary": reverse("inventory:summary", args=["vm", vm.pk]),
    }


def test_a_finding_is_shown_wherever_the_vm_is(admin: Client, call: Caller, vm: VirtualMachine) -> None:
    Compliance.objects.create(
        virtual_machine=vm, state="noncompliant", findings=[FINDING],
        observations=[{"part": "vda", "state": "plain", "evidence": "seen"}],
    )  # fmt: skip
    for name, address in pages_of(vm).items():
        assert "Not compliant" in admin.get(address).content.decode(), name
    options = admin.get(pages_of(vm)["options"]).content.decode()
    assert "no &lt;LUKS&gt; header" in options and "Apply its VM Options again" in options
    found = call.get(f"/virtual-machines/{vm.pk}/compliance").body
    assert (found["state"], found["findings"], found["observations"][0]["evidence"]) == (
        "noncompliant", [FINDING], "seen",
    )  # fmt: skip


def test_a_compliant_vm_has_no_mark_and_a_locked_one_has_its_own(admin: Client, vm: VirtualMachine) -> None:
    row = Compliance.objects.create(virtual_machine=vm, state="compliant")
    assert "ompliant" not in admin.get(pages_of(vm)["list"]).content.decode()
    assert "Compliant" in admin.get(pages_of(vm)["card"]).content.decode()
    Compliance.objects.filter(pk=row.pk).update(state="unknown")
    VmSecurity.objects.update(locked_at=vm.first_seen_at, lock_cause=LockCause.KMS_ERROR)
    page = admin.get(pages_of(vm)["list"]).content.decode()
    assert "Compliance not known" in page and "Locked" in page


def test_not_looked_at_yet_and_not_protected(admin: Client, call: Caller, vm: VirtualMachine) -> None:
    assert "Not checked" in admin.get(pages_of(vm)["options"]).content.decode()
    assert call.get(f"/virtual-machines/{vm.pk}/compliance").body["state"] is None


def test_asked_for_once_at_a_time(
    admin: Client, call: Caller, vm: VirtualMachine, policy: StoragePolicy, host: Host
) -> None:
    asked = {
        "vm-check": (vm.pk, f"/virtual-machines/{vm.pk}"),
        "policy-check": (policy.pk, f"/storage-policies/{policy.pk}"),
        "host-check": (host.pk, f"/hosts/{host.pk}"),
    }
    for name, (target, path) in asked.items():
        address = reverse(f"encryption:{name}", args=[target])
        assert "Check now" in admin.get(address).content.decode()
        assert admin.post(address).status_code == 302
        assert call.post(f"{path}/check-compliance").code == "target_busy"
        assert admin.post(address).status_code == 409
        Job.objects.update(status="succeeded")
        assert call.post(f"{path}/check-compliance").status == 202
        Job.objects.update(status="succeeded")
    assert {job.kind for job in Job.objects.all()} == {"encryption.check_compliance"}


def test_refusals(admin: Client, call: Caller, charlie: User, plain_vm: VirtualMachine, vm: VirtualMachine) -> None:
    unused, gone = StoragePolicy.objects.create(name="Silver"), uuid4()
    for name, target, path, status, code in (
        ("vm-check", plain_vm.pk, "virtual-machines", 409, "not_encrypted"),
        ("vm-check", gone, "virtual-machines", 404, "vm_not_found"),
        ("policy-check", unused.pk, "storage-policies", 409, "policy_not_used"),
        ("policy-check", gone, "storage-policies", 404, "policy_not_found"),
        ("host-check", gone, "hosts", 404, "host_not_found"),
    ):
        assert admin.post(reverse(f"encryption:{name}", args=[target])).status_code == status, name
        assert call.post(f"/{path}/{target}/check-compliance").code == code
    assert call.get(f"/virtual-machines/{gone}/compliance").code == "vm_not_found"
    looker = Client()
    looker.force_login(charlie)
    assert looker.post(reverse("encryption:vm-check", args=[vm.pk])).status_code == 403
    assert caller(charlie).post(f"/virtual-machines/{vm.pk}/check-compliance").code == "not_permitted"
    assert "Check now" not in looker.get(pages_of(vm)["options"]).content.decode()
    VirtualMachine.objects.filter(pk=vm.pk).update(is_present=False)
    assert admin.post(reverse("encryption:vm-check", args=[vm.pk])).status_code == 409
    assert call.post(f"/virtual-machines/{vm.pk}/check-compliance").code == "vm_gone"
    assert not Job.objects.exists()
