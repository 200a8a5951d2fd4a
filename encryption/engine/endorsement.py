"""Endorsement keys (EK) of a virtual TPM and their certificates: read from its NV memory, checked, replaced there.

Where they stand and how the keys are made: TCG, EK Credential Profile for TPM Family 2.0, version 2.5, sections 2.2.1
and B. The EK is a key for decryption only: it cannot sign, so there is no certificate request (PKCS #10) signed by it.
What a certificate authority can be given is the public key.

NOT checked: who signed a certificate, and whether anybody trusts that issuer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from encryption.engine import tpm_command
from encryption.engine.tpm_command import BadAnswer, NvPublic, Transmit
from inventory.engine.crypto_policy import UNSUPPORTED

_NV_FIRST: Final = 0x01C00000
_POLICY_A: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_POLICY_B_384: Final = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
_LOW: Final = bytes.fromhex("000b 000300b2 0020") + _POLICY_A + bytes.fromhex("0006 0080 0043 0010")
_HIGH_384: Final = bytes.fromhex("000c 000300f2 0030") + _POLICY_B_384 + bytes.fromhex("0006 0100 0043 0010")
_CURVES: Final[dict[int, type[ec.EllipticCurve]]] = {3: ec.SECP256R1, 4: ec.SECP384R1}
# As swtpm_setup does it: made by the platform, readable by everybody, written once.
_ATTRIBUTES: Final = (
    tpm_command.PLATFORMCREATE | tpm_command.AUTHREAD | tpm_command.OWNERREAD | tpm_command.PPREAD
    | tpm_command.PPWRITE | tpm_command.NO_DA | tpm_command.WRITEDEFINE
)  # fmt: skip
MAX_UPLOAD_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class EkKind:
    """One sort of EK: where its certificate stands, and the template that makes the key."""

    name: str
    index: int
    template: bytes


KINDS: Final = (
    EkKind("RSA 2048", 0x01C00002, b"\x00\x01" + _LOW + bytes.fromhex("0800 00000000 0100") + bytes(256)),
    EkKind(
        "ECC P-256", 0x01C0000A,
        b"\x00\x23" + _LOW + bytes.fromhex("0003 0010 0020") + bytes(32) + b"\x00\x20" + bytes(32),
    ),
    EkKind("ECC P-384", 0x01C00016, b"\x00\x23" + _HIGH_384 + bytes.fromhex("0004 0010 0000 0000")),
    EkKind("RSA 3072", 0x01C0001C, b"\x00\x01" + _HIGH_384 + bytes.fromhex("0c00 00000000 0000")),
)  # fmt: skip


class BadCertificate(Exception):
    """A certificate that a TPM cannot be given, or that cannot be read. `code` is stable; `hint` says what to do."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Endorsement:
    """One EK of a TPM. `certificate` is DER, empty where there is none; `public_key` is DER (SubjectPublicKeyInfo)."""

    kind: str
    index: int
    certificate: bytes
    public_key: bytes


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a certificate says, UNVERIFIED. `fingerprint`: SHA-256 of the DER, hexadecimal."""

    subject: str
    issuer: str
    serial: str
    not_before: datetime
    not_after: datetime
    fingerprint: str
    names_its_key: bool
    """Whether its key is that of the EK it stands for."""


def read(transmit: Transmit) -> tuple[Endorsement, ...]:
    """The RSA 2048 key, which every TPM 2.0 has, and each key that has a certificate. The TPM must be started.

    Raises TpmRefused (also where the guest has given the endorsement hierarchy a password), BadAnswer.
    """
    return tuple(_read(transmit))


def _read(transmit: Transmit) -> Iterator[Endorsement]:
    defined = set(tpm_command.nv_indexes(transmit, _NV_FIRST))
    for kind in KINDS:
        if kind.index not in defined and kind is not KINDS[0]:
            continue
        certificate = b""
        if kind.index in defined:
            public = tpm_command.nv_public(transmit, kind.index)
            if public.attributes & tpm_command.WRITTEN:
                certificate = _der(tpm_command.nv_read(transmit, public))
        yield Endorsement(kind.name, kind.index, certificate, _public_key(transmit, kind))


def replace(transmit: Transmit, index: int, certificate: bytes) -> None:
    """Puts a certificate into the TPM, in place of the one that is there, and locks it as swtpm_setup does.

    The TPM must be started, and its platform must not have a password yet. Raises TpmRefused, BadAnswer,
    BadCertificate where it is not for this TPM's key.
    """
    kind = kind_of(index)
    check(certificate, _public_key(transmit, kind))
    if index in tpm_command.nv_indexes(transmit, _NV_FIRST):
        tpm_command.nv_undefine(transmit, index)
    tpm_command.nv_define(transmit, NvPublic(index, _ATTRIBUTES, len(certificate)))
    tpm_command.nv_write(transmit, index, certificate)
    tpm_command.nv_write_lock(transmit, index)
    if tpm_command.nv_read(transmit, tpm_command.nv_public(transmit, index)) != certificate:
        raise BadAnswer("the certificate does not come back as it was written")


def kind_of(index: int) -> EkKind:
    """Raises BadCertificate `ek_unknown`."""
    found = next((kind for kind in KINDS if kind.index == index), None)
    if found is None:
        raise BadCertificate("ek_unknown", f"there is no endorsement key with its certificate at NV index {index:#x}")
    return found


def load(text: bytes) -> bytes:
    """One certificate, PEM or DER, as DER. Raises BadCertificate."""
    if len(text) > MAX_UPLOAD_BYTES:
        raise BadCertificate("certificate_too_large", f"a certificate of {len(text)} bytes", hint="give it alone")
    try:
        if b"-----BEGIN" in text:
            found = x509.load_pem_x509_certificates(text)
            if len(found) != 1:
                raise BadCertificate(
                    "certificate_not_alone", f"{len(found)} certificates were given", hint="give the EK's alone"
                )
            return found[0].public_bytes(serialization.Encoding.DER)
        return x509.load_der_x509_certificate(text).public_bytes(serialization.Encoding.DER)
    except ValueError as exc:
        raise BadCertificate(
            "certificate_malformed", "that is no X.509 certificate", hint="give one certificate, PEM or DER"
        ) from exc


def check(certificate: bytes, public_key: bytes, *, now: datetime | None = None) -> None:
    """That a certificate (DER) is one for this EK (DER), fits into the TPM, and at `now` is valid. Raises
    BadCertificate."""
    found = _parse(certificate)
    if _key_of(found) != public_key:
        raise BadCertificate(
            "certificate_of_another_key",
            "the certificate is not for this vTPM's endorsement key",
            hint="have the EK's public key certified, as it can be downloaded here",
        )
    if len(certificate) > tpm_command.MAX_NV_BYTES:
        raise BadCertificate(
            "certificate_too_large",
            f"the certificate has {len(certificate)} bytes, and a TPM takes {tpm_command.MAX_NV_BYTES}",
            hint="have it issued with fewer extensions",
        )
    if _is_authority(found):
        raise BadCertificate("certificate_of_authority", "that is the certificate of a CA, not of an endorsement key")
    if now is not None and not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
        raise BadCertificate(
            "certificate_not_valid_now",
            f"the certificate is valid from {found.not_valid_before_utc:%Y-%m-%d} "
            f"to {found.not_valid_after_utc:%Y-%m-%d} only",
            hint="have a new one issued",
        )


def describe(certificate: bytes, public_key: bytes) -> CertificateFacts:
    """Raises BadCertificate where it cannot be read: the guest may have written anything there."""
    found = _parse(certificate)
    return CertificateFacts(
        subject=_name(found.subject) or _device(found),
        issuer=_name(found.issuer),
        serial=f"{found.serial_number:x}",
        not_before=found.not_valid_before_utc,
        not_after=found.not_valid_after_utc,
        fingerprint=found.fingerprint(hashes.SHA256()).hex(),
        names_its_key=_key_of(found) == public_key,
    )


def as_pem(certificate: bytes) -> bytes:
    """Raises BadCertificate."""
    return _parse(certificate).public_bytes(serialization.Encoding.PEM)


def public_key_pem(public_key: bytes) -> bytes:
    return serialization.load_der_public_key(public_key).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _parse(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(certificate)
    except ValueError as exc:
        raise BadCertificate("certificate_malformed", "that is no X.509 certificate") from exc


def _key_of(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (ValueError, *UNSUPPORTED):
        return b""


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    except ValueError as exc:
        raise BadCertificate("certificate_malformed", "the certificate's extensions cannot be read") from exc


def _name(name: x509.Name) -> str:
    return name.rfc4514_string()[:500]


def _device(certificate: x509.Certificate) -> str:
    """An EK certificate may have no subject; its TPM is then named in the subject alternative name."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ""
    return ", ".join(_name(one) for one in names.get_values_for_type(x509.DirectoryName))[:500]


def _der(content: bytes) -> bytes:
    """Without what pads the index: DER says its own length (X.690, 8.1.3). What is no DER sequence stays as it is."""
    if len(content) < 4 or content[0] != 0x30 or content[1] != 0x82:
        return content
    return content[: 4 + int.from_bytes(content[2:4], "big")]


def _public_key(transmit: Transmit, kind: EkKind) -> bytes:
    is_rsa, number, first, second = tpm_command.public_key_fields(tpm_command.primary_public(transmit, kind.template))
    try:
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
        if is_rsa:
            key = rsa.RSAPublicNumbers(number, int.from_bytes(first, "big")).public_key()
        else:
            if number not in _CURVES:
                raise BadAnswer(f"a key on the unknown curve {number}")
            x, y = int.from_bytes(first, "big"), int.from_bytes(second, "big")
            key = ec.EllipticCurvePublicNumbers(x, y, _CURVES[number]()).public_key()
    except ValueError as exc:
        raise BadAnswer("a public key that is none") from exc
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
