from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from encryption.engine import luks
from encryption.engine.convert import BadCheckpoint, Cancelled, Conversion, convert, open_side
from encryption.engine.image import ImageFile, ShortImage, SizeMismatch
from encryption.engine.luks import BadHeader, KeyslotLocked, NotLuks
from encryption.engine.secret import Secret
from tests.encryption.engine.images import (
    OTHER_PASSPHRASE,
    PASSPHRASE,
    MemoryImage,
    Recorder,
    decrypted,
    encrypted,
)

BLOCK = 8192


@st.composite
def disks(draw: st.DrawFn) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """A disk of any size with stored runs and holes, many of them ending inside sectors and blocks."""
    content, holes = bytearray(), []
    for is_hole, length in draw(st.lists(st.tuples(st.booleans(), st.integers(1, 40_000)), min_size=1, max_size=6)):
        if is_hole:
            holes.append((len(content), len(content) + length))
            content += bytes(length)
        else:
            content += Random(draw(st.integers(0, 2**32))).randbytes(length)
    return bytes(content), tuple(holes)


@settings(max_examples=40, deadline=None)
@given(disks(), st.booleans(), st.integers(1, 3), st.integers(1, 40))
def test_any_disk_comes_back(
    disk: tuple[bytes, tuple[tuple[int, int], ...]], per_sector: bool, n_lanes: int, block_sectors: int
) -> None:
    content, holes = disk
    size = len(content)
    options = {"n_lanes": n_lanes, "block_bytes": block_sectors * 512}
    volume, rekeyed, restored = MemoryImage(), MemoryImage(), MemoryImage()
    first = Conversion(size, None, PASSPHRASE, per_sector=per_sector)
    convert(first, MemoryImage(content, holes), volume, start=None, progress=Recorder(), **options)
    assert volume.size == first.target_bytes
    second = Conversion(size, PASSPHRASE, OTHER_PASSPHRASE)
    convert(second, volume, rekeyed, start=None, progress=Recorder(), **options)
    third = Conversion(size, OTHER_PASSPHRASE, None, per_sector=not per_sector)
    convert(third, rekeyed, restored, start=None, progress=Recorder(), **options)
    assert restored.content == content
    assert luks.unlock(bytes(volume.content), PASSPHRASE) != luks.unlock(bytes(rekeyed.content), OTHER_PASSPHRASE)


def test_holes_are_not_read_and_decrypt_to_zeros() -> None:
    content = b"\x01" * BLOCK + bytes(3 * BLOCK) + b"\x02" * 1000
    source = MemoryImage(content, ((BLOCK, 4 * BLOCK),))
    target = MemoryImage()
    receipt = convert(
        Conversion(len(content), None, PASSPHRASE), source, target, start=None, progress=Recorder(), block_bytes=BLOCK
    )
    assert receipt.hole_bytes == 3 * BLOCK
    assert not any(start < 4 * BLOCK and end > BLOCK for start, end in source.reads)
    payload = target.content[luks.PREFIX_BYTES :]
    assert len({bytes(payload[at : at + 16]) for at in range(0, len(payload), 16)}) == len(payload) // 16
    assert decrypted(target, len(content)) == content


def test_zeros_become_holes_again(tmp_path: Path) -> None:
    size = 8 << 20
    content = bytearray(size)
    content[5 << 20 : (5 << 20) + 70_000] = b"\x01" * 70_000
    path = tmp_path / "restored"
    with path.open("w+b") as file:
        volume = encrypted(bytes(content))
        convert(Conversion(size, PASSPHRASE, None), volume, ImageFile(file), start=None, progress=Recorder())
    assert path.read_bytes() == content
    assert path.stat().st_blocks * 512 <= 256 * 1024


def test_padding_of_the_last_sector_is_zeros() -> None:
    volume = encrypted(b"\xff" * 700)
    side = open_side(volume, PASSPHRASE, 700)
    assert side.xts is not None
    assert volume.size == side.offset + 1024
    assert side.xts.decrypt(volume.content[side.offset :], 0) == b"\xff" * 700 + bytes(324)


def test_foreign_bytes_behind_the_end_are_not_carried_over() -> None:
    volume = encrypted(b"\xff" * 1024)
    assert decrypted(volume, 700) == b"\xff" * 700
    target = MemoryImage()
    convert(Conversion(700, PASSPHRASE, OTHER_PASSPHRASE), volume, target, start=None, progress=Recorder())
    assert decrypted(target, 1024, OTHER_PASSPHRASE) == b"\xff" * 700 + bytes(324)


@pytest.mark.parametrize("n_lanes", [1, 2, 5])
def test_progress_is_in_order_and_checkpoints_are_bounded(n_lanes: int) -> None:
    progress = Recorder()
    size = 20 * BLOCK + 5
    convert(
        Conversion(size, None, PASSPHRASE),
        MemoryImage(bytes(size)),
        MemoryImage(),
        start=None,
        progress=progress,
        block_bytes=BLOCK,
        checkpoint_bytes=4 * BLOCK,
        n_lanes=n_lanes,
    )
    assert progress.advances == [*range(BLOCK, 20 * BLOCK + 1, BLOCK), size]
    assert progress.checkpoints == [0, *range(4 * BLOCK, 20 * BLOCK + 1, 4 * BLOCK), size]


def test_what_is_done_may_leave_the_memory() -> None:
    """Each block as soon as it was read, and written; what was written again once it is on stable storage."""
    source, target, size = MemoryImage(bytes(range(256)) * (BLOCK // 64)), MemoryImage(), 4 * BLOCK
    convert(
        Conversion(size, None, PASSPHRASE), source, target, start=None, progress=Recorder(), block_bytes=BLOCK,
        checkpoint_bytes=2 * BLOCK, n_lanes=1,
    )  # fmt: skip
    assert source.forgotten == [(start, start + BLOCK) for start in range(0, size, BLOCK)]
    disk = luks.PREFIX_BYTES
    of_blocks = [(disk + start, disk + start + BLOCK) for start in range(0, size, BLOCK)]
    of_checkpoints = [(disk + start, disk + start + 2 * BLOCK) for start in range(0, size, 2 * BLOCK)]
    assert sorted(target.forgotten) == sorted(of_blocks + of_checkpoints)


def test_every_checkpoint_follows_a_sync_of_all_below_it() -> None:
    written_to, covered = 0, [0]

    class Watched(MemoryImage):
        @override
        def write(self, offset: int, content: memoryview) -> None:
            nonlocal written_to
            super().write(offset, content)
            written_to = max(written_to, offset + len(content) - luks.PREFIX_BYTES)

        @override
        def sync(self) -> None:
            covered.append(written_to)

    class Watching(Recorder):
        @override
        def checkpoint(self, offset: int) -> None:
            super().checkpoint(offset)
            assert len(covered) > 1
            assert covered[-1] >= offset

    progress = Watching()
    convert(
        Conversion(50 * BLOCK, None, PASSPHRASE),
        MemoryImage(bytes(50 * BLOCK)),
        Watched(),
        start=None,
        progress=progress,
        block_bytes=BLOCK,
        checkpoint_bytes=2 * BLOCK,
        n_lanes=1,
    )
    assert len(progress.checkpoints) == len(covered) - 1 == 27


def test_cancelled_passes_and_the_conversion_can_go_on() -> None:
    content = Random(5).randbytes(10 * BLOCK)
    conversion = Conversion(len(content), None, PASSPHRASE)
    source, target = MemoryImage(content), MemoryImage()

    class Impatient(Recorder):
        @override
        def advance(self, done_bytes: int) -> None:
            if done_bytes > 5 * BLOCK:
                raise Cancelled

    progress = Impatient()
    with pytest.raises(Cancelled):
        convert(
            conversion,
            source,
            target,
            start=None,
            progress=progress,
            block_bytes=BLOCK,
            checkpoint_bytes=2 * BLOCK,
        )
    # The sync behind the second of them may still have been under way.
    assert progress.last in (2 * BLOCK, 4 * BLOCK)
    assert source.content == content
    receipt = convert(conversion, source, target, start=progress.last, progress=Recorder(), block_bytes=BLOCK)
    assert receipt.start == progress.last
    assert decrypted(target, len(content)) == content


def test_going_on_from_the_end_changes_nothing() -> None:
    target = encrypted(b"\x07" * 1000)
    before = bytes(target.content)
    conversion = Conversion(1000, None, PASSPHRASE)
    convert(conversion, MemoryImage(b"\x07" * 1000), target, start=1000, progress=Recorder())
    assert target.content == before


def test_starting_anew_gives_a_new_volume_key() -> None:
    assert encrypted(bytes(512)).content[luks.PREFIX_BYTES :] != encrypted(bytes(512)).content[luks.PREFIX_BYTES :]


@pytest.mark.parametrize("start", [-512, 100, 1536, 2048])
def test_impossible_checkpoints_are_refused(start: int) -> None:
    with pytest.raises(BadCheckpoint):
        convert(
            Conversion(1100, None, PASSPHRASE),
            MemoryImage(bytes(1100)),
            encrypted(bytes(1100)),
            start=start,
            progress=Recorder(),
        )


def test_a_resume_needs_the_target_it_began() -> None:
    conversion, source = Conversion(1024, None, PASSPHRASE), MemoryImage(bytes(1024))
    with pytest.raises(NotLuks):
        convert(conversion, source, MemoryImage(), start=0, progress=Recorder())
    with pytest.raises(KeyslotLocked):
        convert(conversion, source, encrypted(bytes(1024), OTHER_PASSPHRASE), start=0, progress=Recorder())
    with pytest.raises(ShortImage, match="512 bytes, the disk 1024"):
        convert(conversion, source, encrypted(bytes(512)), start=0, progress=Recorder())
    decrypting = Conversion(1024, PASSPHRASE, None)
    with pytest.raises(ShortImage, match="target has 1000 bytes"):
        convert(decrypting, encrypted(bytes(1024)), MemoryImage(bytes(1000)), start=512, progress=Recorder())


@pytest.mark.parametrize("size", [1023, 1025])
def test_a_raw_source_of_another_size_is_refused(size: int) -> None:
    target = MemoryImage(b"precious")
    with pytest.raises(SizeMismatch):
        convert(Conversion(1024, None, PASSPHRASE), MemoryImage(bytes(size)), target, start=None, progress=Recorder())
    assert target.content == b"precious"


def test_a_source_that_does_not_open_leaves_the_target_alone() -> None:
    target = MemoryImage(b"precious")
    conversion = Conversion(1024, PASSPHRASE, None)
    for source, error in [
        (MemoryImage(), NotLuks),
        (MemoryImage(bytes(4096)), NotLuks),
        (MemoryImage(bytes(encrypted(bytes(1024)).content[:1000])), BadHeader),
        (encrypted(bytes(1024), OTHER_PASSPHRASE), KeyslotLocked),
        (encrypted(bytes(512)), ShortImage),
    ]:
        with pytest.raises(error):
            convert(conversion, source, target, start=None, progress=Recorder())
    assert target.content == b"precious"


def test_a_larger_luks_payload_is_taken() -> None:
    source = encrypted(b"\x01" * 1024)
    source.content += bytes(4096)
    assert decrypted(source, 1024) == b"\x01" * 1024


def test_a_failing_write_passes_and_the_conversion_can_go_on() -> None:
    class Full(MemoryImage):
        room = 3

        @override
        def write(self, offset: int, content: memoryview) -> None:
            if self.room == 0:
                raise OSError(28, "No space left on device")
            self.room -= 1
            super().write(offset, content)

    content = Random(3).randbytes(6 * BLOCK)
    conversion, target, progress = Conversion(len(content), None, PASSPHRASE), Full(), Recorder()
    with pytest.raises(OSError, match="No space"):
        convert(conversion, MemoryImage(content), target, start=None, progress=progress, block_bytes=BLOCK)
    target.room = 100
    convert(conversion, MemoryImage(content), target, start=progress.last, progress=progress, block_bytes=BLOCK)
    assert decrypted(target, len(content)) == content


@pytest.mark.parametrize("size", [0, -1, 1 << 61])
def test_impossible_disks_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="cannot be converted"):
        Conversion(size, None, PASSPHRASE)


def test_raw_to_raw_is_refused() -> None:
    with pytest.raises(ValueError, match="no conversion"):
        Conversion(512, None, None)


@pytest.mark.parametrize(
    "options",
    [{"block_bytes": 0}, {"block_bytes": 1000}, {"block_bytes": 1 << 25}, {"checkpoint_bytes": 0}, {"n_lanes": 0}],
)
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        convert(
            Conversion(512, None, PASSPHRASE),
            MemoryImage(bytes(512)),
            MemoryImage(),
            start=None,
            progress=Recorder(),
            **options,
        )


def test_a_description_shows_no_passphrase() -> None:
    assert "marked" not in repr(Conversion(512, Secret(b"marked" * 10), Secret(b"marked" * 11)))
