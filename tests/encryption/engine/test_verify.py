from random import Random

import pytest

from encryption.engine import luks
from encryption.engine.convert import Conversion
from encryption.engine.image import ShortImage
from encryption.engine.luks import KeyslotLocked, NotLuks
from encryption.engine.verify import SAMPLE_BYTES, verify
from tests.encryption.engine.images import OTHER_PASSPHRASE, PASSPHRASE, MemoryImage, decrypted, encrypted

SIZE = 40 * SAMPLE_BYTES + 77
HOLES = ((5 * SAMPLE_BYTES, 17 * SAMPLE_BYTES), (30 * SAMPLE_BYTES, 31 * SAMPLE_BYTES))
CONVERSION = Conversion(SIZE, None, PASSPHRASE)


def disk_content() -> bytes:
    content = bytearray(Random(2).randbytes(SIZE))
    for start, end in HOLES:
        content[start:end] = bytes(end - start)
    return bytes(content)


DISK = disk_content()
VOLUME = encrypted(DISK)


def source() -> MemoryImage:
    return MemoryImage(DISK, HOLES)


def damaged(at: int) -> MemoryImage:
    volume = MemoryImage(bytes(VOLUME.content))
    volume.content[luks.PREFIX_BYTES + at] ^= 1
    return volume


def test_a_good_copy_passes_in_full() -> None:
    result = verify(CONVERSION, source(), VOLUME, full=True)
    assert (result.compared_bytes, result.mismatch) == (SIZE, None)


def test_a_good_copy_passes_by_sample() -> None:
    result = verify(CONVERSION, source(), VOLUME, n_samples=3)
    assert result.mismatch is None
    assert 4 * SAMPLE_BYTES < result.compared_bytes < SIZE


@pytest.mark.parametrize("full", [True, False])
def test_progress_ends_at_the_end(full: bool) -> None:
    places: list[int] = []
    verify(CONVERSION, source(), VOLUME, full=full, n_samples=3, advance=places.append)
    assert places == sorted(set(places))
    assert places[-1] == SIZE


def test_a_small_disk_is_compared_whole() -> None:
    assert verify(CONVERSION, source(), VOLUME).compared_bytes == SIZE


@pytest.mark.parametrize("at", [0, 1, 6 * SAMPLE_BYTES + 3, 40 * SAMPLE_BYTES - 1, SIZE - 1])
def test_full_finds_any_damage(at: int) -> None:
    result = verify(CONVERSION, source(), damaged(at), full=True)
    # One changed bit of ciphertext spoils its block of 16 bytes.
    assert result.mismatch is not None
    assert at // 16 * 16 <= result.mismatch < at // 16 * 16 + 16


@pytest.mark.parametrize(
    "block",
    [0, 4, 5, 16, 17, 29, 30, 31, 40],
    ids=["first", "end of data", "hole", "end of hole", "data", "end of data", "small hole", "data", "last"],
)
def test_a_sample_always_has_the_ends_of_every_region(block: int) -> None:
    result = verify(CONVERSION, source(), damaged(block * SAMPLE_BYTES + 70), n_samples=1)
    assert result.mismatch is not None
    assert result.mismatch // SAMPLE_BYTES == block


def test_other_directions() -> None:
    rekeyed = encrypted(DISK, OTHER_PASSPHRASE)
    assert verify(Conversion(SIZE, PASSPHRASE, OTHER_PASSPHRASE), VOLUME, rekeyed, full=True).mismatch is None
    restored = MemoryImage(decrypted(VOLUME, SIZE), HOLES)
    decrypting = Conversion(SIZE, PASSPHRASE, None)
    assert verify(decrypting, VOLUME, restored, n_samples=1).mismatch is None
    restored.content[17 * SAMPLE_BYTES] ^= 1
    assert verify(decrypting, VOLUME, restored, n_samples=1).mismatch == 17 * SAMPLE_BYTES


def test_another_disk_is_found_out() -> None:
    assert verify(CONVERSION, source(), encrypted(bytes(SIZE)), n_samples=1).mismatch == 0


def test_a_target_that_does_not_open_is_an_error() -> None:
    with pytest.raises(KeyslotLocked):
        verify(CONVERSION, source(), encrypted(DISK, OTHER_PASSPHRASE))
    with pytest.raises(NotLuks):
        verify(CONVERSION, source(), MemoryImage(bytes(VOLUME.size)))
    with pytest.raises(ShortImage):
        verify(CONVERSION, source(), MemoryImage(bytes(VOLUME.content[:-1])))
    with pytest.raises(ShortImage):
        verify(Conversion(SIZE, PASSPHRASE, None), VOLUME, MemoryImage(DISK[:-1]))


def test_a_device_may_be_larger_than_the_disk_restored_to_it() -> None:
    device = MemoryImage(DISK + bytes(5000))
    assert verify(Conversion(SIZE, PASSPHRASE, None), VOLUME, device, full=True).mismatch is None


def test_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        verify(CONVERSION, source(), VOLUME, n_samples=0)
