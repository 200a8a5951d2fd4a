import errno
import os
from pathlib import Path

import pytest

from encryption.engine.image import Extent, ImageFile, ShortImage, whole_sectors

MIB = 1 << 20


def sparse_file(path: Path) -> Path:
    """Data in the second and the fourth MiB of five."""
    with path.open("wb") as file:
        for start in (MIB, 3 * MIB):
            file.seek(start)
            file.write(b"\x01" * MIB)
        file.truncate(5 * MIB)
    return path


def test_extents_of_a_sparse_file(tmp_path: Path) -> None:
    with sparse_file(tmp_path / "disk").open("rb") as file:
        image = ImageFile(file)
        found, offset = [], 0
        while offset < image.size:
            found.append(image.extent_at(offset))
            offset = found[-1].end
    assert found == [
        Extent(0, MIB, hole=True),
        Extent(MIB, 2 * MIB, hole=False),
        Extent(2 * MIB, 3 * MIB, hole=True),
        Extent(3 * MIB, 4 * MIB, hole=False),
        Extent(4 * MIB, 5 * MIB, hole=True),
    ]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_without_support_for_holes_all_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    seek = os.lseek

    def lseek(fd: int, offset: int, whence: int) -> int:
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(code, os.strerror(code))
        return seek(fd, offset, whence)

    with sparse_file(tmp_path / "disk").open("rb") as file:
        monkeypatch.setattr(os, "lseek", lseek)
        assert ImageFile(file).extent_at(0) == Extent(0, 5 * MIB, hole=False)


def test_other_errors_of_the_file_system_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seek = os.lseek

    def lseek(fd: int, offset: int, whence: int) -> int:
        if whence == os.SEEK_DATA:
            raise OSError(errno.EIO, "disk on fire")
        return seek(fd, offset, whence)

    with sparse_file(tmp_path / "disk").open("rb") as file:
        monkeypatch.setattr(os, "lseek", lseek)
        with pytest.raises(OSError, match="disk on fire"):
            ImageFile(file).extent_at(0)


def test_reads_and_short_reads(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(range(100)))
    with (tmp_path / "disk").open("rb") as file:
        image = ImageFile(file)
        into = bytearray(10)
        image.read(90, memoryview(into))
        assert bytes(into) == bytes(range(90, 100))
        with pytest.raises(ShortImage, match="ends at byte 100, 1 bytes too early"):
            image.read(91, memoryview(into))


def test_what_may_leave_the_memory_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("w+b", buffering=0) as file:
        image, content = ImageFile(file), os.urandom(2 * MIB)
        image.write(0, memoryview(content))
        image.forget(0, MIB)
        image.forget(MIB // 2, 5 * MIB)  # beyond the end, too
        image.sync()
        image.forget(0, image.size)
        into = bytearray(2 * MIB)
        image.read(0, memoryview(into))
    assert bytes(into) == content


def test_begin_empties_the_file(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"old content" * 1000)
    with path.open("r+b", buffering=0) as file:
        image = ImageFile(file)
        image.begin(3 * MIB)
        image.write(MIB, memoryview(b"new"))
        image.zero(2 * MIB, 4096)
        image.sync()
    content = path.read_bytes()
    assert len(content) == 3 * MIB
    assert content.strip(b"\0") == b"new"
    assert path.stat().st_blocks * 512 < MIB


def test_a_full_file_system_is_the_callers_to_know() -> None:
    with open("/dev/full", "r+b", buffering=0) as file, pytest.raises(OSError, match="No space") as caught:
        ImageFile(file).write(0, memoryview(b"x"))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(("n_bytes", "expected"), [(1, 512), (511, 512), (512, 512), (513, 1024)])
def test_whole_sectors(n_bytes: int, expected: int) -> None:
    assert whole_sectors(n_bytes) == expected
