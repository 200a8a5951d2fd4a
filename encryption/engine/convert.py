"""Conversions of a disk image, block by block: raw to LUKS, LUKS to raw, LUKS to LUKS under another volume key.

Order of writes, and why a kill at any byte loses nothing:

1. The source is only ever read.
2. A new conversion (`start=None`) empties the target, writes the LUKS header (if the target has one) FIRST, syncs, and
   reports `checkpoint(0)`. So the volume key that everything behind it is encrypted with is on stable storage before
   the first block; a conversion that goes on finds it there with the passphrase. With the header last, a kill would
   leave blocks under a key that nobody has.
3. Blocks are written by a few threads, and awaited in ascending order. About every `checkpoint_bytes`, and at the end,
   the target is synced and only then `checkpoint(offset)` reported: everything below `offset` is final and stable. The
   sync runs beside the writing of later blocks, and begins when all below `offset` is written.
4. A resume (`start=offset`, the last checkpoint reported) unlocks the target's own header and writes from `offset` on.
   Blocks that an earlier run wrote behind it, whole, torn or lost, are written again with the same bytes, as the result
   depends on source, key and position alone.

A run killed before `checkpoint(0)` has nothing to keep: start anew. A half-written target opens with its passphrase
and is readable up to the checkpoint, so whoever offers it as a disk must ask the job, not the header, whether it is
complete.

The caller's duties: nobody changes the source or the target meanwhile; both passphrases are the same in every resume;
the source is destroyed only after `verify.verify`.

A LUKS payload is whole sectors. A disk of another size gets its last sector filled with zeros, and the exact size must
be known to come back. Holes of a raw source are not read and become ciphertext of zeros; runs of zeros become holes in
a raw target. Holes of a LUKS source read as zeros that decrypt to noise, here as in QEMU.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np

from encryption.engine import luks
from encryption.engine.image import Extent, ImageError, ShortImage, SizeMismatch, Source, Target, whole_sectors
from encryption.engine.luks_header import SECTOR_BYTES
from encryption.engine.secret import Secret
from encryption.engine.xts import Xts

BLOCK_BYTES = 2 * 1024 * 1024
CHECKPOINT_BYTES = 64 * 1024 * 1024
_MAX_BLOCK_BYTES = 16 * 1024 * 1024
_MAX_LANES = 16
# Shorter runs of zeros are written: many tiny holes cost more, in calls and fragments, than they save.
_HOLE_BYTES = 64 * 1024
# Far beyond any disk, and keeps every sum of offsets below what the system calls take.
MAX_DISK_BYTES = 1 << 60


class Cancelled(Exception):
    """Raised by a Progress to end a conversion; the target stays as it is, and can be resumed or deleted."""


class BadCheckpoint(ImageError):
    """The offset to go on from is not one that a conversion of this disk could have reported."""


class Progress(Protocol):
    """Where a conversion reports to. Both calls may raise Cancelled, which passes through."""

    def advance(self, done_bytes: int) -> None:
        """`done_bytes` of the disk are converted, counted from its start. Called after every block: throttle."""

    def checkpoint(self, offset: int) -> None:
        """All below `offset` is on stable storage; a conversion may go on with `start=offset`."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to turn into what. A side with a passphrase is a LUKS volume, one without is a raw image.

    `size` is the disk as the VM sees it, in bytes, any number above zero. `per_sector` takes the module's own XTS.
    `iterations` go into a new header.
    """

    size: int
    source_passphrase: Secret | None
    target_passphrase: Secret | None
    per_sector: bool = False
    iterations: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_DISK_BYTES:
            raise ValueError(f"a disk of {self.size} bytes cannot be converted")
        if self.source_passphrase is None and self.target_passphrase is None:
            raise ValueError("raw to raw is no conversion")

    @property
    def target_bytes(self) -> int:
        """The target's size when complete: the disk, in whole sectors and with a header when it is LUKS."""
        if self.target_passphrase is None:
            return self.size
        return luks.PREFIX_BYTES + whole_sectors(self.size)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one run did. `start` is where it began; `hole_bytes` of the source were not read."""

    start: int
    size: int
    hole_bytes: int


@dataclass(frozen=True, slots=True)
class Side:
    """An opened image: where the disk starts in it, and its cipher (None: raw)."""

    offset: int
    xts: Xts | None

    def padded(self, n_bytes: int) -> int:
        """Bytes that `n_bytes` of disk take in this image."""
        return n_bytes if self.xts is None else whole_sectors(n_bytes)


def open_side(image: Source, passphrase: Secret | None, size: int, *, per_sector: bool = False) -> Side:
    """Open an image that should hold a disk of `size` bytes; of a LUKS volume, read the header and unlock it.

    Raises SizeMismatch (raw image of another size), ShortImage (LUKS payload too small; a larger one passes, as volumes
    are rounded up on some datastores), luks.NotLuks, luks.BadHeader, luks.KeyslotLocked.
    """
    if passphrase is None:
        if image.size != size:
            raise SizeMismatch(f"raw image has {image.size} bytes, the disk {size}")
        return Side(0, None)
    prefix = read_prefix(image)
    volume_key = luks.unlock(prefix, passphrase)
    if image.size < len(prefix) + whole_sectors(size):
        raise ShortImage(f"luks payload has {image.size - len(prefix)} bytes, the disk {size}")
    return Side(len(prefix), Xts(volume_key, per_sector=per_sector))


def read_prefix(image: Source) -> bytes:
    """Read header and key material of a LUKS volume. Raises luks.NotLuks, luks.BadHeader."""
    if image.size < luks.HEADER_BYTES:
        raise luks.NotLuks("not a luks volume")
    start = bytearray(luks.HEADER_BYTES)
    image.read(0, memoryview(start))
    n_bytes = luks.parse(bytes(start)).payload_offset
    if image.size < n_bytes:
        raise luks.BadHeader("luks header is cut off before its payload")
    prefix = bytearray(n_bytes)
    image.read(0, memoryview(prefix))
    return bytes(prefix)


def convert(
    conversion: Conversion,
    source: Source,
    target: Target,
    *,
    start: int | None,
    progress: Progress,
    block_bytes: int = BLOCK_BYTES,
    checkpoint_bytes: int = CHECKPOINT_BYTES,
    n_lanes: int = 2,
) -> Receipt:
    """Run a conversion to its end, anew (`start=None`: what the target holds is lost) or from a checkpoint.

    `n_lanes` threads (at most 16) work on one block each, so that reading and writing overlap with AES, which runs for
    one at a time. They and `block_bytes` (a multiple of 512, at most 16 MiB) bound the memory, whatever the disk's
    size: a block for each lane, and 2 MiB for each cipher.

    Raises what `open_side` does, BadCheckpoint, whatever `progress` raises, and OSError. After any of them the
    conversion can go on from its last checkpoint.
    """
    if block_bytes % SECTOR_BYTES or not 0 < block_bytes <= _MAX_BLOCK_BYTES or checkpoint_bytes < 1:
        raise ValueError("block or checkpoint interval out of bounds")
    if not 0 < n_lanes <= _MAX_LANES:
        raise ValueError(f"{n_lanes} lanes are out of bounds")
    size = conversion.size
    reader = open_side(source, conversion.source_passphrase, size, per_sector=conversion.per_sector)
    if start is None:
        writer = _begin(conversion, target)
        progress.checkpoint(0)
        start = 0
    else:
        _check_checkpoint(start, size)
        writer = _resume(conversion, target)

    lanes = [_Lane(reader, writer, source, target, block_bytes) for _ in range(n_lanes)]
    extent = Extent(0, 0, hole=False)
    hole_bytes = 0
    with ThreadPoolExecutor(max_workers=n_lanes + 1) as pool:
        run = _Run(target, writer.offset, progress, pool, start, checkpoint_bytes)
        for number, offset in enumerate(range(start, size, block_bytes)):
            n_bytes = min(block_bytes, size - offset)
            image_offset = reader.offset + offset
            if image_offset >= extent.end:
                extent = source.extent_at(image_offset)
            is_hole = extent.hole and extent.end >= image_offset + reader.padded(n_bytes)
            hole_bytes += n_bytes if is_hole else 0
            # The lane is free again: its last block is `n_lanes` back, and no more than that many are under way.
            lane = lanes[number % n_lanes]
            run.blocks.append((offset + n_bytes, pool.submit(lane.convert, offset, n_bytes, hole=is_hole)))
            if len(run.blocks) == n_lanes:
                run.finish_oldest()
        while run.blocks:
            run.finish_oldest()
        run.finish_sync()
    target.sync()
    progress.checkpoint(size)
    return Receipt(start=start, size=size, hole_bytes=hole_bytes)


@final
class _Run:
    """The blocks and the sync under way. All reports to `progress` are made by the caller's thread, in order."""

    def __init__(
        self,
        target: Target,
        disk_offset: int,
        progress: Progress,
        pool: ThreadPoolExecutor,
        start: int,
        checkpoint_bytes: int,
    ) -> None:
        self.blocks: deque[tuple[int, Future[None]]] = deque()
        self._sync: tuple[int, int, Future[None]] | None = None
        self._target = target
        self._disk_offset = disk_offset
        self._progress = progress
        self._pool = pool
        self._synced = start
        self._checkpoint_bytes = checkpoint_bytes

    def finish_oldest(self) -> None:
        """Wait for the oldest block and report it; start a sync when it is time for one."""
        done, block = self.blocks.popleft()
        block.result()
        self._progress.advance(done)
        if self._sync is not None and self._sync[2].done():
            self.finish_sync()
        if done - self._synced >= self._checkpoint_bytes:
            self.finish_sync()
            # Everything below `done` was written before this sync begins, because blocks are awaited in order. It runs
            # beside the next blocks, which it may or may not cover: they lie behind the checkpoint.
            self._sync = (self._synced, done, self._pool.submit(self._target.sync))
            self._synced = done

    def finish_sync(self) -> None:
        """Wait for the sync under way, if any, and only then report its checkpoint."""
        if self._sync is None:
            return
        start, offset, sync = self._sync
        sync.result()
        self._sync = None
        self._target.forget(self._disk_offset + start, offset - start)
        self._progress.checkpoint(offset)


@final
class _Lane:
    """One thread's block."""

    def __init__(self, reader: Side, writer: Side, source: Source, target: Target, block_bytes: int) -> None:
        self._reader = reader
        self._writer = writer
        self._source = source
        self._target = target
        self._block = memoryview(bytearray(block_bytes))

    def convert(self, offset: int, n_bytes: int, *, hole: bool) -> None:
        block = self._block[: whole_sectors(n_bytes)]
        read_disk(self._reader, self._source, offset, block, n_bytes, hole=hole)
        self._source.forget(self._reader.offset + offset, n_bytes)
        _write_disk(self._writer, self._target, offset, block, n_bytes)
        # To the storage at once: left to pile up, a large disk's blocks wait for each other at the next sync, and push
        # all else out of the host's memory (measured at 8 GiB: 12 s instead of 20 to 27, 0.8 CPU s/GiB instead of 2).
        self._target.forget(self._writer.offset + offset, n_bytes)


def read_disk(side: Side, image: Source, offset: int, block: memoryview, n_bytes: int, *, hole: bool = False) -> None:
    """Read `n_bytes` of the disk at `offset` (a multiple of 512) in clear into `block`, and zeros behind them.

    `block` is `n_bytes` rounded up to whole sectors. A `hole` is not read from the image but taken for zeros.
    """
    stored = block[: side.padded(n_bytes)]
    if hole:
        np.frombuffer(stored, dtype=np.uint8).fill(0)
    else:
        image.read(side.offset + offset, stored)
    if side.xts is not None:
        side.xts.decrypt_into(stored, stored, offset // SECTOR_BYTES)
    # Behind the disk's end a volume of foreign make may hold anything; nothing of it is carried over.
    block[n_bytes:] = bytes(len(block) - n_bytes)


def _write_disk(side: Side, image: Target, offset: int, block: memoryview, n_bytes: int) -> None:
    if side.xts is not None:
        side.xts.encrypt_into(block, block, offset // SECTOR_BYTES)
        image.write(side.offset + offset, block)
        return
    for start, end, is_zero in _zero_runs(block[:n_bytes]):
        if is_zero:
            image.zero(side.offset + offset + start, end - start)
        else:
            image.write(side.offset + offset + start, block[start:end])


def _zero_runs(content: memoryview) -> list[tuple[int, int, bool]]:
    """Cut `content` into runs (start, end, all zeros?) on borders of 64 KiB."""
    runs: list[tuple[int, int, bool]] = []
    for start in range(0, len(content), _HOLE_BYTES):
        end = min(start + _HOLE_BYTES, len(content))
        is_zero = not np.frombuffer(content[start:end], dtype=np.uint8).any()
        if runs and runs[-1][2] == is_zero:
            runs[-1] = (runs[-1][0], end, is_zero)
        else:
            runs.append((start, end, is_zero))
    return runs


def _begin(conversion: Conversion, target: Target) -> Side:
    """Empty the target and put a new header on stable storage (module docstring, step 2)."""
    if conversion.target_passphrase is None:
        target.begin(conversion.target_bytes)
        target.sync()
        return Side(0, None)
    volume = luks.create(conversion.target_passphrase, iterations=conversion.iterations)
    target.begin(conversion.target_bytes)
    target.write(0, memoryview(volume.header_bytes))
    target.sync()
    return Side(len(volume.header_bytes), Xts(volume.volume_key, per_sector=conversion.per_sector))


def _resume(conversion: Conversion, target: Target) -> Side:
    """Open the target that an earlier run began (module docstring, step 4)."""
    if conversion.target_passphrase is not None:
        return open_side(target, conversion.target_passphrase, conversion.size, per_sector=conversion.per_sector)
    # Not open_side: a device may be larger than the disk that is restored to it.
    if target.size < conversion.size:
        raise ShortImage(f"target has {target.size} bytes, the disk {conversion.size}")
    return Side(0, None)


def _check_checkpoint(start: int, size: int) -> None:
    if not 0 <= start <= size or (start % SECTOR_BYTES and start != size):
        raise BadCheckpoint(f"cannot go on from byte {start} of a disk of {size} bytes")
