from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from encryption.engine import xts
from encryption.engine.secret import Secret
from encryption.engine.xts import SECTOR_BYTES, EqualKeyHalves, SelfCheckFailed, Xts
from tests.encryption.engine import vectors

KEY = Secret(bytes(range(64)))


@pytest.mark.parametrize("per_sector", [False, True])
def test_nist_cavs_vectors(per_sector: bool) -> None:
    """A data unit of whole blocks is a prefix of the sector that is filled up with anything (no stealing)."""
    n_cases = 0
    for case in vectors.read("ciphers/AES/XTS/tweak-dataunitseqno/XTSGenAES256.rsp"):
        if "DataUnitSeqNumber" not in case or int(case["DataUnitLen"]) % 128:
            continue
        n_cases += 1
        cipher = Xts(Secret(bytes.fromhex(case["Key"])), per_sector=per_sector)
        number = int(case["DataUnitSeqNumber"])
        plain, ciphered = bytes.fromhex(case["PT"]), bytes.fromhex(case["CT"])
        if case["section"] == "ENCRYPT":
            assert cipher.encrypt(plain.ljust(512, b"\0"), number).startswith(ciphered)
        else:
            assert cipher.decrypt(ciphered.ljust(512, b"\0"), number).startswith(plain)
    assert n_cases == 600


def test_self_check_passes() -> None:
    xts.self_check()


@pytest.mark.parametrize("name", ["_VECTOR_CIPHER_HEAD", "_VECTOR_CIPHER_TAIL"])
def test_self_check_notices_a_wrong_known_answer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(xts, name, bytes(16))
    with pytest.raises(SelfCheckFailed, match="known answer"):
        xts.self_check()


def test_self_check_notices_that_the_paths_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    tweaks_of = Xts._sector_tweaks

    def broken(self: Xts, first_sector: int, n_sectors: int) -> object:
        tweaks = tweaks_of(self, first_sector, n_sectors)
        tweaks[1023:, 31, 1] ^= 1
        return tweaks

    monkeypatch.setattr(Xts, "_sector_tweaks", broken)
    with pytest.raises(SelfCheckFailed, match="differ"):
        xts.self_check()


@settings(max_examples=40)
@given(
    st.binary(min_size=64, max_size=64).filter(lambda key: key[:32] != key[32:]),
    st.binary(min_size=1, max_size=700),
    st.integers(1, 70),
    st.integers(0, 2**64 - 3000),
)
def test_fast_path_is_the_modules_own_xts(key: bytes, content: bytes, n_sectors: int, first_sector: int) -> None:
    plain = (content * (n_sectors * 512 // len(content) + 1))[: n_sectors * 512]
    fast = Xts(Secret(key)).encrypt(plain, first_sector)
    for sector in range(n_sectors):
        tweak = (first_sector + sector).to_bytes(16, "little")
        own = Cipher(algorithms.AES(key), modes.XTS(tweak)).encryptor().update(plain[sector * 512 : sector * 512 + 512])
        assert fast[sector * 512 : sector * 512 + 512] == own
    assert Xts(Secret(key)).decrypt(fast, first_sector) == plain


@pytest.mark.parametrize("per_sector", [False, True])
def test_it_works_in_place_and_across_runs(per_sector: bool) -> None:
    plain = bytes(range(256)) * 2 * 2500
    cipher = Xts(KEY, per_sector=per_sector)
    memory = bytearray(plain)
    cipher.encrypt_into(memory, memoryview(memory), 7)
    assert bytes(memory) == Xts(KEY, per_sector=not per_sector).encrypt(plain, 7)
    # Sector by sector gives the same as all at once.
    assert bytes(memory[512 * 1500 : 512 * 1501]) == cipher.encrypt(plain[:512], 1507)
    cipher.decrypt_into(memory, memoryview(memory), 7)
    assert bytes(memory) == plain


def test_highest_sector_number() -> None:
    last = 2**64 - 1
    assert Xts(KEY).encrypt(bytes(512), last) == Xts(KEY, per_sector=True).encrypt(bytes(512), last)
    with pytest.raises(ValueError, match="out of range"):
        Xts(KEY).encrypt(bytes(1024), last)
    with pytest.raises(ValueError, match="out of range"):
        Xts(KEY).encrypt(bytes(512), -1)


def test_threads_share_one() -> None:
    shared, n_bytes = Xts(KEY), 700 * SECTOR_BYTES
    blocks = [bytes([number]) * n_bytes for number in range(8)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = list(pool.map(lambda number: shared.encrypt(blocks[number], 700 * number), range(8)))
    assert b"".join(found) == Xts(KEY, per_sector=True).encrypt(b"".join(blocks), 0)


def test_nothing_is_nothing() -> None:
    assert Xts(KEY).encrypt(b"", 0) == b""


@pytest.mark.parametrize("length", [1, 511, 513, 16])
def test_parts_of_sectors_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="whole sectors"):
        Xts(KEY).encrypt(bytes(length), 0)


def test_an_output_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Xts(KEY).encrypt_into(bytes(1024), memoryview(bytearray(512)), 0)


def test_equal_key_halves_are_refused() -> None:
    with pytest.raises(EqualKeyHalves):
        Xts(Secret(bytes(range(32)) * 2))


@pytest.mark.parametrize("length", [32, 48, 63, 65])
def test_other_key_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        Xts(Secret(bytes(range(length))))
