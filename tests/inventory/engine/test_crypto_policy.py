"""One gate for algorithms and sizes, whatever computes them."""

import pytest

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
