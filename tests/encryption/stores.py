"""UEFI variable stores made by hand, small ones: what OVMF's NVRAM files are made of."""

import struct
from uuid import UUID

GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
DATABASES = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
ENABLE = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
ADDED, IN_DELETED_TRANSITION, DELETED, HEADER_ONLY = 0x3F, 0x3E, 0x3C, 0x7F
VOLUME_HEADER, STORE_HEADER = 72, 28


def record(name: str, vendor: UUID, data: bytes, *, state: int = ADDED) -> bytes:
    encoded = f"{name}\0".encode("utf-16-le")
    stamp = bytes.fromhex("e907030a0235270000000000") + bytes(4)
    made = struct.pack("<HBBIQ16sIII", 0x55AA, state, 0, 0x27, 0, stamp, 0, len(encoded), len(data))
    made += vendor.bytes_le + encoded + data
    return made + b"\xff" * (-len(made) % 4)


def store(*records: bytes, size: int = 4096, tail: bytes = b"spare blocks") -> bytes:
    """A volume with a store of `size` bytes, and `tail` behind the store."""
    kept = b"".join(records)
    kind = UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
    inner = kind + struct.pack("<IBBHI", size, 0x5A, 0xFE, 0, 0) + kept
    inner = inner.ljust(size, b"\xff") + tail
    inner += b"\xff" * (-(VOLUME_HEADER + len(inner)) % 512)
    head = bytes(16) + UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
    head += struct.pack("<Q4sIHHHBB", VOLUME_HEADER + len(inner), b"_FVH", 0x4FEFF, VOLUME_HEADER, 0, 0, 0, 2)
    return head + bytes(VOLUME_HEADER - len(head)) + inner


BOOT_ORDER = record("BootOrder", GLOBAL, b"\x01\x00\x00\x00")
KEYS = b"".join(
    (
        record("db", DATABASES, b"certificates that may boot, " * 9),
        record("dbx", DATABASES, b"and those that may not"),
        record("KEK", GLOBAL, b"who may change both"),
        record("PK", GLOBAL, b"who may change the KEK"),
    )
)
ON, OFF = (record("SecureBootEnable", ENABLE, data) for data in (b"\x01", b"\x00"))
KEYLESS = store(BOOT_ORDER)
ENROLLED = store(BOOT_ORDER, KEYS, ON)
