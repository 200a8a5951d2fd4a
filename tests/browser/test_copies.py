"""Clone, export and import in a browser: dialogs that open, are accessible, fit a narrow window, and submit."""

from uuid import uuid4

import pytest
from django.urls import reverse
from django.utils import timezone

from encryption.models import Bundle, Key, KmsCluster, StoragePolicy, VmSecurity, WrappedSecret
from inventory.models import Job, VirtualMachine
from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def encrypted(inventory: Sample) -> VirtualMachine:
    """Powered off, all of it encrypted."""
    vm = inventory.off_vm
    key = Key.objects.create(cluster=KmsCluster.objects.create(name="Corporate KMS"), key_id="7")
    policy = StoragePolicy.objects.get(encrypts=True)
    VmSecurity.objects.create(virtual_machine=vm, policy=policy, key=key)
    WrappedSecret.objects.create(virtual_machine=vm, purpose="nvram", target="", key=key, wrapped=b"x", stage="in_use")
    VirtualMachine.objects.filter(pk=vm.pk).update(
        tpm_model="tpm-crb", is_tpm_encrypted=True, is_nvram_encrypted=True, firmware="uefi"
    )
    vm.disks.update(is_encrypted=True)
    return vm


@pytest.fixture
def bundles(inventory: Sample) -> None:
    for number, (state, is_clear) in enumerate((("complete", False), ("complete", True), ("unusable", False))):
        Bundle.objects.create(
            folder=f"app-web0{number}-20261123-14000{number}", state=state, vm_name=f"app-web0{number}",
            vm_uuid=uuid4(),
            size_bytes=(number + 3) << 30, is_clear=is_clear, made_at=timezone.now(), made_by="alice",
            console="console.corp.example", kms_cluster=None if is_clear else uuid4(),
            kms_cluster_name="" if is_clear else "Corporate KMS", key_id="" if is_clear else "7",
            reason="vda.luks was changed or is damaged: its digest is another" if state == "unusable" else "",
        )  # fmt: skip


@pytest.mark.usefixtures("bundles")
def test_accessible_wide_and_narrow(console: Console, inventory: Sample, encrypted: VirtualMachine) -> None:
    plain = VirtualMachine.objects.get(name="app-web02")
    addresses = {
        "clone": reverse("encryption:vm-clone", args=[encrypted.pk]),
        "export": reverse("encryption:vm-export", args=[encrypted.pk]),
        "export-clear": reverse("encryption:vm-export", args=[plain.pk]),
        "import": reverse("encryption:import-vm", args=[inventory.host.pk]),
        "exports": reverse("encryption:bundles"),
    }
    for name, path in addresses.items():
        console.open(path)
        console.look(f"copy-{name}")


def test_a_clone_is_asked_for_by_keyboard(console: Console, encrypted: VirtualMachine) -> None:
    page = console.open(reverse("inventory:summary", args=["vm", encrypted.pk]))
    page.locator("summary", has_text="Actions").click()
    page.get_by_role("menuitem", name="Clone…").click()
    page.wait_for_selector("dialog #id_name")
    console.shot("copy-clone-dialog")
    page.fill("#id_name", "app-db03")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog", state="detached")
    assert Job.objects.get(kind="encryption.clone_vm").params["name"] == "app-db03"
