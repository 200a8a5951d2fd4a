"""Folders in memory for vTPM state in clear, which must not outlive the process that needs them.

A name in memory outlives a process that is killed. So whoever makes a folder holds a lock on it, which the kernel
takes away with the process, however that ends, and which no process id or clock can fake: a folder that nobody holds
is overwritten and deleted, when a worker's process starts and before each use. The kernel may swap such memory out.
"""

import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MEMORY: Final = Path("/dev/shm")  # noqa: S108
PREFIX: Final = "bartizan-vtpm-"
_BLOCK: Final = 2**20

logger = logging.getLogger(__name__)


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A new folder, mode 0700; what is in it at the end is overwritten and deleted. Raises OSError."""
    sweep()
    place, descriptor = _create()
    try:
        yield place
    finally:
        try:
            _destroy(place)
        finally:
            os.close(descriptor)


def sweep() -> int:
    """Destroys the folders of this user that no living process holds; how many. One that resists is logged."""
    swept = 0
    for place in MEMORY.glob(f"{PREFIX}*"):
        try:
            swept += _sweep(place)
        except OSError as exc:
            logger.warning("vTPM state left by a killed worker cannot be destroyed: %s: %s", place, exc)
    if swept:
        logger.warning("vTPM state left by killed workers destroyed in %s: %d folders", MEMORY, swept)
    return swept


def _create() -> tuple[Path, int]:
    while True:
        place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=MEMORY))
        try:
            descriptor = _open(place)
        except FileNotFoundError:
            continue  # swept by another worker before it was locked
        if _lock(descriptor) and place.exists():
            return place, descriptor
        os.close(descriptor)


def _open(place: Path) -> int:
    # Not inherited: the lock must end with this process, not with a program that it has started.
    return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(place: Path) -> bool:
    try:
        descriptor = _open(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        if os.fstat(descriptor).st_uid != os.geteuid() or not _lock(descriptor) or not place.exists():
            return False
        _destroy(place)
        return True
    finally:
        os.close(descriptor)


def _destroy(place: Path) -> None:
    for folder, folders, files in os.walk(place, topdown=False):
        for name in files:
            path = os.path.join(folder, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                _overwrite(path)
            os.unlink(path)
        for name in folders:
            os.rmdir(os.path.join(folder, name))
    place.rmdir()


def _overwrite(path: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb", buffering=0) as file:
        left = os.fstat(file.fileno()).st_size
        while left > 0:
            left -= file.write(bytes(min(left, _BLOCK)))
