"""Key providers in a browser: servers change places, dialogs open, pages are accessible in both themes and narrow."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.urls import reverse
from django.utils import timezone

from encryption.models import Key, KmsCluster, KmsServer, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from inventory.models import Job
from tests.browser.conftest import Console
from tests.encryption.certificates import CA, LEAF, fingerprint
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def provider(inventory: Sample) -> KmsCluster:
    """Two servers, a key in use and one that was made elsewhere; a VM names a key provider that is not known."""
    made = KmsCluster.objects.create(
        name="KMS", is_default=True, client_certificate_pem=LEAF, client_certificate_next_pem=LEAF, client_ca_pem=CA
    )
    for position, host in enumerate(("kms1.example", "kms2.example")):
        KmsServer.objects.create(
            cluster=made, position=position, host=host, state="connected", latency_ms=12, vendor="PyKMIP",
            checked_at=timezone.now(),
            console_trusts_server=True, server_trusts_console=True, certificate_pem=LEAF + CA,
            certificate_fingerprint=fingerprint(LEAF), certificate_not_after=timezone.now() + timedelta(days=9),
        )  # fmt: skip
    policy = StoragePolicy.objects.filter(encrypts=True)[0]
    VmSecurity.objects.create(
        virtual_machine=inventory.vm, policy=policy, foreign_kms=uuid4(), foreign_kms_name="KMS of the old console"
    )
    key = Key.objects.create(cluster=made, key_id="4f1c09d2-6a31-4d1e-9c55-0d6a1f4be6aa", state=Key.State.ACTIVE)
    WrappedSecret.objects.create(
        virtual_machine=inventory.off_vm, purpose=Purpose.DISK, target="vda", key=key, wrapped=b"w", path="/i/a.luks",
        stage=Stage.IN_USE,
    )  # fmt: skip
    Key.objects.create(
        cluster=made, key_id="17", state=Key.State.ACTIVE, last_used_at=timezone.now(), last_used_by="alice",
        last_used_for="Power on of app-01", is_foreign=True,
    )  # fmt: skip
    return made


def test_pages_are_accessible_and_fit_narrow_windows(console: Console, provider: KmsCluster) -> None:
    KmsCluster.objects.update(trusted_pem=CA)
    addresses = {
        "list": reverse("encryption:kms"),
        "detail": reverse("encryption:kms-cluster", args=[provider.pk]),
        "take-over": reverse("encryption:kms-adopt", args=[provider.pk]),
        "existing-key": reverse("encryption:kms-adopt-key", args=[provider.pk]),
        "distrust": reverse("encryption:kms-distrust", args=[provider.pk, fingerprint(CA)]),
    }
    for name, path in addresses.items():
        console.open(path)
        console.look(f"kms-{name}", [("dark", 1440), ("light", 420)])


def test_servers_change_places_and_a_certificate_is_reviewed(console: Console, provider: KmsCluster) -> None:
    Job.objects.all().delete()
    page = console.open(f"/encryption/kms/{provider.pk}/")
    page.locator("section[aria-label='Keys']").scroll_into_view_if_needed()
    console.shot("kms-keys")
    page.click("text=Move down kms1.example")
    page.wait_for_selector("tbody tr:first-child code:has-text('kms2.example')")
    assert [str(one) for one in provider.servers.all()] == ["kms2.example:5696", "kms1.example:5696"]
    page.click("text=Review certificate >> nth=0")
    page.wait_for_selector("dialog select")
    console.shot("kms-review")
    page.select_option("dialog select", "issuer")
    page.click("dialog .btn-primary")
    page.wait_for_selector("section[aria-label='Console trusts server'] code")
    assert KmsCluster.objects.get().trusted_pem == CA
    assert "by alice: Power on of app-01" in page.inner_text("section[aria-label='Keys']")
    page.click("section[aria-label='Console trusts server'] >> text=Remove")
    page.wait_for_selector("dialog >> text=Trust servers of KMS no longer")
    console.shot("kms-distrust-dialog")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    page.click("text=Add existing key")
    page.fill("dialog input[name='wanted']", "old-key")
    console.shot("kms-existing-key-dialog")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog", state="detached")
    assert Job.objects.get().params == {"wanted": "old-key"}
