"""TCG event logs: bytes in, an UntrustedLog out. Both formats of the PC Client Platform Firmware Profile (PFP) 1.06:

- TCG 1.2: records of TCG_PCR_EVENT, SHA-1 only (section 10.2.1);
- crypto agile: a first record in the old form that holds the Spec ID event ("Spec ID Event03"), then TCG_PCR_EVENT2
  with one digest for each bank (sections 10.2.2 and 10.4.5.1).

All integers are little endian. Every length and count is compared with what is left before anything is taken, and the
work is linear in the size of the log.

NOT checked here: anything about truth. A log is a text file on the host; whoever is root there writes what they like.
Event types, PCR numbers and data mean something only after `replay`, and then only as far as digests cover them.

Tolerated, because real logs have it: events that lack a digest for a declared bank (the event does not extend that
bank); banks of hashes that HashAlg does not have (their digests are skipped); zero or 0xff padding behind the last
event, as ACPI's log areas have it; bytes behind the Spec ID event's fields.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple

from attestation.engine.boot.event_types import EventType
from attestation.engine.errors import Malformed
from attestation.engine.tpm.algorithms import HashAlg

# The largest logs seen are 50 KB; firmware reserves 64 KB to 1 MiB for them.
MAX_LOG_BYTES = 4 << 20
MAX_EVENTS = 20_000
MAX_BANKS = 16
MAX_DIGEST_BYTES = 64
LAST_PCR = 23
# PFP 1.06 writes some EV_NO_ACTION events (SP 800-155) for no PCR at all.
NO_PCR = 0xFFFFFFFF

_OLD_HEADER = struct.Struct("<II20sI")
_AGILE_HEADER = struct.Struct("<III")
_SPEC_ID_HEADER = struct.Struct("<16sIBBBBI")
_U16 = struct.Struct("<H")
_U16_PAIR = struct.Struct("<HH")
_U32 = struct.Struct("<I")

_SPEC_ID_03 = b"Spec ID Event03\0"
_STARTUP_LOCALITY = b"StartupLocality\0"
_STARTUP_LOCALITIES = frozenset({0, 3, 4})
_KNOWN = frozenset(alg.value for alg in HashAlg)


class MalformedLog(Malformed):
    """Not a TCG event log, or cut, or with lengths that do not fit."""

    what: ClassVar[str] = "event log"


class NotTpmLog(MalformedLog):
    """A log in the same format that is not about PCRs: a confidential-computing log (CCEL), whose indexes are RTMRs."""

    what: ClassVar[str] = "TPM event log"


class LogFormat(StrEnum):
    TCG_1_2 = "tcg1.2-sha1"
    CRYPTO_AGILE = "tcg2-crypto-agile"


class Event(NamedTuple):
    """One record. `digests` holds raw digests by bank; empty for EV_NO_ACTION, which extends nothing.

    `number` counts records from 0, the Spec ID event included; `offset` is in bytes from the start of the log.
    """

    number: int
    pcr: int
    type: int
    digests: Mapping[HashAlg, bytes]
    data: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class UntrustedLog:
    """A log that was parsed and not yet compared with anything. `banks` in the order of the Spec ID event.

    `startup_locality` sets what PCR 0 starts from (PFP 1.06, section 10.4.5.3); None where the log does not say.
    """

    format: LogFormat
    banks: tuple[HashAlg, ...]
    events: tuple[Event, ...]
    startup_locality: int | None


def parse(log: bytes) -> UntrustedLog:
    """Raises MalformedLog with the offset and what was expected there; NotTpmLog for a confidential-computing log."""
    if not log:
        raise MalformedLog("at least one event", offset=0)
    if len(log) > MAX_LOG_BYTES:
        raise MalformedLog(f"at most {MAX_LOG_BYTES} bytes", offset=MAX_LOG_BYTES)
    first, offset = _old_event(log, 0, 0)
    if not first.data.startswith(_SPEC_ID_03):
        return _parse_old(log)
    if first.pcr != 0:
        raise NotTpmLog("the Spec ID event at PCR 0", offset=0)
    if first.type != EventType.NO_ACTION:
        raise MalformedLog("the Spec ID event as EV_NO_ACTION", offset=4)
    return _parse_agile(log, first, offset)


def _parse_old(log: bytes) -> UntrustedLog:
    end = _end_of_events(log)
    events: list[Event] = []
    locality: int | None = None
    offset = 0
    while offset < end:
        if len(events) == MAX_EVENTS:
            raise MalformedLog(f"at most {MAX_EVENTS} events", offset=offset)
        event, offset = _old_event(log, offset, len(events))
        if event.type == EventType.NO_ACTION:
            locality = _startup_locality(event, locality)
        events.append(event)
    return UntrustedLog(LogFormat.TCG_1_2, (HashAlg.SHA1,), tuple(events), locality)


def _old_event(log: bytes, offset: int, index: int) -> tuple[Event, int]:
    if len(log) - offset < _OLD_HEADER.size:
        raise MalformedLog(f"an event header of {_OLD_HEADER.size} bytes", offset=offset)
    pcr, kind, digest, size = _OLD_HEADER.unpack_from(log, offset)
    _check_pcr(pcr, kind, offset)
    start = offset + _OLD_HEADER.size
    if size > len(log) - start:
        raise MalformedLog("an event that ends inside the log", offset=start - _U32.size)
    digests = {} if kind == EventType.NO_ACTION else {HashAlg.SHA1: digest}
    return Event(index, pcr, kind, digests, log[start : start + size], offset), start + size


def _parse_agile(log: bytes, first: Event, offset: int) -> UntrustedLog:
    declared = _spec_id(first.data, _OLD_HEADER.size)
    end = _end_of_events(log)
    length = len(log)
    header, header_size, u16, u32 = _AGILE_HEADER.unpack_from, _AGILE_HEADER.size, _U16.unpack_from, _U32.unpack_from
    events: list[Event] = [first]
    locality: int | None = None
    while offset < end:
        if len(events) == MAX_EVENTS:
            raise MalformedLog(f"at most {MAX_EVENTS} events", offset=offset)
        if length - offset < header_size:
            raise MalformedLog(f"an event header of {header_size} bytes", offset=offset)
        pcr, kind, count = header(log, offset)
        _check_pcr(pcr, kind, offset)
        # EV_NO_ACTION extends nothing, so its digests (zeros, by the profile) do not matter; any other needs one.
        if count > len(declared) or (count == 0 and kind != EventType.NO_ACTION):
            raise MalformedLog(f"1 to {len(declared)} digests", offset=offset + 8)
        at = offset + header_size
        digests: dict[HashAlg, bytes] = {}
        seen = 0
        for _ in range(count):
            if length - at < 2:
                raise MalformedLog("a digest's algorithm", offset=at)
            (algorithm,) = u16(log, at)
            if algorithm not in declared:
                raise MalformedLog("an algorithm that the Spec ID event declares", offset=at)
            bit, bank, size = declared[algorithm]
            if length - at - 2 < size:
                raise MalformedLog(f"a digest of {size} bytes", offset=at + 2)
            if seen & bit:
                raise MalformedLog("one digest for each algorithm", offset=at)
            seen |= bit
            if bank is not None:
                digests[bank] = log[at + 2 : at + 2 + size]
            at += 2 + size
        if length - at < 4:
            raise MalformedLog("the size of the event's data", offset=at)
        (size,) = u32(log, at)
        at += 4
        if size > length - at:
            raise MalformedLog("an event that ends inside the log", offset=at - 4)
        data = log[at : at + size]
        event = Event(len(events), pcr, kind, {} if kind == EventType.NO_ACTION else digests, data, offset)
        if kind == EventType.NO_ACTION:
            locality = _startup_locality(event, locality)
        events.append(event)
        offset = at + size
    banks = tuple(bank for _, bank, _ in declared.values() if bank is not None)
    return UntrustedLog(LogFormat.CRYPTO_AGILE, banks, tuple(events), locality)


def _spec_id(data: bytes, offset: int) -> dict[int, tuple[int, HashAlg | None, int]]:
    """By TPM_ALG_ID, in the order declared: a bit of its own, the bank, the digest's size (PFP 1.06, 10.4.5.1)."""
    if len(data) < _SPEC_ID_HEADER.size:
        raise MalformedLog(f"a Spec ID event of at least {_SPEC_ID_HEADER.size} bytes", offset=offset)
    count = _SPEC_ID_HEADER.unpack_from(data)[-1]
    if not 1 <= count <= MAX_BANKS:
        raise MalformedLog(
            f"1 to {MAX_BANKS} algorithms in the Spec ID event", offset=offset + _SPEC_ID_HEADER.size - 4
        )
    end = _SPEC_ID_HEADER.size + count * _U16_PAIR.size
    if len(data) < end:
        raise MalformedLog(f"a Spec ID event with {count} algorithms", offset=offset + _SPEC_ID_HEADER.size)
    declared: dict[int, tuple[int, HashAlg | None, int]] = {}
    for at in range(_SPEC_ID_HEADER.size, end, _U16_PAIR.size):
        algorithm, size = _U16_PAIR.unpack_from(data, at)
        bank = HashAlg(algorithm) if algorithm in _KNOWN else None
        if bank is not None and bank.size != size:
            raise MalformedLog(f"a digest size of {bank.size} for {bank.label}", offset=offset + at + 2)
        if not 0 < size <= MAX_DIGEST_BYTES:
            raise MalformedLog(f"a digest size of 1 to {MAX_DIGEST_BYTES}", offset=offset + at + 2)
        if algorithm in declared:
            raise MalformedLog("each algorithm once in the Spec ID event", offset=offset + at)
        declared[algorithm] = 1 << len(declared), bank, size
    return declared


def _check_pcr(pcr: int, kind: int, offset: int) -> None:
    if pcr > LAST_PCR and not (kind == EventType.NO_ACTION and pcr == NO_PCR):
        raise MalformedLog(f"a PCR from 0 to {LAST_PCR}", offset=offset)


def _startup_locality(event: Event, known: int | None) -> int | None:
    if event.data[: len(_STARTUP_LOCALITY)] != _STARTUP_LOCALITY:
        return known
    if len(event.data) != len(_STARTUP_LOCALITY) + 1 or event.data[-1] not in _STARTUP_LOCALITIES:
        raise MalformedLog("a start-up locality of 0, 3 or 4", offset=event.offset)
    if known is not None:
        raise MalformedLog("one StartupLocality event", offset=event.offset)
    return event.data[-1]


def _end_of_events(log: bytes) -> int:
    """Where padding may begin: behind the last byte that differs from it.

    The last event's own data may end in zeros, so this is a lower bound: events go on while one starts before it.
    """
    return min(len(log.rstrip(b"\0")), len(log.rstrip(b"\xff")))
