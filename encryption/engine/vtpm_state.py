"""The header of a vTPM's permanent state as swtpm stores it (`tpm2-00.permall`), which tells whether it is encrypted.

Ten bytes, big-endian: version u8, oldest reader version u8, header size u16, flags u16, total length u32. Enough to
show without any key that a state at rest is encrypted. NOT shown: under which key, nor that it decrypts, nor that the
flag is honest (nothing authenticates the header).
"""

import struct
from dataclasses import dataclass

_HEADER = struct.Struct(">BBHHI")
HEADER_BYTES = _HEADER.size
_FLAG_ENCRYPTED = 1 << 0
_FLAG_MIGRATION_ENCRYPTED = 1 << 1
_FLAG_KEY_256 = 1 << 3
# swtpm has written version 2 for years; its header has been this long in each version that has flags.
_VERSIONS = range(1, 17)
# A TPM 2.0's permanent state takes some kilobytes; a header that says more than this is not one.
MAX_STATE_BYTES = 16 * 1024 * 1024


class BadState(Exception):
    """The bytes are not the start of a vTPM state file, or contradict its size."""


@dataclass(frozen=True, slots=True)
class VtpmState:
    """What the header says. `total_bytes` is the file's length, header included."""

    version: int
    encrypted: bool
    migration_encrypted: bool
    key_bits: int | None
    total_bytes: int


def parse(prefix: bytes, *, file_bytes: int | None = None) -> VtpmState:
    """Read the first ten bytes of a state file; with `file_bytes`, its size, check that too. Raises BadState."""
    if len(prefix) < HEADER_BYTES:
        raise BadState("vtpm state is shorter than its header")
    version, oldest_reader, header_bytes, flags, total_bytes = _HEADER.unpack_from(prefix)
    if version not in _VERSIONS or not 1 <= oldest_reader <= version:
        raise BadState(f"vtpm state has unknown version {version}")
    if header_bytes != HEADER_BYTES:
        raise BadState(f"vtpm state has a header of {header_bytes} bytes, not {HEADER_BYTES}")
    if not HEADER_BYTES < total_bytes <= MAX_STATE_BYTES:
        raise BadState(f"vtpm state has an impossible length of {total_bytes} bytes")
    if file_bytes is not None and file_bytes != total_bytes:
        raise BadState(f"vtpm state should have {total_bytes} bytes, the file has {file_bytes}")
    encrypted = bool(flags & _FLAG_ENCRYPTED)
    return VtpmState(
        version=version,
        encrypted=encrypted,
        migration_encrypted=bool(flags & _FLAG_MIGRATION_ENCRYPTED),
        key_bits=(256 if flags & _FLAG_KEY_256 else 128) if encrypted else None,
        total_bytes=total_bytes,
    )
