import hashlib

import pytest

from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.pcrs import initial_value, read_selection
from attestation.engine.tpm.reader import MalformedTpmStructure, Reader

TWO_BANKS = bytes.fromhex("00000002 0004 03 810000 000b 03 030080")


def test_bitmaps_count_from_the_lowest_bit_of_the_first_byte() -> None:
    selection = read_selection(Reader(TWO_BANKS))
    assert selection.banks == ((HashAlg.SHA1, (0, 7)), (HashAlg.SHA256, (0, 1, 23)))
    assert selection.pcrs_of(HashAlg.SHA256) == {0, 1, 23}
    assert selection.pcrs_of(HashAlg.SHA384) == frozenset()


def test_the_digest_is_over_the_values_in_the_selections_order() -> None:
    selection = read_selection(Reader(TWO_BANKS))
    values = {
        HashAlg.SHA256: {pcr: bytes([pcr]) * 32 for pcr in (23, 1, 0, 5)},
        HashAlg.SHA1: {pcr: bytes([pcr]) * 20 for pcr in (7, 0)},
    }
    expected = b"\0" * 20 + b"\x07" * 20 + b"\0" * 32 + b"\x01" * 32 + b"\x17" * 32
    assert selection.digest(HashAlg.SHA384, values) == hashlib.sha384(expected).digest()
    assert selection.pick(values)[HashAlg.SHA256].keys() == {0, 1, 23}
    del values[HashAlg.SHA1][7]
    assert selection.digest(HashAlg.SHA384, values) is None


@pytest.mark.parametrize(
    "hostile",
    [
        "00000011",
        "ffffffff",
        "00000001",
        "00000001 000b",
        "00000001 1234 03 010000",
        "00000001 000b 04 01000000",
        "00000001 000b 03 0100",
        "00000002 000b 03 010000 000b 03 020000",
    ],
)
def test_a_hostile_selection_is_refused(hostile: str) -> None:
    with pytest.raises(MalformedTpmStructure):
        read_selection(Reader(bytes.fromhex(hostile)))


def test_initial_values_of_the_pc_client_profile() -> None:
    assert initial_value(HashAlg.SHA1, 16) == b"\0" * 20
    assert initial_value(HashAlg.SHA256, 17) == initial_value(HashAlg.SHA256, 22) == b"\xff" * 32
    assert initial_value(HashAlg.SHA384, 23) == b"\0" * 48


def test_hashes_have_the_names_people_write() -> None:
    assert [alg.label for alg in HashAlg] == ["sha1", "sha256", "sha384", "sha512"]
    assert all(len(alg.digest(b"x")) == alg.size and HashAlg.of_label(alg.label) is alg for alg in HashAlg)
    assert [alg for alg in HashAlg if alg.is_weak] == [HashAlg.SHA1]
