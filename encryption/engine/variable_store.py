"""UEFI variables as OVMF keeps them in its NVRAM file: whether Secure Boot's keys are enrolled, and is switched on.

The file is a firmware volume (PI specification, volume 3, 3.2.1) that begins with edk2's authenticated variable store
(MdeModulePkg, Include/Guid/VariableFormat.h): records one behind the other, each with a state byte; the rest is erased
flash, 0xFF. A variable that is written anew gets another record, and the old one is marked as deleted.

Firmware checks signatures at boot where a platform key (PK) is enrolled and `SecureBootEnable`, which it keeps for
itself, is not 0 (SecurityPkg, AuthVariableLib). That variable is what "Attempt Secure Boot" in its set-up writes, and
what `switched` writes here: keys and boot entries stay.

NOT checked: signatures of key updates (firmware has done so, and a file from outside is not authenticated at all), and
whether a fault tolerant write was cut short: its spare blocks, behind the store, would bring back what was before.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

MAX_BYTES: Final = 64 * 2**20
_VOLUME: Final = struct.Struct("<16s16sQ4sIHHHBB")
_STORE: Final = struct.Struct("<16sIBBHI")
_RECORD: Final = struct.Struct("<HBBIQ16sIII16s")
_NV_DATA: Final = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
_AUTHENTICATED: Final = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_FORMATTED, _HEALTHY, _ERASED = 0x5A, 0xFE, 0xFF
_START: Final = 0x55AA
_START_BYTES: Final = 2
_STATE_AT: Final = 2
_ADDED: Final = 0x3F
_IN_DELETED_TRANSITION: Final = 0x3E  # still in force, until its successor has been added
_UNSET: Final = 0xFFFFFFFF
_ALIGN: Final = 4
_KEPT_AT_BOOT: Final = 0x3  # non-volatile, boot services: the attributes of what firmware keeps for itself

_GLOBAL: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_DATABASES: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_PLATFORM_KEY: Final = ("PK", _GLOBAL)
_ENABLE: Final = ("SecureBootEnable", UUID("f0a30bc7-af08-4556-99c4-001009c93a44"))
# PK last: with it the firmware leaves set-up mode.
_KEYS: Final = (("db", _DATABASES), ("dbx", _DATABASES), ("KEK", _GLOBAL), _PLATFORM_KEY)


class VariableStoreError(Exception):
    """Base of what can be wrong with UEFI variables."""


class BadStore(VariableStoreError):
    """The bytes are no authenticated variable store, or contradict themselves."""


class NoKeys(VariableStoreError):
    """No platform key is enrolled in the template that keys shall come from."""


class StoreFull(VariableStoreError):
    """There is no room behind the last variable. Firmware makes some at a boot."""


@dataclass(frozen=True, slots=True)
class Variable:
    """`offset` and `end` are of its record in the content; the data are its last bytes. `data` may be empty."""

    name: str
    vendor: UUID
    data: bytes
    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class VariableStore:
    """`variables`: those in force. `used_end`: behind the last record, where the next one goes; `end`: of the store."""

    variables: tuple[Variable, ...]
    used_end: int
    end: int

    def find(self, name: str, vendor: UUID) -> Variable | None:
        return next((one for one in self.variables if (one.name, one.vendor) == (name, vendor)), None)

    @property
    def has_platform_key(self) -> bool:
        """Secure Boot's keys are enrolled; without a PK firmware is in set-up mode and checks nothing."""
        found = self.find(*_PLATFORM_KEY)
        return found is not None and bool(found.data)

    @property
    def enforces_secure_boot(self) -> bool:
        """What firmware makes of it. Where it has not decided yet, it switches Secure Boot on with the PK."""
        found = self.find(*_ENABLE)
        return self.has_platform_key and (found is None or not found.data or found.data[0] != 0)


@dataclass(frozen=True, slots=True)
class Edit:
    """Two contents, to be written and synced one after the other: a crash at any byte leaves the old variables in force
    or the new ones. In `prepared` the new records stand, but nothing leads to them yet."""

    prepared: bytes
    final: bytes


def parse(content: bytes) -> VariableStore:
    """Reads a whole NVRAM file (in clear). Raises BadStore."""
    begin, end = _bounds(content)
    found: dict[tuple[str, UUID], tuple[int, Variable]] = {}
    position = begin
    while position + _RECORD.size <= end:
        start, state, _, attributes, _, _, _, name_size, data_size, vendor = _RECORD.unpack_from(content, position)
        if start != _START:
            break
        if _UNSET in (attributes, name_size, data_size) or state == _ERASED:  # a write that was cut short
            name_size = data_size = 0
        name_at = position + _RECORD.size
        record_end = name_at + name_size + data_size
        if record_end > end:
            raise BadStore(f"the variable at byte {position} ends behind its store")
        if state in (_ADDED, _IN_DELETED_TRANSITION):
            name = content[name_at : name_at + name_size].decode("utf-16-le", "replace").removesuffix("\0")
            one = Variable(name, UUID(bytes_le=vendor), content[name_at + name_size : record_end], position, record_end)
            known = found.get((one.name, one.vendor))
            if known is None or known[0] != _ADDED:  # of several the first that is added counts, as for firmware
                found[one.name, one.vendor] = (state, one)
        position = _aligned(record_end)
    return VariableStore(tuple(one for _, one in found.values()), min(position, end), end)


def _bounds(content: bytes) -> tuple[int, int]:
    """Where records begin, and where the store ends."""
    if len(content) > MAX_BYTES:
        raise BadStore("too long for UEFI variables")
    if len(content) < _VOLUME.size:
        raise BadStore("shorter than the header of a firmware volume")
    _, kind, length, signature, _, header_size, *_ = _VOLUME.unpack_from(content)
    if signature != b"_FVH" or UUID(bytes_le=kind) != _NV_DATA:
        raise BadStore("no firmware volume of UEFI variables")
    if not _VOLUME.size <= header_size <= length <= len(content):
        raise BadStore("the firmware volume is cut off")
    if header_size + _STORE.size > len(content):
        raise BadStore("the variable store is cut off")
    kind, size, store_format, state, _, _ = _STORE.unpack_from(content, header_size)
    if UUID(bytes_le=kind) != _AUTHENTICATED:
        raise BadStore("a variable store of another kind than authenticated variables")
    if (store_format, state) != (_FORMATTED, _HEALTHY):
        raise BadStore("the variable store is not formatted, or not healthy")
    if not _STORE.size <= size <= length - header_size:
        raise BadStore("the variable store is longer than its volume")
    return _aligned(header_size + _STORE.size), header_size + size


def switched(content: bytes, *, is_on: bool, template: bytes | None = None) -> Edit:
    """The variables with Secure Boot on or off. Nothing changes where firmware acts so already.

    Switching on where no PK is enrolled takes PK, KEK, db and dbx from `template`, an NVRAM file with enrolled keys;
    those that are there stay. Raises BadStore, NoKeys, StoreFull.
    """
    store = parse(content)
    if store.enforces_secure_boot == is_on:
        return Edit(content, content)
    records = b"" if store.has_platform_key else _missing_keys(store, template)
    changed = bytearray(content)
    enable = store.find(*_ENABLE)
    if enable is not None and enable.data:
        changed[enable.end - len(enable.data)] = int(is_on)
    else:
        records += _record(*_ENABLE, bytes([is_on]))
    place, end = store.used_end, store.used_end + len(records)
    if end > store.end:
        raise StoreFull(f"{len(records)} bytes are needed behind the last variable, {store.end - place} are left")
    changed[place : store.end] = records.ljust(store.end - place, b"\xff")
    prepared = bytearray(content)
    prepared[place : store.end] = changed[place : store.end]
    prepared[place : place + min(_START_BYTES, len(records))] = b"\xff" * min(_START_BYTES, len(records))
    return Edit(bytes(prepared), bytes(changed))


def _missing_keys(store: VariableStore, template: bytes | None) -> bytes:
    given = None if template is None else parse(template)
    if template is None or given is None or not given.has_platform_key:
        raise NoKeys("no platform key (PK) is enrolled in it")
    return b"".join(_copies(given, template, [key for key in _KEYS if key == _PLATFORM_KEY or not store.find(*key)]))


def _copies(store: VariableStore, content: bytes, names: Iterable[tuple[str, UUID]]) -> Iterable[bytes]:
    """Their records as they are, attributes and time stamps included."""
    for name, vendor in names:
        found = store.find(name, vendor)
        if found is not None:
            record = bytearray(content[found.offset : found.end])
            record[_STATE_AT] = _ADDED
            yield _padded(bytes(record))


def _record(name: str, vendor: UUID, data: bytes) -> bytes:
    encoded = f"{name}\0".encode("utf-16-le")
    head = _RECORD.pack(
        _START, _ADDED, 0, _KEPT_AT_BOOT, 0, bytes(16), 0, len(encoded), len(data), vendor.bytes_le
    )  # fmt: skip
    return _padded(head + encoded + data)


def _padded(record: bytes) -> bytes:
    return record.ljust(_aligned(len(record)), b"\xff")


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN
