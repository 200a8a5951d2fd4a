"""Secrets from those who must not keep them to those who may: sealed to a public key, opened by its holder.

RSA-OAEP (RFC 8017 section 7.1) with SHA-256 and a 3072-bit key transports a fresh AES-256 key, under which the secret
itself is wrapped (keywrap.py). Both are approved algorithms (SP 800-56B, SP 800-38F). `context` is the OAEP label: what
was sealed for one purpose does not open for another.

Not checked: who sealed it. Whoever has the public key can; the opener has to judge the content.
"""

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from encryption.engine import keywrap
from encryption.engine.secret import Secret
from inventory.engine import crypto_policy

_RSA_BITS = crypto_policy.MIN_RSA_BITS
_RSA_BYTES = _RSA_BITS // 8


class OpenFailed(Exception):
    """The blob was not sealed to this key and context, or it was changed. Carries no key material."""


def generate() -> tuple[str, Secret]:
    """A new key pair: the public key as PEM, the private one as PKCS #8 DER (about 1.8 KB: keywrap takes it)."""
    private = crypto_policy.new_transport_key()
    public_pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    der = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return public_pem.decode("ascii"), Secret(der)


def seal(public_pem: str, secret: Secret, *, context: bytes) -> bytes:
    """Seal `secret` (at most keywrap.MAX_SECRET_BYTES) to a public key that `generate` made."""
    public = serialization.load_pem_public_key(public_pem.encode("ascii"))
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size != _RSA_BITS:
        raise ValueError("not a transport key")
    fresh = Secret.generate(keywrap.KEK_BYTES)
    return public.encrypt(fresh.reveal(), _oaep(context)) + keywrap.wrap(fresh, secret)


def unseal(private_der: Secret, blob: bytes, *, context: bytes) -> Secret:
    """Return the secret in `blob`, or raise OpenFailed."""
    private = serialization.load_der_private_key(private_der.reveal(), password=None)
    if not isinstance(private, rsa.RSAPrivateKey):
        raise ValueError("not a transport key")
    try:
        fresh = Secret(private.decrypt(blob[:_RSA_BYTES], _oaep(context)))
        return keywrap.unwrap(fresh, blob[_RSA_BYTES:])
    except (ValueError, keywrap.UnwrapFailed):
        # The cause is dropped: frames of the crypto library hold the key.
        raise OpenFailed("the blob was not sealed to this key for this purpose") from None


def _oaep(context: bytes) -> padding.OAEP:
    return padding.OAEP(mgf=padding.MGF1(algorithm=hashes.SHA256()), algorithm=hashes.SHA256(), label=context)
