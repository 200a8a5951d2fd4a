"""Sealed to a public key: opens with its private one, for its purpose, and in no other way."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from encryption.engine import keywrap, transport
from encryption.engine.secret import Secret

CONTEXT = b"client key of cluster 7"


@pytest.fixture(scope="module")
def pair() -> tuple[str, Secret]:
    return transport.generate()


@pytest.mark.parametrize("size", [1, 32, keywrap.MAX_SECRET_BYTES])
def test_it_opens_for_its_purpose(pair: tuple[str, Secret], size: int) -> None:
    secret = Secret.generate(size)
    blob = transport.seal(pair[0], secret, context=CONTEXT)
    assert transport.unseal(pair[1], blob, context=CONTEXT) == secret
    assert size < 8 or secret.reveal() not in blob


def test_the_same_secret_never_looks_the_same(pair: tuple[str, Secret]) -> None:
    secret = Secret.generate(32)
    assert len({transport.seal(pair[0], secret, context=CONTEXT) for _ in range(5)}) == 5


def test_a_private_key_can_itself_be_wrapped(pair: tuple[str, Secret]) -> None:
    kek = Secret.generate(32)
    assert keywrap.unwrap(kek, keywrap.wrap(kek, pair[1])) == pair[1]


def test_another_purpose_another_key_or_a_changed_bit(pair: tuple[str, Secret]) -> None:
    blob = transport.seal(pair[0], Secret(b"planted-secret" * 4), context=CONTEXT)
    other = transport.generate()[1]
    with pytest.raises(transport.OpenFailed):
        transport.unseal(pair[1], blob, context=b"client key of cluster 8")
    with pytest.raises(transport.OpenFailed):
        transport.unseal(other, blob, context=CONTEXT)
    for position in (0, 383, 384, len(blob) - 1):
        changed = bytearray(blob)
        changed[position] ^= 1
        with pytest.raises(transport.OpenFailed) as caught:
            transport.unseal(pair[1], bytes(changed), context=CONTEXT)
        assert caught.value.__cause__ is None and "planted" not in str(caught.value)


@pytest.mark.parametrize("blob", [b"", b"x", b"x" * 384, b"x" * 400])
def test_what_is_no_blob(pair: tuple[str, Secret], blob: bytes) -> None:
    with pytest.raises(transport.OpenFailed):
        transport.unseal(pair[1], blob, context=CONTEXT)


def test_another_kind_of_public_key_is_refused() -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    with pytest.raises(ValueError, match="transport"):
        transport.seal(pem.decode(), Secret(b"x"), context=CONTEXT)
