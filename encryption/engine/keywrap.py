"""Keys wrapped by keys: AES-256 key wrap with padding (KWP: RFC 5649, NIST SP 800-38F section 6.3).

The blob is authenticated: a wrong KEK or a changed bit is noticed. It does NOT say which KEK made it, nor what the
key is for; both stand beside it (metadata.WrappedKey) and are not bound to it.
"""

from cryptography.hazmat.primitives import keywrap

from encryption.engine.secret import Secret
from inventory.engine import crypto_policy

KEK_BYTES = crypto_policy.KEY_ENCRYPTION_BYTES
# The largest thing wrapped here is a passphrase; RFC 5649 itself would allow 2**32 - 1 bytes.
MAX_SECRET_BYTES = 4096
_MIN_BLOB_BYTES = 16
_MAX_BLOB_BYTES = MAX_SECRET_BYTES + 8


class UnwrapFailed(Exception):
    """The blob was not wrapped by this KEK, or it was changed. Carries no key material."""


def wrap(kek: Secret, secret: Secret) -> bytes:
    """Wrap `secret` (1 to 4096 bytes) under `kek` (32 bytes).

    Returns the blob: the secret's length rounded up to 8, plus 8 bytes. The same input gives the same blob (KWP
    takes no nonce), so equal blobs show equal secrets; secrets here are fresh random keys.
    """
    _check_kek(kek)
    if len(secret) > MAX_SECRET_BYTES:
        raise ValueError(f"cannot wrap more than {MAX_SECRET_BYTES} bytes")
    return keywrap.aes_key_wrap_with_padding(kek.reveal(), secret.reveal())


def unwrap(kek: Secret, blob: bytes) -> Secret:
    """Return the secret in `blob`, or raise UnwrapFailed."""
    _check_kek(kek)
    if not _MIN_BLOB_BYTES <= len(blob) <= _MAX_BLOB_BYTES or len(blob) % 8:
        raise UnwrapFailed("wrapped key has an impossible length")
    try:
        value = keywrap.aes_key_unwrap_with_padding(kek.reveal(), blob)
    except keywrap.InvalidUnwrap:
        # The cause is dropped on purpose: it adds nothing, and frames of the crypto library hold the KEK.
        raise UnwrapFailed("wrapped key does not open with this key-encryption key") from None
    return Secret(value)


def _check_kek(kek: Secret) -> None:
    crypto_policy.check_key_encryption_key(len(kek))
