"""Disk images as the engine sees them: opened files read and written at offsets, with their holes.

`ImageFile` works on a descriptor that the caller opened (and closes); no paths here. Its methods raise OSError as the
system does (no space, I/O error), and ShortImage when a file ends too early.
"""

import errno
import os
import stat
from dataclasses import dataclass
from typing import BinaryIO, Protocol, final

from encryption.engine.luks_header import SECTOR_BYTES

_ZEROS = bytes(1024 * 1024)


class ImageError(Exception):
    """Base of what can be wrong with an image as such."""


class ShortImage(ImageError):
    """The image ends before the disk in it does."""


class SizeMismatch(ImageError):
    """Image and disk differ in size."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes `start` to `end` (exclusive) of a file, all of them stored or all of them a hole."""

    start: int
    end: int
    hole: bool


class Source(Protocol):
    """What is read from."""

    @property
    def size(self) -> int:
        """Bytes in the image now."""

    def extent_at(self, offset: int) -> Extent:
        """The extent that starts at `offset` (inside the image). May report a hole as data, never data as a hole."""

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into`; raise ShortImage when the image ends before."""

    def forget(self, offset: int, n_bytes: int) -> None:
        """A hint: these bytes are not needed again soon. What was written of them may go to the storage now, and what
        is there already may leave the memory."""


class Target(Source, Protocol):
    """What is written to, and read again when a conversion goes on."""

    def begin(self, size: int) -> None:
        """Make the image `size` bytes of zeros (or, for a device, at least that large, content undefined)."""

    def write(self, offset: int, content: memoryview) -> None:
        """Write all of `content`."""

    def zero(self, offset: int, n_bytes: int) -> None:
        """Let this range read as zeros, cheaply when it was zeros since `begin`."""

    def sync(self) -> None:
        """Return when everything written is on stable storage."""


@final
class ImageFile:
    """A Source and Target over a regular file or block device that is opened in binary mode."""

    def __init__(self, file: BinaryIO) -> None:
        """`file` must have no unwritten buffer: what is written here passes it by. Its position is not kept."""
        self._fd = file.fileno()
        self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)

    @property
    def size(self) -> int:
        """Bytes in the file or device."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def extent_at(self, offset: int) -> Extent:
        """Ask the file system; one that knows no holes (or a device) says that all is data."""
        size = self.size
        try:
            data_at = os.lseek(self._fd, offset, os.SEEK_DATA)
            if data_at > offset:
                return Extent(offset, min(data_at, size), hole=True)
            return Extent(offset, min(os.lseek(self._fd, offset, os.SEEK_HOLE), size), hole=False)
        except OSError as exc:
            if exc.errno == errno.ENXIO and offset < size:
                return Extent(offset, size, hole=self._regular)
            if exc.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return Extent(offset, size, hole=False)
            raise

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` from `offset`."""
        done = 0
        while done < len(into):
            n_read = os.preadv(self._fd, [into[done:]], offset + done)
            if n_read == 0:
                raise ShortImage(f"image ends at byte {offset + done}, {len(into) - done} bytes too early")
            done += n_read

    def forget(self, offset: int, n_bytes: int) -> None:
        """Linux begins to write out what is dirty of the range, and drops from its page cache what is clean."""
        os.posix_fadvise(self._fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def begin(self, size: int) -> None:
        """Empty the file and make it one hole of `size` bytes; a device must be large enough as it is."""
        if self._regular:
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, size)
        elif self.size < size:
            raise SizeMismatch(f"device has {self.size} bytes, {size} are needed")

    def write(self, offset: int, content: memoryview) -> None:
        """Write all of `content` at `offset`."""
        done = 0
        while done < len(content):
            done += os.pwrite(self._fd, content[done:], offset + done)

    def zero(self, offset: int, n_bytes: int) -> None:
        """A file is left as it is: it reads as zeros since `begin`, and nothing else is written there before."""
        if self._regular:
            return
        for start in range(0, n_bytes, len(_ZEROS)):
            self.write(offset + start, memoryview(_ZEROS)[: min(len(_ZEROS), n_bytes - start)])

    def sync(self) -> None:
        """fsync."""
        os.fsync(self._fd)


def whole_sectors(n_bytes: int) -> int:
    """Round up to the next multiple of 512."""
    return -(-n_bytes // SECTOR_BYTES) * SECTOR_BYTES
