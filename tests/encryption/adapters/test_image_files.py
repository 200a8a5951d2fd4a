"""Image files on the worker: what is refused, what is destroyed, and QEMU's locks both ways."""

import os
import subprocess
from pathlib import Path

import pytest

from encryption.adapters import image_files
from encryption.adapters.image_files import BadTemplate, FileMissing, ImageFileError, InUse, NotRegular


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"known content of a disk " * 4096)
    return path


def test_links_folders_and_pipes_are_never_opened(image: Path, tmp_path: Path) -> None:
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(image)
    os.mkfifo(fifo)
    for path in (link, fifo, tmp_path):
        with pytest.raises(NotRegular), image_files.opened(str(path)):
            pass
        with pytest.raises(NotRegular):
            image_files.destroy(str(path))
    assert image.read_bytes().startswith(b"known")
    with pytest.raises(FileMissing), image_files.opened(str(tmp_path / "none")):
        pass


def test_created_file_is_private_and_never_behind_a_link(image: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_bytes(b"old")
    made.chmod(0o644)
    image_files.create(str(made), like=str(image))
    assert made.stat().st_mode & 0o777 == 0o600 and made.stat().st_size == 0
    link = tmp_path / "link"
    link.symlink_to(image)
    with pytest.raises(ImageFileError):
        image_files.create(str(link), like=str(image))
    assert image.read_bytes().startswith(b"known")


def test_destroyed_file_was_overwritten_first(image: Path, tmp_path: Path) -> None:
    """A second name of the file shows what lies in its blocks afterwards."""
    other = tmp_path / "other"
    os.link(image, other)
    size = image.stat().st_size
    image_files.destroy(str(image))
    assert not image.exists() and other.read_bytes() == bytes(size)
    image_files.destroy(str(image))


def test_sparse_file_stays_sparse_while_it_is_overwritten(tmp_path: Path) -> None:
    path, other = tmp_path / "sparse", tmp_path / "other"
    with path.open("wb") as file:
        file.truncate(2**32)
        file.seek(2**31)
        file.write(b"secret" * 1000)
    os.link(path, other)
    before = path.stat().st_blocks
    image_files.destroy(str(path))
    assert other.stat().st_blocks <= before + 8
    with other.open("rb") as file:
        file.seek(2**31)
        assert file.read(6000) == bytes(6000)


def test_image_that_a_qemu_writes_to_is_neither_locked_nor_destroyed(image: Path) -> None:
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("length\n")
        process.stdin.flush()
        process.stdout.readline()
        with pytest.raises(InUse), image_files.opened(str(image)) as file:
            image_files.lock_against_writers(file)
        with pytest.raises(InUse):
            image_files.destroy(str(image))
        process.stdin.close()
    assert image.read_bytes().startswith(b"known")
    image_files.destroy(str(image))


def test_qemu_can_read_but_not_write_what_is_locked(image: Path) -> None:
    def tried(*options: str) -> int:
        return subprocess.run(["qemu-io", *options, str(image)], capture_output=True, check=False).returncode

    with image_files.opened(str(image)) as file:
        image_files.lock_against_writers(file)
        assert tried("-f", "raw", "-c", "write 0 512") == 1
        assert tried("-f", "raw", "-r", "-c", "read 0 512") == 0
    assert tried("-f", "raw", "-c", "write 0 512") == 0


def test_fingerprint_follows_content_and_place(image: Path) -> None:
    before = image_files.fingerprint(str(image))
    assert image_files.fingerprint(str(image)) == before
    os.utime(image, ns=(0, 1))
    assert image_files.fingerprint(str(image)) != before


def test_variable_store_comes_whole_or_not_at_all(tmp_path: Path) -> None:
    template, target = tmp_path / "template", tmp_path / "VARS.fd"
    for content in (b"", b"root:x:0:0:root:/root:/bin/bash\n" * 4, bytes(40) + b"_FV"):
        template.write_bytes(content)
        with pytest.raises(BadTemplate):
            image_files.copy_variable_store(str(template), str(target))
    with pytest.raises(BadTemplate):
        image_files.copy_variable_store("/dev/zero", str(target))
    assert [path.name for path in tmp_path.iterdir()] == ["template"]
    template.write_bytes(bytes(40) + b"_FVH" + bytes(100))
    image_files.copy_variable_store(str(template), str(target))
    assert target.read_bytes() == template.read_bytes() and target.stat().st_mode & 0o777 == 0o600
