"""The LUKS1 partition header as a value: parse and write (LUKS On-Disk Format Specification 1.2.3, section 3).

Only what QEMU and cryptsetup make for `aes-xts-plain64` with a 512-bit volume key is accepted. Every number in a
header is hostile until checked here: offsets must lie in order inside the area before the payload and not overlap, and
iteration counts are capped, because a header with four thousand million of them would keep a worker busy for an hour.
NOT checked: that the key material is genuine (LUKS1 headers are not authenticated; `luks.unlock` checks the volume key
against its digest), nor that the payload is there.
"""

import struct
from dataclasses import dataclass
from uuid import UUID

from cryptography.hazmat.primitives import hashes

from inventory.engine import crypto_policy

SECTOR_BYTES = 512
HEADER_BYTES = 592
KEYSLOTS = 8
STRIPES = 4000
VOLUME_KEY_BYTES = 64
DIGEST_BYTES = 20
SALT_BYTES = 32
MATERIAL_BYTES = VOLUME_KEY_BYTES * STRIPES
MIN_ITERATIONS = crypto_policy.MIN_ITERATIONS
# Two seconds of a fast machine, which is what cryptsetup and QEMU calibrate for, stay well below.
MAX_ITERATIONS = 20_000_000
MAX_PAYLOAD_SECTORS = 64 * 1024 * 1024 // SECTOR_BYTES

_MAGIC = b"LUKS\xba\xbe"
_VERSION = 1
_SLOT_ACTIVE = 0x00AC71F3
_SLOT_INACTIVE = 0x0000DEAD
_CIPHER = "aes"
_MODE = "xts-plain64"
_HASHES: dict[str, type[hashes.SHA256] | type[hashes.SHA512]] = {"sha256": hashes.SHA256, "sha512": hashes.SHA512}

_FIXED = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")


class LuksError(Exception):
    """Base of what can be wrong with a LUKS volume."""


class NotLuks(LuksError):
    """The bytes are no LUKS header at all, or one of another version than 1."""


class BadHeader(LuksError):
    """A LUKS1 header that is damaged, hostile, or uses what is not supported here."""


@dataclass(frozen=True, slots=True)
class Keyslot:
    """One of the eight keyslots. `iterations` and `salt` mean something only in an active one."""

    active: bool
    iterations: int
    salt: bytes
    material_sector: int

    @property
    def material_offset(self) -> int:
        """Where the encrypted key material starts, in bytes from the start of the volume."""
        return self.material_sector * SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class Header:
    """A checked LUKS1 header: aes, xts-plain64, 64-byte volume key. Holds no key."""

    hash_name: str
    payload_sector: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: UUID
    keyslots: tuple[Keyslot, ...]

    @property
    def payload_offset(self) -> int:
        """Where the encrypted disk starts, in bytes; the same number is the size of the header with all keyslots."""
        return self.payload_sector * SECTOR_BYTES

    @property
    def hash_algorithm(self) -> hashes.HashAlgorithm:
        """The hash of key derivation and splitter."""
        return _HASHES[self.hash_name]()

    def pack(self) -> bytes:
        """Return the 592 bytes on disk."""
        fixed = _FIXED.pack(
            _MAGIC,
            _VERSION,
            _CIPHER.encode("ascii"),
            _MODE.encode("ascii"),
            self.hash_name.encode("ascii"),
            self.payload_sector,
            VOLUME_KEY_BYTES,
            self.digest,
            self.digest_salt,
            self.digest_iterations,
            str(self.uuid).encode("ascii"),
        )
        return fixed + b"".join(
            _SLOT.pack(
                _SLOT_ACTIVE if slot.active else _SLOT_INACTIVE,
                slot.iterations,
                slot.salt,
                slot.material_sector,
                STRIPES,
            )
            for slot in self.keyslots
        )


def parse(prefix: bytes) -> Header:
    """Read a header from the first bytes of a volume (592 are enough; more are ignored).

    Raises:
        NotLuks: too short, another magic, or LUKS2.
        BadHeader: anything in it is out of bounds or not supported.
    """
    if len(prefix) < HEADER_BYTES or not prefix.startswith(_MAGIC):
        raise NotLuks("not a luks volume")
    (_, version, cipher, mode, hash_name, payload_sector, key_bytes, digest, salt, iterations, uuid) = (
        _FIXED.unpack_from(prefix)
    )
    if version != _VERSION:
        raise NotLuks(f"luks version {version} is not supported, only version 1")
    header_hash = _text(hash_name, "hash")
    if (_text(cipher, "cipher"), _text(mode, "cipher mode")) != (_CIPHER, _MODE):
        raise BadHeader(f"luks cipher is not {_CIPHER}-{_MODE}")
    if header_hash not in _HASHES:
        raise BadHeader("luks hash is neither sha256 nor sha512")
    if key_bytes != VOLUME_KEY_BYTES:
        raise BadHeader(f"luks volume key has {key_bytes} bytes, only {VOLUME_KEY_BYTES} are supported")
    if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
        raise BadHeader(f"luks digest has {iterations} iterations, out of bounds")
    try:
        volume_uuid = UUID(_text(uuid, "uuid"))
    except ValueError:
        raise BadHeader("luks uuid is malformed") from None
    keyslots = tuple(_parse_keyslot(prefix, number) for number in range(KEYSLOTS))
    _check_areas(keyslots, payload_sector)
    return Header(header_hash, payload_sector, digest, salt, iterations, volume_uuid, keyslots)


def _parse_keyslot(prefix: bytes, number: int) -> Keyslot:
    state, iterations, salt, sector, stripes = _SLOT.unpack_from(prefix, _FIXED.size + number * _SLOT.size)
    if state not in (_SLOT_ACTIVE, _SLOT_INACTIVE):
        raise BadHeader(f"luks keyslot {number} is neither active nor inactive")
    if stripes != STRIPES:
        raise BadHeader(f"luks keyslot {number} has {stripes} stripes, only {STRIPES} are supported")
    active = state == _SLOT_ACTIVE
    if active and not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
        raise BadHeader(f"luks keyslot {number} has {iterations} iterations, out of bounds")
    return Keyslot(active, iterations, salt, sector)


def _check_areas(keyslots: tuple[Keyslot, ...], payload_sector: int) -> None:
    """Header, key material of each keyslot, payload: all apart, in this order of kinds."""
    if payload_sector > MAX_PAYLOAD_SECTORS:
        raise BadHeader(f"luks payload starts at sector {payload_sector}, out of bounds")
    material_sectors = MATERIAL_BYTES // SECTOR_BYTES
    free_from = -(-HEADER_BYTES // SECTOR_BYTES)
    for start in sorted(slot.material_sector for slot in keyslots):
        if start < free_from:
            raise BadHeader("luks key material overlaps the header or other key material")
        free_from = start + material_sectors
    if payload_sector < free_from:
        raise BadHeader("luks payload overlaps key material")


def _text(field: bytes, name: str) -> str:
    value, _, rest = field.partition(b"\0")
    if rest.strip(b"\0"):
        raise BadHeader(f"luks {name} has bytes behind its end")
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise BadHeader(f"luks {name} is not ascii") from None
