"""Endorsement key certificates and their chains to pinned trust anchors (TCG EK Credential Profile; RFC 5280).

A chain is built by keys, never by names: a certificate's issuer is whoever's key verifies its signature. Every CA that
swtpm makes has the same name, and so do those of some vendors. An anchor is a certificate that somebody pinned; its key
is the trust. Nothing is fetched: what an authority information access extension points at is ignored.

`check_chain` proves, for a certificate of a TPM key:

1. one of the anchors signed it, or a CA certificate that came along did, and so on, in at most MAX_CHAIN steps;
2. every issuer on the way is a CA that may sign certificates, within its path length;
3. every certificate is valid at `now`, the anchor too;
4. no certificate has a critical extension that is not understood here, and no signature rests on SHA-1 or MD5;
5. the leaf is not a CA, and if it limits its use, it is for endorsement keys.

NOT checked: revocation (TPM vendors publish lists, hosts rarely reach them), name constraints (critical ones refuse),
policies, and that the key is that of the host's TPM: that is what activation is for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtensionOID, ObjectIdentifier

from attestation.engine.errors import Malformed
from attestation.engine.tpm.public import MalformedKey, Public, PublicKey, supported
from inventory.engine.crypto_policy import UNSUPPORTED

MAX_CERTIFICATE_BYTES = 16 * 1024
MAX_CERTIFICATES = 32
MAX_CHAIN = 6
EKU_ENDORSEMENT = ObjectIdentifier("2.23.133.8.1")
EKU_ATTESTATION = ObjectIdentifier("2.23.133.8.3")
_SUBJECT_DIRECTORY_ATTRIBUTES = ObjectIdentifier("2.5.29.9")
# What a TPM certificate's alternative name says of the TPM, as a directory name.
_MANUFACTURER = ObjectIdentifier("2.23.133.2.1")
_MODEL = ObjectIdentifier("2.23.133.2.2")
_VERSION = ObjectIdentifier("2.23.133.2.3")
# Understood: used here, or saying nothing that could make a chain untrustworthy.
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.ISSUER_ALTERNATIVE_NAME,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_INFORMATION_ACCESS,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
    ExtensionOID.CERTIFICATE_POLICIES,
    _SUBJECT_DIRECTORY_ATTRIBUTES,
}
_T = TypeVar("_T", bound=x509.ExtensionType)
_WEAK = (hashes.SHA1, hashes.MD5)  # noqa: TID251  to be refused
# All that `cryptography` was seen to raise for bytes that it cannot read (found by changing bytes at random).
_UNREADABLE = (
    ValueError,
    TypeError,
    *UNSUPPORTED,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_CERTIFICATE_TAG, _LONG_FORM_TWO_BYTES = 0x30, 0x82


class MalformedCertificate(Malformed):
    """No X.509 certificate."""

    what: ClassVar[str] = "certificate"


@dataclass(frozen=True, slots=True)
class TpmDetails:
    """What a certificate says of its TPM: manufacturer as `id:` and four bytes of hex, model, version. Often empty."""

    manufacturer: str = ""
    model: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class ChainCheck:
    """The way from a certificate to its anchor; `problem` is empty when there is one, else tells why not.

    `fingerprints` are SHA-256 of the DER forms, lower-case hex, leaf first and anchor last.
    """

    problem: str
    fingerprints: tuple[str, ...] = ()
    details: TpmDetails = field(default=TpmDetails())

    @property
    def is_trusted(self) -> bool:
        return not self.problem


def parse_certificate(data: bytes) -> x509.Certificate:
    """Read one certificate, DER (zeros or ones of an NV index after it are left out) or PEM.

    Raises:
        MalformedCertificate: too long, or no certificate.
    """
    certificates = parse_certificates(data)
    if len(certificates) != 1:
        raise MalformedCertificate("exactly one certificate")
    return certificates[0]


def parse_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """Read one certificate in DER, or up to MAX_CERTIFICATES in PEM, in their order.

    Raises:
        MalformedCertificate: none is there, too many, too long, or not a certificate.
    """
    if len(data) > MAX_CERTIFICATES * MAX_CERTIFICATE_BYTES:
        raise MalformedCertificate(f"at most {MAX_CERTIFICATES} certificates", offset=0)
    try:
        if b"-----BEGIN" in data[:1024]:
            certificates = x509.load_pem_x509_certificates(data)
        else:
            certificates = [x509.load_der_x509_certificate(_without_padding(data))]
        # Parsed only when asked for, and asked for here so that nothing below can fail on it.
        for certificate in certificates:
            _ = certificate.extensions, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _UNREADABLE:
        raise MalformedCertificate("an X.509 certificate, DER or PEM") from None
    if len(certificates) > MAX_CERTIFICATES:
        raise MalformedCertificate(f"at most {MAX_CERTIFICATES} certificates")
    return tuple(certificates)


def _without_padding(data: bytes) -> bytes:
    # The NV index of an EK certificate may be larger than the certificate; the rest is 00 or FF.
    if len(data) < 4 or data[0] != _CERTIFICATE_TAG or data[1] != _LONG_FORM_TWO_BYTES:
        raise MalformedCertificate("a DER certificate", offset=0)
    end = 4 + int.from_bytes(data[2:4], "big")
    if len(data) < end or (data[end:].strip(b"\x00") and data[end:].strip(b"\xff")):
        raise MalformedCertificate("a DER certificate with nothing after it", offset=min(end, len(data)))
    return data[:end]


def key_of(certificate: x509.Certificate) -> PublicKey:
    """The certified key.

    Raises:
        MalformedKey: of a kind that this package does not support.
    """
    try:
        return supported(certificate.public_key())
    except MalformedKey:
        raise
    except _UNREADABLE:
        raise MalformedKey("a supported key in the certificate") from None


def certifies(certificate: x509.Certificate, key: Public | PublicKey) -> bool:
    """True when the certificate's key is this one."""
    try:
        return _spki(key_of(certificate)) == _spki(key.key if isinstance(key, Public) else key)
    except MalformedKey:
        return False


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER form, lower-case hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def check_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    now: datetime,
) -> ChainCheck:
    """Find a way from `leaf` to one of `anchors`, as the head of this file says. `now` is aware."""
    problem = _leaf_problem(leaf) or _certificate_problem(leaf, now)
    if problem:
        return ChainCheck(f"the TPM's certificate {problem}")
    if not anchors:
        return ChainCheck("no trust anchor is known")
    pinned = {fingerprint(anchor) for anchor in anchors}
    reason = "no trust anchor issued the TPM's certificate"
    # Breadth first over at most MAX_CERTIFICATES others, each used once, so a hostile set costs little.
    ways: list[tuple[x509.Certificate, ...]] = [(leaf,)]
    unused = list(intermediates)[:MAX_CERTIFICATES]
    for depth in range(MAX_CHAIN):
        longer: list[tuple[x509.Certificate, ...]] = []
        for way in ways:
            if fingerprint(way[-1]) in pinned:
                return ChainCheck("", tuple(map(fingerprint, way)), tpm_details(leaf))
            for issuer in _issuers(way[-1], [*anchors, *unused]):
                problem = _issuer_problem(issuer, depth) or _certificate_problem(issuer, now)
                if problem:
                    reason = f"the issuer {_name(issuer)} {problem}"
                    continue
                if issuer in unused:
                    unused.remove(issuer)
                longer.append((*way, issuer))
        ways = longer
        if not ways:
            break
    return ChainCheck(reason)


def _issuers(certificate: x509.Certificate, candidates: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    return [each for each in candidates if each != certificate and _is_signed_by(certificate, each)]


def _is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        key, hash_alg = issuer.public_key(), certificate.signature_hash_algorithm
        parameters = certificate.signature_algorithm_parameters
        signature, signed = certificate.signature, certificate.tbs_certificate_bytes
        if hash_alg is None or isinstance(hash_alg, _WEAK):
            return False
        if isinstance(key, rsa.RSAPublicKey) and isinstance(parameters, padding.PKCS1v15 | padding.PSS):
            key.verify(signature, signed, parameters, hash_alg)
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            key.verify(signature, signed, parameters)
        else:
            return False
    except (InvalidSignature, *_UNREADABLE):
        return False
    return True


def _certificate_problem(certificate: x509.Certificate, now: datetime) -> str:
    if now < certificate.not_valid_before_utc:
        return f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}"
    if now > certificate.not_valid_after_utc:
        return f"has expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    try:
        hash_alg = certificate.signature_hash_algorithm
    except _UNREADABLE:
        hash_alg = None
    if hash_alg is None or isinstance(hash_alg, _WEAK):
        return "is signed with a weak or unknown hash"
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            return f"has the critical extension {extension.oid.dotted_string}, which is not understood"
    return ""


def _leaf_problem(certificate: x509.Certificate) -> str:
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        return "is that of a CA and not of a TPM"
    usages = _extension(certificate, x509.ExtendedKeyUsage)
    if usages is not None and not {EKU_ENDORSEMENT, EKU_ATTESTATION} & set(usages):
        return "is not for a TPM's endorsement or attestation key"
    return ""


def _issuer_problem(certificate: x509.Certificate, intermediates_below: int) -> str:
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        return "is no CA"
    if constraints.path_length is not None and constraints.path_length < intermediates_below:
        return "may not have so many CAs below it"
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return "may not sign certificates"
    return ""


def _extension(certificate: x509.Certificate, kind: type[_T]) -> _T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _name(certificate: x509.Certificate) -> str:
    try:
        return f"{certificate.subject.rfc4514_string()[:100]} ({fingerprint(certificate)[:16]})"
    except _UNREADABLE:
        return fingerprint(certificate)[:16]


def tpm_details(certificate: x509.Certificate) -> TpmDetails:
    """Manufacturer, model and version as the alternative name gives them; empty texts where it does not."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    found: dict[ObjectIdentifier, str] = {}
    for name in names.get_values_for_type(x509.DirectoryName) if names is not None else ():
        for attribute in name:
            if isinstance(attribute.value, str):
                found.setdefault(attribute.oid, attribute.value[:64])
    return TpmDetails(found.get(_MANUFACTURER, ""), found.get(_MODEL, ""), found.get(_VERSION, ""))
