"""Messages for log collectors: RFC 5424 with structured data, framed as RFC 6587 section 3.4.1 and RFC 5425 have it.

    <110>1 2026-11-23T17:20:00.000001Z console bartizan - vm.powered_on [bartizan@32473 sequence="7" ...] VM web is on

- All targets get the same octets. No message is longer than MAX_OCTETS: what every receiver should take (RFC 5424
  section 6.1), whatever the transport.
- A longer one is sent as numbered parts, none of it cut off. The texts of the parts, joined, are the message as it
  would have been sent whole; each part has its SHA-256.
- Control characters would let a text pass for another line of somebody's log: they become the pictures of themselves
  (U+2400 to U+2421), those of C1 U+FFFD.

32473 is the enterprise number that RFC 5612 sets aside for documentation: collectors tell us by the name before it.

Not checked: that a fact's name is a PARAM-NAME; they are this program's own.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Final

from inventory.engine.event_chain import Recorded

MAX_OCTETS: Final = 2048
SMALLEST_LIMIT: Final = 1024
"""A part's own head has its place in this."""
SD_ID: Final = "bartizan@32473"
APP_NAME: Final = "bartizan"
_NIL: Final = "-"
_BOM: Final = b"\xef\xbb\xbf"
_MOST_PARTS: Final = 99_999
_MAX_HOSTNAME, _MAX_APP_NAME, _MAX_MSGID = 255, 48, 32
_PICTURES: Final = {
    **{code: 0x2400 + code for code in range(0x20)},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),  # lone surrogates have no UTF-8
}
_NOT_PRINTABLE: Final = re.compile(r"[^\x21-\x7e]")


class Facility(IntEnum):
    """RFC 5424 table 1."""

    DAEMON = 3
    AUDIT = 13


class Level(IntEnum):
    """RFC 5424 table 2."""

    ERROR = 3
    WARNING = 4
    INFO = 6


_LEVELS: Final = {"error": Level.ERROR, "warning": Level.WARNING}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of somebody's log, before it is written down. `time` is aware.

    `facts`: name and value of each PARAM; the first of them tell one entry from all others, `keys` of them.
    """

    facility: Facility
    level: Level
    time: datetime
    app: str
    kind: str
    facts: Sequence[tuple[str, str]]
    text: str
    keys: int = 1


def event_entry(event: Recorded) -> Entry:
    """A sealed event, whole: from its facts a collector can compute its digest anew."""
    facts = [
        ("sequence", str(event.sequence)),
        ("id", str(event.id)),
        ("kind", event.kind),
        ("severity", event.severity),
        ("outcome", event.outcome),
        ("reason", event.reason),
        ("actor", event.actor),
        ("source_address", event.source_address),
        ("target_kind", event.target_kind),
        ("target_id", "" if event.target_id is None else str(event.target_id)),
        ("target_name", event.target_name),
        ("job", "" if event.job_id is None else str(event.job_id)),
        ("plan_digest", event.plan_digest),
        ("data", json.dumps(event.data, ensure_ascii=False, separators=(",", ":")) if event.data else ""),
        ("digest", event.digest),
    ]
    return Entry(
        Facility.AUDIT, _LEVELS.get(event.severity, Level.INFO), event.time, APP_NAME, event.kind,
        [(name, value) for name, value in facts if value], event.message, keys=3,
    )  # fmt: skip


def written(entry: Entry, *, host: str, limit: int = MAX_OCTETS) -> tuple[bytes, ...]:
    """The entry as one message, or as its parts where that would be longer than `limit` octets (1024 at least).

    `host`: the sender's name for HOSTNAME.
    """
    if limit < SMALLEST_LIMIT:
        raise ValueError(f"a limit below {SMALLEST_LIMIT} octets leaves no place for a part's head")
    head = _head(entry, host)
    whole = _joined(head, _element(entry.facts), _text(entry.text))
    if len(whole) <= limit:
        return (whole,)
    digest = hashlib.sha256(whole).hexdigest()
    keys = [(name, value[:100]) for name, value in entry.facts[: entry.keys]]
    longest = _element([*keys, ("part", str(_MOST_PARTS)), ("parts", str(_MOST_PARTS)), ("sha256", digest)])
    chunks = _chunks(whole, limit - len(head) - len(longest) - len(_BOM) - 2)
    return tuple(
        _joined(
            head,
            _element([*keys, ("part", str(number)), ("parts", str(len(chunks))), ("sha256", digest)]),
            chunk if chunk.isascii() else _BOM + chunk,
        )
        for number, chunk in enumerate(chunks, 1)
    )


def octet_counted(messages: Sequence[bytes]) -> bytes:
    """For a stream: MSG-LEN SP SYSLOG-MSG, each (RFC 6587 section 3.4.1, RFC 5425 section 4.3)."""
    return b"".join(b"%d %s" % (len(message), message) for message in messages)


def _head(entry: Entry, host: str) -> bytes:
    """PRI to MSGID (RFC 5424 section 6.2); PROCID is not given."""
    stamp = entry.time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    fields = [_field(host, _MAX_HOSTNAME), _field(entry.app, _MAX_APP_NAME), _NIL, _field(entry.kind, _MAX_MSGID)]
    return f"<{entry.facility * 8 + entry.level}>1 {stamp} {' '.join(fields)}".encode("ascii")


def _field(text: str, longest: int) -> str:
    """PRINTUSASCII, or the NILVALUE."""
    return _NOT_PRINTABLE.sub("?", text)[:longest] or _NIL


def _element(facts: Sequence[tuple[str, str]]) -> bytes:
    """One SD-ELEMENT; in values a quote, a backslash and a closing bracket are escaped (section 6.3.3)."""
    params = "".join(f' {name}="{_escaped(value)}"' for name, value in facts)
    return f"[{SD_ID}{params}]".encode()


def _escaped(value: str) -> str:
    return value.translate(_PICTURES).replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")


def _text(text: str) -> bytes:
    """MSG: with the byte order mark where it is not ASCII (section 6.4)."""
    encoded = text.translate(_PICTURES).encode()
    return encoded if encoded.isascii() else _BOM + encoded


def _joined(head: bytes, element: bytes, text: bytes) -> bytes:
    return b"%s %s %s" % (head, element, text) if text else b"%s %s" % (head, element)


def _chunks(whole: bytes, size: int) -> list[bytes]:
    """Cut between characters, never within one."""
    chunks = []
    start = 0
    while start < len(whole):
        end = min(start + size, len(whole))
        while end < len(whole) and whole[end] & 0xC0 == 0x80:
            end -= 1
        chunks.append(whole[start:end])
        start = end
    return chunks
