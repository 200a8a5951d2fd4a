"""Which algorithms and sizes this product uses: one gate, the same with the FIPS provider and without it.

Sizes are those of SP 800-131A rev. 2, SP 800-132 and SP 800-38D, or above. What others made (a LUKS header, a TPM's
key, a server's certificate) is read by wider rules of its own module; this is what we make, and by what we talk.

Not checked here: entropy of what is given, the use of one key for one purpose, the TLS 1.3 suites (Python 3.11 cannot
choose among them; outside of FIPS mode ChaCha20-Poly1305 is one).
"""

from typing import Final

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

DIGESTS: Final = frozenset({"sha256", "sha384", "sha512"})
KEY_ENCRYPTION_BYTES: Final = 32  # AES-256
GCM_IV_BYTES: Final = 12  # SP 800-38D, 8.2.1
MIN_SALT_BYTES: Final = 16  # SP 800-132, 5.1
MIN_ITERATIONS: Final = 1000  # SP 800-132, 5.2; enough where the passphrase is a random key
MIN_PASSWORD_ITERATIONS: Final = 600_000  # for what a person has chosen
MIN_RSA_BITS: Final = 3072
MIN_GIVEN_RSA_BITS: Final = 2048  # SP 800-131A rev. 2, table 2
GIVEN_CURVES: Final = frozenset({"secp256r1", "secp384r1", "secp521r1"})  # SP 800-186, 3.2.1
# TLS 1.2, by OpenSSL's names: ECDHE with AES-GCM (SP 800-52 rev. 2, 3.3.1). TLS 1.0 and 1.1 are not spoken at all.
TLS_1_2_CIPHERS: Final = "ECDHE+AESGCM"

# What `cryptography` raises for a key or an algorithm that its module does not know. With the FIPS provider it is often
# the latter, which says no more than that: whatever reads what others made has to catch both.
UNSUPPORTED: Final = (UnsupportedAlgorithm, InternalError)


class NotApproved(ValueError):
    """An algorithm or a size that this product does not use. The message names it, and no value."""


def check_key_derivation(digest: str, salt: bytes, iterations: int) -> None:
    """PBKDF2 of something random. For a password MIN_PASSWORD_ITERATIONS is the caller's to demand."""
    check_digest(digest)
    if len(salt) < MIN_SALT_BYTES:
        raise NotApproved(f"a salt of {len(salt)} bytes is shorter than {MIN_SALT_BYTES}")
    if iterations < MIN_ITERATIONS:
        raise NotApproved(f"{iterations} iterations are fewer than {MIN_ITERATIONS}")


def check_digest(digest: str) -> None:
    if digest not in DIGESTS:
        raise NotApproved(f"{digest} is not among the digests in use: {', '.join(sorted(DIGESTS))}")


def check_key_encryption_key(n_bytes: int) -> None:
    if n_bytes != KEY_ENCRYPTION_BYTES:
        raise NotApproved(f"a key-encryption key has {KEY_ENCRYPTION_BYTES} bytes")


def check_given_key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    """A key of this console's that somebody else has made and certified, and that it signs with."""
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < MIN_GIVEN_RSA_BITS:
            raise NotApproved(f"an RSA key of {key.key_size} bits is shorter than {MIN_GIVEN_RSA_BITS}")
    elif key.curve.name not in GIVEN_CURVES:
        raise NotApproved(f"the curve {key.curve.name} is not among those in use: {', '.join(sorted(GIVEN_CURVES))}")


def new_signing_key() -> ec.EllipticCurvePrivateKey:
    """A fresh ECDSA key on P-256, for certificates and signatures of this console."""
    return ec.generate_private_key(ec.SECP256R1())


def new_transport_key() -> rsa.RSAPrivateKey:
    """A fresh RSA key, for what is sealed to it."""
    return rsa.generate_private_key(public_exponent=65537, key_size=MIN_RSA_BITS)
