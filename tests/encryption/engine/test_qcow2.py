"""Our reading of qcow2 images against qemu-img, which makes them."""

import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encryption.engine import qcow2
from encryption.engine.image import ImageError
from encryption.engine.qcow2 import BadQcow2, Disk, UnreadableQcow2
from tests.encryption.engine.images import MemoryImage

KIB = 1024
SIZE = 900 * KIB
CONTENT = os.urandom(200 * KIB) + bytes(300 * KIB) + b"compressible" * 20000 + bytes(SIZE - 500 * KIB - 240000)


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def made(folder: Path, *options: str) -> Path:
    raw, path = folder / "raw", folder / "image.qcow2"
    raw.write_bytes(CONTENT)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, path)
    return path


def disk(path: Path) -> Disk:
    return Disk(MemoryImage(path.read_bytes()))


def whole(of: Disk) -> bytes:
    into = bytearray(of.size)
    of.read(0, memoryview(into))
    return bytes(into)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-o", "compat=0.10"),
        ("-o", "cluster_size=512"),
        ("-o", "cluster_size=2M"),
        ("-o", "preallocation=metadata"),
        ("-c",),
        ("-c", "-o", "cluster_size=4k"),
    ],
    ids=" ".join,
)
def test_the_disk_is_what_qemu_img_put_in(tmp_path: Path, options: tuple[str, ...]) -> None:
    found = disk(made(tmp_path, *options))
    assert found.size == SIZE
    assert whole(found) == CONTENT
    piece = bytearray(70001)
    found.read(130003, memoryview(piece))
    assert piece == CONTENT[130003:][:70001]
    offset = 0
    while offset < SIZE:
        extent = found.extent_at(offset)
        assert extent.start == offset < extent.end
        assert not extent.hole or not any(CONTENT[offset : extent.end])
        offset = extent.end
    assert found.size == offset


def test_holes_are_told(tmp_path: Path) -> None:
    found = disk(made(tmp_path))
    assert not found.extent_at(0).hole and found.extent_at(300 * KIB).hole


def test_zeroed_clusters(tmp_path: Path) -> None:
    path = made(tmp_path)
    run("qemu-io", "-f", "qcow2", "-c", "write -z 0 128k", path)
    found = disk(path)
    assert found.extent_at(0).hole
    assert whole(found) == bytes(128 * KIB) + CONTENT[128 * KIB :]


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    path = made(tmp_path)
    run("qemu-img", "snapshot", "-c", "one", path)
    assert qcow2.parse(path.read_bytes()).snapshot_count == 1
    top = tmp_path / "top.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-b", path, "-F", "qcow2", top)
    assert qcow2.parse(top.read_bytes()).backing == str(path)
    with pytest.raises(UnreadableQcow2):
        disk(top)


@pytest.mark.parametrize("options", ["data_file={}/data", "extended_l2=on", "compression_type=zstd"])
def test_forms_that_are_not_read(tmp_path: Path, options: str) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-f", "qcow2", "-o", options.format(tmp_path), path, "1M")
    assert qcow2.parse(path.read_bytes()).has_external_data is options.startswith("data_file")
    with pytest.raises(UnreadableQcow2):
        disk(path)


def test_encrypted_by_its_own_format(tmp_path: Path) -> None:
    path = tmp_path / "image"
    options = "encrypt.format=aes,encrypt.key-secret=s"  # deprecated; luks would calibrate, which fails now and then
    run("qemu-img", "create", "-f", "qcow2", "--object", "secret,id=s,data=secret", "-o", options, path, "1M")
    assert qcow2.parse(path.read_bytes()).is_encrypted
    with pytest.raises(UnreadableQcow2):
        disk(path)


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", b"raw disk" * 100, b"QFI\xfb" + bytes(200)])
def test_no_qcow2(content: bytes) -> None:
    with pytest.raises(BadQcow2):
        qcow2.parse(content)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (4, struct.pack(">I", 4)),  # version
        (20, struct.pack(">I", 40)),  # cluster bits
        (24, struct.pack(">Q", 2**62)),  # disk size against the table
        (36, struct.pack(">I", 2**31)),  # table size
        (40, struct.pack(">Q", 2**50)),  # table behind the end
        (8, struct.pack(">QI", 100, 5000)),  # backing name
    ],
)
def test_hostile_headers(tmp_path: Path, offset: int, value: bytes) -> None:
    content = bytearray(made(tmp_path).read_bytes())
    content[offset : offset + len(value)] = value
    with pytest.raises(BadQcow2):
        Disk(MemoryImage(bytes(content)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_an_error_or_other_content_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    global _image
    if not _image:
        _image = made(tmp_path_factory.mktemp("q"), "-c").read_bytes()
    content = bytearray(_image)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from([*range(112), *range(0x30000, 0x30040), *range(0x40000, 0x40080)]))
        content[at % len(content)] = data.draw(st.integers(0, 255))
    try:
        found = Disk(MemoryImage(bytes(content)))
        for offset in range(0, min(found.size, SIZE), 64 * KIB):
            found.read(offset, memoryview(bytearray(min(KIB, found.size - offset))))
    except ImageError:
        pass


_image = b""
