"""Hard disks, leftovers and saved states in a browser: accessible in both themes and narrow, and done by keyboard."""

import pytest
from django.urls import reverse

from encryption.models import Key, KmsCluster, Leftover, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from inventory.models import Job, VirtualMachine
from tests.browser.conftest import Console
from tests.sample import GIB, Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def filled(inventory: Sample) -> Sample:
    """The powered-off VM is encrypted and has a detached disk and a saved state elsewhere; leftovers of each sort."""
    vm = inventory.off_vm
    key = Key.objects.create(cluster=KmsCluster.objects.create(name="KMS", is_default=True), key_id="kmip-7")
    VmSecurity.objects.create(virtual_machine=vm, policy=StoragePolicy.objects.filter(encrypts=True)[0], key=key)
    WrappedSecret.objects.create(
        virtual_machine=vm, purpose=Purpose.DISK, target="vdc", key=key, wrapped=b"w", plain_format="raw",
        path="/var/lib/libvirt/images/app-db02-vdc-1a2b3c4d.luks", size_bytes=80 * GIB, stage=Stage.DETACHED,
    )  # fmt: skip
    for number, kind in enumerate(Leftover.Kind):
        Leftover.objects.create(
            host=inventory.host, path=f"{inventory.datastore.path}/app-db02-{kind}.raw", kind=kind, fingerprint="x",
            size_bytes=number * GIB, virtual_machine=vm if number % 2 else None,
            evidence=["the encrypted part was made from this file", "its first bytes: a disk with a partition table"],
        )  # fmt: skip
    VirtualMachine.objects.filter(pk=inventory.vm.pk).update(has_managed_save=True)
    return inventory


def addresses(sample: Sample) -> dict[str, str]:
    row = Leftover.objects.exclude(kind="backing_file")[0].pk
    detached = WrappedSecret.objects.get(stage=Stage.DETACHED).pk
    vm = sample.off_vm.pk
    return {
        "disks": reverse("encryption:vm-disks", args=[vm]),
        "disk-add": reverse("encryption:add-disk", args=[vm]),
        "disk-attach": reverse("encryption:attach-disk", args=[vm]),
        "disk-detach": reverse("encryption:detach-disk", args=[vm, "vda"]),
        "disk-destroy": reverse("encryption:destroy-disk", args=[detached]),
        "disks-running": reverse("encryption:vm-disks", args=[sample.vm.pk]),
        "leftovers-host": reverse("encryption:host-leftovers", args=[sample.host.pk]),
        "leftovers-datastore": reverse("encryption:datastore-leftovers", args=[sample.datastore.pk]),
        "leftover-destroy": reverse("encryption:destroy-leftover", args=[row]),
        "leftover-keep": reverse("encryption:keep-leftover", args=[row]),
        "saved-state": reverse("inventory:discard-saved-state", args=[sample.vm.pk]),
        "saved-summary": reverse("inventory:summary", args=["vm", sample.vm.pk]),
    }


def test_pages_are_accessible_and_fit_narrow_windows(console: Console, filled: Sample) -> None:
    for name, path in addresses(filled).items():
        console.open(path)
        console.look(name, [("dark", 1440), ("light", 420)])


def test_a_leftover_is_destroyed_by_keyboard(console: Console, filled: Sample) -> None:
    page = console.open(reverse("encryption:host-leftovers", args=[filled.host.pk]))
    row = Leftover.objects.get(kind="original")
    Job.objects.all().delete()
    link = page.locator(f"a[href='{reverse('encryption:destroy-leftover', args=[row.pk])}']")
    link.focus()
    page.keyboard.press("Enter")
    field = page.locator("dialog input[name=confirm]")
    field.wait_for()
    page.keyboard.type(row.name)
    page.keyboard.press("Enter")
    page.locator("dialog").wait_for(state="hidden")
    assert Job.objects.get().params == {"leftover": str(row.pk)}
