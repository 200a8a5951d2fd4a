"""Storage policies, policies of disks, compliance and alarms in the browser: by keyboard, accessible."""

import pytest
from django.urls import reverse

from encryption.models import Compliance, DiskPolicy, Key, KmsCluster, StoragePolicy, VmSecurity
from inventory.alarms import raise_alarm
from inventory.models import Alarm, Severity, VirtualMachine
from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
EVIDENCE = "/var/lib/libvirt/images/app-db01-vdb.img: a boot sector in clear, no LUKS header; opened without encryption"


def protect(vm: VirtualMachine) -> StoragePolicy:
    provider = KmsCluster.objects.create(name="Main KMS", is_default=True)
    gold = StoragePolicy.objects.create(name="Gold", description="Yearly keys", max_key_age_days=365)
    key = Key.objects.create(cluster=provider, key_id="4f1c09d2", state=Key.State.ACTIVE)
    VmSecurity.objects.create(virtual_machine=vm, policy=gold, key=key)
    DiskPolicy.objects.create(virtual_machine=vm, target="vda", policy=gold)
    finding = {
        "code": "disk_plain_unknown", "part": "vdb", "expected": "a storage policy", "is_unknown": False,
        "observed": "a disk without one, not encrypted", "evidence": EVIDENCE,
        "remedy": "it was added outside this console: choose a policy for it in VM Options, or detach it",
    }  # fmt: skip
    Compliance.objects.create(
        virtual_machine=vm, state="noncompliant", findings=[finding], observations=[
            {"part": "vda", "state": "encrypted", "evidence": "vda: LUKS1 header, aes-xts-plain64"},
            {"part": "vdb", "state": "plain", "evidence": EVIDENCE},
        ],
    )  # fmt: skip
    return gold


def test_the_pages_are_clean(console: Console, inventory: Sample) -> None:
    gold = protect(inventory.vm)
    raise_alarm(
        "vm.noncompliant", "app-db01 is not what its storage policies say: vdb a disk without one, not encrypted",
        target=inventory.vm, severity=Severity.ERROR, remedy="choose a policy for it", evidence=[EVIDENCE],
    )  # fmt: skip
    raise_alarm("host.disconnected", "kvm02 is disconnected: refused", target=inventory.lost_host, remedy="start it")
    for name, address in {
        "policies": reverse("encryption:policies"),
        "policy": reverse("encryption:policy", args=[gold.pk]),
        "vm-options": reverse("encryption:vm-options", args=[inventory.vm.pk]),
        "vm-summary": reverse("inventory:summary", args=["vm", inventory.vm.pk]),
        "vms": reverse("inventory:vms", args=["cluster", inventory.cluster.pk]),
        "alarms": reverse("alarms"),
        "monitor-alarms": reverse("inventory:monitor", args=["vm", inventory.vm.pk]) + "?show=alarms",
    }.items():
        console.open(address).wait_for_load_state("networkidle")
        console.look(name)


def test_a_policy_is_made_and_an_alarm_acknowledged_by_keyboard(console: Console, inventory: Sample) -> None:
    raise_alarm("host.disconnected", "kvm02 is disconnected", target=inventory.lost_host, evidence=["refused"])
    page = console.open(reverse("encryption:policies"))
    page.focus("text=Create…")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog #id_name")
    console.shot("policy-create")
    page.fill("dialog #id_name", "Silver")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Silver')")
    assert StoragePolicy.objects.filter(name="Silver").exists()
    assert page.inner_text("#alarm-count").startswith("1")
    page = console.open(reverse("alarms"))
    page.focus("button:has-text('Acknowledge')")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Acknowledged")
    page.wait_for_selector("#alarm-count", state="hidden")
    assert Alarm.objects.get().acknowledged_by == "admin"


def test_the_plan_follows_the_policies_that_are_chosen(console: Console, inventory: Sample) -> None:
    protect(inventory.vm)
    page = console.open(reverse("encryption:vm-options", args=[inventory.vm.pk]))
    page.select_option("#id_disk-vda", label="VM Encryption Policy")
    page.wait_for_selector("#plan >> text=Assign VM Encryption Policy to vda")
    console.shot("vm-options-plan")
