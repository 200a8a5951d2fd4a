"""The Recrypt dialog: its plan follows the choice, and it stays within the policy and is accessible."""

import pytest

from encryption.models import Key, KmsCluster, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from inventory.models import Disk, Job, PowerState, VirtualMachine
from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_the_plan_follows_the_choice_and_a_job_is_started(
    console: Console, inventory: Sample, sent: list[object]
) -> None:
    vm = inventory.vm
    VirtualMachine.objects.filter(pk=vm.pk).update(
        power_state=PowerState.ON, firmware="uefi", nvram_path="/n/VARS.luks", is_nvram_encrypted=True
    )
    key = Key.objects.create(cluster=KmsCluster.objects.create(name="KMS", is_default=True), key_id="7")
    VmSecurity.objects.create(
        virtual_machine=vm, policy=StoragePolicy.objects.get(name="VM Encryption Policy"), key=key
    )
    Job.objects.all().delete()
    Disk.objects.filter(virtual_machine=vm).delete()
    for target in ("vda", "vdb"):
        Disk.objects.create(
            virtual_machine=vm, target=target, format="raw", source=f"/i/{target}.luks", capacity_bytes=20 * 2**30,
            is_encrypted=True,
        )  # fmt: skip
        WrappedSecret.objects.create(
            virtual_machine=vm, purpose=Purpose.DISK, target=target, key=key, wrapped=b"w", path=f"/i/{target}.luks",
            stage=Stage.IN_USE,
        )  # fmt: skip
    WrappedSecret.objects.create(
        virtual_machine=vm, purpose=Purpose.NVRAM, key=key, wrapped=b"w", path="/n/VARS.luks", stage=Stage.IN_USE
    )
    page = console.open(f"/encryption/vms/{vm.pk}/options/")
    page.click("text=Recrypt…")
    page.wait_for_selector("dialog[open] >> text=Wrap its data keys under the new key")
    console.shot("recrypt-key")
    page.click("dialog >> text=New passphrases")
    page.wait_for_selector("dialog >> text=mark the VM as tainted")
    page.click("dialog >> text=New volume keys")
    page.wait_for_selector("dialog >> text=Copy vdb into a LUKS image with a new volume key while the VM runs")
    console.shot("recrypt-volume-keys")
    assert console.axe() == []
    page.set_viewport_size({"width": 420, "height": 900})
    console.shot("recrypt-narrow")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.click("dialog >> text=vdb (20.0 GiB)")
    page.wait_for_selector("dialog >> text=Copy vdb", state="detached")
    page.click("dialog >> button:has-text('Recrypt')")
    page.wait_for_selector("dialog", state="detached")
    assert Job.objects.get().params["parts"] == ["vda"]
