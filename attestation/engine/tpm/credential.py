"""MakeCredential: a challenge that only the TPM with this endorsement key *and* this attestation key can answer.

TPM 2.0 Library, part 1, section 24 (credential protection), 11.4.10 (KDFa, KDFe), annexes B.10 and C.6 (secret sharing
by OAEP and by ECDH). The TPM opens it (TPM2_ActivateCredential) when it holds the EK and has loaded a key of exactly
that name; so an answer proves that the AK, with all its attributes, is in the same TPM as the EK.

Endorsement keys that came as certificates get the public area of the TCG's templates (EK Credential Profile, annex B):
L-1 and L-2 for RSA 2048 and P-256, H-6 and H-3 for RSA 3072 and P-384. Of these, activation uses only key, name
algorithm and symmetric cipher.
"""

import base64
import hmac
import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from attestation.engine.tpm.algorithms import ALG_AES, ALG_CFB, ALG_ECC, ALG_NULL, ALG_RSA, Curve, HashAlg
from attestation.engine.tpm.public import (
    CURVES,
    MalformedKey,
    Public,
    PublicKey,
    parse_tpmt_public,
)

SECRET_BYTES = 32
# tpm2-tools' container of a credential, and Keylime's `blob`.
_CONTAINER = bytes.fromhex("badcc0de00000001")
_EK_ATTRIBUTES_LOW, _EK_ATTRIBUTES_HIGH = 0x000300B2, 0x000300F2
# PolicySecret(TPM_RH_ENDORSEMENT); and that or PolicyAuthorizeNV, by SHA-256 and SHA-384.
_POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_POLICY_B = {
    HashAlg.SHA384: bytes.fromhex(
        "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
    )
}


@dataclass(frozen=True, slots=True)
class Challenge:
    """`blob` goes to the agent; `secret` stays here until the answer has come, and is told to nobody."""

    blob: bytes = field(repr=False)
    secret: bytes = field(repr=False)

    def expected_auth_tag(self, agent_id: str) -> str:
        """Keylime's answer to this challenge: HMAC-SHA384 of the agent's id, lower-case hex.

        Its key is the base64 text of the secret, not the secret.
        """
        return hmac.digest(base64.b64encode(self.secret), agent_id.encode(), "sha384").hex()


def challenge(ek: Public, ak_name: bytes) -> Challenge:
    """Draw a secret and seal it to the TPM that has both keys.

    Raises:
        MalformedKey: `ek` is no storage key.
    """
    secret = secrets.token_bytes(SECRET_BYTES)
    seed, encrypted_seed = _share_seed(ek)
    return Challenge(_credential_from_parts(ek, ak_name, secret, seed, encrypted_seed), secret)


def _share_seed(ek: Public) -> tuple[bytes, bytes]:
    """Return the seed and the content of TPM2B_ENCRYPTED_SECRET that tells it to the EK's TPM."""
    key, alg = ek.key, ek.name_alg
    if isinstance(key, rsa.RSAPublicKey):
        seed = secrets.token_bytes(alg.size)
        mask = padding.MGF1(alg.primitive)
        return seed, key.encrypt(seed, padding.OAEP(mask, alg.primitive, b"IDENTITY\0"))
    ephemeral = ec.generate_private_key(key.curve)
    return _share_seed_by_ecdh(ek, key, ephemeral)


def _share_seed_by_ecdh(
    ek: Public, key: ec.EllipticCurvePublicKey, ephemeral: ec.EllipticCurvePrivateKey
) -> tuple[bytes, bytes]:
    size = (key.curve.key_size + 7) // 8
    z_x = ephemeral.exchange(ec.ECDH(), key)
    numbers, theirs = ephemeral.public_key().public_numbers(), key.public_numbers()
    x, y = numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")
    seed = kdfe(ek.name_alg, z_x, b"IDENTITY", x, theirs.x.to_bytes(size, "big"), ek.name_alg.size * 8)
    return seed, _sized(x) + _sized(y)


def _credential_from_parts(ek: Public, ak_name: bytes, secret: bytes, seed: bytes, encrypted_seed: bytes) -> bytes:
    if ek.symmetric is None:
        raise MalformedKey("an endorsement key: a storage key with a symmetric cipher")
    alg = ek.name_alg
    encrypting = kdfa(alg, seed, b"STORAGE", ak_name, b"", ek.symmetric.key_bits)
    encryptor = Cipher(algorithms.AES(encrypting), CFB(bytes(16))).encryptor()  # IV 0: the key is used once
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    authenticating = kdfa(alg, seed, b"INTEGRITY", b"", b"", alg.size * 8)
    mac = hmac.digest(authenticating, identity + ak_name, alg.label)
    return _CONTAINER + _sized(_sized(mac) + identity) + _sized(encrypted_seed)


def kdfa(alg: HashAlg, key: bytes, label: bytes, context_u: bytes, context_v: bytes, bits: int) -> bytes:
    """SP 800-108 in counter mode over HMAC, as the TPM does it; `bits` is a multiple of 8."""
    fixed = label + b"\0" + context_u + context_v + bits.to_bytes(4, "big")
    blocks = range(1, -(-bits // (alg.size * 8)) + 1)
    return b"".join(hmac.digest(key, i.to_bytes(4, "big") + fixed, alg.label) for i in blocks)[: bits // 8]


def kdfe(alg: HashAlg, z_x: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """SP 800-56A's concatenation KDF, as the TPM does it; `bits` is a multiple of 8."""
    fixed = z_x + label + b"\0" + party_u + party_v
    blocks = range(1, -(-bits // (alg.size * 8)) + 1)
    return b"".join(alg.digest(i.to_bytes(4, "big") + fixed) for i in blocks)[: bits // 8]


def ek_public_of(key: PublicKey) -> Public:
    """The public area by the TCG's templates of an endorsement key that came as a certificate alone.

    Raises:
        MalformedKey: no template is known for this size or curve.
    """
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        exponent = 0 if numbers.e == 65537 else numbers.e
        modulus = numbers.n.to_bytes(key.key_size // 8, "big")
        unique = key.key_size.to_bytes(2, "big") + exponent.to_bytes(4, "big") + _sized(modulus)
        is_low, kind = key.key_size == 2048, ALG_RSA
    else:
        point, size = key.public_numbers(), (key.curve.key_size + 7) // 8
        curve = next(number for number, each in CURVES.items() if each.name == key.curve.name)
        unique = curve.to_bytes(2, "big") + ALG_NULL.to_bytes(2, "big")
        unique += _sized(point.x.to_bytes(size, "big")) + _sized(point.y.to_bytes(size, "big"))
        is_low, kind = curve is Curve.NIST_P256, ALG_ECC
    alg, aes_bits = (HashAlg.SHA256, 128) if is_low else (HashAlg.SHA384, 256)
    area = kind.to_bytes(2, "big") + alg.to_bytes(2, "big")
    area += (_EK_ATTRIBUTES_LOW if is_low else _EK_ATTRIBUTES_HIGH).to_bytes(4, "big")
    area += _sized(_POLICY_A if is_low else _POLICY_B[HashAlg.SHA384])
    area += b"".join(value.to_bytes(2, "big") for value in (ALG_AES, aes_bits, ALG_CFB, ALG_NULL))
    return parse_tpmt_public(area + unique)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
