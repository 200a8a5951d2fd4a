import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.engine.boot import uefi
from attestation.engine.boot.authorities import (
    CERT_SHA256,
    CERT_X509,
    MAX_SIGNATURES,
    MalformedSignatureList,
    SignatureDatabase,
    authority,
    certificate,
    signature_database,
)
from attestation.engine.boot.uefi import IMAGE_SECURITY_DATABASE, SHIM_LOCK, Variable
from tests.attestation.engine.boot.logs import logs_of, parsed

OWNER = bytes(range(16))
DER = b"\x30\x82" + (300).to_bytes(2, "big") + bytes(300)


def signature_list(kind: UUID, *signatures: bytes, header: bytes = b"") -> bytes:
    size = len(OWNER) + len(signatures[0])
    length = 28 + len(header) + size * len(signatures)
    head = kind.bytes_le + struct.pack("<III", length, len(header), size)
    return head + header + b"".join(OWNER + each for each in signatures)


def test_lists_of_all_sorts_make_one_database() -> None:
    other = UUID("3c5766e8-269c-4e34-aa14-ed776e85b3b6")
    content = (
        signature_list(CERT_X509, DER)
        + signature_list(CERT_SHA256, b"\1" * 32, b"\2" * 32, header=b"head")
        + signature_list(other, bytes(256))
    )
    database = signature_database(content)
    assert database == SignatureDatabase((certificate(DER),), frozenset({b"\1" * 32, b"\2" * 32}), 1)
    assert database.size == 4
    assert signature_database(b"").size == 0


def test_real_databases() -> None:
    """Upstream states the contents for this log (go-tpm-tools, ubuntu-1804-amd-sev)."""
    (entry,) = [entry for entry in logs_of("replays") if entry.name.endswith("ubuntu-1804-amd-sev.bin")]
    variables = [uefi.variable(event.data) for event in parsed(entry).events[4:8]]
    databases = {each.name: signature_database(each.content) for each in variables}
    names = {name: [each.subject for each in found.certificates] for name, found in databases.items()}
    assert {subject.partition(",")[0] for subject in names["db"]} == {
        "CN=Microsoft Windows Production PCA 2011",
        "CN=Microsoft Corporation UEFI CA 2011",
    }
    assert [subject.partition(",")[0] for subject in names["KEK"]] == ["CN=Microsoft Corporation KEK CA 2011"]
    assert len(names["PK"]) == 1
    assert len(databases["dbx"].hashes) == 77


GOOD = signature_list(CERT_SHA256, b"\1" * 32)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (GOOD[:27], "a list header of 28 bytes at byte 0"),
        (GOOD[:-1], "a list that ends inside the variable at byte 16"),
        (GOOD + b"x", f"a list header of 28 bytes at byte {len(GOOD)}"),
        (GOOD[:16] + struct.pack("<III", 27, 0, 48) + GOOD[28:], "a list that ends inside the variable"),
        (GOOD[:16] + struct.pack("<III", 76, 0, 16) + GOOD[28:], "whole signatures"),
        (GOOD[:16] + struct.pack("<III", 76, 0, 47) + GOOD[28:], "whole signatures"),
        (GOOD[:16] + struct.pack("<III", 76, 77, 48) + GOOD[28:], "whole signatures"),
        (GOOD[:16] + struct.pack("<III", 0xFFFFFFFF, 0, 48) + GOOD[28:], "a list that ends inside the variable"),
        (signature_list(CERT_X509, *[b"x"] * (MAX_SIGNATURES + 1)), f"at most {MAX_SIGNATURES} signatures"),
    ],
)
def test_lists_that_do_not_fit(content: bytes, expected: str) -> None:
    with pytest.raises(MalformedSignatureList, match=expected):
        signature_database(content)


@given(st.binary(max_size=120))
def test_any_bytes(content: bytes) -> None:
    for hostile in (content, GOOD[:16] + content, GOOD + content):
        try:
            assert signature_database(hostile).size >= 0
        except MalformedSignatureList:
            continue


def test_a_certificate_that_nobody_can_read_has_a_hash() -> None:
    found = certificate(DER)
    assert (len(found.sha256), found.subject) == (64, "")


@pytest.mark.parametrize(
    ("variable", "content", "is_certificate", "image"),
    [
        ("db", OWNER + DER, True, ""),
        ("Shim", DER, True, ""),
        ("db", OWNER + b"\7" * 32, False, "07" * 32),
        ("SbatLevel", b"sbat,1,2021030218\n", False, ""),
        # As long as a hash with an owner, and still no signer.
        ("SbatLevel", OWNER + b"\7" * 32, False, ""),
        ("db", OWNER + DER + b"\0", False, ""),
    ],
)
def test_what_is_a_signer(variable: str, content: bytes, is_certificate: bool, image: str) -> None:
    vendor = IMAGE_SECURITY_DATABASE if variable == "db" else SHIM_LOCK
    found = authority(3, 7, Variable(vendor, variable, content, 0))
    assert (found.certificate is not None, found.image_sha256) == (is_certificate, image)
    if found.certificate:
        assert found.certificate.der == DER
    assert bool(found.data_hex) is not found.is_signer
