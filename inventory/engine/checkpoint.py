"""Signed checkpoints: the console vouches for the digest of one event, and with it for all events before.

    bartizan-checkpoint-1/SEQUENCE/DIGEST/TIME/KEY/SIGNATURE

One word without blanks, so that it is found again in a log file, an export or a mail. SIGNATURE (base64url) is ECDSA
over P-256 with SHA-256 (FIPS 186-5) over the bytes before its slash; KEY is the SHA-256 of the public key's DER form.

NOT checked here: whose key it is. Whoever verifies has to know the fingerprint from elsewhere.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

FORMAT: Final = "bartizan-checkpoint-1"
_WORD: Final = re.compile(
    rf"{FORMAT}/([1-9][0-9]{{0,18}})/([0-9a-f]{{64}})/([0-9T:+.\-]{{19,40}})/([0-9a-f]{{64}})/([A-Za-z0-9_-]{{80,110}})"
)


class BadKey(Exception):
    """Not a public key of ECDSA over P-256 in PEM."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`digest` is that of the event `sequence`; `at` in ISO 8601; `key` the fingerprint; `signature` in base64url."""

    sequence: int
    digest: str
    at: str
    key: str
    signature: str = ""

    @classmethod
    def unsigned(cls, sequence: int, digest: str, now: datetime, key: str) -> Self:
        return cls(sequence, digest, now.astimezone(UTC).isoformat(timespec="seconds"), key)

    @property
    def signed_bytes(self) -> bytes:
        return "/".join([FORMAT, str(self.sequence), self.digest, self.at, self.key]).encode("ascii")

    @property
    def text(self) -> str:
        return f"{self.signed_bytes.decode('ascii')}/{self.signature}"


def find_all(text: str) -> list[Checkpoint]:
    """Every checkpoint in a text, in its order; their signatures are not checked."""
    return [
        Checkpoint(int(sequence), digest, at, key, signature)
        for sequence, digest, at, key, signature in _WORD.findall(text)
    ]


def is_signed(checkpoint: Checkpoint, public_pem: str) -> bool:
    """Whether the key whose public half is given has signed it, and is the one it names. Raises BadKey."""
    if fingerprint(public_pem) != checkpoint.key:
        return False
    return fits(public_pem, checkpoint.signed_bytes, checkpoint.signature)


def fits(public_pem: str, signed: bytes, signature: str) -> bool:
    """Whether `signature` (base64url) over `signed` is the key's. Raises BadKey."""
    try:
        value = base64.b64decode(signature + "=" * (-len(signature) % 4), altchars=b"-_", validate=True)
        _public(public_pem).verify(value, signed, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error):
        return False
    return True


def in_text(signature: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(signature).rstrip(b"=").decode("ascii")


def fingerprint(public_pem: str) -> str:
    """SHA-256 of the key's DER form (SubjectPublicKeyInfo), hexadecimal. Raises BadKey."""
    der = _public(public_pem).public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _public(pem: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem.encode("ascii"))
    except (ValueError, UnicodeEncodeError) as exc:
        raise BadKey("this is no public key in PEM") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadKey("this is no key of ECDSA over P-256")
    return key
