"""The exchange folder on a worker's machine: one folder for each exported VM, complete or named `.partial`.

What lies there may come from anywhere. Folders and files are opened relative to one another without following symbolic
links, and only regular files are read; names are checked by engine/bundle.py before they come here.
"""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from encryption.engine.bundle import MANIFEST, MAX_MANIFEST_BYTES

PIECE: Final = 4 * 2**20
MOST: Final = 1000
_PARTIAL: Final = ".partial"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,180}", re.ASCII)


class BundleFileError(Exception):
    """The system refused, or what is there is not what it should be. The text names the file."""


def names(exchange: Path) -> list[str]:
    """Complete bundles, or what pretends to be; at most MOST."""
    try:
        with os.scandir(exchange) as entries:
            found = [
                entry.name
                for entry in entries
                if _NAME.fullmatch(entry.name)
                and not entry.name.endswith(_PARTIAL)
                and entry.is_dir(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise BundleFileError(f"cannot read {exchange}: {exc.strerror}") from exc
    return sorted(found)[:MOST]


def begin(exchange: Path, name: str) -> Path:
    """An empty folder `name.partial`; what an earlier attempt left there goes."""
    partial = _place(exchange, name).with_name(name + _PARTIAL)
    try:
        exchange.mkdir(mode=0o700, parents=True, exist_ok=True)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(mode=0o700)
    except OSError as exc:
        raise BundleFileError(f"cannot create {partial}: {exc.strerror}") from exc
    return partial


def write(partial: Path, name: str, pieces: Iterable[bytes]) -> tuple[int, str]:
    """A file of a bundle, zeros as holes, synced; its size and SHA-256 in hexadecimal."""
    digest, size = hashlib.sha256(), 0
    try:
        with (partial / name).open("xb", buffering=0) as file:
            os.fchmod(file.fileno(), 0o600)
            for piece in pieces:
                digest.update(piece)
                if piece.count(0) != len(piece):
                    view = memoryview(piece)
                    at = size
                    while view:
                        written = os.pwrite(file.fileno(), view, at)
                        view, at = view[written:], at + written
                size += len(piece)
            file.truncate(size)
            os.fsync(file.fileno())
    except OSError as exc:
        raise BundleFileError(f"cannot write {partial / name}: {exc.strerror}") from exc
    return size, digest.hexdigest()


def complete(exchange: Path, name: str) -> None:
    """`name.partial` becomes `name`, all of it on stable storage."""
    final = _place(exchange, name)
    partial = final.with_name(name + _PARTIAL)
    try:
        _sync(partial)
        partial.rename(final)
        _sync(exchange)
    except OSError as exc:
        raise BundleFileError(f"cannot complete {final}: {exc.strerror}") from exc


def remove(exchange: Path, name: str) -> None:
    """Both the complete bundle and a partial one; none there is no error."""
    final = _place(exchange, name)
    try:
        for folder in (final, final.with_name(name + _PARTIAL)):
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
    except OSError as exc:
        raise BundleFileError(f"cannot delete {final}: {exc.strerror}") from exc


def exists(exchange: Path, name: str) -> bool:
    return _place(exchange, name).is_dir()


def manifest(exchange: Path, name: str) -> bytes:
    with _opened(exchange, name, MANIFEST) as (descriptor, size):
        if size > MAX_MANIFEST_BYTES:
            raise BundleFileError(f"the manifest of {name} is too long")
        return os.read(descriptor, size)


def pieces(exchange: Path, name: str, file: str, *, size: int) -> Iterator[bytes]:
    """A file's content in pieces of at most PIECE. Raises BundleFileError where it has not exactly `size` bytes."""
    with _opened(exchange, name, file) as (descriptor, found):
        if found != size:
            raise BundleFileError(f"{file} of {name} has {found} bytes and not {size}")
        left = size
        while left:
            piece = os.read(descriptor, min(PIECE, left))
            if not piece:
                raise BundleFileError(f"{file} of {name} became shorter while it was read")
            left -= len(piece)
            yield piece


def head(exchange: Path, name: str, file: str, *, length: int) -> bytes:
    with _opened(exchange, name, file) as (descriptor, _):
        return os.pread(descriptor, length, 0)


def free_bytes(exchange: Path) -> int:
    try:
        exchange.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = os.statvfs(exchange)
    except OSError as exc:
        raise BundleFileError(f"cannot look at {exchange}: {exc.strerror}") from exc
    return facts.f_bavail * facts.f_frsize


@contextmanager
def _opened(exchange: Path, name: str, file: str) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a regular file of a bundle."""
    try:
        folder = os.open(_place(exchange, name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # NONBLOCK: the opening of a pipe would wait for its writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(file, flags, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as exc:
        raise BundleFileError(f"cannot open {file} of {name}: {exc.strerror}") from exc
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise BundleFileError(f"{file} of {name} is no regular file")
        yield descriptor, facts.st_size
    finally:
        os.close(descriptor)


def _place(exchange: Path, name: str) -> Path:
    if not _NAME.fullmatch(name) or name.endswith(_PARTIAL):
        raise BundleFileError("that is no name of a bundle")
    return exchange / name


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
