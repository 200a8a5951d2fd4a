"""TOTP keys (RFC 6238): sealed for the database, shown to an authenticator, compared with its codes.

HMAC-SHA-1, 30 seconds, 6 digits: what every authenticator knows. SHA-1 stays approved within HMAC (SP 800-131A rev. 2,
section 10); the key of 160 bits is what RFC 4226 recommends (requirement R6).

A sealed key is nonce (12) | AES-256-GCM of the key, tag behind it. The key that seals comes from the secret key of
Django by HKDF-SHA-256 (SP 800-56C rev. 2), because the web process compares codes and has no console key. So this
protects copies of the database, NOT what the web process itself can read.
"""

import base64
from datetime import datetime
from typing import Final
from urllib.parse import quote, urlencode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django_otp.oath import TOTP

from encryption.engine import drbg
from encryption.engine.secret import Secret
from inventory.engine import crypto_policy

KEY_BYTES: Final = 20
STEP_SECONDS: Final = 30
DIGITS: Final = 6
ISSUER: Final = "Bartizan"
_LABEL: Final = b"Bartizan TOTP keys 1"
_TOLERANCE: Final = 1  # steps before and after: clocks differ, and people type slowly


class DoesNotOpen(Exception):
    """Sealed under another secret key or for another purpose, or changed. Carries no key material."""


def generate() -> Secret:
    return Secret.generate(KEY_BYTES)


def seal(key: Secret, *, secret_key: str, context: bytes) -> bytes:
    """`context`: whose key it is, and what for; it opens for nothing else."""
    nonce = drbg.draw(crypto_policy.GCM_IV_BYTES)  # random: SP 800-38D, 8.2.2
    return nonce + _cipher(secret_key).encrypt(nonce, key.reveal(), context)


def unseal(sealed: bytes, *, secret_key: str, context: bytes) -> Secret:
    """Raises DoesNotOpen."""
    nonce, text = sealed[: crypto_policy.GCM_IV_BYTES], sealed[crypto_policy.GCM_IV_BYTES :]
    try:
        return Secret(_cipher(secret_key).decrypt(nonce, text, context))
    except (InvalidTag, ValueError):  # the latter for what is too short
        # The cause is dropped: frames of the crypto library hold the key.
        raise DoesNotOpen("the TOTP key does not open under this secret key") from None


def matching_step(key: Secret, code: str, *, now: datetime, after: int) -> int | None:
    """The time step whose code this is, among those near `now` and later than `after`; None where it is none's."""
    if len(code) != DIGITS or not (code.isascii() and code.isdigit()):
        return None
    totp = TOTP(key.reveal(), step=STEP_SECONDS, digits=DIGITS)
    totp.time = now.timestamp()
    return int(totp.t()) if totp.verify(int(code), tolerance=_TOLERANCE, min_t=after + 1) else None


def text_of(key: Secret) -> str:
    """Base32, as authenticators take it from people."""
    return base64.b32encode(key.reveal()).decode("ascii")


def uri_of(key: Secret, *, username: str, place: str) -> str:
    """The key URI of authenticators. `place` tells one console from another; colons would part issuer and account."""
    label = quote(f"{ISSUER}:{username.replace(':', '.')}@{place.replace(':', '.')}", safe=":@")
    values = {"secret": text_of(key), "issuer": ISSUER, "algorithm": "SHA1", "digits": DIGITS, "period": STEP_SECONDS}
    return f"otpauth://totp/{label}?{urlencode(values)}"


def _cipher(secret_key: str) -> AESGCM:
    derived = HKDF(SHA256(), crypto_policy.KEY_ENCRYPTION_BYTES, salt=None, info=_LABEL).derive(secret_key.encode())
    return AESGCM(derived)
