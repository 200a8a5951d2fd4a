"""Disk image files that a worker reaches: opened for the engine, created beside the original, destroyed.

Paths come from libvirt's definitions on the worker's own machine. Symbolic links and anything but regular files are
refused, so that a definition cannot send a worker that runs as root to another file.
"""

import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

_BLOCK: Final = 4 * 2**20
_SECTOR: Final = 512
MAX_TEMPLATE: Final = 64 * 2**20
_FLOCK: Final = "@hhqqi4x"  # struct flock of 64-bit Linux
_QEMU_WRITES: Final = 101
_QEMU_UNSHARED_WRITE: Final = 201


class ImageFileError(Exception):
    """The system refused. The text names the file."""


class FileMissing(ImageFileError):
    """There is no such file."""


class NotRegular(ImageFileError):
    """A symbolic link, a folder, a device: nothing that a worker touches."""


class InUse(ImageFileError):
    """A QEMU has it open for writing, or has locked out writers."""


class BadTemplate(ImageFileError):
    """The file is no firmware variable store."""


@contextmanager
def opened(path: str, *, write: bool = False) -> Iterator[BinaryIO]:
    """An existing regular file, unbuffered, for reading or for reading and writing."""
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        check_regular(path)  # before the opening: that of a pipe or a device may block or have effects
        descriptor = os.open(path, flags)
    except OSError as exc:
        raise ImageFileError(f"cannot open {path}: {exc.strerror}") from exc
    with open(descriptor, "r+b" if write else "rb", buffering=0) as file:
        file.name = path
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegular(f"{path} is no regular file")
        yield file


def check_regular(path: str) -> None:
    """Raises FileMissing, NotRegular. Only the last name of the path is looked at."""
    try:
        facts = os.stat(path, follow_symlinks=False)
    except FileNotFoundError as exc:
        raise FileMissing(f"there is no file {path}") from exc
    except OSError as exc:
        raise ImageFileError(f"cannot look at {path}: {exc.strerror}") from exc
    if not stat.S_ISREG(facts.st_mode):
        raise NotRegular(f"{path} is no regular file")


def create(path: str, *, like: str) -> None:
    """A new empty file, mode 0600, that belongs to whom `like` belongs. One that is there already is emptied."""
    try:
        owner = os.stat(like, follow_symlinks=False)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            if os.geteuid() == 0:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
        finally:
            os.close(descriptor)
        sync_folder(path)
    except OSError as exc:
        raise ImageFileError(f"cannot create {path}: {exc.strerror}") from exc


def lock_against_writers(file: BinaryIO) -> None:
    """Keeps QEMU from opening the image for writing until `file` is closed; refuses where one has it open already.

    QEMU's image locking (block/file-posix.c): who writes holds a lock on byte 101, who lets nobody else write holds a
    shared lock on byte 201, and each looks at the other's byte. Programs other than QEMU do not look.
    """
    try:
        held = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, _QEMU_WRITES))
        if struct.unpack(_FLOCK, held)[0] != fcntl.F_UNLCK:
            raise InUse(f"{file.name} is open for writing in QEMU")
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, _QEMU_UNSHARED_WRITE))
    except OSError as exc:
        raise ImageFileError(f"cannot lock {file.name}: {exc.strerror}") from exc


def _flock(kind: int, byte: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0)


def fingerprint(path: str) -> str:
    """Changes when the file's content does (as far as its times tell): inode, size, modification time."""
    facts = os.stat(path, follow_symlinks=False)
    return f"{facts.st_dev}.{facts.st_ino}.{facts.st_size}.{facts.st_mtime_ns}"


def copy_variable_store(template: str, target: str) -> None:
    """A firmware's variable store from its template, for the owner of the target's folder; whole or not at all.

    The template's name stands in a definition, which is not trusted to name only firmware: anything that is not a
    UEFI firmware volume (PI specification, volume 3, section 3.2.1: "_FVH" at byte 40) or is long is refused.
    """
    part = f"{target}.part"
    try:
        with Path(template).open("rb") as source:
            if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
                raise BadTemplate(f"{template} is no regular file")
            content = source.read(MAX_TEMPLATE + 1)
        check_variable_store(template, content)
        create(part, like=str(Path(target).parent))
        with opened(part, write=True) as file:
            _write_all(file.fileno(), content, 0)
            os.fsync(file.fileno())
        os.rename(part, target)
        sync_folder(target)
    except OSError as exc:
        raise ImageFileError(f"cannot copy {template} to {target}: {exc.strerror}") from exc


def check_variable_store(template: str, content: bytes) -> None:
    """Raises BadTemplate. `content`: one byte more than MAX_TEMPLATE is enough of it."""
    if len(content) > MAX_TEMPLATE or content[40:44] != b"_FVH":
        raise BadTemplate(f"{template} is no firmware variable store")


def read(path: str, limit: int) -> bytes:
    """The whole file; one byte more than `limit` of a longer one."""
    with opened(path) as file:
        try:
            return _read_all(file.fileno(), limit + 1)
        except OSError as exc:
            raise ImageFileError(f"cannot read {path}: {exc.strerror}") from exc


def rewrite(path: str, before: bytes, after: bytes) -> None:
    """Writes in place, to disk, the sectors that differ between two contents of one length; QEMU is locked out.

    Raises InUse where a QEMU has the file open, or it no longer holds `before`.
    """
    with opened(path, write=True) as file:
        lock_against_writers(file)
        try:
            if _read_all(file.fileno(), len(before) + 1) != before:
                raise InUse(f"{path} was written to meanwhile")
            for start in range(0, len(after), _SECTOR):
                new = after[start : start + _SECTOR]
                if new != before[start : start + _SECTOR]:
                    _write_all(file.fileno(), new, start)
            os.fsync(file.fileno())
        except OSError as exc:
            raise ImageFileError(f"cannot write {path}: {exc.strerror}") from exc


def exists(path: str) -> bool:
    return bool(path) and os.path.lexists(path)


def size(path: str) -> int:
    check_regular(path)
    return os.stat(path, follow_symlinks=False).st_size


def free_bytes(path: str) -> int:
    """Free for this process on the file system that holds `path`'s folder."""
    try:
        facts = os.statvfs(Path(path).parent)
    except OSError as exc:
        raise ImageFileError(f"cannot look at the folder of {path}: {exc.strerror}") from exc
    return facts.f_bavail * facts.f_frsize


def destroy(path: str) -> None:
    """Overwrites a file's data in place with zeros, to disk, and removes it; none there is no error.

    Refused (InUse) while a QEMU writes to it. NOT reached: blocks that the storage keeps elsewhere (SSD wear levelling,
    copy-on-write, snapshots, backups).
    """
    if not exists(path):
        return
    try:
        with opened(path, write=True) as file:
            lock_against_writers(file)
            end = os.fstat(file.fileno()).st_size
            for start, stop in _extents(file.fileno(), end):
                for offset in range(start, stop, _BLOCK):
                    _write_all(file.fileno(), bytes(min(_BLOCK, stop - offset)), offset)
            os.fsync(file.fileno())
        os.unlink(path)
        sync_folder(path)
    except OSError as exc:
        raise ImageFileError(f"cannot destroy {path}: {exc.strerror}") from exc


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _read_all(descriptor: int, limit: int) -> bytes:
    parts: list[bytes] = []
    position = 0
    while position < limit and (part := os.pread(descriptor, min(_BLOCK, limit - position), position)):
        parts.append(part)
        position += len(part)
    return b"".join(parts)


def _extents(descriptor: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the file has data; all of it where the file system cannot tell."""
    position = 0
    while position < end:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            stop = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError:  # ENXIO: no data behind here; EINVAL: cannot tell
            if position == 0 and not _knows_holes(descriptor):
                yield 0, end
            return
        yield start, min(stop, end)
        position = stop


def _knows_holes(descriptor: int) -> bool:
    try:
        os.lseek(descriptor, 0, os.SEEK_HOLE)
    except OSError:
        return False
    return True


def sync_folder(path: str) -> None:
    """Returns when what was made, renamed or removed beside `path` is on stable storage."""
    folder = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
