"""One gate for algorithms and sizes, whatever computes them."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from inventory.engine import crypto_policy
from inventory.engine.crypto_policy import NotApproved


def test_key_derivation_at_its_limits() -> None:
    crypto_policy.check_key_derivation("sha256", bytes(16), 1000)
    for digest, salt, iterations in (
        ("sha1", bytes(16), 1000),
        ("md5", bytes(16), 1000),
        ("sha256", bytes(15), 1000),
        ("sha256", b"", 1000),
        ("sha256", bytes(16), 999),
    ):
        with pytest.raises(NotApproved):
            crypto_policy.check_key_derivation(digest, salt, iterations)


@pytest.mark.parametrize("n_bytes", [0, 11, 13, 16])
def test_an_iv_has_96_bits(n_bytes: int) -> None:
    crypto_policy.check_gcm_iv(bytes(12))
    with pytest.raises(NotApproved, match=f"not {n_bytes}$"):
        crypto_policy.check_gcm_iv(bytes(n_bytes))


@pytest.mark.parametrize("n_bytes", [0, 16, 24, 33])
def test_a_kek_has_256_bits(n_bytes: int) -> None:
    crypto_policy.check_key_encryption_key(32)
    with pytest.raises(NotApproved):
        crypto_policy.check_key_encryption_key(n_bytes)


def test_own_keys() -> None:
    for good in (crypto_policy.new_signing_key(), ec.generate_private_key(ec.SECP384R1()).public_key()):
        crypto_policy.check_own_key(good)
    with pytest.raises(NotApproved, match="2048 bits"):
        crypto_policy.check_own_key(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    with pytest.raises(NotApproved, match="secp521r1"):
        crypto_policy.check_own_key(ec.generate_private_key(ec.SECP521R1()))
    with pytest.raises(NotApproved, match="neither RSA nor ECDSA"):
        crypto_policy.check_own_key(ed25519.Ed25519PrivateKey.generate())
