"""Read TTLV, the encoding of KMIP messages (OASIS KMIP 1.2 section 9.1). Pure, linear in the message,
bounded.

Answers of a key server are untrusted input. PyKMIP's decoder copies the rest of the buffer for every byte of
text, so a message of a megabyte keeps it busy for minutes; it fails on text beyond ASCII, and raises plain
exceptions whose texts quote the message. This reader does none of that. Writing is not needed here: the
adapter builds requests with PyKMIP.

Not checked: that padding bytes are zero, and that tags are known or stand in the order of the specification.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum

HEADER_SIZE = 8
# KMIP's own structures nest below 10 deep; the limit keeps hostile input from exhausting the stack.
MAX_DEPTH = 24

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TtlvError(ValueError):
    """Not well-formed TTLV, or not what was looked for. The text never quotes the message."""


class ItemType(IntEnum):
    STRUCTURE = 1
    INTEGER = 2
    LONG_INTEGER = 3
    BIG_INTEGER = 4
    ENUMERATION = 5
    BOOLEAN = 6
    TEXT_STRING = 7
    BYTE_STRING = 8
    DATE_TIME = 9
    INTERVAL = 10


_FIXED_SIZES = {
    ItemType.INTEGER: 4,
    ItemType.LONG_INTEGER: 8,
    ItemType.ENUMERATION: 4,
    ItemType.BOOLEAN: 8,
    ItemType.DATE_TIME: 8,
    ItemType.INTERVAL: 4,
}
_TYPES = {kind.value: kind for kind in ItemType}
_SIGNED = {ItemType.INTEGER, ItemType.LONG_INTEGER, ItemType.BIG_INTEGER}

Value = int | bool | str | bytes | datetime | tuple["Item", ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One tagged value. The value may be a key, so repr leaves it out."""

    tag: int
    type: ItemType
    value: Value = field(repr=False)

    def all(self, tag: int) -> tuple[Item, ...]:
        """The items with this tag directly inside this structure."""
        if not isinstance(self.value, tuple):
            raise TtlvError(f"item {self.tag:06x} is not a structure")
        return tuple(item for item in self.value if item.tag == tag)

    def find(self, tag: int) -> Item | None:
        """The first item with this tag directly inside this structure, if there is one."""
        found = self.all(tag)
        return found[0] if found else None

    def get(self, tag: int) -> Item:
        """Like `find`, but raises TtlvError when there is none."""
        item = self.find(tag)
        if item is None:
            raise TtlvError(f"item {tag:06x} is missing in {self.tag:06x}")
        return item

    @property
    def number(self) -> int:
        """The value of an integer, enumeration or interval."""
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return self.value
        raise TtlvError(f"item {self.tag:06x} is not a number")

    @property
    def text(self) -> str:
        if isinstance(self.value, str):
            return self.value
        raise TtlvError(f"item {self.tag:06x} is not text")

    @property
    def octets(self) -> bytes:
        if isinstance(self.value, bytes):
            return self.value
        raise TtlvError(f"item {self.tag:06x} is not a byte string")

    @property
    def time(self) -> datetime:
        if isinstance(self.value, datetime):
            return self.value
        raise TtlvError(f"item {self.tag:06x} is not a date")


def parse(message: bytes) -> Item:
    """Parse exactly one item, with all that it contains. Raises TtlvError."""
    items = _parse_items(memoryview(message), depth=0)
    if len(items) != 1:
        raise TtlvError("a message is exactly one item")
    return items[0]


def _parse_items(rest: memoryview, depth: int) -> tuple[Item, ...]:
    if depth > MAX_DEPTH:
        raise TtlvError("structures nest too deep")
    items: list[Item] = []
    while rest:
        if len(rest) < HEADER_SIZE:
            raise TtlvError("an item ends inside its header")
        tag = int.from_bytes(rest[:3], "big")
        kind = _TYPES.get(rest[3])
        if kind is None:
            raise TtlvError(f"item {tag:06x} has an unknown type")
        size = int.from_bytes(rest[4:8], "big")
        padded = HEADER_SIZE + size + (-size % 8)
        if len(rest) < padded:
            raise TtlvError(f"item {tag:06x} is longer than what holds it")
        items.append(Item(tag, kind, _value(tag, kind, rest[HEADER_SIZE : HEADER_SIZE + size], depth)))
        rest = rest[padded:]
    return tuple(items)


def _value(tag: int, kind: ItemType, raw: memoryview, depth: int) -> Value:
    if kind is ItemType.STRUCTURE:
        return _parse_items(raw, depth + 1)
    if len(raw) != _FIXED_SIZES.get(kind, len(raw)):
        raise TtlvError(f"item {tag:06x} has the wrong length for its type")
    if kind is ItemType.BYTE_STRING:
        return bytes(raw)
    if kind is ItemType.TEXT_STRING:
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            pass
        raise TtlvError(f"item {tag:06x} is not UTF-8")
    number = int.from_bytes(raw, "big", signed=kind in _SIGNED)
    if kind is ItemType.BOOLEAN:
        if number > 1:
            raise TtlvError(f"item {tag:06x} is neither true nor false")
        return bool(number)
    if kind is ItemType.DATE_TIME:
        try:
            return _EPOCH + timedelta(seconds=int.from_bytes(raw, "big", signed=True))
        except OverflowError as exc:
            raise TtlvError(f"item {tag:06x} is a date out of range") from exc
    return number
