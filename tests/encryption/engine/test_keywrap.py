import pytest
from hypothesis import given
from hypothesis import strategies as st

from encryption.engine import keywrap
from encryption.engine.keywrap import UnwrapFailed
from encryption.engine.secret import Secret
from tests.encryption.engine import vectors

KEK = Secret(bytes(range(32)))


def test_nist_wrap_vectors() -> None:
    cases = [case for case in vectors.read("keywrap/kwtestvectors/KWP_AE_256.txt") if "K" in case]
    assert len(cases) == 500
    for case in cases:
        wrapped = keywrap.wrap(Secret(bytes.fromhex(case["K"])), Secret(bytes.fromhex(case["P"])))
        assert wrapped.hex() == case["C"]


def test_nist_unwrap_vectors_with_their_failures() -> None:
    cases = [case for case in vectors.read("keywrap/kwtestvectors/KWP_AD_256.txt") if "K" in case]
    assert len(cases) == 500
    assert any("FAIL" in case for case in cases)
    for case in cases:
        kek, blob = Secret(bytes.fromhex(case["K"])), bytes.fromhex(case["C"])
        if "FAIL" in case:
            with pytest.raises(UnwrapFailed):
                keywrap.unwrap(kek, blob)
        else:
            assert keywrap.unwrap(kek, blob).reveal().hex() == case["P"]


@given(st.binary(min_size=1, max_size=300))
def test_round_trip(value: bytes) -> None:
    assert keywrap.unwrap(KEK, keywrap.wrap(KEK, Secret(value))).reveal() == value


@given(st.binary(max_size=80))
def test_hostile_blobs_do_not_open(blob: bytes) -> None:
    with pytest.raises(UnwrapFailed):
        keywrap.unwrap(KEK, blob)


def test_every_changed_bit_is_noticed() -> None:
    blob = keywrap.wrap(KEK, Secret(b"k" * 32))
    for bit in range(len(blob) * 8):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UnwrapFailed):
            keywrap.unwrap(KEK, bytes(changed))


def test_a_failure_carries_no_key_and_no_cause() -> None:
    with pytest.raises(UnwrapFailed) as caught:
        keywrap.unwrap(Secret(b"marked-kek" + bytes(22)), bytes(40))
    assert "marked" not in repr(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("length", [16, 24, 31, 33])
def test_other_kek_sizes_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        keywrap.wrap(Secret(bytes(length)), Secret(b"x"))
    with pytest.raises(ValueError, match="32 bytes"):
        keywrap.unwrap(Secret(bytes(length)), bytes(40))


def test_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 4096"):
        keywrap.wrap(KEK, Secret(bytes(4097)))
    assert keywrap.unwrap(KEK, keywrap.wrap(KEK, Secret(bytes(4096)))) == Secret(bytes(4096))
    with pytest.raises(UnwrapFailed, match="impossible length"):
        keywrap.unwrap(KEK, bytes(1 << 20))
