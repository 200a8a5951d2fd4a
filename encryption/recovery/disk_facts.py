"""What an image file is, as far as it shows without a key."""

import os
from dataclasses import dataclass
from typing import Literal

from encryption.adapters import image_files
from encryption.engine import luks, qcow2
from encryption.engine.image import ImageFile
from encryption.engine.luks_header import VOLUME_KEY_BYTES
from encryption.recovery.disk_copy import named_failures
from encryption.recovery.side_file import SideFile

Format = Literal["luks1", "luks2", "qcow2", "raw"]


@dataclass(frozen=True, slots=True)
class LuksFacts:
    """From the header, which is not authenticated. `disk_bytes` is what is behind it in the file (negative: cut off);
    `keyslots` maps the number of each active one to its iterations."""

    uuid: str
    cipher: str
    key_bits: int
    hash: str
    payload_offset: int
    disk_bytes: int
    keyslots: dict[int, int]


@dataclass(frozen=True, slots=True)
class Qcow2Facts:
    """`disk_bytes` is what a guest sees. The disk is all here, and in clear, where the others are "", 0 and False."""

    disk_bytes: int
    backing_file: str
    has_data_file: bool
    snapshots: int
    is_encrypted: bool


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """`raw` stands for everything without a known mark. `unfinished`: an interrupted copy, not to be used yet."""

    path: str
    format: Format
    file_bytes: int
    allocated_bytes: int
    unfinished: bool
    luks: LuksFacts | None
    qcow2: Qcow2Facts | None


def look(path: str) -> DiskFacts:
    """Raises ServiceError, also for a header that is damaged or, of LUKS1, not one of those supported here."""
    real = os.path.realpath(path)
    with named_failures(real), image_files.opened(real) as file:
        image = ImageFile(file)
        prefix = bytearray(min(image.size, qcow2.HEADER_BYTES))
        image.read(0, memoryview(prefix))
        form = _format(bytes(prefix))
        return DiskFacts(
            path=real,
            format=form,
            file_bytes=image.size,
            allocated_bytes=os.fstat(file.fileno()).st_blocks * 512,
            unfinished=image_files.exists(SideFile(real).path),
            luks=_luks(bytes(prefix), image.size) if form == "luks1" else None,
            qcow2=_qcow2(bytes(prefix)) if form == "qcow2" else None,
        )


def _format(prefix: bytes) -> Format:
    # LUKS1 section 3 and LUKS2 section 2.1 have magic and version in the same place.
    if prefix.startswith(b"LUKS\xba\xbe\0\x02"):
        return "luks2"
    if prefix.startswith(b"LUKS\xba\xbe"):
        return "luks1"
    return "qcow2" if prefix.startswith(b"QFI\xfb") else "raw"


def _qcow2(head: bytes) -> Qcow2Facts:
    header = qcow2.parse(head)
    return Qcow2Facts(
        disk_bytes=header.size,
        backing_file=header.backing,
        has_data_file=header.has_external_data,
        snapshots=header.snapshot_count,
        is_encrypted=header.is_encrypted,
    )


def _luks(prefix: bytes, file_bytes: int) -> LuksFacts:
    header = luks.parse(prefix)
    return LuksFacts(
        uuid=str(header.uuid),
        cipher="aes-xts-plain64",
        key_bits=VOLUME_KEY_BYTES * 8,
        hash=header.hash_name,
        payload_offset=header.payload_offset,
        disk_bytes=file_bytes - header.payload_offset,
        keyslots={number: slot.iterations for number, slot in enumerate(header.keyslots) if slot.active},
    )
