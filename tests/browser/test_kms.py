"""The page of a key provider: servers change places in the browser, dialogs open, and it stays within the policy."""

from datetime import timedelta

import pytest
from django.utils import timezone

from encryption.models import Key, KmsCluster, KmsServer
from tests.browser.conftest import Console
from tests.encryption.test_key_pages import CA, LEAF, fingerprint

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_servers_change_places_and_a_certificate_is_reviewed(console: Console) -> None:
    provider = KmsCluster.objects.create(
        name="KMS", is_default=True, client_certificate_pem=LEAF, client_certificate_next_pem=LEAF, client_ca_pem=CA
    )
    for position, host in enumerate(("kms1.example", "kms2.example")):
        KmsServer.objects.create(
            cluster=provider, position=position, host=host, state="connected", latency_ms=12, vendor="PyKMIP",
            checked_at=timezone.now(),
            console_trusts_server=True, server_trusts_console=True, certificate_pem=LEAF + CA,
            certificate_fingerprint=fingerprint(LEAF), certificate_not_after=timezone.now() + timedelta(days=9),
        )  # fmt: skip
    Key.objects.create(cluster=provider, key_id="17", state=Key.State.ACTIVE)
    page = console.page
    page.goto(f"{console.url}/encryption/kms/{provider.pk}/")
    console.shot("kms")
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
