"""The planted disks are what they say, whatever the format."""

import hashlib
import stat
import subprocess
from pathlib import Path

import pytest

from lab import disks
from lab.disks import DATA_DISK_SIZE, MARKER, SCRATCH_SECTOR, SECTOR, data_disks
from lab.user import LabUser


@pytest.mark.parametrize("index", [0, 1])
def test_image_holds_exactly_the_planted_content(tmp_path: Path, index: int) -> None:
    disk = data_disks("vm-1")[index]
    disks.make(disk, tmp_path, LabUser.current())
    made = tmp_path / disk.file_name
    assert [path.name for path in tmp_path.iterdir()] == [disk.file_name]
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    plain = tmp_path / "plain"
    argv = ["qemu-img", "convert", "-f", disk.format, "-O", "raw", str(made), str(plain)]
    subprocess.run(argv, check=True)
    content = plain.read_bytes()
    assert len(content) == DATA_DISK_SIZE
    assert hashlib.sha256(content).hexdigest() == disk.sha256()
    for offset, planted in disk.planted():
        assert content[offset : offset + len(planted)] == planted


def test_raw_image_has_holes(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    data_disks("vm-1")[0].write_raw(path)
    assert path.stat().st_blocks * 512 < DATA_DISK_SIZE // 2


def test_no_two_disks_are_alike() -> None:
    digests = {disk.sha256() for vm in ("a", "b") for disk in data_disks(vm)}
    assert len(digests) == 4


def test_content_is_the_same_on_every_machine() -> None:
    expected = "641371f55d19cfa073650b3b0aa110aacb62f9b49a8e9cb6c0d8ca852257e14c"
    assert data_disks("bios-01")[0].sha256() == expected


def test_marker_line_is_recognisable_and_has_64_bytes() -> None:
    for disk in data_disks("secureboot-01"):
        assert disk.marker_line.startswith(MARKER.encode())
        assert disk.marker_line.endswith(b"\n")
        assert len(disk.marker_line) == 64


def test_the_guests_scratch_sector_lies_in_a_hole() -> None:
    start = SCRATCH_SECTOR * SECTOR
    for offset, content in data_disks("vm-1")[0].planted():
        assert start + SECTOR <= offset or start >= offset + len(content)
