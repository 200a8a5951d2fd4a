"""Key providers through their pages and the API: order and addresses of servers, review of certificates, client
identities, keys. What a worker then does is tested in services/."""

import itertools
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.models import ClientKeyUpload, Key, KmsCluster, KmsServer, Purpose, TransportKey, WrappedSecret
from encryption.services import client_keys
from inventory.models import Event, Host, Job, VirtualMachine
from tests.api_client import Caller, caller

pytestmark = pytest.mark.django_db
NOW = datetime.now(UTC)
# RFC 7748, 6.1. A module in FIPS mode does not even know the algorithm, and says so in another way than by ValueError.
X25519_KEY = """\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEIHcHbQpzGKV9PBbBclGyZkXfTC+H68CZKrF3+6UduSwq
-----END PRIVATE KEY-----
"""


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(
    subject: str, issuer: str, key: Any, signer: Any, *, ca: bool = False, until: datetime | None = None
) -> str:
    built = (
        x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(NOW - timedelta(days=99))
        .not_valid_after(until or NOW + timedelta(days=99))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )  # fmt: skip
    return built.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def private(key: Any, password: bytes | None = None) -> str:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return str(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode())


LEAF_KEY, CA_KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
CA = certificate("KMS CA", "KMS CA", CA_KEY, CA_KEY, ca=True)
LEAF = certificate("kms", "KMS CA", LEAF_KEY, CA_KEY)
WRONG_CA = certificate("KMS CA", "KMS CA", OTHER_KEY, OTHER_KEY, ca=True)


def fingerprint(pem: str) -> str:
    return x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex()


@pytest.fixture
def admin(alice: User) -> Caller:
    return caller(alice)


@pytest.fixture
def browser(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


@pytest.fixture
def looking(charlie: User) -> Client:
    client = Client()
    client.force_login(charlie)
    return client


@pytest.fixture
def provider() -> KmsCluster:
    found = KmsCluster.objects.create(name="KMS", is_default=True)
    for position, host in enumerate(("a", "b", "c")):
        KmsServer.objects.create(cluster=found, position=position, host=host)
    return found


@pytest.fixture
def server(provider: KmsCluster) -> KmsServer:
    """The first one, whose certificate a worker has looked at."""
    found = provider.servers.all()[0]
    show(found, LEAF + CA)
    return found


def show(server: KmsServer, pem: str) -> None:
    server.certificate_pem, server.certificate_fingerprint = pem, fingerprint(pem)
    server.certificate_seen_at, server.certificate_not_after = NOW, NOW + timedelta(days=99)
    server.save()


@pytest.fixture
def key(provider: KmsCluster) -> Key:
    return Key.objects.create(cluster=provider, key_id="kmip-7", name="bartizan/x", state=Key.State.ACTIVE)


@pytest.fixture
def protects(key: Key, host: Host) -> VirtualMachine:
    vm = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app")
    WrappedSecret.objects.create(virtual_machine=vm, purpose=Purpose.NVRAM, key=key, wrapped=b"x", path="/x")
    return vm


def page(which: str, *args: object) -> str:
    return reverse(f"encryption:kms-{which}", args=args)


class TestServers:
    def test_they_change_places(self, browser: Client, admin: Caller, provider: KmsCluster) -> None:
        a, b, c = provider.servers.all()

        def order() -> list[str]:
            return [one.host for one in provider.servers.all()]

        assert browser.post(page("move-server", c.pk, "up")).status_code == 302
        assert order() == ["a", "c", "b"]
        assert admin.post(f"/key-servers/{a.pk}/move", {"direction": "down"}).body["position"] == 1
        assert order() == ["c", "a", "b"]
        told = Event.objects.count()
        assert browser.post(page("move-server", b.pk, "down")).status_code == 302  # at the end already
        assert admin.post(f"/key-servers/{c.pk}/move", {"direction": "up"}).status == 200
        assert order() == ["c", "a", "b"] and Event.objects.count() == told
        shown = browser.get(page("cluster", provider.pk)).content.decode()
        assert re.findall(r"<code>(\w):5696</code>", shown) == ["c", "a", "b"]

    def test_no_direction(self, browser: Client, admin: Caller, server: KmsServer) -> None:
        assert browser.post(page("move-server", server.pk, "left")).status_code == 422
        assert admin.post(f"/key-servers/{server.pk}/move", {"direction": "left"}).code == "direction_invalid"
        assert browser.get(page("move-server", server.pk, "up")).status_code == 405

    def test_another_address_forgets_what_was_found(self, browser: Client, server: KmsServer) -> None:
        KmsServer.objects.update(state="connected", vendor="x", server_trusts_console=True)
        assert 'value="a"' in browser.get(page("edit-server", server.pk)).content.decode()
        assert browser.post(page("edit-server", server.pk), {"host": "kms2", "port": "5700"}).status_code == 302
        server.refresh_from_db()
        assert (str(server), server.state, server.vendor) == ("kms2:5700", "unknown", "")
        assert (server.certificate_pem, server.server_trusts_console, server.position) == ("", None, 0)
        told = Event.objects.get(kind="kms.server_edited")
        assert told.data == {"server": "kms2:5700", "before": "a:5696"}
        browser.post(page("edit-server", server.pk), {"host": "kms2", "port": "5700"})
        assert Event.objects.filter(kind="kms.server_edited").count() == 1

    @pytest.mark.parametrize(
        ("host", "port", "code"), [("b", 5696, "server_taken"), ("a b", 1, "host_invalid"), ("a", 0, "port_invalid")]
    )
    def test_an_address_that_cannot_be(
        self, browser: Client, admin: Caller, server: KmsServer, host: str, port: int, code: str
    ) -> None:
        answer = admin("PUT", f"/key-servers/{server.pk}", {"host": host, "port": port})
        assert answer.code == code
        assert browser.post(page("edit-server", server.pk), {"host": host, "port": port}).status_code in (409, 422)
        server.refresh_from_db()
        assert str(server) == "a:5696"


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
            (LEAF, private(rsa.generate_private_key(65537, 1024)), "client_key_too_short"),  # noqa: S505
            ("x", private(LEAF_KEY), "certificate_invalid"),
            (private(LEAF_KEY), private(LEAF_KEY), "private_key_given"),
            (certificate("kms", "KMS CA", LEAF_KEY, CA_KEY, until=NOW - timedelta(1)), private(LEAF_KEY),
             "client_certificate_expired"),
        ],
        ids=["another", "no key", "no content", "password", "ed25519", "x25519", "short", "no pem", "twice", "expired"],
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


class TestKeys:
    def test_its_page_tells_what_it_protects_and_who_used_it(
        self, looking: Client, key: Key, protects: VirtualMachine
    ) -> None:
        for target, actor in ((protects, "bob"), (key.cluster, "carol")):
            Event.objects.create(
                kind="key.released" if target == protects else "key.revoked", actor=actor, message="m",
                target_kind="vm" if target == protects else "kms", target_id=target.pk, target_name="t",
                data={"key_id": "kmip-7"} if target != protects else {},
            )  # fmt: skip
        shown = looking.get(page("key", key.pk)).content.decode()
        for text in ("kmip-7", "NVRAM of app", "bob", "carol", "Active", "AES-256"):
            assert text in shown
        assert page("destroy-key", key.pk) not in shown and page("revoke-key", key.pk) not in shown

    def test_pages_of_the_list(self, looking: Client, provider: KmsCluster) -> None:
        for number in range(120):
            Key.objects.create(cluster=provider, key_id=f"key-{number:03}")
        pages = [looking.get(page("cluster", provider.pk), {"page": n}).content.decode() for n in (1, 2, 3)]
        ids = [set(re.findall(r"key-\d{3}", text)) for text in pages]
        assert all(ids) and not any(one & other for one, other in itertools.combinations(ids[:2], 2))
        assert len(set().union(*ids)) == 120
        assert "Page 1 of" in pages[0]
        for odd in ("x", "0", "-1", "99999999999", "\u0661"):
            assert looking.get(page("cluster", provider.pk), {"page": odd}).status_code == 200

    def test_destroying_asks_for_its_id(self, browser: Client, admin: Caller, key: Key) -> None:
        assert "for ever" in browser.get(page("destroy-key", key.pk)).content.decode()
        for wrong in ("", "kmip-8"):
            assert browser.post(page("destroy-key", key.pk), {"confirm": wrong}).status_code == 422
        assert admin.post(f"/keys/{key.pk}/destroy", {"confirm": "kmip-8"}).code == "confirmation_mismatch"
        assert not Job.objects.exists()
        assert browser.post(page("destroy-key", key.pk), {"confirm": "kmip-7"}).status_code == 302
        assert Job.objects.get().params == {"key": str(key.pk)}
        assert admin.post(f"/keys/{key.pk}/destroy", {"confirm": "kmip-7"}).code == "target_busy"

    def test_one_in_use_stays(self, browser: Client, admin: Caller, key: Key, protects: VirtualMachine) -> None:
        answer = browser.post(page("destroy-key", key.pk), {"confirm": "kmip-7"})
        assert answer.status_code == 409 and "NVRAM of app" in answer.content.decode()
        for path, body in (("destroy", {"confirm": "kmip-7"}), ("revoke", {"reason": "superseded"})):
            assert admin.post(f"/keys/{key.pk}/{path}", body).code == "key_in_use"
        assert browser.post(page("revoke-key", key.pk), {"reason": "superseded"}).status_code == 409
        assert not Job.objects.exists()
        assert browser.post(page("revoke-key", key.pk), {"reason": "key_compromise"}).status_code == 302

    def test_reasons_and_ended_keys(self, browser: Client, admin: Caller, key: Key) -> None:
        assert admin.post(f"/keys/{key.pk}/revoke", {"reason": "boredom"}).code == "reason_invalid"
        assert browser.post(page("revoke-key", key.pk), {"reason": "boredom"}).status_code == 422
        Key.objects.update(state=Key.State.DESTROYED)
        assert admin.post(f"/keys/{key.pk}/revoke", {"reason": "superseded"}).code == "key_ended"
        assert admin.post(f"/keys/{key.pk}/destroy", {"confirm": "kmip-7"}).code == "key_ended"
        assert page("destroy-key", key.pk) not in browser.get(page("key", key.pk)).content.decode()

    def test_refreshed_by_a_worker(self, browser: Client, admin: Caller, provider: KmsCluster) -> None:
        assert browser.post(page("refresh-keys", provider.pk)).status_code == 302
        assert Job.objects.get().kind == "encryption.refresh_keys"
        assert admin.post(f"/key-providers/{provider.pk}/keys/refresh").code == "target_busy"

    def test_one_that_is_not_there(self, browser: Client, admin: Caller) -> None:
        assert browser.get(page("key", uuid4())).status_code == 404
        assert admin.get(f"/keys/{uuid4()}").code == "key_not_found"

    def test_a_provider_whose_keys_are_destroyed_can_go(self, admin: Caller, key: Key) -> None:
        assert admin("DELETE", f"/key-providers/{key.cluster_id}").code == "key_provider_in_use"
        Key.objects.update(state=Key.State.DESTROYED)
        assert admin("DELETE", f"/key-providers/{key.cluster_id}").status == 204

    def test_one_destroyed_there_that_something_hangs_on_keeps_it(
        self, admin: Caller, key: Key, protects: VirtualMachine
    ) -> None:
        Key.objects.update(state=Key.State.DESTROYED)
        assert admin("DELETE", f"/key-providers/{key.cluster_id}").code == "key_provider_in_use"


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


class TestExistingKeys:
    def test_looked_for_by_a_worker(self, browser: Client, admin: Caller, provider: KmsCluster) -> None:
        assert browser.post(page("adopt-key", provider.pk), {"wanted": " old-key "}).status_code == 302
        assert Job.objects.get().params == {"wanted": "old-key"}
        assert admin.post(f"/key-providers/{provider.pk}/keys/adopt", {"key": "old-key"}).code == "target_busy"

    @pytest.mark.parametrize("wanted", ["", " ", "x" * 256, "a\x00b"])
    def test_no_identifier(self, browser: Client, admin: Caller, provider: KmsCluster, wanted: str) -> None:
        assert browser.post(page("adopt-key", provider.pk), {"wanted": wanted}).status_code == 422
        answer = admin.post(f"/key-providers/{provider.pk}/keys/adopt", {"key": wanted})
        assert answer.status == 422 and answer.code in ("key_identifier_invalid", "invalid_input")
        assert not Job.objects.exists()

    def test_one_that_is_listed(self, browser: Client, admin: Caller, key: Key) -> None:
        assert admin.post(f"/key-providers/{key.cluster_id}/keys/adopt", {"key": "kmip-7"}).code == "key_known"
        assert browser.post(page("adopt-key", key.cluster_id), {"wanted": "kmip-7"}).status_code == 409

    def test_shown_as_made_elsewhere_and_destroying_it_warns(self, browser: Client, key: Key) -> None:
        Key.objects.update(is_foreign=True)
        assert "Not made here" in browser.get(page("cluster", key.cluster_id)).content.decode()
        assert "does not know may need it" in browser.get(page("destroy-key", key.pk)).content.decode()


def test_who_may_only_look_changes_nothing(
    looking: Client, charlie: User, provider: KmsCluster, server: KmsServer, key: Key
) -> None:
    before = [list(model.objects.values()) for model in (KmsCluster, KmsServer, Key)]
    call, one, all_ = caller(charlie), f"/key-servers/{server.pk}", f"/key-providers/{provider.pk}"
    for path, body in (
        (f"{one}/move", {"direction": "up"}), (f"{one}/fetch-certificate", None),
        (f"{one}/accept-certificate", {"fingerprint": fingerprint(LEAF)}),
        (f"{all_}/make-client-certificate", {"method": "console_ca"}), (f"{all_}/use-client-certificate", None),
        (f"{all_}/keys/refresh", None), (f"{all_}/keys/adopt", {"key": "x"}),
        (f"/keys/{key.pk}/revoke", {"reason": "superseded"}),
        (f"/keys/{key.pk}/destroy", {"confirm": "kmip-7"}),
    ):  # fmt: skip
        assert call.post(path, body).code == "not_permitted", path
    for path, given in (
        (one, {"host": "x"}),
        (f"{all_}/client-identity", {"certificate_pem": LEAF, "private_key_pem": private(LEAF_KEY)}),
    ):
        assert call("PUT", path, given).code == "not_permitted", path
    trusted = f"{all_}/trusted-certificates/{fingerprint(LEAF)}"
    assert call("DELETE", trusted).code == "not_permitted"
    for which, args in (
        ("edit-server", [server.pk]), ("move-server", [server.pk, "down"]), ("fetch-certificate", [server.pk]),
        ("review-certificate", [server.pk]), ("make-client", [provider.pk, "self_signed"]),
        ("upload-client", [provider.pk]), ("use-client", [provider.pk]), ("refresh-keys", [provider.pk]),
        ("adopt-key", [provider.pk]), ("distrust", [provider.pk, fingerprint(LEAF)]),
        ("revoke-key", [key.pk]), ("destroy-key", [key.pk]),
    ):  # fmt: skip
        assert looking.post(page(which, *args)).status_code == 403, which
    assert [list(model.objects.values()) for model in (KmsCluster, KmsServer, Key)] == before
    assert not Job.objects.exists() and not ClientKeyUpload.objects.exists()


def test_nobody_is_sent_to_the_login(provider: KmsCluster, key: Key) -> None:
    for path in (page("cluster", provider.pk), page("key", key.pk), page("download", provider.pk, "console-ca")):
        assert Client().get(path).headers["Location"].startswith("/login/")
