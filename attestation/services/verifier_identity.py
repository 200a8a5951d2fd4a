"""The console toward agents: a CA that hosts are given, and the client certificate under it. Worker side.

Hosts trust the CA (`trusted_client_ca` of their agents), so that a new client certificate needs nothing on them.
"""

from datetime import datetime, timedelta
from typing import Final
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from django.db import transaction
from django.utils import timezone

from attestation.adapters.agent_client import ClientCredentials
from attestation.models import VerifierIdentity
from inventory import events
from inventory.authorize import SYSTEM, VIEW, Actor, authorize
from inventory.engine import crypto_policy
from inventory.errors import NotFound
from inventory.services.console_key import sealed, unsealed

CA_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 397
RENEW_BEFORE: Final = timedelta(days=60)
_SKEW: Final = timedelta(hours=1)


def ca_pem() -> str:
    """What hosts are given; made at the first call. Raises Unavailable `console_key_missing` where it must be made."""
    return _identity().ca_pem


def known_ca_pem() -> str:
    """The same without a worker's rights: empty while none was made."""
    return VerifierIdentity.objects.values_list("ca_pem", flat=True).first() or ""


def public_ca_pem(*, actor: Actor) -> str:
    """For hosts' administrators. Raises NotFound `verifier_ca_not_made` before a worker has made it."""
    authorize(actor, VIEW)
    found = known_ca_pem()
    if not found:
        raise NotFound(
            "verifier_ca_not_made", "this console has no CA for agents yet", hint="run `./bartizan manage verifier_ca`"
        )
    return found


def credentials() -> ClientCredentials:
    """Raises Unavailable `console_key_missing`, Conflict `verifier_key_sealed_otherwise`."""
    found = _identity()
    return ClientCredentials(found.certificate_pem.encode(), _pem(_own(found.key_sealed)))


def _identity() -> VerifierIdentity:
    """The row, with a client certificate that has a while to go."""
    now = timezone.now()
    found = VerifierIdentity.objects.first()
    if found is not None and found.not_after - now > RENEW_BEFORE:
        return found
    with transaction.atomic():
        found = VerifierIdentity.objects.select_for_update().first()
        if found is None:
            return _made(now)
        if found.not_after - now <= RENEW_BEFORE:
            _renew(found, now)
        return found


def _made(now: datetime) -> VerifierIdentity:
    key = crypto_policy.new_signing_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bartizan verifier CA {uuid4()}")])
    ca = (
        _builder(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    found = VerifierIdentity(ca_pem=_certificate_text(ca), ca_key_sealed=sealed(key))
    _issue(found, ca, key, now)
    found.save(force_insert=True)
    events.record("attestation.verifier_made", "A CA for the attestation agents of hosts was made", target=None,
                  actor=SYSTEM)  # fmt: skip
    return found


def _renew(found: VerifierIdentity, now: datetime) -> None:
    ca = x509.load_pem_x509_certificate(found.ca_pem.encode())
    _issue(found, ca, _own(found.ca_key_sealed), now)
    found.save()
    events.record("attestation.verifier_renewed", "The console's certificate toward agents was renewed", target=None,
                  actor=SYSTEM)  # fmt: skip


def _issue(found: VerifierIdentity, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, now: datetime) -> None:
    key = crypto_policy.new_signing_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Bartizan verifier")])
    certificate = (
        _builder(ca.subject, name, key.public_key(), now, CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    found.certificate_pem, found.key_sealed = _certificate_text(certificate), sealed(key)
    found.not_after = certificate.not_valid_after_utc


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _certificate_text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _own(blob: bytes | memoryview) -> ec.EllipticCurvePrivateKey:
    return unsealed(bytes(blob), code="verifier_key_sealed_otherwise", what="the console's key toward agents")
