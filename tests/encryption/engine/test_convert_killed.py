"""Kills a conversion at many bytes and syncs, loses what was not synced, goes on, and compares."""

from random import Random

import pytest

from encryption.engine import luks
from encryption.engine.convert import Conversion, convert
from encryption.engine.image import Target
from encryption.engine.secret import Secret
from tests.encryption.engine.images import (
    OTHER_PASSPHRASE,
    PASSPHRASE,
    DyingImage,
    Killed,
    MemoryImage,
    Recorder,
    decrypted,
    encrypted,
)

pytestmark = pytest.mark.slow

BLOCK = 8192
CHECKPOINT = 4 * BLOCK
SIZE = 40 * BLOCK + 1234
HOLES = ((3 * BLOCK + 100, 7 * BLOCK), (20 * BLOCK, 29 * BLOCK + 5))
KINDS = {
    "encrypt": (None, PASSPHRASE),
    "decrypt": (PASSPHRASE, None),
    "recrypt": (PASSPHRASE, OTHER_PASSPHRASE),
}


def disk_content() -> bytes:
    content = bytearray(Random(11).randbytes(SIZE))
    for start, end in HOLES:
        content[start:end] = bytes(end - start)
    return bytes(content)


DISK = disk_content()
VOLUME = encrypted(DISK)


def source_for(conversion: Conversion) -> MemoryImage:
    return MemoryImage(DISK, HOLES) if conversion.source_passphrase is None else VOLUME


def run(conversion: Conversion, target: Target, start: int | None, progress: Recorder, n_lanes: int) -> None:
    convert(
        conversion,
        source_for(conversion),
        target,
        start=start,
        progress=progress,
        block_bytes=BLOCK,
        checkpoint_bytes=CHECKPOINT,
        n_lanes=n_lanes,
    )


def disk_in(conversion: Conversion, content: bytes) -> bytes:
    passphrase = conversion.target_passphrase
    return content if passphrase is None else decrypted(MemoryImage(content), SIZE, passphrase)


def kill_points(conversion: Conversion) -> list[int]:
    """18 places: a few in the header, the others all over the payload, its very first and last byte included."""
    random = Random(7)
    header = 0 if conversion.target_passphrase is None else luks.PREFIX_BYTES
    # What a run writes: zeros are left out of a raw target, in units of 64 KiB or the block.
    measure = DyingImage(b"", random)
    run(conversion, measure, None, Recorder(), 1)
    payload = measure.written - header
    assert payload > SIZE // 2
    in_header = [0, 1, 591, 592, 4096, header - 1] if header else []
    in_payload = [0, payload - 1, *(random.randrange(payload) for _ in range(16 - len(in_header)))]
    return in_header + [header + at for at in in_payload]


@pytest.mark.parametrize("n_lanes", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_byte_it_goes_on(kind: str, n_lanes: int) -> None:
    conversion = Conversion(SIZE, *KINDS[kind])
    points = kill_points(conversion)
    assert len(points) == 18
    for number, point in enumerate(points):
        random = Random(number)
        progress = Recorder()
        target = DyingImage(b"leftovers of somebody else" * 99, random, kill_at=point)
        with pytest.raises(Killed):
            run(conversion, target, None, progress, n_lanes)
        survived = target.after_the_crash()
        volume_key = volume_key_of(conversion, survived, progress.last)

        # Every other time the machine goes down once more on the way.
        if number % 2 and progress.last is not None:
            target = DyingImage(survived, random, kill_at=random.randrange(1, 4 * BLOCK))
            try:
                run(conversion, target, progress.last, progress, n_lanes)
                survived = bytes(target.content)
            except Killed:
                survived = target.after_the_crash()

        target = DyingImage(survived, random)
        run(conversion, target, progress.last, progress, n_lanes)
        assert progress.last == SIZE
        assert target.size == conversion.target_bytes
        assert disk_in(conversion, bytes(target.content)) == DISK
        if volume_key is not None and conversion.target_passphrase is not None:
            assert luks.unlock(bytes(target.content), conversion.target_passphrase) == volume_key


def volume_key_of(conversion: Conversion, content: bytes, checkpoint: int | None) -> Secret | None:
    """The key that a resume has to find; once there is a checkpoint, it must be there."""
    if conversion.target_passphrase is None or checkpoint is None:
        return None
    return luks.unlock(content, conversion.target_passphrase)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_sync_it_goes_on(kind: str) -> None:
    conversion = Conversion(SIZE, *KINDS[kind])
    measure = DyingImage(b"", Random(0))
    run(conversion, measure, None, Recorder(), 2)
    assert measure.syncs == 1 + SIZE // CHECKPOINT + 1
    for number in range(measure.syncs):
        progress = Recorder()
        target = DyingImage(b"", Random(number), kill_at_sync=number)
        with pytest.raises(Killed):
            run(conversion, target, None, progress, 2)
        # The first sync comes before any checkpoint, each further one before the next.
        assert progress.last == (None if number == 0 else (number - 1) * CHECKPOINT)
        target = DyingImage(target.after_the_crash(), Random(number))
        run(conversion, target, progress.last, progress, 2)
        assert disk_in(conversion, bytes(target.content)) == DISK


def test_what_lies_below_a_checkpoint_survives_any_crash() -> None:
    conversion = Conversion(SIZE, None, PASSPHRASE)
    for number in range(12):
        progress = Recorder()
        target = DyingImage(b"", Random(number), kill_at=luks.PREFIX_BYTES + (10 + 2 * number) * BLOCK)
        with pytest.raises(Killed):
            run(conversion, target, None, progress, 2)
        assert progress.last
        survived = MemoryImage(target.after_the_crash())
        assert decrypted(survived, SIZE)[: progress.last] == DISK[: progress.last]
