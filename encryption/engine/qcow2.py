"""qcow2 images, read only: what an image says of itself, and the disk in it (QEMU's docs/interop/qcow2.txt).

For files that are read piece by piece from a host. Every number in an image is hostile until checked here: table sizes
are capped, and each offset must lie inside the file. Clusters are read as stored, as zeros, or as deflated ones.
NOT read: backing files, external data files, encrypted images, zstd, extended L2 entries (all refused by `Disk`).
NOT checked: reference counts, and that no two clusters overlap.
"""

import struct
import zlib
from dataclasses import dataclass

from encryption.engine.image import Extent, ImageError, Source

HEADER_BYTES = 64 * 1024
_MAGIC = b"QFI\xfb"
_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")
_EXTRA = struct.Struct(">QQQII")  # version 3: features (incompatible, compatible, autoclear), refcount order, length
_EXTERNAL_DATA = 1 << 2
_EXTENDED_L2 = 1 << 4
_COMPRESSION = 1 << 3
_KNOWN = 0b11111
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ZERO = 1
_MAX_BACKING = 1023
# 32 MiB of L1 entries is QEMU's own limit.
_MAX_L1_ENTRIES = 32 * 1024 * 1024 // 8
# A table is read when a cluster in it is wanted; two of them serve a disk that is read in order.
_TABLES_KEPT = 4


class BadQcow2(ImageError):
    """No qcow2 image, or a damaged or hostile one."""


class UnreadableQcow2(ImageError):
    """An image whose disk is not all in this file, or in a form that is not read here."""


@dataclass(frozen=True, slots=True)
class Header:
    """`size` of the disk in bytes. `backing` names the image below ("" for none)."""

    size: int
    cluster_bits: int
    l1_offset: int
    l1_entries: int
    backing: str
    snapshot_count: int
    is_encrypted: bool
    has_external_data: bool
    is_plainly_readable: bool

    @property
    def cluster_bytes(self) -> int:
        """Bytes in a cluster."""
        return 1 << self.cluster_bits


def parse(head: bytes) -> Header:
    """Read a header from the first 64 KiB of a file (fewer where the file is shorter). Raises BadQcow2."""
    if len(head) < _FIXED.size or not head.startswith(_MAGIC):
        raise BadQcow2("not a qcow2 image")
    (_, version, backing_at, backing_length, cluster_bits, size, crypt, l1_entries, l1_offset, _, _, snapshots, _) = (
        _FIXED.unpack_from(head)
    )
    if version not in (2, 3):
        raise BadQcow2(f"qcow2 version {version} is not known")
    features = 0
    if version == 3:
        if len(head) < _FIXED.size + _EXTRA.size:
            raise BadQcow2("qcow2 header is cut off")
        features = _EXTRA.unpack_from(head, _FIXED.size)[0]
    if not 9 <= cluster_bits <= 21:
        raise BadQcow2("qcow2 cluster size is out of bounds")
    l2_bytes = 1 << (2 * cluster_bits - 3)
    if l1_entries > _MAX_L1_ENTRIES or l1_entries < -(-size // l2_bytes):
        raise BadQcow2("qcow2 table size does not fit the disk")
    backing = ""
    if backing_at:
        if backing_length > _MAX_BACKING or backing_at + backing_length > len(head):
            raise BadQcow2("qcow2 backing file name is out of bounds")
        backing = head[backing_at : backing_at + backing_length].decode(errors="replace")
    return Header(
        size=size,
        cluster_bits=cluster_bits,
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        backing=backing,
        snapshot_count=snapshots,
        is_encrypted=crypt != 0,
        has_external_data=bool(features & _EXTERNAL_DATA),
        is_plainly_readable=not features & (_EXTENDED_L2 | _COMPRESSION | ~_KNOWN),
    )


class Disk:
    """The disk in a qcow2 image, as a Source: holes are clusters that are not stored."""

    def __init__(self, image: Source) -> None:
        """Raises BadQcow2, UnreadableQcow2."""
        self._image = image
        head = bytearray(min(HEADER_BYTES, image.size))
        image.read(0, memoryview(head))
        self.header = parse(bytes(head))
        if self.header.backing or self.header.has_external_data or self.header.is_encrypted:
            raise UnreadableQcow2("the disk is not all, or not in clear, in this file")
        if not self.header.is_plainly_readable:
            raise UnreadableQcow2("the image uses features that are not read here")
        self._tables: dict[int, tuple[int, ...]] = {}
        needed = -(-self.header.size // (1 << (2 * self.header.cluster_bits - 3)))
        self._l1 = self._entries(self.header.l1_offset, needed)

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.header.size

    def extent_at(self, offset: int) -> Extent:
        """One cluster."""
        start = offset - offset % self.header.cluster_bytes
        end = min(start + self.header.cluster_bytes, self.size)
        entry = self._entry(offset)
        is_hole = not entry & _COMPRESSED and (not entry & _OFFSET or bool(entry & _ZERO))
        return Extent(offset, end, hole=is_hole)

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` from `offset` of the disk; the caller stays inside it."""
        done = 0
        while done < len(into):
            within = (offset + done) % self.header.cluster_bytes
            n_bytes = min(len(into) - done, self.header.cluster_bytes - within)
            self._read_cluster(offset + done, within, into[done : done + n_bytes])
            done += n_bytes

    def forget(self, offset: int, n_bytes: int) -> None:
        """Nothing: clusters lie anywhere in the file."""

    def _read_cluster(self, offset: int, within: int, into: memoryview) -> None:
        entry = self._entry(offset)
        if entry & _COMPRESSED:
            into[:] = self._inflated(entry)[within : within + len(into)]
        elif entry & _ZERO or not entry & _OFFSET:
            into[:] = bytes(len(into))
        else:
            self._image.read(self._inside((entry & _OFFSET) + within, len(into)), into)

    def _entry(self, offset: int) -> int:
        """The L2 entry of the cluster at `offset`; 0 where there is no table."""
        entries_bits = self.header.cluster_bits - 3
        cluster = offset >> self.header.cluster_bits
        table = self._l1[cluster >> entries_bits] & _OFFSET
        if not table:
            return 0
        if table not in self._tables:
            while len(self._tables) >= _TABLES_KEPT:
                del self._tables[next(iter(self._tables))]
            self._tables[table] = self._entries(table, 1 << entries_bits)
        return self._tables[table][cluster & ((1 << entries_bits) - 1)]

    def _entries(self, offset: int, count: int) -> tuple[int, ...]:
        raw = bytearray(8 * count)
        self._image.read(self._inside(offset, len(raw)), memoryview(raw))
        return struct.unpack(f">{count}Q", raw)

    def _inflated(self, entry: int) -> bytes:
        """Compressed clusters: the descriptor's upper bits count further sectors of 512 bytes."""
        bits = 62 - (self.header.cluster_bits - 8)
        start = entry & ((1 << bits) - 1)
        sectors = ((entry & (_COMPRESSED - 1)) >> bits) + 1
        end = min(start - start % 512 + sectors * 512, self._image.size)
        packed = bytearray(max(0, end - start))
        self._image.read(self._inside(start, len(packed)), memoryview(packed))
        try:
            made = zlib.decompressobj(-12).decompress(bytes(packed), self.header.cluster_bytes)
        except zlib.error as exc:
            raise BadQcow2("a compressed qcow2 cluster is damaged") from exc
        if len(made) != self.header.cluster_bytes:
            raise BadQcow2("a compressed qcow2 cluster is cut off")
        return made

    def _inside(self, offset: int, n_bytes: int) -> int:
        if offset + n_bytes > self._image.size:
            raise BadQcow2("a qcow2 table points behind the end of the file")
        return offset
