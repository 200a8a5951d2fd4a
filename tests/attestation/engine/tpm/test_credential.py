"""Credential activation and quotes against a real TPM emulator, which decides what is right."""

import base64
import hashlib
import hmac
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.attest import parse_quote
from attestation.engine.tpm.credential import Challenge, challenge, ek_public_of, kdfa, kdfe
from attestation.engine.tpm.endorsement import certifies, key_of, parse_certificate
from attestation.engine.tpm.pcrs import PcrSelection, initial_value
from attestation.engine.tpm.public import (
    MalformedKey,
    Public,
    RsaUnique,
    ak_defects,
    ek_defects,
    parse_tpm2b_public,
    parse_tpmt_public,
    weak_hashes,
)
from attestation.engine.tpm.quote import verify
from attestation.engine.tpm.signature import parse_signature
from tests.attestation.emulator import Emulator, Key, TpmError, sized
from tests.attestation.recorded import GOOGLE, HOST_A, HOST_B, WINDOWS

AK_HEAD = "000b 00050072 0000 0010"
RSASSA = bytes.fromhex(f"0001 {AK_HEAD} 0014 000b 0800 00000000 0000")
RSAPSS = bytes.fromhex(f"0001 {AK_HEAD} 0016 000b 0800 00000000 0000")
RSASSA_SHA384 = bytes.fromhex(f"0001 {AK_HEAD} 0014 000c 0800 00000000 0000")
RSA_3072 = bytes.fromhex(f"0001 {AK_HEAD} 0014 000b 0c00 00000000 0000")
ECDSA_P256 = bytes.fromhex(f"0023 {AK_HEAD} 0018 000b 0003 0010 0000 0000")
ECDSA_P384 = bytes.fromhex("0023 000c 00050072 0000 0010 0018 000c 0004 0010 0000 0000")
AKS = [RSASSA, RSAPSS, RSASSA_SHA384, RSA_3072, ECDSA_P256, ECDSA_P384]
AK_NAMES = ["rsassa", "rsapss", "rsassa-sha384", "rsa-3072", "ecdsa-p256", "ecdsa-p384"]


@pytest.fixture(scope="module")
def tpm() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture(scope="module")
def tpm_3072() -> Iterator[Emulator]:
    with Emulator("--rsa-keysize", "3072") as running:
        yield running


def without_unique(public: Public, *, filled: bool) -> bytes:
    """The template: the public area with a unique field of zeros (low templates) or of no bytes (high ones)."""
    if isinstance(public.unique, RsaUnique):
        size = public.unique.bits // 8
        return public.raw[: -size - 2] + sized(bytes(size) if filled else b"")
    size = public.unique.curve.bytes
    return public.raw[: -2 * (size + 2)] + sized(bytes(size) if filled else b"") * 2


def endorsement_key(tpm: Emulator, public: Public) -> Key:
    return tpm.create_primary(without_unique(public, filled=public.name_alg is HashAlg.SHA256))


def some_p256_ek() -> Public:
    return ek_public_of(ec.generate_private_key(ec.SECP256R1()).public_key())


def certified_ek(tpm: Emulator, kind: type) -> Public:
    keys = [key_of(parse_certificate(data)) for data in tpm.ek_certificates]
    return ek_public_of(next(key for key in keys if isinstance(key, kind)))


@pytest.mark.parametrize("kind", [rsa.RSAPublicKey, ec.EllipticCurvePublicKey], ids=["rsa-2048", "ecc-p384"])
def test_a_template_makes_the_key_of_the_certificate(tpm: Emulator, kind: type) -> None:
    """swtpm_setup made the certified keys by the TCG's templates; the TPM makes the same ones from ours."""
    expected = certified_ek(tpm, kind)
    made = endorsement_key(tpm, expected)
    tpm.flush(made.handle)
    assert made.public == expected.raw
    assert ek_defects(expected) == () and ak_defects(expected) != ()
    assert any(certifies(parse_certificate(data), expected) for data in tpm.ek_certificates)


def activated(tpm: Emulator, ek: Public, ak_template: bytes) -> bool:
    """One whole activation, with the EK as it is asked for through its certificate."""
    ek_key = endorsement_key(tpm, ek)
    ak = tpm.create_primary(ak_template)
    try:
        made = challenge(parse_tpmt_public(ek_key.public), parse_tpmt_public(ak.public).name)
        by_policy = ek.name_alg is HashAlg.SHA256
        return tpm.activate(ak, ek_key, made.blob, by_policy=by_policy) == made.secret
    finally:
        tpm.flush(ak.handle)
        tpm.flush(ek_key.handle)


@pytest.mark.parametrize("ak_template", AKS, ids=AK_NAMES)
@pytest.mark.parametrize("ek", ["rsa-2048", "ecc-p256", "ecc-p384"])
def test_a_tpm_opens_a_credential_made_for_its_keys(tpm: Emulator, ek: str, ak_template: bytes) -> None:
    public = {
        "rsa-2048": lambda: certified_ek(tpm, rsa.RSAPublicKey),
        "ecc-p384": lambda: certified_ek(tpm, ec.EllipticCurvePublicKey),
        "ecc-p256": some_p256_ek,
    }[ek]()
    assert activated(tpm, public, ak_template)


def test_a_tpm_with_a_3072_bit_key_opens_its_credential(tpm_3072: Emulator) -> None:
    expected = certified_ek(tpm_3072, rsa.RSAPublicKey)
    assert isinstance(expected.unique, RsaUnique) and expected.unique.bits == 3072
    assert activated(tpm_3072, expected, RSASSA)


def test_a_credential_for_another_name_or_tpm_does_not_open(tpm: Emulator, tpm_3072: Emulator) -> None:
    public = certified_ek(tpm, rsa.RSAPublicKey)
    ek, ak, other = endorsement_key(tpm, public), tpm.create_primary(RSASSA), tpm.create_primary(RSAPSS)
    try:
        name = parse_tpmt_public(ak.public).name
        for_other_ak = challenge(public, parse_tpmt_public(other.public).name)
        for_other_tpm = challenge(certified_ek(tpm_3072, rsa.RSAPublicKey), name)
        for_other_ek = challenge(ek_public_of(rsa.generate_private_key(65537, 2048).public_key()), name)
        for wrong in (for_other_ak, for_other_tpm, for_other_ek):
            with pytest.raises(TpmError):
                tpm.activate(ak, ek, wrong.blob, by_policy=True)
        # The same with its attributes named otherwise: an unrestricted key does not pass as a restricted one.
        unrestricted = bytearray(ak.public)
        unrestricted[5] &= 0xFE
        with pytest.raises(TpmError):
            made = challenge(public, parse_tpmt_public(bytes(unrestricted)).name)
            tpm.activate(ak, ek, made.blob, by_policy=True)
    finally:
        for key in (ek, ak, other):
            tpm.flush(key.handle)


@pytest.mark.parametrize("ak_template", AKS, ids=AK_NAMES)
def test_a_tpms_quotes_verify(tpm: Emulator, ak_template: bytes) -> None:
    ak = tpm.create_primary(ak_template)
    try:
        selection = bytes.fromhex("00000002 000b 03 830080 000c 03 000001")
        attest, signature = tpm.quote(ak, b"a nonce", selection)
    finally:
        tpm.flush(ak.handle)
    public = parse_tpmt_public(ak.public)
    assert ak_defects(public) == () and weak_hashes(public) == ()
    asked = PcrSelection(((HashAlg.SHA256, (0, 1, 7, 23)), (HashAlg.SHA384, (16,))))
    values = {bank: {pcr: initial_value(bank, pcr) for pcr in pcrs} for bank, pcrs in asked.banks}
    check = verify(
        parse_quote(attest), parse_signature(signature), public, nonce=b"a nonce", values=values, asked=asked
    )
    assert check.findings == () and check.quote is not None and check.quote.pcrs == values


def test_a_bank_the_tpm_has_switched_off_is_cleared_from_the_quote(tpm: Emulator) -> None:
    ak = tpm.create_primary(ECDSA_P256)
    try:
        attest, _ = tpm.quote(ak, b"", bytes.fromhex("00000001 0004 03 ff0000"))
    finally:
        tpm.flush(ak.handle)
    assert parse_quote(attest).selection.banks == ((HashAlg.SHA1, ()),)


@pytest.mark.parametrize("host", [HOST_A, HOST_B], ids=["a", "b"])
@pytest.mark.parametrize("key", ["ak", "akecc", "akpss"])
def test_names_are_those_that_the_tpm_gave(key: str, host: Path) -> None:
    public = parse_tpm2b_public((host / f"{key}.pub").read_bytes())
    assert public.name == (host / f"{key}.name").read_bytes()
    assert ak_defects(public) == ()


def test_a_recorded_ek_is_that_of_its_certificate_and_of_the_template() -> None:
    public = parse_tpm2b_public((HOST_A / "ek.pub").read_bytes())
    certificate = parse_certificate((HOST_A / "ek-cert-rsa.der").read_bytes())
    assert certifies(certificate, public)
    assert ek_public_of(key_of(certificate)).raw == public.raw
    assert not certifies(parse_certificate((HOST_B / "ek-cert-rsa.der").read_bytes()), public)


def test_attestation_keys_of_other_makers() -> None:
    assert ak_defects(parse_tpmt_public((GOOGLE / "ak_pub.tpmt").read_bytes())) == ()
    windows = parse_tpmt_public((WINDOWS / "ak_pub.tpmt").read_bytes())
    assert ak_defects(windows) == () and weak_hashes(windows) == ("signs with sha1",)


def test_attributes_that_make_a_key_worthless_are_named() -> None:
    genuine = (HOST_A / "ak.pub").read_bytes()[2:]
    for bit, words in [
        (16, "restricted"),
        (1, "another TPM"),
        (4, "another parent"),
        (5, "not made by"),
        (18, "sign"),
        (17, "also decrypts"),
        (11, "attributes that no"),
    ]:
        attributes = int.from_bytes(genuine[4:8], "big") ^ 1 << bit
        changed = parse_tpmt_public(genuine[:4] + attributes.to_bytes(4, "big") + genuine[8:])
        assert any(words in defect for defect in ak_defects(changed))


def test_no_credential_is_made_for_a_key_that_cannot_decrypt() -> None:
    with pytest.raises(MalformedKey):
        challenge(parse_tpm2b_public((HOST_A / "ak.pub").read_bytes()), b"name")


def test_the_blob_has_the_form_of_the_recorded_one() -> None:
    ek = parse_tpm2b_public((HOST_A / "ek.pub").read_bytes())
    recorded = (HOST_A / "credential.blob").read_bytes()
    made = challenge(ek, (HOST_A / "ak.name").read_bytes()).blob
    assert len(made) == len(recorded) and made[:12] == recorded[:12] and made[78:80] == recorded[78:80]
    assert "secret" not in repr(challenge(ek, b"name")) and "blob" not in repr(challenge(ek, b"name"))


def test_keylimes_answer_is_keyed_with_the_base64_text() -> None:
    made = Challenge(b"", bytes(range(32)))
    expected = hmac.new(base64.b64encode(made.secret), b"d432fbb3", hashlib.sha384).hexdigest()
    assert made.expected_auth_tag("d432fbb3") == expected


def test_key_derivation_goes_on_over_several_blocks() -> None:
    long = kdfa(HashAlg.SHA256, b"a key of 112 bits", b"LABEL", b"u", b"v", 512)
    first = hmac.digest(
        b"a key of 112 bits", bytes.fromhex("00000001") + b"LABEL\0uv" + bytes.fromhex("00000200"), "sha256"
    )
    second = hmac.digest(
        b"a key of 112 bits", bytes.fromhex("00000002") + b"LABEL\0uv" + bytes.fromhex("00000200"), "sha256"
    )
    assert long == first + second
    exchanged = kdfe(HashAlg.SHA256, b"z", b"L", b"u", b"v", 384)
    assert exchanged[:32] == hashlib.sha256(bytes.fromhex("00000001") + b"zL\0uv").digest()
    assert exchanged[32:] == hashlib.sha256(bytes.fromhex("00000002") + b"zL\0uv").digest()[:16]
