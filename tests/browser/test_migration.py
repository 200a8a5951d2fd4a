"""The migration dialog and the matrix of hosts in the browser: accessible, in both themes and narrow."""

import pytest
from django.urls import reverse
from django.utils import timezone

from encryption.models import MigrationProbe, VmMigration
from inventory.models import Datastore, Host, VirtualMachine
from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def other(inventory: Sample) -> Host:
    """A host that the sample's VM can go to, and one that it cannot."""
    cluster = inventory.host.cluster
    made = Host.objects.create(
        cluster=cluster, name="kvm07", uri="qemu+tls://kvm07/system", state="connected", memory_free_bytes=2**40,
        cpu_model=inventory.host.cpu_model,
    )  # fmt: skip
    Datastore.objects.create(
        host=made, name="images", kind="dir", path="/srv/images", is_active=True, capacity_bytes=2**42,
        available_bytes=2**41,
    )  # fmt: skip
    now = timezone.now()
    MigrationProbe.objects.create(source=inventory.host, target=made, is_ready=True, checked_at=now)
    MigrationProbe.objects.create(
        source=made, target=inventory.host, is_ready=False, code="migration_tls_untrusted", checked_at=now,
        reason="kvm07: job 'migration out' failed: The certificate hasn't got a known issuer",
        remedy="the hosts' migration certificates come from different CAs: issue both from one",
    )  # fmt: skip
    stuck = VirtualMachine.objects.create(
        host=made, uuid="6a0b262d-0000-4000-8000-000000000001", name="pay-01", power_state="on"
    )
    VmMigration.objects.create(virtual_machine=stuck, encrypted="required")
    return made


@pytest.fixture
def running(inventory: Sample) -> VirtualMachine:
    inventory.vm.disks.update(is_encrypted=False)
    VirtualMachine.objects.filter(pk=inventory.vm.pk).update(
        power_state="on", is_nvram_encrypted=False, is_tpm_encrypted=False, has_managed_save=False, snapshot_count=0
    )
    return inventory.vm


def test_the_pages_are_clean(console: Console, inventory: Sample, other: Host, running: VirtualMachine) -> None:
    for name, address in {
        "migration-matrix": reverse("encryption:cluster-migration", args=[inventory.host.cluster_id]),
        "migrate": reverse("encryption:vm-migrate", args=[running.pk]),
        "encrypted-vmotion": reverse("encryption:vm-encrypted-vmotion", args=[running.pk]),
    }.items():
        console.open(address).wait_for_load_state("networkidle")
        console.look(name)
