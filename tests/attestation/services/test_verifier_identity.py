"""The console's CA and client certificate toward agents."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone
from pytest_django.fixtures import Settings

from attestation.models import VerifierIdentity
from attestation.services import verifier_identity
from inventory.errors import Conflict, Unavailable
from inventory.models import Event

pytestmark = pytest.mark.django_db


def test_it_is_made_once_and_stays() -> None:
    assert verifier_identity.known_ca_pem() == ""
    first = verifier_identity.ca_pem()
    assert verifier_identity.ca_pem() == first == verifier_identity.known_ca_pem()
    assert Event.objects.filter(kind="attestation.verifier_made").count() == 1


def test_the_client_certificate_is_under_the_ca_and_for_clients() -> None:
    credentials = verifier_identity.credentials()
    ca = x509.load_pem_x509_certificate(verifier_identity.ca_pem().encode())
    certificate = x509.load_pem_x509_certificate(credentials.certificate_pem)
    certificate.verify_directly_issued_by(ca)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert b"PRIVATE KEY" in credentials.key_pem and "PRIVATE" not in repr(credentials)


def test_its_keys_are_sealed() -> None:
    key = verifier_identity.credentials().key_pem
    row = VerifierIdentity.objects.get()
    for sealed in (row.ca_key_sealed, row.key_sealed):
        assert b"PRIVATE" not in bytes(sealed) and bytes(sealed)[:8] not in key


def test_a_new_certificate_before_the_old_one_ends_and_the_ca_stays() -> None:
    ca, old = verifier_identity.ca_pem(), verifier_identity.credentials().certificate_pem
    VerifierIdentity.objects.update(not_after=timezone.now() + timedelta(days=59))
    renewed = verifier_identity.credentials().certificate_pem
    assert renewed != old and verifier_identity.ca_pem() == ca
    issuer = x509.load_pem_x509_certificate(ca.encode())
    x509.load_pem_x509_certificate(renewed).verify_directly_issued_by(issuer)
    assert verifier_identity.credentials().certificate_pem == renewed


def test_without_the_console_key(settings: Settings) -> None:
    settings.CONSOLE_KEY = ""
    with pytest.raises(Unavailable) as caught:
        verifier_identity.ca_pem()
    assert caught.value.code == "console_key_missing"
    with pytest.raises(CommandError, match="console key"):
        call_command("verifier_ca")


def test_with_another_console_key(settings: Settings) -> None:
    verifier_identity.ca_pem()
    settings.CONSOLE_KEY = "00" * 32
    with pytest.raises(Conflict) as caught:
        verifier_identity.credentials()
    assert caught.value.code == "verifier_key_sealed_otherwise"


def test_the_command_prints_the_ca(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("verifier_ca")
    assert capsys.readouterr().out == verifier_identity.ca_pem()
