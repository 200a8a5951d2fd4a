"""Key Providers through their URLs: dialogs, both directions of trust, and who may."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from encryption.models import Key, KmsCluster, KmsServer
from encryption.services import client_keys
from inventory import jobs
from inventory.models import Event, Job

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
HTMX = {"HX-Request": "true"}


@pytest.fixture
def provider(db: None) -> KmsCluster:
    made = KmsCluster.objects.create(name="Main KMS", is_default=True)
    KmsServer.objects.create(cluster=made, position=0, host="kms.corp.example")
    return made


def certificate(public: ec.EllipticCurvePublicKey | None = None) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "KMS CA")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public or key.public_key())
        .serial_number(9)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=9))
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM).decode()


def private_key() -> str:
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )


def url(page: str, *args: object) -> str:
    return reverse(f"encryption:{page}", args=args)


def dialogs(provider: KmsCluster) -> list[str]:
    server = provider.servers.get()
    return [
        url("kms-add"),
        url("kms-remove-server", server.pk),
        *(
            url(page, provider.pk)
            for page in (
                "kms-add-server",
                "kms-trust",
                "kms-client-key",
                "kms-client-certificate",
                "kms-check",
                "kms-default",
                "kms-remove",
            )
        ),
    ]


def test_dialogs_for_who_may_and_who_may_not(
    admin: Client, looker: Client, client: Client, provider: KmsCluster
) -> None:
    for address in dialogs(provider):
        assert admin.get(address).status_code == 200, address
        assert admin.put(address).status_code == 405, address
        for method in ("get", "post"):
            answer = getattr(looker, method)(address)
            assert answer.status_code == 403 and "charlie may not" in answer.content.decode(), address
            answer = getattr(Client(), method)(address)
            assert answer.status_code == 302 and reverse("login") in answer.headers["Location"], address
    assert KmsCluster.objects.count() == KmsServer.objects.count() == 1
    assert not Job.objects.exists() and {row.kind for row in Event.objects.all()} == {"access.denied"}


def test_pages_for_all_who_may_look(looker: Client, provider: KmsCluster) -> None:
    for address in (url("kms"), url("kms-cluster", provider.pk)):
        page = looker.get(address).content.decode()
        assert "Main KMS" in page and "kms.corp.example" in page and "Add…" not in page
        assert looker.post(address).status_code == 405
        assert Client().get(address).status_code == 302


def test_added(admin: Client) -> None:
    answer = admin.post(url("kms-add"), {"name": " Main ", "host": "[::1]", "port": 5697}, headers=HTMX)
    made = KmsCluster.objects.get()
    assert answer.status_code == 204 and str(made.pk) in answer.headers["HX-Location"]
    assert (made.name, made.is_default, str(made.servers.get())) == ("Main", True, "[::1]:5697")
    assert set(Event.objects.values_list("kind", "actor")) == {("kms.added", "alice"), ("kms.server_added", "alice")}


@pytest.mark.parametrize(
    ("data", "status", "told"),
    [
        ({"name": "main kms", "host": "kms", "port": "5696"}, 409, "there is a key provider main kms already"),
        ({"name": "New", "host": "kms one", "port": "5696"}, 422, "is no host name or address"),
        ({"name": "New", "host": "kms/x", "port": "5696"}, 422, "is no host name or address"),
        ({"name": "New", "host": "kms\x01", "port": "5696"}, 422, "is no host name or address"),
        ({"name": "New\x01", "host": "kms", "port": "5696"}, 422, "cannot be printed"),
        ({"name": "New", "host": "kms", "port": "0"}, 422, "greater than or equal to 1"),
        ({"name": "New", "host": "kms", "port": "65536"}, 422, "less than or equal to 65535"),
        ({"name": "New", "host": "kms", "port": "x"}, 422, "Enter a whole number"),
        ({"name": " ", "host": "kms", "port": "5696"}, 422, "This field is required"),
        ({"name": "N" * 81, "host": "kms", "port": "5696"}, 422, "at most 80 characters"),
        ({"name": "New", "host": "", "port": "5696"}, 422, "This field is required"),
    ],
)
def test_not_added_and_the_input_stays(
    admin: Client, provider: KmsCluster, data: dict[str, str], status: int, told: str
) -> None:
    answer = admin.post(url("kms-add"), data, headers=HTMX)
    page = answer.content.decode()
    assert answer.status_code == status and told.lower() in page.lower(), page
    assert not data["host"].isidentifier() or f'value="{data["host"]}"' in page
    assert KmsCluster.objects.count() == 1 and KmsServer.objects.count() == 1 and not Event.objects.exists()


def test_server_twice_and_the_last_one_with_keys(admin: Client, provider: KmsCluster) -> None:
    again = admin.post(url("kms-add-server", provider.pk), {"host": "KMS.corp.example", "port": 5696}, headers=HTMX)
    assert again.status_code == 409
    Key.objects.create(cluster=provider, key_id="1")
    last = admin.post(url("kms-remove-server", provider.servers.get().pk), headers=HTMX)
    assert last.status_code == 409 and "the only server" in last.content.decode()
    used = admin.post(url("kms-remove", provider.pk), headers=HTMX)
    assert used.status_code == 409 and "holds keys" in used.content.decode()
    assert KmsServer.objects.count() == 1


@pytest.mark.parametrize(
    ("pem", "told"),
    [
        ("garbage", "no PEM certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no PEM certificate"),
        (private_key(), "holds a private key"),
        ("x" * 65_537, "at most 65536 characters"),
        ("", "This field is required"),
    ],
)
def test_bad_certificates(admin: Client, provider: KmsCluster, pem: str, told: str) -> None:
    KmsCluster.objects.update(client_csr_pem="kept")
    for page in ("kms-trust", "kms-client-certificate"):
        answer = admin.post(url(page, provider.pk), {"certificate": pem}, headers=HTMX)
        assert answer.status_code == 422 and told in answer.content.decode(), answer.content.decode()
    provider.refresh_from_db()
    assert (provider.trusted_pem, provider.client_certificate_pem, provider.client_csr_pem) == ("", "", "kept")
    assert not Event.objects.exists()


def test_private_key_that_was_pasted_is_kept_nowhere(admin: Client, provider: KmsCluster) -> None:
    pasted = certificate() + private_key()
    assert admin.post(url("kms-trust", provider.pk), {"certificate": pasted}).status_code == 422
    everything = str(list(KmsCluster.objects.values()) + list(Event.objects.values()))
    assert "PRIVATE" not in everything and "CERTIFICATE" not in everything


def test_both_directions_of_trust(admin: Client, provider: KmsCluster) -> None:
    assert admin.post(url("kms-trust", provider.pk), {"certificate": certificate()}, headers=HTMX).status_code == 204
    early = admin.post(url("kms-client-certificate", provider.pk), {"certificate": certificate()}, headers=HTMX)
    assert early.status_code == 409 and "no signing request" in early.content.decode()

    assert admin.post(url("kms-client-key", provider.pk), headers=HTMX).status_code == 204
    busy = admin.post(url("kms-client-key", provider.pk), headers=HTMX)
    assert busy.status_code == 409 and "is busy" in busy.content.decode()
    jobs.run(str(Job.objects.get().pk), client_keys.create_client_key)
    provider.refresh_from_db()
    download = admin.get(url("kms-client-request", provider.pk))
    assert download.content.decode() == provider.client_csr_pem and "attachment" in download["Content-Disposition"]
    assert b"PRIVATE" not in bytes(provider.client_key_next_sealed)

    other = admin.post(url("kms-client-certificate", provider.pk), {"certificate": certificate()}, headers=HTMX)
    assert other.status_code == 422 and "not for the key of" in other.content.decode()
    public = x509.load_pem_x509_csr(provider.client_csr_pem.encode()).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    good = admin.post(url("kms-client-certificate", provider.pk), {"certificate": certificate(public)}, headers=HTMX)
    assert good.status_code == 204
    provider.refresh_from_db()
    assert provider.client_csr_pem == "" and bytes(provider.client_key_sealed) and provider.client_certificate_pem


def test_default_moves(admin: Client, provider: KmsCluster) -> None:
    other = KmsCluster.objects.create(name="Other")
    assert admin.post(url("kms-default", other.pk), headers=HTMX).status_code == 204
    assert list(KmsCluster.objects.filter(is_default=True)) == [other]


def test_queries_are_constant(admin: Client, provider: KmsCluster) -> None:
    Key.objects.create(cluster=provider, key_id="first")

    def counts() -> list[int]:
        found = []
        for address in (url("kms"), url("kms-cluster", provider.pk)):
            with CaptureQueriesContext(connection) as queries:
                assert admin.get(address, headers=HTMX).status_code == 200
            found.append(len(queries))
        return found

    few = counts()
    for number in range(8):
        made = KmsCluster.objects.create(name=f"KMS {number}")
        KmsServer.objects.create(cluster=made, position=0, host=f"kms-{number}")
        KmsServer.objects.create(cluster=provider, position=number + 1, host=f"kms-{number}")
        Key.objects.create(cluster=provider, key_id=str(number))
    assert counts() == few
