"""Whole files on a host through libvirt's storage API, on a real daemon without guests."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from inventory.adapters.libvirt_driver import LibvirtHost, connect
from inventory.adapters.libvirt_files import PIECE
from inventory.engine.hypervisor import OperationRefused
from tests.inventory.adapters.daemon import session_daemon

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[str, Path]]:
    with session_daemon() as found:
        yield found


@pytest.fixture
def host(place: tuple[str, Path]) -> Iterator[LibvirtHost]:
    with connect(place[0]) as opened:
        yield opened


@pytest.fixture
def folder(host: LibvirtHost, place: tuple[str, Path]) -> Path:
    made = place[1] / secrets.token_hex(4)
    host.make_folder(str(made))
    return made


def test_a_sparse_file_goes_up_and_comes_back(host: LibvirtHost, folder: Path) -> None:
    path, size = str(folder / "disk.raw"), 40 * 2**20 + 512
    first, last = os.urandom(PIECE + 700), os.urandom(512)
    blocks = [(0, first[:PIECE]), (PIECE, first[PIECE:]), (size - 512, last)]
    host.upload(path, size=size, blocks=blocks)
    assert host.file_size(path) == size
    pieces = list(host.download(path))
    assert max(map(len, pieces)) <= PIECE
    whole = b"".join(pieces)
    assert whole == first + bytes(size - len(first) - 512) + last
    assert os.stat(path).st_blocks * 512 < size / 2, "holes stay holes"
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_bytes_in_the_middle_are_written_over_and_all_others_stay(host: LibvirtHost, folder: Path) -> None:
    path, size = str(folder / "image"), 3 * 2**20
    content, part = os.urandom(size), os.urandom(2**20 + 1)
    host.upload(path, size=size, blocks=[(0, content)])
    before = os.stat(path)
    for offset, written in ((592, part), (0, part[:592])):
        host.overwrite_file(path, written, offset=offset)
        content = content[:offset] + written + content[offset + len(written) :]
        assert b"".join(host.download(path)) == content
    after = os.stat(path)
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)


def test_one_connection_reads_and_writes_at_once(host: LibvirtHost, folder: Path) -> None:
    content = os.urandom(3 * PIECE + 1)
    host.upload(str(folder / "a"), size=len(content), blocks=[(0, content)])

    def pieces() -> Iterator[tuple[int, bytes]]:
        offset = 0
        for piece in host.download(str(folder / "a")):
            yield offset, piece
            offset += len(piece)

    host.upload(str(folder / "b"), size=len(content), blocks=pieces())
    assert b"".join(host.download(str(folder / "b"))) == content


def test_nothing_is_left_of_what_was_broken_off_and_nothing_overwritten(host: LibvirtHost, folder: Path) -> None:
    class Broken(Exception):
        pass

    def breaks() -> Iterator[tuple[int, bytes]]:
        yield 0, b"x" * 100
        raise Broken

    path = str(folder / "broken")
    with pytest.raises(Broken):
        host.upload(path, size=1000, blocks=breaks())
    assert host.file_size(path) is None and not os.path.exists(path)
    host.upload(path, size=4, blocks=[(0, b"mine")])
    with pytest.raises(OperationRefused):
        host.upload(path, size=4, blocks=[(0, b"them")])
    assert b"".join(host.download(path)) == b"mine"
    with pytest.raises(OperationRefused) as missing:
        list(host.download(str(folder / "none")))
    assert missing.value.code == "storage_missing"


def test_a_download_that_is_given_up_leaves_the_connection_usable(host: LibvirtHost, folder: Path) -> None:
    path = str(folder / "long")
    host.upload(path, size=6 * PIECE, blocks=[(0, os.urandom(6 * PIECE))])
    reading = iter(host.download(path))
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert host.file_size(path) == 6 * PIECE


def test_the_file_counts_and_not_what_a_qcow2_guest_sees(host: LibvirtHost, folder: Path) -> None:
    path = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1G"], check=True)
    assert host.file_size(str(path)) == path.stat().st_size
    assert b"".join(host.download(str(path))) == path.read_bytes()


def test_folders(host: LibvirtHost, folder: Path) -> None:
    deep = folder / "a" / "b"
    host.make_folder(str(deep))
    host.make_folder(str(deep))
    assert deep.is_dir()
    assert host.free_bytes(str(deep)) > 0
    (deep / "file").write_bytes(b"x")
    host.remove_folder(str(deep))
    assert deep.is_dir()
    (deep / "file").unlink()
    host.remove_folder(str(deep))
    assert not deep.exists()
    host.remove_folder(str(deep))
    assert host.datastores() == ()


def test_files_are_listed_with_what_is_in_folders_below(host: LibvirtHost, folder: Path) -> None:
    """Sizes, what guests see, backing files; a folder that is not there has none, and nothing is left behind."""
    host.make_folder(f"{folder}/deep/deeper")
    host.create_file(f"{folder}/plain.raw", size=8192)
    host.create_file(f"{folder}/deep/deeper/header.luks", size=4096, head=b"LUKS\xba\xbe\x00\x01")
    host.create_file(f"{folder}/empty", size=0)
    subprocess.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            f"{folder}/plain.raw",
            f"{folder}/over.qcow2",
            "1M",
        ],
        check=True,
    )
    os.chmod(folder / "over.qcow2", 0o644)
    found = {one.path: one for one in host.list_files(str(folder))}
    assert {path.removeprefix(f"{folder}/") for path in found} == {
        "plain.raw", "deep/deeper/header.luks", "empty", "over.qcow2",
    }  # fmt: skip
    assert found[f"{folder}/plain.raw"].size == found[f"{folder}/plain.raw"].capacity == 8192
    assert found[f"{folder}/empty"].size == 0
    overlay = found[f"{folder}/over.qcow2"]
    assert overlay.capacity == 2**20 and overlay.backing == f"{folder}/plain.raw" and overlay.size < 2**20
    assert host.list_files(f"{folder}/nowhere") == ()
    assert host._connection.listAllStoragePools(0) == []
