"""Disks of the guests with content that is known in advance, so that any later copy can be judged.

A data disk holds, in 64 MiB: a marker line repeated over two areas, two areas of pseudo-random bytes, and holes.
One sector is the guest's own to count in (lab/guest/init); it lies in a hole and is no part of the known content.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.user import PATH, LabUser

SECTOR = 512
MIB = 1 << 20
DATA_DISK_SIZE = 64 * MIB
SCRATCH_SECTOR = 2048
"""Lies at 1 MiB. Guests that run overwrite this sector every second."""
MARKER = "BARTIZAN LAB PLAINTEXT"
LINE = 64
# (offset, length, random?) in bytes; everything else is a hole.
AREAS = (
    (0, MIB, False),
    (8 * MIB, 8 * MIB, True),
    (32 * MIB, 2 * MIB, False),
    (63 * MIB, MIB, True),
)


@dataclass(frozen=True, slots=True)
class DataDisk:
    """One planted disk: `vm` and `name` (which is also the disk's serial number) decide its content."""

    vm: str
    name: str
    format: str

    @property
    def file_name(self) -> str:
        return f"{self.name}.{self.format}"

    @property
    def marker_line(self) -> bytes:
        """The 64-byte line that fills the marker areas. Its start, MARKER, is the same on every lab disk."""
        text = f"{MARKER} {self.vm} {self.name} "
        return (text.ljust(LINE - 1, "#") + "\n").encode()

    def planted(self) -> Iterator[tuple[int, bytes]]:
        """(offset, content) of every area that is not a hole, in order, in bytes."""
        for offset, length, is_random in AREAS:
            if is_random:
                # An extendable output function as a generator that is the same everywhere (FIPS 202).
                seed = f"{self.vm}/{self.name}/{offset}".encode()
                yield offset, hashlib.shake_128(seed).digest(length)
            else:
                yield offset, self.marker_line * (length // LINE)

    def write_raw(self, path: Path) -> None:
        """Write the planted content as a sparse raw image."""
        with path.open("wb") as file:
            for offset, content in self.planted():
                file.seek(offset)
                file.write(content)
            file.truncate(DATA_DISK_SIZE)

    def sha256(self) -> str:
        """Digest of the whole virtual disk as planted, before any guest counted in it."""
        digest = hashlib.sha256()
        position = 0
        for offset, content in self.planted():
            digest.update(bytes(offset - position))
            digest.update(content)
            position = offset + len(content)
        digest.update(bytes(DATA_DISK_SIZE - position))
        return digest.hexdigest()


def data_disks(vm: str) -> tuple[DataDisk, DataDisk]:
    """The two data disks that every guest has."""
    return DataDisk(vm, "data-raw", "raw"), DataDisk(vm, "data-qcow2", "qcow2")


def make(disk: DataDisk, folder: Path, user: LabUser) -> None:
    """Make the image file in `folder`, mode 0600, owned by the lab's user."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".disk-") as name:
        raw = Path(name) / "raw"
        disk.write_raw(raw)
        made = raw
        if disk.format != "raw":
            made = Path(name) / "made"
            argv = ["qemu-img", "convert", "-q", "-f", "raw", "-O", disk.format, str(raw), str(made)]
            done = subprocess.run(argv, env={"PATH": PATH}, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise LabError(f"qemu-img could not make {disk.file_name} of {disk.vm}: {done.stderr.strip()}")
        adopt(made, folder / disk.file_name, user)


def adopt(made: Path, target: Path, user: LabUser) -> None:
    """Move a finished file to its place, as a private file of the lab's user."""
    made.chmod(0o600)
    user.own(made)
    os.replace(made, target)
