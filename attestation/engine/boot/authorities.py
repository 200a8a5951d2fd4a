"""Signature databases (PK, KEK, db, dbx, MOK lists) and the signers that firmware and shim measured.

Sources: UEFI 2.10 section 32.4.1 (EFI_SIGNATURE_LIST), PFP 1.06 section 10.4.8 (EV_EFI_VARIABLE_AUTHORITY). A
certificate is known by the SHA-256 of its DER encoding, never by its name: anybody can make a certificate with a name.

NOT checked: whether certificates are valid at some time, or form chains. Firmware does not ask either.
"""

import hashlib
import struct
from dataclasses import dataclass, field
from operator import itemgetter
from typing import ClassVar
from uuid import UUID

from cryptography import x509

from attestation.engine.boot.uefi import Variable, guid, printable
from attestation.engine.errors import Malformed

CERT_X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
CERT_SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")

# Published revocation lists hold some hundreds of hashes; the largest variable stores have 64 to 128 KB.
MAX_SIGNATURES = 20_000
MAX_SHOWN_DATA_BYTES = 256

_LIST_HEADER = struct.Struct("<16sIII")
_OWNER_BYTES = 16
_HASH_ENTRY, _HASH_OF_ENTRY = struct.Struct("<16x32s"), itemgetter(0)
_DER_SEQUENCE = b"\x30\x82"


class MalformedSignatureList(Malformed):
    what: ClassVar[str] = "signature list"


@dataclass(frozen=True, slots=True)
class Certificate:
    """`sha256` is over the DER encoding, lower-case hex."""

    sha256: str
    der: bytes = field(repr=False)

    @property
    def subject(self) -> str:
        """As RFC 4514 text, safe to show; empty where it cannot be read. Decoded at each call: a log may hold many."""
        try:
            return printable(x509.load_der_x509_certificate(self.der).subject.rfc4514_string())
        except (ValueError, TypeError, x509.InvalidVersion):
            return ""


@dataclass(frozen=True, slots=True)
class SignatureDatabase:
    """`hashes` are SHA-256 image hashes, raw. `others` counts signatures of further types (key and TBS hashes)."""

    certificates: tuple[Certificate, ...]
    hashes: frozenset[bytes]
    others: int

    @property
    def size(self) -> int:
        return len(self.certificates) + len(self.hashes) + self.others


@dataclass(frozen=True, slots=True)
class Authority:
    """What let an image run, or what shim took from the variable store, as measured into PCR 7.

    `variable` names the database: db, Shim (its built-in certificate), MokListRT, vendor_db, SbatLevel, MokSBState ....
    Exactly one of `certificate` and `image_sha256` is set for a signer; neither for other content (SbatLevel).
    """

    event: int
    pcr: int
    vendor: UUID
    variable: str
    certificate: Certificate | None
    image_sha256: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Of the signer: its certificate's, or the image's. Empty for what is not a signer."""
        return self.certificate.sha256 if self.certificate else self.image_sha256

    @property
    def is_signer(self) -> bool:
        return bool(self.sha256)

    @property
    def data_hex(self) -> str:
        """The content of what is not a signer, cut at MAX_SHOWN_DATA_BYTES."""
        return "" if self.is_signer else self.content[:MAX_SHOWN_DATA_BYTES].hex()


def signature_database(content: bytes) -> SignatureDatabase:
    """Content of PK, KEK, db, dbx or a MOK list. Raises MalformedSignatureList. Empty content is an empty database."""
    certificates: list[Certificate] = []
    hashes: set[bytes] = set()
    others = 0
    at = 0
    while at < len(content):
        if len(content) - at < _LIST_HEADER.size:
            raise MalformedSignatureList(f"a list header of {_LIST_HEADER.size} bytes", offset=at)
        raw_type, list_size, header_size, size = _LIST_HEADER.unpack_from(content, at)
        if not _LIST_HEADER.size <= list_size <= len(content) - at:
            raise MalformedSignatureList("a list that ends inside the variable", offset=at + 16)
        start = at + _LIST_HEADER.size + header_size
        end = at + list_size
        if start > end or size <= _OWNER_BYTES or (end - start) % size:
            raise MalformedSignatureList("whole signatures with an owner each", offset=at + 20)
        count = (end - start) // size
        if len(certificates) + len(hashes) + others + count > MAX_SIGNATURES:
            raise MalformedSignatureList(f"at most {MAX_SIGNATURES} signatures", offset=at)
        kind = guid(raw_type)
        if kind == CERT_SHA256 and size == _OWNER_BYTES + 32:
            hashes.update(map(_HASH_OF_ENTRY, _HASH_ENTRY.iter_unpack(content[start:end])))
        elif kind == CERT_X509:
            certificates.extend(
                certificate(content[entry + _OWNER_BYTES : entry + size]) for entry in range(start, end, size)
            )
        else:
            others += count
        at = end
    return SignatureDatabase(tuple(certificates), frozenset(hashes), others)


def certificate(der: bytes) -> Certificate:
    """Never fails: a certificate that nobody can read still has a hash, and can be allowed or not."""
    return Certificate(hashlib.sha256(der).hexdigest(), der)


def authority(event: int, pcr: int, variable: Variable) -> Authority:
    """From EV_EFI_VARIABLE_AUTHORITY. EDK2 and shim since 15.3 write EFI_SIGNATURE_DATA (an owner, then the signature);
    older shims write the bare certificate (go-attestation's issue 157)."""
    content = variable.content
    found: Certificate | None = None
    image = ""
    if _is_der_sequence(content):
        found = certificate(content)
    elif _is_der_sequence(content[_OWNER_BYTES:]):
        found = certificate(content[_OWNER_BYTES:])
    elif len(content) == _OWNER_BYTES + 32 and variable.name in _HASH_DATABASES:
        image = content[_OWNER_BYTES:].hex()
    return Authority(event, pcr, variable.vendor, printable(variable.name), found, image, content)


_HASH_DATABASES = frozenset({"db", "MokList", "MokListRT", "vendor_db", "Shim"})


def _is_der_sequence(content: bytes) -> bool:
    """A SEQUENCE of 256 bytes to 64 KiB that ends where the content ends: any certificate, and no GUID before one."""
    return content.startswith(_DER_SEQUENCE) and int.from_bytes(content[2:4], "big") == len(content) - 4
