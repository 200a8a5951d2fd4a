import subprocess
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from attestation.engine.tpm.endorsement import (
    EKU_ENDORSEMENT,
    ChainCheck,
    MalformedCertificate,
    TpmDetails,
    certifies,
    check_chain,
    key_of,
    parse_certificate,
    parse_certificates,
    tpm_details,
)
from attestation.engine.tpm.public import MalformedKey
from tests.attestation.recorded import EVIDENCE, GOOGLE, HOST_A

NOW = datetime(2026, 12, 1, tzinfo=UTC)
CA = EVIDENCE / "captured/ca"
ONE_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swtpm-localca")])
Key = ec.EllipticCurvePrivateKey


@cache
def key(number: int) -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def made(
    subject_key: Key,
    issuer_key: Key,
    *extensions: tuple[x509.ExtensionType, bool],
    not_after: datetime = NOW + timedelta(days=1),
) -> x509.Certificate:
    """All have one name, as swtpm's have: nothing may depend on it."""
    builder = x509.CertificateBuilder().subject_name(ONE_NAME).issuer_name(ONE_NAME)
    builder = builder.public_key(subject_key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(days=9)).not_valid_after(not_after)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def ca_of(subject: Key, issuer: Key, *, path_length: int | None = None) -> x509.Certificate:
    return made(subject, issuer, (x509.BasicConstraints(True, path_length), True))


ROOT = ca_of(key(0), key(0))
MIDDLE = ca_of(key(1), key(0), path_length=0)
LEAF_FORM = ((x509.BasicConstraints(False, None), True), (x509.ExtendedKeyUsage([EKU_ENDORSEMENT]), False))
LEAF = made(key(9), key(1), *LEAF_FORM)


def recorded(folder: str, *names: str) -> list[x509.Certificate]:
    return [parse_certificate((EVIDENCE / folder / name).read_bytes()) for name in names]


@pytest.mark.parametrize("host", ["a-secureboot-on", "b-secureboot-off"])
@pytest.mark.parametrize("certificate", ["ek-cert-rsa.der", "ek-cert-ecc-p384.der"])
def test_a_recorded_certificate_leads_to_its_root(host: str, certificate: str) -> None:
    (leaf,) = recorded(f"captured/{host}", certificate)
    middle, root = recorded("captured/ca", "intermediate.pem", "root.pem")
    check = check_chain(leaf, [middle], [root], now=NOW)
    assert check.is_trusted and len(check.fingerprints) == 3
    assert check.details == TpmDetails("id:00001014", "swtpm", "id:20191023")
    assert check_chain(leaf, [], [middle], now=NOW).is_trusted
    assert check_chain(leaf, [], [leaf], now=NOW).is_trusted
    assert not check_chain(leaf, [], [root], now=NOW).is_trusted


def test_a_vendors_chain_is_trusted_through_either_anchor() -> None:
    leaf, middle, root = recorded(
        "go-tpm-tools/gce-cos-85-no-nonce", "ak_cert.der", "tpm_ek_intermediate_2.crt", "tpm_ek_root_1.cer"
    )
    assert check_chain(leaf, [middle], [root], now=NOW).is_trusted
    assert tpm_details(leaf).manufacturer == "id:474F4F47"
    early = check_chain(leaf, [middle], [root], now=datetime(2020, 1, 1, tzinfo=UTC))
    assert "not valid before" in early.problem


def test_a_platform_certificate_is_no_endorsement() -> None:
    (platform,) = recorded("captured/a-secureboot-on", "platform-cert.der")
    middle, root = recorded("captured/ca", "intermediate.pem", "root.pem")
    assert "not for a TPM" in check_chain(platform, [middle], [root], now=NOW).problem


def test_a_ca_of_the_same_name_is_not_the_ca() -> None:
    """swtpm names all of its CAs alike; another key behind the name is another CA."""
    other_root, other_middle = ca_of(key(5), key(5)), ca_of(key(6), key(5))
    assert check_chain(LEAF, [MIDDLE], [ROOT], now=NOW).is_trusted
    for intermediates, anchors in [([MIDDLE], [other_root]), ([other_middle], [ROOT]), ([other_middle], [other_root])]:
        check = check_chain(LEAF, intermediates, anchors, now=NOW)
        assert not check.is_trusted and "anchor" in check.problem and check.fingerprints == ()
    assert "anchor" in check_chain(LEAF, [MIDDLE, ROOT], [], now=NOW).problem
    # A root that came along with the evidence is no anchor.
    assert not check_chain(LEAF, [MIDDLE, ROOT], [other_root], now=NOW).is_trusted


def test_the_issuers_names_do_not_matter() -> None:
    (swtpm,) = recorded("captured/ca", "root.pem")
    assert not check_chain(LEAF, [MIDDLE], [swtpm], now=NOW).is_trusted


@pytest.mark.parametrize(
    ("leaf", "middle", "words"),
    [
        (made(key(9), key(1), *LEAF_FORM, not_after=NOW - timedelta(days=1)), MIDDLE, "expired"),
        (made(key(9), key(1), (x509.BasicConstraints(True, None), True)), MIDDLE, "CA"),
        (made(key(9), key(1), (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)), MIDDLE, "not for"),
        (
            made(key(9), key(1), (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\5\0"), True)),
            MIDDLE,
            "1.2.3.4",
        ),
        (LEAF, made(key(1), key(0)), "no CA"),
        (LEAF, made(key(1), key(0), (x509.BasicConstraints(False, None), True)), "no CA"),
        (
            LEAF,
            made(key(1), key(0), (x509.BasicConstraints(True, None), True), not_after=NOW - timedelta(days=1)),
            "expired",
        ),
        (
            LEAF,
            made(
                key(1),
                key(0),
                (x509.BasicConstraints(True, None), True),
                (x509.KeyUsage(True, False, False, False, False, False, False, False, False), True),
            ),
            "may not sign",
        ),
        (
            LEAF,
            made(
                key(1),
                key(0),
                (x509.BasicConstraints(True, None), True),
                (x509.NameConstraints([x509.DNSName("example.org")], None), True),
            ),
            "2.5.29.30",
        ),
    ],
    ids=["expired", "ca", "other-use", "critical", "no-bc", "not-ca", "old-ca", "no-sign", "constraints"],
)
def test_a_chain_with_a_flaw_is_refused(leaf: x509.Certificate, middle: x509.Certificate, words: str) -> None:
    check = check_chain(leaf, [middle], [ROOT], now=NOW)
    assert not check.is_trusted and words in check.problem


def test_a_path_longer_than_its_ca_allows_is_refused() -> None:
    below = ca_of(key(2), key(1))
    leaf = made(key(9), key(2), *LEAF_FORM)
    assert "so many" in check_chain(leaf, [below, MIDDLE], [ROOT], now=NOW).problem
    free = ca_of(key(1), key(0))
    assert check_chain(leaf, [free, below], [ROOT], now=NOW).is_trusted


def test_a_signature_with_sha1_is_refused(tmp_path: Path) -> None:
    """Made by openssl, because the crypto module signs no such thing any more."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-sha1", "-noenc", "-subj", "/CN=old", "-days", "9999"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    subprocess.run([*command, "-addext", "basicConstraints=CA:FALSE", *files], check=True, capture_output=True)
    old = parse_certificate((tmp_path / "certificate").read_bytes())
    assert "weak" in check_chain(old, [], [old], now=datetime.now(UTC) + timedelta(days=1)).problem


def test_an_expired_anchor_is_refused() -> None:
    root = made(key(0), key(0), (x509.BasicConstraints(True, None), True), not_after=NOW - timedelta(days=1))
    assert "expired" in check_chain(LEAF, [MIDDLE], [root], now=NOW).problem


def test_a_ring_of_certificates_ends() -> None:
    ring = [ca_of(key(a), key(b)) for a in (1, 2, 3) for b in (1, 2, 3) if a != b] * 4
    assert check_chain(LEAF, ring, [ROOT], now=NOW) == ChainCheck("no trust anchor issued the TPM's certificate")


def test_critical_names_and_unknown_extensions_that_are_not_critical_are_fine() -> None:
    name = x509.Name([x509.NameAttribute(ObjectIdentifier("2.23.133.2.1"), "id:53544D20")])
    leaf = made(
        key(9),
        key(1),
        (x509.SubjectAlternativeName([x509.DirectoryName(name)]), True),
        (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\5\0"), False),
        (x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.9"), b"\x30\0"), True),
        (x509.KeyUsage(False, False, True, False, False, False, False, False, False), True),
    )
    check = check_chain(leaf, [MIDDLE], [ROOT], now=NOW)
    assert check.is_trusted and check.details == TpmDetails("id:53544D20")


def test_the_rest_of_an_nv_index_is_no_part_of_a_certificate() -> None:
    der = (HOST_A / "ek-cert-rsa.der").read_bytes()
    for padded in (der, der + bytes(500), der + b"\xff" * 500):
        assert parse_certificate(padded).fingerprint(hashes.SHA256()) == parse_certificate(der).fingerprint(
            hashes.SHA256()
        )
    for wrong in (b"", der[:-1], der + b"\0\1", b"\x31" + der[1:], b"-----BEGIN CERTIFICATE-----\nAAAA\n", der[:3]):
        with pytest.raises(MalformedCertificate):
            parse_certificate(wrong)


def test_several_certificates_come_in_pem_alone() -> None:
    both = (CA / "intermediate.pem").read_bytes() + (CA / "root.pem").read_bytes()
    assert len(parse_certificates(both)) == 2
    for wrong in (both, b"-----BEGIN CERTIFICATE-----" + bytes(1 << 20)):
        with pytest.raises(MalformedCertificate):
            parse_certificate(wrong)
    with pytest.raises(MalformedCertificate):
        parse_certificates((CA / "root.pem").read_bytes() * 33)


def test_a_certificate_for_an_unsupported_key_is_refused() -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505  that is the point
    builder = x509.CertificateBuilder().subject_name(ONE_NAME).issuer_name(ONE_NAME).serial_number(1)
    builder = builder.not_valid_before(NOW).not_valid_after(NOW).public_key(weak.public_key())
    certificate = builder.sign(key(1), hashes.SHA256())
    with pytest.raises(MalformedKey):
        key_of(certificate)
    assert not certifies(certificate, key(1).public_key())


def test_no_changed_byte_of_a_certificate_leads_to_the_root() -> None:
    der = (GOOGLE / "ak_cert.der").read_bytes()
    middle, root = recorded("go-tpm-tools/gce-cos-85-no-nonce", "tpm_ek_intermediate_2.crt", "tpm_ek_root_1.cer")
    accepted = []
    for place in range(len(der)):
        wrong = der[:place] + bytes([der[place] ^ 0x41]) + der[place + 1 :]
        try:
            if check_chain(parse_certificate(wrong), [middle], [root], now=NOW).is_trusted:
                accepted.append(place)
        except MalformedCertificate:
            continue
    assert accepted == []


@given(st.integers(0, 1000), st.binary(max_size=60))
def test_no_bytes_crash_the_parser(place: int, data: bytes) -> None:
    der = (HOST_A / "ek-cert-rsa.der").read_bytes()
    for wrong in (data, der[:place] + data + der[place:], der[:place] + data + der[place + len(data) :]):
        try:
            check_chain(parse_certificate(wrong), [], [ROOT], now=NOW)
        except MalformedCertificate as exc:
            assert "certificate" in str(exc)


def test_pem_of_a_key_is_no_certificate() -> None:
    pem = key(1).public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(MalformedCertificate):
        parse_certificates(pem)
