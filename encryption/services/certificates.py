"""Certificates and private keys as people give them: read, compared, described. PEM in, PEM out; no I/O."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from encryption.engine import keywrap
from encryption.engine.secret import Secret
from inventory.engine import crypto_policy
from inventory.engine.crypto_policy import UNSUPPORTED
from inventory.errors import Invalid

MAX_PEM_CHARACTERS: Final = 65_536
WARN_BEFORE: Final = timedelta(days=30)
_NO_EXTENSION: Final = (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError)


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a page shows of one certificate."""

    subject: str
    issuer: str
    fingerprint: str
    not_before: datetime
    not_after: datetime
    names: tuple[str, ...] = ()
    is_ca: bool = False


def describe(pem: str) -> list[CertificateFacts]:
    """Of certificates that are kept already; none for an empty text."""
    return [
        CertificateFacts(
            subject=subject(one),
            issuer=one.issuer.rfc4514_string(),
            fingerprint=fingerprint(one),
            not_before=one.not_valid_before_utc,
            not_after=one.not_valid_after_utc,
            names=_names(one),
            is_ca=is_ca(one),
        )
        for one in loaded(pem)
    ]


def loaded(pem: str) -> list[x509.Certificate]:
    """Certificates that are kept already."""
    return x509.load_pem_x509_certificates(pem.encode()) if pem else []


def given(pem: str) -> list[x509.Certificate]:
    """Certificates that somebody gives, one at least. Raises Invalid."""
    if len(pem) > MAX_PEM_CHARACTERS:
        raise Invalid("certificate_too_long", f"more than {MAX_PEM_CHARACTERS} characters of certificates")
    if "PRIVATE KEY" in pem:
        raise Invalid(
            "private_key_given", "that text holds a private key", hint="give certificates only, and replace that key"
        )
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
        found[0].public_key()  # a kind of key that the crypto module does not know shows only here
        return found
    except (ValueError, InvalidSignature, *UNSUPPORTED) as exc:
        raise Invalid(
            "certificate_invalid", "that text is no PEM certificate", hint="it begins with -----BEGIN CERTIFICATE-----"
        ) from exc


def given_key(pem: str, certificate: x509.Certificate) -> Secret:
    """The private key that somebody gives with `certificate`, as PKCS #8 PEM. Raises Invalid, never with its text."""
    if "ENCRYPTED" in pem:
        raise Invalid(
            "client_key_encrypted", "that private key is encrypted",
            hint="decrypt it first: openssl pkey -in FILE",
        )  # fmt: skip
    found: PrivateKeyTypes | None
    try:
        found = serialization.load_pem_private_key(pem[:MAX_PEM_CHARACTERS].encode(), password=None)
    except (ValueError, TypeError, *UNSUPPORTED):
        found = None
    if not isinstance(found, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        # Raised here so that the library's exception, whose frames hold the text, is not even its context.
        raise Invalid(
            "client_key_invalid",
            "that text is no private key in PEM, RSA or ECDSA",
            hint="it begins with -----BEGIN PRIVATE KEY-----",
        )
    try:
        crypto_policy.check_given_key(found)
    except crypto_policy.NotApproved as exc:
        raise Invalid("client_key_not_approved", str(exc), hint="have another one issued") from exc
    if public_bytes(found.public_key()) != public_bytes(certificate.public_key()):
        raise Invalid(
            "certificate_of_another_key",
            f"the first certificate ({subject(certificate)}) is not for that private key",
            hint="give both as the key server's administrator issued them, its own certificate first",
        )
    text = key_pem(found)
    if len(text) > keywrap.MAX_SECRET_BYTES:
        raise Invalid("client_key_too_long", "that private key is too long", hint="RSA up to 4096 bits, or ECDSA")
    return text


def key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Secret:
    return Secret(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def text_of(certificates: Iterable[x509.Certificate]) -> str:
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in certificates)


def subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 in lower-case hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def public_bytes(key: object) -> bytes:
    encode = key.public_bytes  # type: ignore[attr-defined]
    encoded: bytes = encode(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def issuer_of(chain: list[x509.Certificate]) -> x509.Certificate | None:
    """The highest CA of a chain as a server sent it, each certificate signed by the next; None where it sent none.

    Signatures are checked, dates and purposes are not: a person decides about it.
    """
    highest = None
    for lower, upper in pairwise(chain):
        try:
            lower.verify_directly_issued_by(upper)
        except (ValueError, TypeError, InvalidSignature):
            break
        if not is_ca(upper):
            break
        highest = upper
    return highest


def is_ca(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except _NO_EXTENSION:
        return False


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _NO_EXTENSION:
        return ()
    return (*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress)))
