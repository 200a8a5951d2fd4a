"""The console key, which only workers and commands on their side have, and private keys sealed under it."""

from cryptography.hazmat.primitives import keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.conf import settings

from inventory.errors import Conflict, Unavailable


def console_key() -> bytes:
    """32 bytes. Raises Unavailable `console_key_missing`."""
    if not settings.CONSOLE_KEY:
        raise Unavailable(
            "console_key_missing",
            "this process was started without the console key",
            hint="set BARTIZAN_CONSOLE_KEY_FILE for the workers",
        )
    return bytes.fromhex(settings.CONSOLE_KEY)


def sealed(private: ec.EllipticCurvePrivateKey) -> bytes:
    """Its PKCS #8 form wrapped by RFC 5649. Raises Unavailable `console_key_missing`."""
    plain = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return keywrap.aes_key_wrap_with_padding(console_key(), plain)


def unsealed(blob: bytes, *, code: str, what: str) -> ec.EllipticCurvePrivateKey:
    """What `sealed` made. Raises Conflict, with `code` and `what`, where another key made it; else as `console_key`."""
    try:
        plain = keywrap.aes_key_unwrap_with_padding(console_key(), blob)
    except (keywrap.InvalidUnwrap, ValueError):
        raise Conflict(
            code, f"{what} was sealed under another console key",
            hint="start the workers with the console key of this database",
        ) from None  # fmt: skip
    private = serialization.load_der_private_key(plain, password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TypeError(type(private).__name__)
    return private
