"""The vTPM's page and dialogs in the browser: accessible, narrow too, and used by keyboard."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from django.urls import reverse

from encryption.models import Compliance, KmsCluster, StoragePolicy, VtpmEndorsement
from inventory.models import Host, Job, VirtualMachine
from tests.browser.conftest import Console
from tests.encryption.real_tpm import endorsements, make_state
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def vm(inventory: Sample, tmp_path: Path) -> VirtualMachine:
    """Off, with a plain vTPM whose certificates were read."""
    KmsCluster.objects.create(name="Main KMS", is_default=True)
    # A transactional test before this one has flushed what the migrations had put there.
    values = {"encrypts": True, "is_builtin": True, "name": "Encrypted for the vTPM"}
    StoragePolicy.every.get_or_create(is_for_vtpm=True, defaults=values)
    Host.objects.filter(pk=inventory.host.pk).update(vtpm_state_path="/swtpm")
    made = VirtualMachine.objects.create(
        host=inventory.host, uuid=uuid4(), name="app-tpm01", power_state="off", firmware="uefi", machine="pc-q35-7.2",
        nvram_path="/nvram/app-tpm01.fd", tpm_model="tpm-crb", tpm_version="2.0",
    )  # fmt: skip
    make_state(tmp_path / "tpm2")
    for one in endorsements(tmp_path / "tpm2"):
        VtpmEndorsement.objects.create(
            virtual_machine=made, kind=one.kind, nv_index=one.index, certificate=one.certificate,
            public_key=one.public_key, read_at=datetime(2026, 1, 2, tzinfo=UTC),
        )  # fmt: skip
    seen = [{"part": "vtpm", "state": "plain", "evidence": "vtpm: state in clear, flags 0x0"}]
    Compliance.objects.create(virtual_machine=made, observations=seen, checked_at=datetime(2026, 1, 2, tzinfo=UTC))
    return made


def test_the_page_and_its_dialogs_are_clean(console: Console, vm: VirtualMachine) -> None:
    page = console.open(reverse("encryption:vm-vtpm", args=[vm.pk]))
    page.click("summary:has-text('Certificates of your own CA')")
    page.wait_for_load_state("networkidle")
    console.look("vtpm")
    page.click("a:has-text('Remove vTPM')")
    page.wait_for_selector("dialog #id_confirm")
    console.look("vtpm-remove")
    page.keyboard.press("Escape")
    VirtualMachine.objects.filter(pk=vm.pk).update(tpm_model="", tpm_version="")
    console.open(reverse("encryption:vm-vtpm", args=[vm.pk]))
    page.click("a:has-text('Add vTPM')")
    page.wait_for_selector("dialog button:has-text('Add')")
    console.look("vtpm-add")


def test_a_vtpm_is_removed_by_keyboard_with_the_vms_name(console: Console, vm: VirtualMachine) -> None:
    page = console.open(reverse("encryption:vm-vtpm", args=[vm.pk]))
    page.focus("a:has-text('Remove vTPM')")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog #id_confirm")
    page.focus("dialog #id_confirm")
    page.keyboard.type(vm.name)
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog", state="detached")
    assert Job.objects.get(target_id=vm.pk).params["vtpm"] is False
