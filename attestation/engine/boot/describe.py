"""Events for people: a line of text and named fields. Never fails: what cannot be decoded is shown as hexadecimal.

A description says what the log says. Whether that was measured is `MeasuredEvent.coverage`, and a page shows both.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from attestation.engine.boot import uefi
from attestation.engine.boot.authorities import (
    SignatureDatabase,
    authority,
    signature_database,
)
from attestation.engine.boot.event_types import IMAGE_TYPES, VARIABLE_TYPES, EventType, type_name
from attestation.engine.errors import Malformed

MAX_HEX_BYTES = 64
MAX_LISTED = 32

Fields = tuple[tuple[str, str], ...]

_SPEC_ID = b"Spec ID Event0"
_STARTUP_LOCALITY = b"StartupLocality\0"
_REFERENCE_MANIFEST = b"SP800-155 Event"
# Linux' EFI stub (drivers/firmware/efi/libstub).
_TAGS = {0x8F3B22EC: "Linux initrd", 0x8F3B22ED: "Linux load options"}
_DATABASES = frozenset({"PK", "KEK", "db", "dbx", "dbt", "dbr"})


@dataclass(frozen=True, slots=True)
class Description:
    """`type` is the TCG's name; `summary` fits on a line, escaped; `fields` are (name, value), values escaped too."""

    type: str
    summary: str
    fields: Fields = ()


def describe(kind: int, data: bytes) -> Description:
    """From the event's type and data, as an Event or a MeasuredEvent holds them."""
    try:
        summary, fields = _decoder(kind)(data)
    except (Malformed, struct.error):
        summary, fields = _unknown(data)
    return Description(type_name(kind), summary, fields)


def _decoder(kind: int) -> Callable[[bytes], tuple[str, Fields]]:
    if kind in IMAGE_TYPES:
        return _image
    if kind == EventType.EFI_VARIABLE_AUTHORITY:
        return _authority
    if kind in VARIABLE_TYPES:
        return _variable
    return _DECODERS.get(kind, _text_or_unknown)


def _no_action(data: bytes) -> tuple[str, Fields]:
    if data.startswith(_SPEC_ID) and len(data) >= 28:
        minor, major, errata = data[20:23]
        return f"log format of TCG specification {major}.{minor} (errata {errata})", ()
    if data.startswith(_STARTUP_LOCALITY) and len(data) == 17:
        return f"the TPM was started at locality {data[16]}", (("locality", str(data[16])),)
    if data.startswith(_REFERENCE_MANIFEST) and len(data) >= 36:
        (manufacturer,) = struct.unpack_from("<I", data, 16)
        fields = (("manufacturer", str(manufacturer)), ("reference manifest", str(UUID(bytes_le=data[20:36]))))
        return f"the platform's reference manifest, {fields[1][1]}", fields
    name = data[:16].rstrip(b"\0")
    return (uefi.printable(name.decode("ascii")), ()) if name and name.isascii() else _unknown(data)


def _separator(data: bytes) -> tuple[str, Fields]:
    if data in (bytes(4), b"\xff\xff\xff\xff"):
        return "end of the firmware's part", ()
    if data == b"\x01\0\0\0":
        return "the firmware stopped with an error", ()
    return _text_or_unknown(data)


def _crtm_version(data: bytes) -> tuple[str, Fields]:
    if data == b"\0\0":
        return "no version", ()
    if len(data) == 16 and not data.isascii():
        return f"version {UUID(bytes_le=data)}", ()
    return _text_or_unknown(data)


def _blob(data: bytes) -> tuple[str, Fields]:
    if len(data) != 16:
        return _text_or_unknown(data)
    address, length = struct.unpack("<QQ", data)
    return f"firmware of {length} bytes at 0x{address:x}", (("address", f"0x{address:x}"), ("length", str(length)))


def _named_blob(data: bytes) -> tuple[str, Fields]:
    """UEFI_PLATFORM_FIRMWARE_BLOB2: a length byte and a name before the blob."""
    size = data[0] if data else 0
    _, fields = _blob(data[1 + size :])
    name = uefi.printable(data[1 : 1 + size].rstrip(b"\0").decode("ascii", "replace"))
    return f"firmware {name}", (("name", name), *fields)


def _handoff(data: bytes) -> tuple[str, Fields]:
    return _tables(data, 0)


def _named_handoff(data: bytes) -> tuple[str, Fields]:
    return _tables(data, 1 + data[0] if data else 0)


def _tables(data: bytes, start: int) -> tuple[str, Fields]:
    (count,) = struct.unpack_from("<Q", data, start)
    if count > MAX_LISTED or start + 8 + 24 * count > len(data):
        return _unknown(data)
    guids = [str(UUID(bytes_le=data[at : at + 16])) for at in range(start + 8, start + 8 + 24 * count, 24)]
    return _counted(count, "configuration table", "configuration tables"), tuple(("table", guid) for guid in guids)


def _image(data: bytes) -> tuple[str, Fields]:
    image = uefi.image(data)
    fields = (("address", f"0x{image.address:x}"), ("length", str(image.length)))
    if not image.path:
        return f"image of {image.length} bytes, without a path", fields
    return image.path, (("path", image.path), *fields)


def _variable(data: bytes) -> tuple[str, Fields]:
    variable = uefi.variable(data)
    name = uefi.printable(variable.name)
    fields: Fields = (("variable", name), ("vendor", str(variable.vendor)))
    content = variable.content
    if name in _DATABASES:
        database = signature_database(content)
        return f"{name}: {_database(database)}", (*fields, *_certificates(database))
    if name == "BootOrder":
        order = ", ".join(f"{entry:04X}" for (entry,) in struct.iter_unpack("<H", content[: 2 * MAX_LISTED]))
        return f"BootOrder: {order}", fields
    if name.startswith("Boot") and len(name) == 8:
        title, path = uefi.load_option(content)
        return f"{name}: {title}", (*fields, ("title", title), ("path", path))
    if name == "SecureBoot":
        state = {b"\1": "on", b"\0": "off", b"": "absent"}.get(content, _hex(content))
        return f"SecureBoot: {state}", (*fields, ("content", _hex(content)))
    return f"{name}: {len(content)} bytes", (*fields, ("content", _hex(content)))


def _authority(data: bytes) -> tuple[str, Fields]:
    variable = uefi.variable(data)
    found = authority(0, 7, variable)
    fields: Fields = (("variable", found.variable), ("vendor", str(found.vendor)))
    if found.certificate:
        subject = found.certificate.subject or "a certificate that cannot be read"
        more = (("subject", subject), ("certificate sha256", found.certificate.sha256))
        return f"{found.variable}: signed by {subject}", (*fields, *more)
    if found.image_sha256:
        return f"{found.variable}: allowed by its hash", (*fields, ("image sha256", found.image_sha256))
    content = variable.content
    text = content.decode("ascii").strip() if content.isascii() and content.strip(b"\0\1") else ""
    shown = uefi.printable(text.replace("\n", " ")) if text else _hex(content)
    return f"{found.variable}: {shown}", (*fields, ("content", shown))


def _database(database: SignatureDatabase) -> str:
    if not database.size:
        return "empty"
    counts = (
        (len(database.certificates), "certificate", "certificates"),
        (len(database.hashes), "image hash", "image hashes"),
        (database.others, "other signature", "other signatures"),
    )
    return ", ".join(_counted(count, one, many) for count, one, many in counts if count)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _certificates(database: SignatureDatabase) -> Fields:
    return tuple(("certificate", each.subject or each.sha256) for each in database.certificates[:MAX_LISTED])


def _gpt(data: bytes) -> tuple[str, Fields]:
    table = uefi.gpt(data)
    partitions = tuple(("partition", f"{guid} {name}".rstrip()) for guid, name in table.partitions[:MAX_LISTED])
    count = _counted(len(table.partitions), "partition", "partitions")
    return f"disk {table.disk} with {count}", (("disk", str(table.disk)), *partitions)


def _tagged(data: bytes) -> tuple[str, Fields]:
    tag, size = struct.unpack_from("<II", data)
    body = data[8 : 8 + min(size, MAX_HEX_BYTES)]
    name = _TAGS.get(tag, f"tag 0x{tag:08x}")
    return f"{name}, {size} bytes", (("tag", f"0x{tag:08x}"), ("data", _hex(body)))


def _text_or_unknown(data: bytes) -> tuple[str, Fields]:
    text = _text(data)
    return (uefi.printable(text), (("text", uefi.printable(text)),)) if text else _unknown(data)


def _text(data: bytes) -> str:
    """ASCII, or UTF-16 of it; empty where it is neither."""
    plain = data.rstrip(b"\0")
    if plain.isascii() and b"\0" not in plain and _is_readable(plain.decode("ascii")):
        return plain.decode("ascii")
    if len(data) % 2 == 0 and data[1:2] == b"\0":
        wide = uefi.utf16(data).rstrip("\0")
        return wide if _is_readable(wide) else ""
    if len(data) > 1:
        try:
            utf8 = plain.decode("utf-8")
        except UnicodeDecodeError:
            return ""
        return utf8 if _is_readable(utf8) else ""
    return ""


def _is_readable(text: str) -> bool:
    return all(character.isprintable() or character in "\t\n\r" for character in text[: uefi.MAX_TEXT])


def _unknown(data: bytes) -> tuple[str, Fields]:
    return f"{len(data)} bytes", (("data", _hex(data)),)


def _hex(data: bytes) -> str:
    return data[:MAX_HEX_BYTES].hex() + ("…" if len(data) > MAX_HEX_BYTES else "")


_DECODERS: dict[int, Callable[[bytes], tuple[str, Fields]]] = {
    EventType.NO_ACTION: _no_action,
    EventType.SEPARATOR: _separator,
    EventType.S_CRTM_VERSION: _crtm_version,
    EventType.POST_CODE: _blob,
    EventType.POST_CODE2: _named_blob,
    EventType.EFI_PLATFORM_FIRMWARE_BLOB: _blob,
    EventType.EFI_PLATFORM_FIRMWARE_BLOB2: _named_blob,
    EventType.EFI_HANDOFF_TABLES: _handoff,
    EventType.EFI_HANDOFF_TABLES2: _named_handoff,
    EventType.EFI_GPT_EVENT: _gpt,
    EventType.EFI_GPT_EVENT2: _gpt,
    EventType.EVENT_TAG: _tagged,
}
