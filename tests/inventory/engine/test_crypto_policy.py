"""One gate for algorithms and sizes, whatever computes them."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

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


@pytest.mark.parametrize("n_bytes", [0, 16, 24, 33])
def test_a_kek_has_256_bits(n_bytes: int) -> None:
    crypto_policy.check_key_encryption_key(32)
    with pytest.raises(NotApproved):
        crypto_policy.check_key_encryption_key(n_bytes)


def test_keys_that_others_have_made() -> None:
    for good in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        crypto_policy.check_given_key(good)
    with pytest.raises(NotApproved, match="1024 bits"):
        crypto_policy.check_given_key(rsa.generate_private_key(65537, 1024))  # noqa: S505
    with pytest.raises(NotApproved, match="secp224r1"):
        crypto_policy.check_given_key(ec.generate_private_key(ec.SECP224R1()))
