"""Both directions of trust with key servers through their pages and the API: review of certificates, and how the
console comes to its own. What a worker then does is tested in services/."""

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from django.test import Client

from encryption.models import ClientKeyUpload, KmsCluster, KmsServer, TransportKey, WrappedSecret
from encryption.services import certificates, client_keys
from inventory.models import Event, Job, VirtualMachine
from tests.api_client import Caller
from tests.encryption.certificates import (
    CA,
    CA_KEY,
    LEAF,
    LEAF_KEY,
    NOW,
    OTHER_KEY,
    WRONG_CA,
    X25519_KEY,
    certificate,
    fingerprint,
    private,
)
from tests.encryption.test_key_pages import admin, browser, key, looking, page, protects, provider, server, show

__all__ = ["admin", "browser", "key", "looking", "protects", "provider", "server"]

pytestmark = pytest.mark.django_db


class TestReview:
    def test_a_worker_fetches_it(self, browser: Client, admin: Caller, server: KmsServer) -> None:
        assert "fetch the certificate" in browser.get(page("fetch-certificate", server.pk)).content.decode()
        assert browser.post(page("fetch-certificate", server.pk)).status_code == 302
        job = Job.objects.get()
        assert (job.kind, job.params) == ("encryption.fetch_server_certificate", {"server": str(server.pk)})
        assert admin.post(f"/key-servers/{server.pk}/fetch-certificate").code == "target_busy"

    def test_it_is_shown_and_the_leaf_or_its_ca_is_trusted(
        self, browser: Client, admin: Caller, provider: KmsCluster, server: KmsServer
    ) -> None:
        shown = browser.get(page("review-certificate", server.pk)).content.decode()
        for text in ("CN=kms", "CN=KMS CA", fingerprint(LEAF), fingerprint(CA), "Nothing about it is verified"):
            assert text in shown
        accept = {"fingerprint": fingerprint(LEAF), "pin": "certificate"}
        for _ in range(2):
            assert browser.post(page("review-certificate", server.pk), accept).status_code == 302
        provider.refresh_from_db()
        assert provider.trusted_pem == LEAF
        answer = admin.post(f"/key-servers/{server.pk}/accept-certificate", accept | {"pin": "issuer"})
        assert [one["fingerprint"] for one in answer.body["trusted"]] == [fingerprint(LEAF), fingerprint(CA)]
        assert Event.objects.filter(kind="kms.server_trusted").count() == 2
        found = admin.get(f"/key-servers/{server.pk}/certificate").body
        assert [one["subject"] for one in found["certificates"]] == ["CN=kms", "CN=KMS CA"]
        assert found["can_pin_issuer"] is True

    def test_another_one_than_was_reviewed(self, browser: Client, admin: Caller, server: KmsServer) -> None:
        show(server, WRONG_CA)
        accept = {"fingerprint": fingerprint(LEAF), "pin": "certificate"}
        assert admin.post(f"/key-servers/{server.pk}/accept-certificate", accept).code == "server_certificate_changed"
        assert browser.post(page("review-certificate", server.pk), accept).status_code == 409
        assert KmsCluster.objects.get().trusted_pem == ""

    @pytest.mark.parametrize("chain", [LEAF, LEAF + WRONG_CA, LEAF + LEAF], ids=["none", "namesake", "itself"])
    def test_a_ca_that_did_not_issue_it_is_not_offered(
        self, browser: Client, admin: Caller, server: KmsServer, chain: str
    ) -> None:
        show(server, chain)
        accept = {"fingerprint": fingerprint(LEAF), "pin": "issuer"}
        assert admin.post(f"/key-servers/{server.pk}/accept-certificate", accept).code == "server_issuer_unknown"
        assert browser.post(page("review-certificate", server.pk), accept).status_code == 422
        assert "the CA that the server sent" not in browser.get(page("review-certificate", server.pk)).content.decode()

    def test_before_anybody_looked(self, browser: Client, admin: Caller, provider: KmsCluster) -> None:
        blank = provider.servers.all()[1]
        assert "No certificate of this server" in browser.get(page("review-certificate", blank.pk)).content.decode()
        accept = {"fingerprint": "0" * 64}
        assert admin.post(f"/key-servers/{blank.pk}/accept-certificate", accept).code == "no_server_certificate"
        wrong = admin.post(f"/key-servers/{blank.pk}/accept-certificate", accept | {"pin": "all"})
        assert wrong.code == "pin_invalid"


class TestClientIdentity:
    @pytest.fixture(autouse=True)
    def _ready(self, provider: KmsCluster) -> None:
        client_keys.ensure_transport_key()

    @pytest.mark.parametrize("method", ["console_ca", "self_signed"])
    def test_made_by_a_worker(self, browser: Client, admin: Caller, provider: KmsCluster, method: str) -> None:
        path = page("make-client", provider.pk, method)
        assert "KMS administrator" in browser.get(path).content.decode()
        assert browser.post(path).status_code == 302
        assert Job.objects.get().params == {"method": method}
        again = admin.post(f"/key-providers/{provider.pk}/make-client-certificate", {"method": method})
        assert again.code == "target_busy"

    def test_in_no_other_way(self, browser: Client, admin: Caller, provider: KmsCluster) -> None:
        answer = admin.post(f"/key-providers/{provider.pk}/make-client-certificate", {"method": "magic"})
        assert answer.code == "method_invalid"
        assert browser.post(page("make-client", provider.pk, "magic")).status_code == 422

    def test_uploaded_and_sealed_at_once(self, browser: Client, provider: KmsCluster) -> None:
        given = {"certificate": LEAF, "private_key": private(LEAF_KEY)}
        assert browser.post(page("upload-client", provider.pk), given).status_code == 302
        assert (Job.objects.get().kind, Job.objects.get().params) == ("encryption.take_client_key", {})
        row = ClientKeyUpload.objects.get()
        assert row.certificate_pem == LEAF and b"PRIVATE" not in bytes(row.sealed)
        assert browser.post(page("upload-client", provider.pk), given).status_code == 409

    @pytest.mark.parametrize(
        ("cert", "pem", "code"),
        [
            (LEAF, private(OTHER_KEY), "certificate_of_another_key"),
            (LEAF, "planted-no-key", "client_key_invalid"),
            (LEAF, "-----BEGIN PRIVATE KEY-----\nplanted\n-----END PRIVATE KEY-----", "client_key_invalid"),
            (LEAF, private(LEAF_KEY, b"password"), "client_key_encrypted"),
            (LEAF, private(ed25519.Ed25519PrivateKey.generate()), "client_key_invalid"),
            (LEAF, X25519_KEY, "client_key_invalid"),
            (LEAF, private(rsa.generate_private_key(65537, 1024)), "client_key_not_approved"),  # noqa: S505
            (LEAF, private(ec.generate_private_key(ec.SECP224R1())), "client_key_not_approved"),
            ("x", private(LEAF_KEY), "certificate_invalid"),
            (private(LEAF_KEY), private(LEAF_KEY), "private_key_given"),
            (certificate("kms", "KMS CA", LEAF_KEY, CA_KEY, until=NOW - timedelta(1)), private(LEAF_KEY),
             "client_certificate_expired"),
        ],
        ids=["another", "no key", "no content", "password", "ed25519", "x25519", "short", "curve", "no pem", "twice",
             "expired"],
    )  # fmt: skip
    def test_what_cannot_be_used_is_refused_and_never_shown_again(
        self, browser: Client, admin: Caller, provider: KmsCluster, cert: str, pem: str, code: str
    ) -> None:
        body = {"certificate_pem": cert, "private_key_pem": pem}
        answer = admin("PUT", f"/key-providers/{provider.pk}/client-identity", body)
        assert (answer.status, answer.code) == (422, code)
        shown = browser.post(page("upload-client", provider.pk), {"certificate": "x", "private_key": pem})
        assert shown.status_code == 422
        line = pem.splitlines()[min(1, len(pem.splitlines()) - 1)]
        assert line not in shown.content.decode() and line not in answer.text
        assert not ClientKeyUpload.objects.exists() and not Job.objects.exists()

    def test_longer_than_any_chain_of_certificates(self, browser: Client, admin: Caller, provider: KmsCluster) -> None:
        text = "x" * (certificates.MAX_PEM_CHARACTERS + 1)
        body = {"certificate_pem": text, "private_key_pem": private(LEAF_KEY)}
        for path in ("client-identity", "client-certificate", "trusted-certificates"):
            answer = admin("PUT", f"/key-providers/{provider.pk}/{path}", body)
            assert (answer.status, answer.code) == (422, "invalid_input"), path
        given = {"certificate": text, "private_key": private(LEAF_KEY)}
        for which in ("upload-client", "client-certificate", "trust"):
            shown = browser.post(page(which, provider.pk), given)
            assert shown.status_code == 422 and "at most 65536 characters" in shown.content.decode(), which
        assert not Job.objects.exists() and not Event.objects.filter(kind__startswith="kms.").exists()

    def test_before_the_workers_have_a_key_for_it(
        self, admin: Caller, provider: KmsCluster, sent: list[tuple[str, list[str], str]]
    ) -> None:
        TransportKey.objects.all().delete()
        body = {"certificate_pem": LEAF, "private_key_pem": private(LEAF_KEY)}
        answer = admin("PUT", f"/key-providers/{provider.pk}/client-identity", body)
        assert (answer.status, answer.code) == (503, "transport_key_missing")
        assert sent == [("encryption.make_transport_key", [], "attestation")]

    def test_put_into_use_only_where_one_waits(self, browser: Client, admin: Caller, provider: KmsCluster) -> None:
        path = f"/key-providers/{provider.pk}/use-client-certificate"
        assert admin.post(path).code == "no_staged_certificate"
        KmsCluster.objects.update(client_certificate_next_pem=LEAF, client_certificate_pem=LEAF)
        assert "Waits to be put into use" in browser.get(page("cluster", provider.pk)).content.decode()
        assert browser.post(page("use-client", provider.pk)).status_code == 302
        assert admin.post(path).code == "target_busy"

    def test_downloads(self, looking: Client, admin: Caller, provider: KmsCluster) -> None:
        assert looking.get(page("download", provider.pk, "console-ca")).status_code == 404
        KmsCluster.objects.update(client_ca_pem=CA, client_certificate_pem=LEAF, client_certificate_next_pem=WRONG_CA)
        for what, pem in (("console-ca", CA), ("client-certificate", LEAF), ("next-client-certificate", WRONG_CA)):
            answer = looking.get(page("download", provider.pk, what))
            assert (answer.content.decode(), answer.headers["Content-Disposition"]) == (
                pem, f'attachment; filename="bartizan-{what}.pem"',
            )  # fmt: skip
            assert admin.get(f"/key-providers/{provider.pk}/downloads/{what}").body == {"pem": pem}
        assert looking.get(page("download", provider.pk, "anything")).status_code == 404


class TestTrustedCertificates:
    @pytest.fixture
    def trusting(self, provider: KmsCluster) -> KmsCluster:
        provider.trusted_pem = LEAF + CA
        provider.save()
        return provider

    def test_one_goes_and_the_other_stays(self, browser: Client, admin: Caller, trusting: KmsCluster) -> None:
        path = page("distrust", trusting.pk, fingerprint(LEAF))
        assert path in browser.get(page("cluster", trusting.pk)).content.decode()
        assert browser.post(path).status_code == 302
        assert [one["fingerprint"] for one in admin.get(f"/key-providers/{trusting.pk}").body["trusted"]] == [
            fingerprint(CA)
        ]
        assert Event.objects.get(kind="kms.server_distrusted").data["fingerprints"] == [fingerprint(LEAF)]
        assert browser.post(path).status_code == 404
        gone = admin("DELETE", f"/key-providers/{trusting.pk}/trusted-certificates/{fingerprint(LEAF)}")
        assert (gone.status, gone.code) == (404, "certificate_not_found")

    def test_the_last_one_stays_while_vms_have_keys(
        self, browser: Client, admin: Caller, trusting: KmsCluster, protects: VirtualMachine
    ) -> None:
        admin("DELETE", f"/key-providers/{trusting.pk}/trusted-certificates/{fingerprint(CA)}")
        last = f"/key-providers/{trusting.pk}/trusted-certificates/{fingerprint(LEAF).upper()}"
        assert admin("DELETE", last).code == "last_trusted_certificate"
        answer = browser.post(page("distrust", trusting.pk, fingerprint(LEAF)))
        assert answer.status_code == 409 and "no other certificate of its servers is trusted" in answer.content.decode()
        WrappedSecret.objects.all().delete()
        assert admin("DELETE", last).body["trusted"] == []
