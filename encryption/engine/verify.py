"""Proof that a converted image holds the same disk as its source, read back through its own header.

Both images are opened again with their passphrases, so a target that no longer unlocks fails here, before the source
is destroyed. What a sampled run does NOT prove: blocks that it did not draw. LUKS does not authenticate, so only a
comparison shows damage. Reads come from the page cache when it still has them; nothing here proves the medium.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from encryption.engine import drbg
from encryption.engine.convert import Conversion, Side, open_side, read_disk
from encryption.engine.image import ShortImage, Source, whole_sectors

SAMPLE_BYTES = 64 * 1024
_FULL_BLOCK_BYTES = 2 * 1024 * 1024
# Enough to meet every kind of region; a badly fragmented image has millions of extents.
_MAX_EXTENTS = 64


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of a comparison. `mismatch` is the offset of the first differing byte of the disk found, or None."""

    compared_bytes: int
    mismatch: int | None


def verify(
    conversion: Conversion,
    source: Source,
    target: Source,
    *,
    full: bool = False,
    n_samples: int = 256,
    advance: Callable[[int], None] | None = None,
) -> Verification:
    """Compare the disk in `source` with the disk in `target`, sampled or `full`.

    `advance` is told after every block how far from the disk's start the comparison has come: throttle. It may raise
    Cancelled.

    A sampled run compares blocks of 64 KiB: the first, the last, both ends of the first 64 extents (stored or hole) of
    each image, and `n_samples` at random places; all of a small disk. Blocks are taken in ascending order.

    Raises what `convert.open_side` does (a target that does not open, or is too short), and OSError.
    """
    if n_samples < 1:
        raise ValueError("at least one sample is needed")
    size = conversion.size
    left = open_side(source, conversion.source_passphrase, size, per_sector=conversion.per_sector)
    right = _open_target(conversion, target)
    offsets: Sequence[int]
    if full:
        block_bytes = _FULL_BLOCK_BYTES
        offsets = range(0, size, block_bytes)
    else:
        block_bytes = SAMPLE_BYTES
        offsets = _sampled_offsets(left, source, right, target, size, n_samples)
    left_block, right_block = memoryview(bytearray(block_bytes)), memoryview(bytearray(block_bytes))
    compared = 0
    for offset in offsets:
        n_bytes = min(block_bytes, size - offset)
        read_disk(left, source, offset, left_block[: whole_sectors(n_bytes)], n_bytes)
        read_disk(right, target, offset, right_block[: whole_sectors(n_bytes)], n_bytes)
        mismatch = _first_difference(left_block[:n_bytes], right_block[:n_bytes])
        compared += n_bytes
        if mismatch is not None:
            return Verification(compared, offset + mismatch)
        if advance is not None:
            advance(offset + n_bytes)
    return Verification(compared, None)


def _open_target(conversion: Conversion, target: Source) -> Side:
    if conversion.target_passphrase is None and target.size > conversion.size:
        # A device may be larger than the disk restored to it; a file cannot, `convert` made it.
        return Side(0, None)
    if target.size < conversion.target_bytes:
        raise ShortImage(f"target has {target.size} bytes, {conversion.target_bytes} are needed")
    return open_side(target, conversion.target_passphrase, conversion.size, per_sector=conversion.per_sector)


def _sampled_offsets(left: Side, source: Source, right: Side, target: Source, size: int, n_samples: int) -> list[int]:
    last = (size - 1) // SAMPLE_BYTES
    if last < n_samples:
        return list(range(0, size, SAMPLE_BYTES))
    blocks = {0, last}
    for side, image in ((left, source), (right, target)):
        blocks.update(offset // SAMPLE_BYTES for offset in _extent_ends(side, image, size))
    blocks.update(int.from_bytes(drbg.draw(8), "big") % (last + 1) for _ in range(n_samples))
    return [block * SAMPLE_BYTES for block in sorted(blocks)]


def _extent_ends(side: Side, image: Source, size: int) -> list[int]:
    """First and last byte of the disk in each of the first extents."""
    ends: list[int] = []
    offset = 0
    while offset < size and len(ends) < 2 * _MAX_EXTENTS:
        extent = image.extent_at(side.offset + offset)
        end = min(extent.end - side.offset, size)
        ends += [offset, end - 1]
        offset = end
    return ends


def _first_difference(left: memoryview, right: memoryview) -> int | None:
    different = np.frombuffer(left, dtype=np.uint8) != np.frombuffer(right, dtype=np.uint8)
    return int(different.argmax()) if different.any() else None
