import struct
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encryption.engine import antiforensic, luks
from encryption.engine.luks import (
    BadHeader,
    KeyslotLocked,
    NewVolume,
    NoFreeKeyslot,
    NotLuks,
    WeakPassphrase,
)
from encryption.engine.secret import Secret
from tests.encryption.engine.images import OTHER_PASSPHRASE, PASSPHRASE

PREFIX = luks.create(PASSPHRASE).header_bytes
KEYSLOT_AT = 208
KEYSLOT_BYTES = 48


def patched(offset: int, value: bytes) -> bytes:
    return PREFIX[:offset] + value + PREFIX[offset + len(value) :]


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def test_layout_is_qemus() -> None:
    header = luks.parse(PREFIX)
    assert len(PREFIX) == luks.PREFIX_BYTES == header.payload_offset == 2_068_480
    assert [slot.material_sector for slot in header.keyslots] == [8, 512, 1016, 1520, 2024, 2528, 3032, 3536]
    assert [slot.active for slot in header.keyslots] == [True] + [False] * 7
    assert (header.hash_name, header.digest_iterations, header.keyslots[0].iterations) == ("sha256", 1000, 1000)


def test_parse_and_pack_are_reverse() -> None:
    assert luks.parse(PREFIX).pack() == PREFIX[:592]


def test_unlock_returns_the_volume_key() -> None:
    volume = luks.create(PASSPHRASE)
    assert luks.unlock(volume.header_bytes, PASSPHRASE) == volume.volume_key
    assert len(volume.volume_key) == 64


def test_two_volumes_share_nothing() -> None:
    first, second = luks.create(PASSPHRASE), luks.create(PASSPHRASE)
    assert first.volume_key != second.volume_key
    left, right = luks.parse(first.header_bytes), luks.parse(second.header_bytes)
    assert left.uuid != right.uuid
    assert left.digest_salt != right.digest_salt
    assert left.keyslots[0].salt != right.keyslots[0].salt
    assert first.header_bytes[4096:8192] != second.header_bytes[4096:8192]


def test_same_parts_give_the_same_volume() -> None:
    def make() -> NewVolume:
        return luks._create_from_parts(
            PASSPHRASE,
            iterations=1000,
            volume_key=Secret(bytes(range(64))),
            uuid=UUID(int=7),
            digest_salt=b"d" * 32,
            keyslot_salt=b"k" * 32,
            stripes=bytes(range(256)) * 999 + bytes(192),
        )

    assert make().header_bytes == make().header_bytes
    assert luks.unlock(make().header_bytes, PASSPHRASE) == Secret(bytes(range(64)))
    assert not any(make().header_bytes[4096 + 256_000 :])


def test_another_passphrase_does_not_open_it() -> None:
    with pytest.raises(KeyslotLocked):
        luks.unlock(PREFIX, OTHER_PASSPHRASE)


@pytest.mark.parametrize("offset", [112, 132, 216, 4096, 4096 + 255_999])
def test_a_damaged_byte_locks_it(offset: int) -> None:
    with pytest.raises(KeyslotLocked):
        luks.unlock(patched(offset, bytes([PREFIX[offset] ^ 1])), PASSPHRASE)


def test_a_volume_without_active_keyslot_is_locked() -> None:
    with pytest.raises(KeyslotLocked):
        luks.unlock(patched(KEYSLOT_AT, number(0xDEAD)), PASSPHRASE)


@pytest.mark.parametrize(
    ("passphrase", "message"),
    [(b"short", "needs 600000"), (b"\xff" * 32, "utf-8"), (b"x" * 513, "longer than 512")],
)
def test_weak_passphrases_are_refused(passphrase: bytes, message: str) -> None:
    with pytest.raises(WeakPassphrase, match=message) as caught:
        luks.create(Secret(passphrase))
    assert caught.value.__cause__ is None


def test_a_short_passphrase_with_many_iterations_is_taken() -> None:
    volume = luks.create(Secret(b"typed by a person"), iterations=600_000)
    assert luks.unlock(volume.header_bytes, Secret(b"typed by a person")) == volume.volume_key


@pytest.mark.parametrize("iterations", [0, 999, 20_000_001])
def test_iterations_have_bounds(iterations: int) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        luks.create(PASSPHRASE, iterations=iterations)


def test_nothing_of_the_keys_stands_in_the_header() -> None:
    volume = luks.create(PASSPHRASE)
    assert volume.volume_key.reveal()[:16] not in volume.header_bytes
    assert PASSPHRASE.reveal()[:16] not in volume.header_bytes
    assert "redacted" in repr(volume.volume_key)


class TestChangePassphrase:
    def test_first_both_open_it_then_only_the_new_one(self) -> None:
        change = luks.change_passphrase(PREFIX, PASSPHRASE, OTHER_PASSPHRASE)
        volume_key = luks.unlock(PREFIX, PASSPHRASE)
        assert luks.unlock(change.both, PASSPHRASE) == volume_key
        assert luks.unlock(change.both, OTHER_PASSPHRASE) == volume_key
        assert luks.unlock(change.new_only, OTHER_PASSPHRASE) == volume_key
        with pytest.raises(KeyslotLocked):
            luks.unlock(change.new_only, PASSPHRASE)

    def test_old_key_material_is_zeroed(self) -> None:
        change = luks.change_passphrase(PREFIX, PASSPHRASE, OTHER_PASSPHRASE)
        old, new = luks.parse(change.new_only).keyslots[:2]
        assert not any(change.new_only[old.material_offset : old.material_offset + 256_000])
        assert any(change.new_only[new.material_offset : new.material_offset + 256_000])
        assert (old.active, old.salt, old.iterations) == (False, bytes(32), 0)
        assert len(change.new_only) == len(change.both) == len(PREFIX)

    def test_it_can_go_on_for_ever(self) -> None:
        prefix, volume_key = PREFIX, luks.unlock(PREFIX, PASSPHRASE)
        for _ in range(5):
            prefix = luks.change_passphrase(prefix, PASSPHRASE, OTHER_PASSPHRASE).new_only
            prefix = luks.change_passphrase(prefix, OTHER_PASSPHRASE, PASSPHRASE).new_only
        assert luks.unlock(prefix, PASSPHRASE) == volume_key
        assert sum(slot.active for slot in luks.parse(prefix).keyslots) == 1

    def test_further_passphrases_stay(self) -> None:
        third = Secret(b"c" * 64)
        prefix = luks.change_passphrase(PREFIX, PASSPHRASE, third).both
        prefix = luks.change_passphrase(prefix, PASSPHRASE, OTHER_PASSPHRASE).new_only
        assert luks.unlock(prefix, third) == luks.unlock(prefix, OTHER_PASSPHRASE)

    def test_every_keyslot_of_the_old_passphrase_goes(self) -> None:
        prefix = luks.change_passphrase(PREFIX, PASSPHRASE, OTHER_PASSPHRASE).both
        twice = luks.change_passphrase(prefix, OTHER_PASSPHRASE, PASSPHRASE).new_only
        assert sum(slot.active for slot in luks.parse(twice).keyslots) == 2
        change = luks.change_passphrase(twice, PASSPHRASE, OTHER_PASSPHRASE)
        assert sum(slot.active for slot in luks.parse(change.new_only).keyslots) == 1

    def test_bytes_behind_the_header_are_not_returned(self) -> None:
        change = luks.change_passphrase(PREFIX + b"payload", PASSPHRASE, OTHER_PASSPHRASE)
        assert len(change.both) == luks.PREFIX_BYTES

    def test_a_wrong_old_passphrase_is_refused(self) -> None:
        with pytest.raises(KeyslotLocked):
            luks.change_passphrase(PREFIX, OTHER_PASSPHRASE, Secret(b"c" * 64))

    def test_the_same_passphrase_is_refused(self) -> None:
        with pytest.raises(ValueError, match="the same"):
            luks.change_passphrase(PREFIX, PASSPHRASE, PASSPHRASE)

    def test_a_weak_new_passphrase_is_refused(self) -> None:
        with pytest.raises(WeakPassphrase):
            luks.change_passphrase(PREFIX, PASSPHRASE, Secret(b"short"))

    def test_a_full_header_is_refused(self) -> None:
        prefix = PREFIX
        for letter in b"abcdefg":
            prefix = luks.change_passphrase(prefix, PASSPHRASE, Secret(bytes([letter]) * 64)).both
        with pytest.raises(NoFreeKeyslot):
            luks.change_passphrase(prefix, PASSPHRASE, OTHER_PASSPHRASE)


class TestRemovePassphrase:
    def test_it_completes_a_removal_that_was_cut_short(self) -> None:
        """The header says inactive, the key material still stands: it goes although nothing is opened by it."""
        both = luks.add_passphrase(PREFIX, PASSPHRASE, OTHER_PASSPHRASE)
        removed = luks.remove_passphrase(both, PASSPHRASE, OTHER_PASSPHRASE)
        cut_short = removed[: luks.HEADER_BYTES] + both[luks.HEADER_BYTES :]
        assert luks.remove_passphrase(cut_short, PASSPHRASE, OTHER_PASSPHRASE) == removed
        assert luks.remove_passphrase(removed, PASSPHRASE, OTHER_PASSPHRASE) == removed

    def test_taking_back_what_was_added(self) -> None:
        both = luks.add_passphrase(PREFIX, PASSPHRASE, OTHER_PASSPHRASE)
        assert luks.remove_passphrase(both, OTHER_PASSPHRASE, PASSPHRASE) == PREFIX

    def test_the_last_one_is_not_removed(self) -> None:
        with pytest.raises(KeyslotLocked):
            luks.remove_passphrase(PREFIX, PASSPHRASE, OTHER_PASSPHRASE)
        with pytest.raises(ValueError, match="the same"):
            luks.remove_passphrase(PREFIX, PASSPHRASE, PASSPHRASE)


@pytest.mark.parametrize("content", [b"", PREFIX[:591], bytes(592), b"QFI\xfb" + bytes(600), patched(6, b"\0\2")[:600]])
def test_what_is_no_luks1_volume(content: bytes) -> None:
    with pytest.raises(NotLuks):
        luks.parse(content)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, b"twofish", "cipher is not aes"),
        (8, b"aes\0x", "behind its end"),
        (40, b"cbc-essiv:sha256", "cipher is not aes"),
        (40, b"\xff", "not ascii"),
        (72, b"md5\0\0\0", "neither sha256 nor sha512"),
        (104, number(0), "overlaps key material"),
        (104, number(4035), "overlaps key material"),
        (104, number(0xFFFFFFFF), "out of bounds"),
        (108, number(32), "32 bytes"),
        (108, number(0xFFFFFFFF), "only 64"),
        (164, number(0), "iterations"),
        (164, number(0xFFFFFFFF), "iterations"),
        (168, b"x", "uuid"),
        (KEYSLOT_AT, number(1), "neither active nor inactive"),
        (KEYSLOT_AT + 4, number(0), "iterations"),
        (KEYSLOT_AT + 4, number(0xFFFFFFFF), "iterations"),
        (KEYSLOT_AT + 40, number(0), "overlaps the header"),
        (KEYSLOT_AT + 40, number(1), "overlaps the header"),
        (KEYSLOT_AT + 40, number(0xFFFFFFFF), "overlaps"),
        (KEYSLOT_AT + KEYSLOT_BYTES + 40, number(507), "overlaps the header or other"),
        (KEYSLOT_AT + 44, number(0), "stripes"),
        (KEYSLOT_AT + 7 * KEYSLOT_BYTES + 44, number(0xFFFFFFFF), "stripes"),
    ],
)
def test_hostile_headers_are_refused(offset: int, value: bytes, message: str) -> None:
    with pytest.raises(BadHeader, match=message):
        luks.parse(patched(offset, value))


def test_a_cut_off_header_is_refused_by_what_needs_it_whole() -> None:
    luks.parse(PREFIX[:592])
    with pytest.raises(BadHeader, match="cut off"):
        luks.unlock(PREFIX[:-1], PASSPHRASE)
    with pytest.raises(BadHeader, match="cut off"):
        luks.change_passphrase(PREFIX[:592], PASSPHRASE, OTHER_PASSPHRASE)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 591), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_any_damage_parses_or_is_refused(damage: list[tuple[int, bytes]]) -> None:
    content = bytearray(PREFIX[:592])
    for offset, value in damage:
        content[offset : offset + len(value)] = value
    try:
        header = luks.parse(bytes(content[:592]))
    except (NotLuks, BadHeader):
        return
    assert all(0 < slot.material_offset < header.payload_offset <= 64 * 1024 * 1024 for slot in header.keyslots)
    assert all(1000 <= slot.iterations <= 20_000_000 for slot in header.keyslots if slot.active)
    assert luks.parse(header.pack()) == header


@given(st.binary(min_size=64, max_size=64), st.integers(2, 9))
def test_splitter_round_trip_and_loss(key: bytes, n_stripes: int) -> None:
    algorithm = luks.parse(PREFIX).hash_algorithm
    material = antiforensic.split(key, b"\x5a" * (64 * (n_stripes - 1)), algorithm)
    assert len(material) == 64 * n_stripes
    assert antiforensic.merge(material, 64, algorithm) == key
    damaged = bytes([material[0] ^ 1]) + material[1:]
    assert antiforensic.merge(damaged, 64, algorithm) != key


@pytest.mark.parametrize("length", [0, 63, 65])
def test_splitter_takes_whole_stripes(length: int) -> None:
    with pytest.raises(ValueError, match="whole stripes"):
        antiforensic.merge(bytes(length), 64, luks.parse(PREFIX).hash_algorithm)


def test_a_dear_header_is_made_cheap_and_keeps_volume_key_and_uuid() -> None:
    dear = luks.create(PASSPHRASE, iterations=30_000)
    cheap = luks.reseal(dear.header_bytes, PASSPHRASE)
    header = luks.parse(cheap)
    assert len(cheap) == luks.PREFIX_BYTES
    assert luks.unlock(cheap, PASSPHRASE) == dear.volume_key
    assert header.uuid == luks.parse(dear.header_bytes).uuid
    assert (header.digest_iterations, header.keyslots[0].iterations) == (1000, 1000)
    assert [slot.active for slot in header.keyslots] == [True] + [False] * 7


def test_what_cannot_be_resealed() -> None:
    with pytest.raises(KeyslotLocked):
        luks.reseal(PREFIX, OTHER_PASSPHRASE)
    with pytest.raises(NotLuks):
        luks.reseal(bytes(4096), PASSPHRASE)
    with pytest.raises(BadHeader):
        luks.reseal(PREFIX[:-1], PASSPHRASE)
    moved = patched(104, number(4048)) + bytes(4096)
    with pytest.raises(BadHeader, match="payload starts at byte"):
        luks.reseal(moved, PASSPHRASE)
    with pytest.raises(WeakPassphrase):
        luks.reseal(PREFIX, Secret(b"short"))
