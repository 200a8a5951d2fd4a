"""UEFI structures inside events: variables, loaded images, GPT, load options, device paths, as far as a report shows.

Sources: PFP 1.06 section 10.4 (event data) and UEFI 2.10 section 10.3 (device paths). Integers are little endian.
Functions raise MalformedEventData. Texts come out with control characters escaped: whoever wrote the log wrote them.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar
from uuid import UUID

from attestation.engine.errors import Malformed

GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY_DATABASE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SHIM_LOCK = UUID("605dab50-e046-4300-abb6-3dd810dd8b23")

MAX_NAME_CHARACTERS = 512
MAX_PATH_NODES = 64
MAX_PARTITIONS = 256
MAX_TEXT = 4096

_VARIABLE_HEADER = struct.Struct("<16sQQ")
_IMAGE_HEADER = struct.Struct("<QQQQ")
_GPT_HEADER_SIZE = 92
_GPT_ENTRY_SIZE = 128
_PATH_NODE = struct.Struct("<BBH")
_END_OF_PATH = 0x7F


class MalformedEventData(Malformed):
    """An event's data that is not the structure its type promises. Offsets count from the start of the data."""

    what: ClassVar[str] = "event data"


@dataclass(frozen=True, slots=True)
class Variable:
    """UEFI_VARIABLE_DATA. `size` is the length of the structure, which may be less than that of the event's data."""

    vendor: UUID
    name: str
    content: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """UEFI_IMAGE_LOAD_EVENT. `path` is text; empty where the loader gave none (shim, for what GRUB hands to it)."""

    address: int
    length: int
    path: str


@dataclass(frozen=True, slots=True)
class Gpt:
    """UEFI_GPT_DATA: the disk's GUID and its used partitions as (partition GUID, name)."""

    disk: UUID
    partitions: tuple[tuple[UUID, str], ...]


def printable(text: str) -> str:
    """Text of the log made safe to show: control and other unprintable characters escaped, cut at MAX_TEXT."""
    cut = text[:MAX_TEXT]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    return cut + "…" if len(text) > MAX_TEXT else cut


def utf16(raw: bytes) -> str:
    return raw.decode("utf-16-le", "replace")


@lru_cache(maxsize=256)
def guid(raw: bytes) -> UUID:
    """An EFI_GUID. Remembered: a log names the same few again and again, and making one takes a microsecond."""
    return UUID(bytes_le=raw)


def variable(data: bytes) -> Variable:
    """The name is exact (not escaped), so that it can be compared; show it through `printable`."""
    if len(data) < _VARIABLE_HEADER.size:
        raise MalformedEventData(f"a variable header of {_VARIABLE_HEADER.size} bytes", offset=0)
    vendor, characters, length = _VARIABLE_HEADER.unpack_from(data)
    if characters > MAX_NAME_CHARACTERS:
        raise MalformedEventData(f"a name of at most {MAX_NAME_CHARACTERS} characters", offset=16)
    start = _VARIABLE_HEADER.size + 2 * characters
    if start > len(data) or length > len(data) - start:
        raise MalformedEventData("a name and a content that end inside the event", offset=16)
    try:
        name = data[_VARIABLE_HEADER.size : start].decode("utf-16-le")
    except UnicodeDecodeError as exc:
        raise MalformedEventData("a name in UTF-16", offset=_VARIABLE_HEADER.size) from exc
    return Variable(guid(vendor), name, data[start : start + length], start + length)


def image(data: bytes) -> Image:
    """Old shims (before 15.3) measured the structure with a packed size field and a byte too many: path left empty."""
    if len(data) < _IMAGE_HEADER.size:
        raise MalformedEventData(f"an image load event of at least {_IMAGE_HEADER.size} bytes", offset=0)
    address, length, _, path_length = _IMAGE_HEADER.unpack_from(data)
    if path_length > len(data) - _IMAGE_HEADER.size:
        return Image(address, length, "")
    return Image(address, length, device_path(data[_IMAGE_HEADER.size : _IMAGE_HEADER.size + path_length]))


def gpt(data: bytes) -> Gpt:
    if len(data) < _GPT_HEADER_SIZE + 8 or data[:8] != b"EFI PART":
        raise MalformedEventData("a partition table header", offset=0)
    (count,) = struct.unpack_from("<Q", data, _GPT_HEADER_SIZE)
    start = _GPT_HEADER_SIZE + 8
    if count > MAX_PARTITIONS or count * _GPT_ENTRY_SIZE > len(data) - start:
        raise MalformedEventData(f"at most {MAX_PARTITIONS} partitions, inside the event", offset=_GPT_HEADER_SIZE)
    partitions = []
    for at in range(start, start + count * _GPT_ENTRY_SIZE, _GPT_ENTRY_SIZE):
        name = utf16(data[at + 56 : at + _GPT_ENTRY_SIZE]).split("\0", 1)[0]
        partitions.append((UUID(bytes_le=data[at + 16 : at + 32]), printable(name)))
    return Gpt(UUID(bytes_le=data[56:72]), tuple(partitions))


def load_option(content: bytes) -> tuple[str, str]:
    """Description and device path of a Boot#### variable (UEFI 2.10, section 3.1.3)."""
    if len(content) < 6:
        raise MalformedEventData("a load option of at least 6 bytes", offset=0)
    (path_length,) = struct.unpack_from("<H", content, 4)
    end = _end_of_utf16(content, 6)
    if end is None:
        raise MalformedEventData("a description that ends with NUL", offset=6)
    path = content[end + 2 : end + 2 + path_length]
    if len(path) != path_length:
        raise MalformedEventData("a device path that ends inside the option", offset=4)
    return printable(utf16(content[6:end])), device_path(path)


def _end_of_utf16(raw: bytes, start: int) -> int | None:
    for at in range(start, min(len(raw) - 1, start + 2 * MAX_TEXT), 2):
        if raw[at] == 0 == raw[at + 1]:
            return at
    return None


def device_path(path: bytes) -> str:
    """In the text form of UEFI 2.10 section 10.6, as far as hosts boot from it; other nodes as Path(type,subtype).

    Stops without complaint at a node that does not fit: a device path is never covered by a digest.
    """
    nodes: list[str] = []
    at = 0
    while len(path) - at >= _PATH_NODE.size and len(nodes) < MAX_PATH_NODES:
        kind, subtype, length = _PATH_NODE.unpack_from(path, at)
        if kind == _END_OF_PATH or length < _PATH_NODE.size or length > len(path) - at:
            break
        nodes.append(_node(kind, subtype, path[at + _PATH_NODE.size : at + length]))
        at += length
    return "/".join(nodes)


def _node(kind: int, subtype: int, body: bytes) -> str:
    match kind, subtype:
        case 1, 1 if len(body) == 2:
            return f"Pci(0x{body[1]:x},0x{body[0]:x})"
        case 2, 1 if len(body) == 8:
            hid, uid = struct.unpack("<II", body)
            return f"PciRoot(0x{uid:x})" if hid == 0x0A0341D0 else f"Acpi(0x{hid:08x},0x{uid:x})"
        case 3, 2 if len(body) == 4:
            target, unit = struct.unpack("<HH", body)
            return f"Scsi({target},{unit})"
        case 3, 5 if len(body) == 2:
            return f"USB({body[0]},{body[1]})"
        case 3, 11 if len(body) == 33:
            return f"MAC({body[:6].hex()})"
        case 3, 18 if len(body) == 6:
            port, _, unit = struct.unpack("<HHH", body)
            return f"Sata({port},{unit})"
        case 3, 23 if len(body) == 12:
            return f"NVMe(0x{int.from_bytes(body[:4], 'little'):x})"
        case 4, 1 if len(body) == 38:
            number = int.from_bytes(body[:4], "little")
            name = guid(body[20:36]) if body[37] == 2 else f"0x{body[20:24].hex()}"
            return f"HD({number},{'GPT' if body[36] == 2 else 'MBR'},{name})"
        case 4, 4:
            return printable(utf16(body).rstrip("\0"))
        case (4, 6) | (4, 7) if len(body) == 16:
            return f"{'FvFile' if subtype == 6 else 'Fv'}({guid(body)})"
        case _:
            return f"Path({kind},{subtype})"
