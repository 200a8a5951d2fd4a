"""Disk images in memory for engine tests, one of them dying on purpose."""

import threading
from random import Random

from typing_extensions import override

from encryption.engine.convert import Conversion, convert
from encryption.engine.image import Extent, ShortImage
from encryption.engine.secret import Secret

PASSPHRASE = Secret(b"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff")
OTHER_PASSPHRASE = Secret(b"ff" * 32)


class Killed(BaseException):
    """The machine is gone. Not an Exception, so that nothing can catch it half-way."""


class MemoryImage:
    """An image in memory. All is stable at once."""

    def __init__(self, content: bytes = b"", holes: tuple[tuple[int, int], ...] = ()) -> None:
        self.content = bytearray(content)
        self.holes = holes
        self.reads: list[tuple[int, int]] = []
        self.forgotten: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return len(self.content)

    def extent_at(self, offset: int) -> Extent:
        for start, end in self.holes:
            if start <= offset < end:
                return Extent(offset, end, hole=True)
        following = [start for start, _ in self.holes if start > offset]
        return Extent(offset, min(following, default=self.size), hole=False)

    def read(self, offset: int, into: memoryview) -> None:
        if offset + len(into) > self.size:
            raise ShortImage("image ends too early")
        self.reads.append((offset, offset + len(into)))
        into[:] = self.content[offset : offset + len(into)]

    def forget(self, offset: int, n_bytes: int) -> None:
        self.forgotten.append((offset, offset + n_bytes))

    def begin(self, size: int) -> None:
        self.content = bytearray(size)

    def write(self, offset: int, content: memoryview) -> None:
        self.content[offset : offset + len(content)] = content

    def zero(self, offset: int, n_bytes: int) -> None:
        assert not any(self.content[offset : offset + n_bytes])

    def sync(self) -> None:
        pass


class DyingImage(MemoryImage):
    """Dies while the byte numbered `kill_at` is written, or at the sync numbered `kill_at_sync`.

    What was written since the last sync survives in part: each write whole, cut or not at all, as `random` draws.
    """

    def __init__(self, content: bytes, random: Random, *, kill_at: int = -1, kill_at_sync: int = -1) -> None:
        super().__init__(content)
        self.written = 0
        self.syncs = 0
        self._stable = bytearray(content)
        self._unsynced: list[tuple[int, bytes]] = []
        self._random = random
        self._kill_at = kill_at
        self._kill_at_sync = kill_at_sync
        self._dead = False
        self._lock = threading.Lock()

    @override
    def begin(self, size: int) -> None:
        super().begin(size)
        self._stable = bytearray(size)
        self._unsynced = []

    @override
    def write(self, offset: int, content: memoryview) -> None:
        with self._lock:
            if self._dead:
                raise Killed
            if 0 <= self._kill_at < self.written + len(content):
                self._dead = True
                content = content[: self._kill_at - self.written]
            self.written += len(content)
            self._unsynced.append((offset, bytes(content)))
            super().write(offset, content)
            if self._dead:
                raise Killed

    @override
    def sync(self) -> None:
        with self._lock:
            if self._dead:
                raise Killed
            if self.syncs == self._kill_at_sync:
                self._dead = True
                raise Killed
            self.syncs += 1
            for offset, content in self._unsynced:
                self._stable[offset : offset + len(content)] = content
            self._unsynced = []

    def after_the_crash(self) -> bytes:
        """What the disk holds when the machine is back."""
        survived = bytearray(self._stable)
        for offset, content in self._unsynced:
            kept = self._random.choice((0, len(content), self._random.randint(0, len(content))))
            survived[offset : offset + kept] = content[:kept]
        return bytes(survived)


class Recorder:
    """A Progress that remembers the last checkpoint and that calls come in order."""

    def __init__(self) -> None:
        self.last: int | None = None
        self.checkpoints: list[int] = []
        self.advances: list[int] = []

    def advance(self, done_bytes: int) -> None:
        self.advances.append(done_bytes)

    def checkpoint(self, offset: int) -> None:
        self.last = offset
        self.checkpoints.append(offset)


def encrypted(disk: bytes, passphrase: Secret = PASSPHRASE) -> MemoryImage:
    """A LUKS image of `disk`, made by the engine."""
    target = MemoryImage()
    convert(Conversion(len(disk), None, passphrase), MemoryImage(disk), target, start=None, progress=Recorder())
    return target


def decrypted(image: MemoryImage, size: int, passphrase: Secret = PASSPHRASE) -> bytes:
    """The disk in a LUKS image."""
    target = MemoryImage()
    convert(Conversion(size, passphrase, None), image, target, start=None, progress=Recorder())
    return bytes(target.content)
