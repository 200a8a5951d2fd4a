"""LUKS1 volumes: make, unlock, change the passphrase. Bytes in, bytes out; the payload itself is `convert`'s matter.

The volume key encrypts the disk and never leaves the header, where each keyslot holds it encrypted under a passphrase.
Passphrases here are random keys written as text, so key derivation adds no strength and the iteration count is low:
QEMU derives it again at every start of a VM, holding up guest and daemon for as long as that takes. A short passphrase
with few iterations is therefore refused.

NOT protected: a LUKS1 header is not authenticated. Who can write it can destroy the volume, or bring back an older
header and with it an older passphrase.
"""

from dataclasses import dataclass, replace
from uuid import UUID

from cryptography.hazmat.primitives import constant_time, hashes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from encryption.engine import antiforensic, drbg
from encryption.engine.luks_header import (
    DIGEST_BYTES,
    HEADER_BYTES,
    KEYSLOTS,
    MATERIAL_BYTES,
    MAX_ITERATIONS,
    MIN_ITERATIONS,
    SALT_BYTES,
    SECTOR_BYTES,
    STRIPES,
    VOLUME_KEY_BYTES,
    BadHeader,
    Header,
    Keyslot,
    LuksError,
    NotLuks,
    parse,
)
from encryption.engine.secret import Secret
from encryption.engine.xts import Xts
from inventory.engine import crypto_policy

__all__ = [
    "HEADER_BYTES",
    "PREFIX_BYTES",
    "TYPED_PASSPHRASE_ITERATIONS",
    "BadHeader",
    "Header",
    "Keyslot",
    "KeyslotLocked",
    "LuksError",
    "NewVolume",
    "NoFreeKeyslot",
    "NotLuks",
    "PassphraseChange",
    "WeakPassphrase",
    "add_passphrase",
    "change_passphrase",
    "create",
    "parse",
    "remove_passphrase",
    "reseal",
    "unlock",
]

# QEMU's layout: key material starts at 4 KiB, each keyslot rounded up to 4 KiB, the payload right behind.
_ALIGN_SECTORS = 8
_SLOT_SECTORS = 504
_PAYLOAD_SECTOR = _ALIGN_SECTORS + KEYSLOTS * _SLOT_SECTORS
PREFIX_BYTES = _PAYLOAD_SECTOR * SECTOR_BYTES

MAX_PASSPHRASE_BYTES = 512
_RANDOM_PASSPHRASE_BYTES = 32
TYPED_PASSPHRASE_ITERATIONS = crypto_policy.MIN_PASSWORD_ITERATIONS


class KeyslotLocked(LuksError):
    """No keyslot opens with this passphrase."""


class NoFreeKeyslot(LuksError):
    """All eight keyslots are taken, so a passphrase cannot be changed without a moment in which none is valid."""


class WeakPassphrase(LuksError):
    """Empty, too long, no text, or too short for so few iterations."""


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A fresh volume: `header_bytes` (2,068,480) go to the start of the image, the payload follows directly."""

    header_bytes: bytes
    volume_key: Secret


@dataclass(frozen=True, slots=True)
class PassphraseChange:
    """Header bytes with both passphrases and with the new one only, each as long as the payload offset.

    Write and sync `both`, then `new_only`: a crash between the two leaves a volume that either passphrase opens.
    """

    both: bytes
    new_only: bytes


def create(passphrase: Secret, *, iterations: int = MIN_ITERATIONS) -> NewVolume:
    """Make a volume with a new volume key that `passphrase` opens, laid out as QEMU does.

    `passphrase` is text (UTF-8) of at most 512 bytes. Below 600,000 `iterations` it must have 32 bytes or more, because
    only a random one that long may be stretched so little; that it *is* random cannot be checked.
    Raises WeakPassphrase.
    """
    _check_passphrase(passphrase, iterations)
    return _create_from_parts(
        passphrase,
        iterations=iterations,
        volume_key=Secret.generate(VOLUME_KEY_BYTES),
        uuid=UUID(bytes=drbg.draw(16), version=4),
        digest_salt=drbg.draw(SALT_BYTES),
        keyslot_salt=drbg.draw(SALT_BYTES),
        stripes=drbg.draw(VOLUME_KEY_BYTES * (STRIPES - 1)),
    )


def unlock(prefix: bytes, passphrase: Secret) -> Secret:
    """Return the volume key. `prefix` reaches at least to the payload (`parse(prefix).payload_offset` bytes).

    The key is checked against the header's digest. Raises NotLuks, BadHeader, KeyslotLocked.
    """
    header = _parse_whole(prefix)
    for slot in header.keyslots:
        volume_key = _open_keyslot(header, slot, prefix, passphrase) if slot.active else None
        if volume_key is not None:
            return volume_key
    raise KeyslotLocked("no keyslot opens with this passphrase")


def add_passphrase(prefix: bytes, known: Secret, new: Secret, *, iterations: int = MIN_ITERATIONS) -> bytes:
    """Return header bytes (as long as the payload offset) with one more keyslot, for `new`; all others stay.

    Raises NotLuks, BadHeader, KeyslotLocked (`known`), NoFreeKeyslot, WeakPassphrase; ValueError when both are equal.
    """
    _check_passphrase(new, iterations)
    if known == new:
        raise ValueError("old and new passphrase are the same")
    header = _parse_whole(prefix)
    volume_key = unlock(prefix, known)
    free = next((number for number, slot in enumerate(header.keyslots) if not slot.active), None)
    if free is None:
        raise NoFreeKeyslot("all eight keyslots are in use")
    keyslots = list(header.keyslots)
    keyslots[free] = replace(keyslots[free], active=True, iterations=iterations, salt=drbg.draw(SALT_BYTES))
    image = bytearray(prefix[: header.payload_offset])
    stripes = drbg.draw(VOLUME_KEY_BYTES * (STRIPES - 1))
    _put_material(image, keyslots[free], _seal(volume_key, new, keyslots[free], stripes, header.hash_algorithm))
    return _with_keyslots(image, header, keyslots)


def remove_passphrase(prefix: bytes, gone: Secret, kept: Secret) -> bytes:
    """Return header bytes without any keyslot that `gone` opens; `kept` must open one, so that a volume never shuts
    for good. The key material of every inactive keyslot is zero in them, also of one that was inactive before: a
    removal that was cut short is completed by another one.

    Raises NotLuks, BadHeader, KeyslotLocked (`kept`); ValueError when both are equal.
    """
    if gone == kept:
        raise ValueError("the passphrase to go and the one to keep are the same")
    header = _parse_whole(prefix)
    unlock(prefix, kept)
    keyslots = list(header.keyslots)
    image = bytearray(prefix[: header.payload_offset])
    for number, slot in enumerate(keyslots):
        if slot.active and _open_keyslot(header, slot, prefix, gone) is not None:
            keyslots[number] = Keyslot(False, 0, bytes(SALT_BYTES), slot.material_sector)
        if not keyslots[number].active:
            _put_material(image, slot, bytes(MATERIAL_BYTES))
    return _with_keyslots(image, header, keyslots)


def change_passphrase(prefix: bytes, old: Secret, new: Secret, *, iterations: int = MIN_ITERATIONS) -> PassphraseChange:
    """Give the volume a new keyslot for `new`, and take away each one that `old` opens (its key material is zeroed).

    The volume key stays, so the payload does; keyslots of further passphrases stay as well.
    Raises what `add_passphrase` does.
    """
    both = add_passphrase(prefix, old, new, iterations=iterations)
    return PassphraseChange(both=both, new_only=remove_passphrase(both, old, new))


def reseal(prefix: bytes, passphrase: Secret, *, iterations: int = MIN_ITERATIONS) -> bytes:
    """A header as `create` makes it, for a volume that somebody else formatted: same volume key and UUID, one keyslot.

    QEMU calibrates key derivation to seconds; this takes them away from every start of the VM. NOT checked: where the
    volume key came from; the host that formatted the volume drew it.
    Raises NotLuks, BadHeader (also where the payload is not where `create` puts it), KeyslotLocked, WeakPassphrase.
    """
    _check_passphrase(passphrase, iterations)
    header = _parse_whole(prefix)
    if header.payload_offset != PREFIX_BYTES:
        raise BadHeader(f"luks payload starts at byte {header.payload_offset}, not at {PREFIX_BYTES}")
    return _create_from_parts(
        passphrase,
        iterations=iterations,
        volume_key=unlock(prefix, passphrase),
        uuid=header.uuid,
        digest_salt=drbg.draw(SALT_BYTES),
        keyslot_salt=drbg.draw(SALT_BYTES),
        stripes=drbg.draw(VOLUME_KEY_BYTES * (STRIPES - 1)),
    ).header_bytes


def _create_from_parts(
    passphrase: Secret,
    *,
    iterations: int,
    volume_key: Secret,
    uuid: UUID,
    digest_salt: bytes,
    keyslot_salt: bytes,
    stripes: bytes,
) -> NewVolume:
    algorithm = hashes.SHA256()
    keyslots = [
        Keyslot(False, 0, bytes(SALT_BYTES), _ALIGN_SECTORS + number * _SLOT_SECTORS) for number in range(KEYSLOTS)
    ]
    keyslots[0] = replace(keyslots[0], active=True, iterations=iterations, salt=keyslot_salt)
    header = Header(
        hash_name="sha256",
        payload_sector=_PAYLOAD_SECTOR,
        digest=_derive(volume_key, digest_salt, iterations, DIGEST_BYTES, algorithm),
        digest_salt=digest_salt,
        digest_iterations=iterations,
        uuid=uuid,
        keyslots=tuple(keyslots),
    )
    image = bytearray(PREFIX_BYTES)
    _put_material(image, keyslots[0], _seal(volume_key, passphrase, keyslots[0], stripes, algorithm))
    return NewVolume(header_bytes=_with_keyslots(image, header, keyslots), volume_key=volume_key)


def _check_passphrase(passphrase: Secret, iterations: int) -> None:
    value = passphrase.reveal()
    if len(value) > MAX_PASSPHRASE_BYTES:
        raise WeakPassphrase(f"passphrase is longer than {MAX_PASSPHRASE_BYTES} bytes")
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        # `from None`: the cause would carry the passphrase.
        raise WeakPassphrase("passphrase is not valid utf-8, which qemu insists on") from None
    if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
        raise ValueError(f"{iterations} iterations are out of bounds")
    if len(value) < _RANDOM_PASSPHRASE_BYTES and iterations < TYPED_PASSPHRASE_ITERATIONS:
        raise WeakPassphrase(f"a passphrase this short needs {TYPED_PASSPHRASE_ITERATIONS} iterations or more")


def _parse_whole(prefix: bytes) -> Header:
    header = parse(prefix)
    if len(prefix) < header.payload_offset:
        raise BadHeader("luks header is cut off before its payload")
    return header


def _open_keyslot(header: Header, slot: Keyslot, prefix: bytes, passphrase: Secret) -> Secret | None:
    """Return the volume key, or None when the passphrase does not fit this keyslot."""
    algorithm = header.hash_algorithm
    key = _derive(passphrase, slot.salt, slot.iterations, VOLUME_KEY_BYTES, algorithm)
    material = prefix[slot.material_offset : slot.material_offset + MATERIAL_BYTES]
    candidate = antiforensic.merge(Xts(Secret(key)).decrypt(material, 0), VOLUME_KEY_BYTES, algorithm)
    digest = _derive(Secret(candidate), header.digest_salt, header.digest_iterations, DIGEST_BYTES, algorithm)
    if not constant_time.bytes_eq(digest, header.digest):
        return None
    return Secret(candidate)


def _seal(
    volume_key: Secret, passphrase: Secret, slot: Keyslot, stripes: bytes, algorithm: hashes.HashAlgorithm
) -> bytes:
    """Return the encrypted key material of a keyslot. Its sectors count from 0 again (specification, section 2.4)."""
    key = _derive(passphrase, slot.salt, slot.iterations, VOLUME_KEY_BYTES, algorithm)
    return Xts(Secret(key)).encrypt(antiforensic.split(volume_key.reveal(), stripes, algorithm), 0)


def _derive(secret: Secret, salt: bytes, iterations: int, n_bytes: int, algorithm: hashes.HashAlgorithm) -> bytes:
    crypto_policy.check_key_derivation(algorithm.name, salt, iterations)
    return PBKDF2HMAC(algorithm=algorithm, length=n_bytes, salt=salt, iterations=iterations).derive(secret.reveal())


def _put_material(image: bytearray, slot: Keyslot, material: bytes) -> None:
    image[slot.material_offset : slot.material_offset + MATERIAL_BYTES] = material


def _with_keyslots(image: bytearray, header: Header, keyslots: list[Keyslot]) -> bytes:
    image[:HEADER_BYTES] = replace(header, keyslots=tuple(keyslots)).pack()
    return bytes(image)
