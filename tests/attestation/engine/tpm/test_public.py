"""Public areas and bare keys: what is read, and what is refused. Names and attributes: test_credential.py."""

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from attestation.engine.tpm.public import (
    MalformedKey,
    Public,
    parse_bare_key,
    parse_key,
    parse_tpm2b_public,
    parse_tpmt_public,
)
from tests.attestation.recorded import HOST_A, TRUSTEE, WINDOWS

RSA_AREA = (HOST_A / "ak.pub").read_bytes()[2:]
ECC_AREA = (HOST_A / "akecc.pub").read_bytes()[2:]
SPKI = (TRUSTEE / "ak_public.spki.der").read_bytes()


def spki_of(key: object, encoding: serialization.Encoding = serialization.Encoding.DER) -> bytes:
    assert isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey)
    return key.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_each_form_of_a_key_is_known_by_its_beginning() -> None:
    whole = parse_key((HOST_A / "ak.pub").read_bytes())
    assert isinstance(whole, Public) and whole == parse_key(RSA_AREA) == parse_tpm2b_public(
        (HOST_A / "ak.pub").read_bytes()
    )
    windows = parse_key((WINDOWS / "ak_pub.tpmt").read_bytes())
    assert isinstance(windows, Public) and len(windows.auth_policy) == 32
    assert parse_key((HOST_A / "ak.pem").read_bytes()) == whole.key
    assert parse_key((HOST_A / "akecc.pem").read_bytes()) == parse_tpmt_public(ECC_AREA).key
    assert isinstance(parse_key(SPKI), rsa.RSAPublicKey)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa.generate_private_key(65537, 1024).public_key(),  # noqa: S505
        lambda: ec.generate_private_key(ec.SECP256K1()).public_key(),
        lambda: ec.generate_private_key(ec.SECP521R1()).public_key(),
        lambda: ed25519.Ed25519PrivateKey.generate().public_key(),
    ],
    ids=["rsa-1024", "secp256k1", "p-521", "ed25519"],
)
def test_a_key_of_another_kind_is_refused(make: Callable[[], object]) -> None:
    for encoding in (serialization.Encoding.DER, serialization.Encoding.PEM):
        with pytest.raises(MalformedKey):
            parse_bare_key(spki_of(make(), encoding))


@pytest.mark.parametrize("genuine", [SPKI, (HOST_A / "akecc.pem").read_bytes(), ECC_AREA, RSA_AREA])
def test_no_changed_byte_crashes_the_parser(genuine: bytes) -> None:
    for place in range(len(genuine)):
        for change in (0x01, 0x20, 0x41, 0x80, 0xFF):
            wrong = genuine[:place] + bytes([genuine[place] ^ change]) + genuine[place + 1 :]
            try:
                parse_key(wrong)
            except MalformedKey as exc:
                assert "malformed public key" in str(exc)


@pytest.mark.parametrize(
    ("area", "place", "change"),
    [
        (RSA_AREA, 0, "0008"),
        (RSA_AREA, 2, "0012"),
        (RSA_AREA, 4, "80050072"),
        (RSA_AREA, 8, "0001"),
        (RSA_AREA, 8, "ffff"),
        (RSA_AREA, 10, "0006"),
        (RSA_AREA, 12, "0018"),
        (RSA_AREA, 12, "0017"),
        (RSA_AREA, 14, "0010"),
        (RSA_AREA, 16, "0400"),
        (RSA_AREA, 18, "00000003"),
        (RSA_AREA, 18, "00010002"),
        (RSA_AREA, 22, "0200"),
        (RSA_AREA, 24, "00"),
        (RSA_AREA, len(RSA_AREA) - 1, "00"),
        (ECC_AREA, 12, "0014"),
        (ECC_AREA, 16, "0005"),
        (ECC_AREA, 16, "0020"),
        (ECC_AREA, 18, "0001"),
        (ECC_AREA, 20, "0021"),
        (ECC_AREA, 30, "00000000"),
    ],
)
def test_what_is_out_of_bounds_is_refused(area: bytes, place: int, change: str) -> None:
    wrong = area[:place] + bytes.fromhex(change) + area[place + len(change) // 2 :]
    assert wrong != area
    with pytest.raises(MalformedKey):
        parse_tpmt_public(wrong)


def test_coordinates_without_leading_zeros_are_a_tpms_way_to_write_them() -> None:
    while True:
        numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
        if numbers.x >> 248 == 0:
            break
    x, y = numbers.x.to_bytes(31, "big"), numbers.y.to_bytes(32, "big")
    public = parse_tpmt_public(ECC_AREA[:20] + b"\0\x1f" + x + b"\0\x20" + y)
    assert public.key.public_numbers() == numbers
    assert public.name != parse_tpmt_public(ECC_AREA[:20] + b"\0\x20\0" + x + b"\0\x20" + y).name


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0", bytes(2000), b"-----BEGIN PUBLIC KEY-----\n", bytes(1 << 20)])
def test_what_is_no_key_is_refused(data: bytes) -> None:
    for parse in (parse_key, parse_tpm2b_public, parse_tpmt_public, parse_bare_key):
        with pytest.raises(MalformedKey):
            parse(data)
