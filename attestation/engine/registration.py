"""What an agent says when it registers (Keylime agent API 2.x): a request's body in, an Offer out.

Two dialects are spoken. Python agents send no `ek_tpm` beside a certificate, the certificate as base64 of its DER form,
the port as text; Rust agents send `ek_tpm` always, the certificate as PEM with CAs behind it, the port as a number.
`ekcert` may also be "", null, or "emulator": no certificate.

Checked: that keys are what they should be (an attestation key that a TPM restricts, an endorsement key that only
decrypts, no weak hashes), and that key and certificate of the endorsement key belong together. NOT checked: whether a
TPM has them (credential.py), who vouches for them (endorsement.py), and everything else in the body, which is ignored:
IAK and IDevID among it.
"""

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.engine.errors import Malformed
from attestation.engine.tpm.credential import ek_public_of
from attestation.engine.tpm.endorsement import (
    MalformedCertificate,
    certifies,
    key_of,
    parse_certificate,
    parse_certificates,
)
from attestation.engine.tpm.public import Public, ak_defects, ek_defects, parse_tpm2b_public, weak_hashes

MAX_BODY_BYTES = 64 << 10
DEFAULT_PORT = 9002
_AGENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_AUTH_TAG = re.compile(r"[0-9a-f]{96}")
# What agents without an EK certificate send in its place.
_NO_CERTIFICATE = ("", "emulator")


class MalformedRegistration(Malformed):
    """Not what an agent sends, or of keys that cannot be enrolled."""

    what: ClassVar[str] = "registration"


@dataclass(frozen=True, slots=True)
class Offer:
    """Keys, certificates and address as offered. `ek_certificates`: leaf first; empty where the TPM has none.

    `contact_host` is empty where the agent did not name one: then it is asked where it came from.
    """

    ek: Public
    ek_certificates: tuple[x509.Certificate, ...] = field(repr=False)
    ak: Public
    mtls_certificate: x509.Certificate = field(repr=False)
    contact_host: str
    contact_port: int

    @property
    def ek_certificate_pem(self) -> str:
        return "".join(each.public_bytes(Encoding.PEM).decode() for each in self.ek_certificates)

    @property
    def mtls_certificate_pem(self) -> str:
        return self.mtls_certificate.public_bytes(Encoding.PEM).decode()


def is_agent_id(text: str) -> bool:
    """Letters, digits, `_`, `.`, `-`, as Keylime has them; here at most 128, and no dot or dash at the start."""
    return _AGENT_ID.fullmatch(text) is not None


def parse_offer(body: bytes) -> Offer:
    """Read the body of a registration.

    Raises:
        Malformed: MalformedRegistration, or what is wrong with a key or certificate in it.
    """
    fields = _object(body)
    ek, certificates = _endorsement(fields)
    ak = parse_tpm2b_public(_binary(fields, "aik_tpm"))
    for defects in (ak_defects(ak), weak_hashes(ak)):
        if defects:
            raise MalformedRegistration(f"an attestation key, but it {' and '.join(defects)}")
    return Offer(ek, certificates, ak, _mtls_certificate(fields), _contact_host(fields), _contact_port(fields))


def parse_auth_tag(body: bytes) -> str:
    """Read the body of an activation: lower-case hex of an HMAC-SHA384.

    Raises:
        MalformedRegistration: none is there.
    """
    tag = _text(_object(body), "auth_tag")
    if _AUTH_TAG.fullmatch(tag) is None:
        raise MalformedRegistration("an auth_tag of 96 hexadecimal digits")
    return tag


def _object(body: bytes) -> Mapping[str, object]:
    if len(body) > MAX_BODY_BYTES:
        raise MalformedRegistration(f"at most {MAX_BODY_BYTES} bytes")
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedRegistration("a JSON object") from None
    if not isinstance(document, dict):
        raise MalformedRegistration("a JSON object")
    return document


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedRegistration(f"{name} as text")
    return value


def _binary(fields: Mapping[str, object], name: str) -> bytes:
    text = _text(fields, name)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedRegistration(f"{name} in base64") from None


def _endorsement(fields: Mapping[str, object]) -> tuple[Public, tuple[x509.Certificate, ...]]:
    text = _text(fields, "ekcert")
    certificates: tuple[x509.Certificate, ...] = ()
    if "-----BEGIN" in text:
        certificates = parse_certificates(_ascii(text, "ekcert"))
    elif text not in _NO_CERTIFICATE:
        certificates = (parse_certificate(_binary(fields, "ekcert")),)
    if not fields.get("ek_tpm"):
        if not certificates:
            raise MalformedRegistration("an endorsement key: ek_tpm, or its certificate in ekcert")
        return ek_public_of(key_of(certificates[0])), certificates
    ek = parse_tpm2b_public(_binary(fields, "ek_tpm"))
    if defects := ek_defects(ek) or weak_hashes(ek):
        raise MalformedRegistration(f"an endorsement key, but it {' and '.join(defects)}")
    if certificates and not certifies(certificates[0], ek):
        raise MalformedRegistration("ekcert to be the certificate of ek_tpm")
    return ek, certificates


def _mtls_certificate(fields: Mapping[str, object]) -> x509.Certificate:
    text = _text(fields, "mtls_cert")
    if "-----BEGIN" not in text:
        raise MalformedRegistration("mtls_cert, the certificate that the agent serves: without TLS it is not asked")
    try:
        return parse_certificate(_ascii(text, "mtls_cert"))
    except MalformedCertificate:
        raise MalformedRegistration("one certificate in mtls_cert") from None


def _ascii(text: str, name: str) -> bytes:
    try:
        return text.encode("ascii")
    except UnicodeEncodeError:
        raise MalformedRegistration(f"{name} in ASCII") from None


def _contact_host(fields: Mapping[str, object]) -> str:
    text = _text(fields, "ip")
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        # All digits and dots, and no address: a name that resolvers would read as one.
        if _HOST_NAME.fullmatch(text) is None or not re.search("[A-Za-z]", text):
            raise MalformedRegistration("ip to be an address or a host name") from None
        return text
    if address.is_unspecified or address.is_multicast or "%" in text:
        raise MalformedRegistration("ip to be the address of one host")
    return str(address)


def _contact_port(fields: Mapping[str, object]) -> int:
    value = fields.get("port")
    if value is None or value == "":
        return DEFAULT_PORT
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise MalformedRegistration("port to be 1 to 65535")
    return value
