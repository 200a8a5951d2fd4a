import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.engine.errors import Malformed
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.pcr_values import MalformedPcrValues, parse_dump, parse_values
from attestation.engine.tpm.pcrs import PcrSelection, PcrValues
from tests.attestation.recorded import HOST_A, entries
from tests.attestation.wire import dumped

ENTRY_A = next(entry for entry in entries() if entry.name == "a-secureboot-on/eventlog.bin")
MANY = PcrSelection(((HashAlg.SHA1, (0, 23)), (HashAlg.SHA256, tuple(range(17)))))
VALUES: PcrValues = {bank: {pcr: bytes([pcr]) * bank.size for pcr in pcrs} for bank, pcrs in MANY.banks}


def test_the_dump_of_tpm2_tools() -> None:
    dump = dumped(VALUES)
    assert len(dump) == 136 + 532 * 3
    assert parse_values(dump) == parse_dump(dump) == VALUES
    assert len(dumped({HashAlg.SHA256: {pcr: bytes(32) for pcr in range(17)}})) == 1732


def test_the_text_of_pcrread() -> None:
    values = parse_values((HOST_A / "pcrread.yaml").read_bytes())
    assert values.keys() == {HashAlg.SHA1, HashAlg.SHA256} and len(values[HashAlg.SHA1]) == 24
    assert values[HashAlg.SHA256][7] == ENTRY_A.pcrs[HashAlg.SHA256][7]


def test_json_as_the_manifests_have_it() -> None:
    assert parse_values(json.dumps(ENTRY_A.facts["pcrs"]).encode()) == ENTRY_A.pcrs


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"{}",
        b'{"sha256": {}}',
        b"[" * 100_000,
        b"{" * 100_000,
        b'{"sha999": {"0": "00"}}',
        b'{"sha256": []}',
        b'{"sha256": {"0": 5}}',
        b'{"sha256": {"0": "00"}}',
        b'{"sha256": {"24": "%s"}}' % (b"00" * 32),
        b'{"sha256": {"-1": "%s"}}' % (b"00" * 32),
        b'{"sha256": {"\\u0663": "%s"}}' % (b"00" * 32),
        b'{"sha256": {"0": "%s", "00": "%s"}}' % (b"00" * 32, b"01" * 32),
        b"sha256:\n  0 : 0x00\n",
        b"sha256:\n  0 : 0x" + b"00" * 20 + b"\n",
        b"0 : 0x" + b"00" * 32,
        b"sha256:\n",
        b"sha256:\n what : is this",
        b"sha256:\n" + b" " * 70_000,
    ],
)
def test_hostile_texts_are_refused(wrong: bytes) -> None:
    with pytest.raises(MalformedPcrValues):
        parse_values(wrong)


def test_hostile_dumps_are_refused() -> None:
    dump = dumped(VALUES)
    changes = [
        (0, struct.pack("<I", 17)),
        (0, struct.pack("<I", 0xFFFFFFFF)),
        (4, b"\x34\x12"),
        (6, b"\x04"),
        (7, b"\xff"),
        (12, b"\x04\x00"),
        (132, struct.pack("<I", 4)),
        (132, struct.pack("<I", 0xFFFFFFFF)),
        (136, struct.pack("<I", 9)),
        (136, struct.pack("<I", 7)),
        (140, struct.pack("<H", 32)),
        (140, struct.pack("<H", 0xFFFF)),
    ]
    for place, change in changes:
        with pytest.raises(MalformedPcrValues):
            parse_dump(dump[:place] + change + dump[place + len(change) :])
    for cut in (dump[:-1], dump + b"\0", dump[:135], b""):
        with pytest.raises(MalformedPcrValues):
            parse_dump(cut)


@given(st.binary(max_size=700))
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    for candidate in (data, dumped(VALUES)[: len(data)] + data, b"sha256:\n" + data, b'{"sha256":' + data):
        try:
            parse_values(candidate)
        except Malformed as exc:
            assert str(exc).startswith("malformed PCR values")
