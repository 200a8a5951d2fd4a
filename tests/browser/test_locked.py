"""A locked VM in a browser: told on its pages, in lists, in the tree and among the alarms; unlocked by keyboard."""

import pytest
from django.urls import reverse
from django.utils import timezone

from encryption.models import Key, KmsCluster, LockCause, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from inventory.alarms import raise_alarm
from inventory.models import Job, Severity
from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
DETAIL = "no server of KMS answers: kms1.example:5696: connection refused; kms2.example:5696: no answer in 5 s"


@pytest.fixture
def locked(inventory: Sample) -> Sample:
    vm = inventory.off_vm
    key = Key.objects.create(cluster=KmsCluster.objects.create(name="KMS", is_default=True), key_id="kmip-7")
    VmSecurity.objects.create(
        virtual_machine=vm, policy=StoragePolicy.objects.filter(encrypts=True)[0], key=key, locked_at=timezone.now(),
        lock_cause=LockCause.KMS_ERROR, lock_parts=["nvram", "vda"], lock_detail=DETAIL,
        lock_remedy="start one of its servers, or see that this console can reach it",
    )  # fmt: skip
    WrappedSecret.objects.create(
        virtual_machine=vm, purpose=Purpose.DISK, target="vda", key=key, wrapped=b"w", path="/i/a.luks",
        stage=Stage.IN_USE,
    )  # fmt: skip
    raise_alarm(
        "vm.locked", f"{vm} is locked: key provider error (home, vda)", target=vm, severity=Severity.ERROR,
        remedy="start one of its servers; then Unlock", evidence=[DETAIL],
    )  # fmt: skip
    return inventory


def test_pages_are_accessible_and_fit_narrow_windows(console: Console, locked: Sample) -> None:
    vm = locked.off_vm
    addresses = {
        "summary": reverse("inventory:summary", args=["vm", vm.pk]),
        "options": reverse("encryption:vm-options", args=[vm.pk]),
        "unlock": reverse("encryption:vm-unlock", args=[vm.pk]),
        "list": reverse("inventory:vms", args=["cluster", locked.cluster.pk]),
        "datacenter": reverse("inventory:summary", args=["datacenter", locked.datacenter.pk]),
        "alarms": reverse("alarms"),
    }
    for name, path in addresses.items():
        page = console.open(path)
        if name == "summary":
            page.wait_for_selector("section[aria-label='VM encryption']")
        console.look(f"locked-{name}", [("dark", 1440), ("light", 420)])


def test_unlock_by_keyboard(console: Console, locked: Sample) -> None:
    Job.objects.all().delete()
    page = console.open(reverse("inventory:summary", args=["vm", locked.off_vm.pk]))
    link = page.locator("section[aria-label='VM encryption'] >> a:has-text('Unlock')")
    link.wait_for()
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog >> text=Fetch the keys")
    page.keyboard.press("Tab")  # Cancel has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog", state="detached")
    assert Job.objects.get().kind == "encryption.unlock_vm"
