"""Bounds, formats and padding; and that no input does anything but parse or be called malformed."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.engine.boot import eventlog, replay
from attestation.engine.boot.components import observe
from attestation.engine.boot.describe import describe
from attestation.engine.boot.event_types import EventType
from attestation.engine.boot.eventlog import LogFormat, MalformedLog
from attestation.engine.tpm.algorithms import HashAlg
from tests.attestation.engine.boot.logs import Record, logs_of, parsed, separator, written

LOG = written([Record(0, EventType.S_CRTM_VERSION, b"\0\0"), separator(0), separator(7)])
HEADER = len(written([]))
REAL = {entry.name: entry.read(entry.name) for entry in logs_of("replays")}
SMALL = [raw for raw in REAL.values() if len(raw) < 16_000]


def old_event(pcr: int, kind: int, data: bytes, size: int | None = None) -> bytes:
    return struct.pack("<II20sI", pcr, kind, bytes(20), len(data) if size is None else size) + data


def test_an_event_is_read_whole() -> None:
    event = eventlog.parse(LOG).events[2]
    assert (event.number, event.pcr, event.type, event.data) == (2, 0, EventType.SEPARATOR, bytes(4))
    assert event.digests == {HashAlg.SHA256: HashAlg.SHA256.digest(bytes(4))}
    assert LOG[event.offset :].startswith(struct.pack("<II", 0, EventType.SEPARATOR))


@pytest.mark.parametrize("padding", [b"\0" * 4096, b"\xff" * 4096, b"\0", b""], ids=["zeros", "ones", "one", "none"])
@pytest.mark.parametrize("log", [LOG, old_event(0, EventType.SEPARATOR, bytes(4))], ids=["agile", "old"])
def test_padding_ends_the_log(log: bytes, padding: bytes) -> None:
    assert eventlog.parse(log + padding) == eventlog.parse(log)


def test_bytes_behind_padding_are_not_ignored() -> None:
    with pytest.raises(MalformedLog):
        eventlog.parse(LOG + bytes(7) + b"\1")


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (b"", "at least one event at byte 0"),
        (bytes(31), "an event header of 32 bytes at byte 0"),
        (bytes(eventlog.MAX_LOG_BYTES + 1), f"at most {eventlog.MAX_LOG_BYTES} bytes"),
        (old_event(24, EventType.SEPARATOR, b""), "a PCR from 0 to 23 at byte 0"),
        (old_event(0, EventType.SEPARATOR, b"", size=1), "an event that ends inside the log at byte 28"),
        (
            old_event(0, EventType.ACTION, b"Spec ID Event03\0" + bytes(21)),
            "the Spec ID event as EV_NO_ACTION at byte 4",
        ),
        (LOG[:-1], "an event that ends inside the log"),
        (LOG[: HEADER + 11], f"an event header of 12 bytes at byte {HEADER}"),
        (LOG[:HEADER] + struct.pack("<III", 0, 4, 0) + b"\1", f"1 to 1 digests at byte {HEADER + 8}"),
        (LOG[:HEADER] + struct.pack("<III", 0, 4, 2) + b"\1", f"1 to 1 digests at byte {HEADER + 8}"),
        (LOG[:HEADER] + struct.pack("<IIIH", 0, 4, 1, 4) + b"\1", "an algorithm that the Spec ID event declares"),
        (LOG[:HEADER] + struct.pack("<IIIH", 0, 4, 1, 11) + b"\1", "a digest of 32 bytes"),
    ],
)
def test_what_does_not_fit_is_malformed(log: bytes, expected: str) -> None:
    with pytest.raises(MalformedLog, match=f"expected {expected}"):
        eventlog.parse(log)


@pytest.mark.parametrize(
    ("count", "pairs", "expected"),
    [
        (0, b"", "1 to 16 algorithms"),
        (17, bytes(68), "1 to 16 algorithms"),
        (0xFFFFFFFF, b"", "1 to 16 algorithms"),
        (2, struct.pack("<HH", 11, 32), "a Spec ID event with 2 algorithms"),
        (1, struct.pack("<HH", 11, 20), "a digest size of 32 for sha256"),
        (1, struct.pack("<HH", 99, 65), "a digest size of 1 to 64"),
        (2, struct.pack("<HHHH", 11, 32, 11, 32), "each algorithm once"),
    ],
)
def test_a_spec_id_event_must_fit(count: int, pairs: bytes, expected: str) -> None:
    spec_id = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, count) + pairs
    with pytest.raises(MalformedLog, match=expected):
        eventlog.parse(old_event(0, EventType.NO_ACTION, spec_id))


def test_digests_of_an_unknown_hash_are_skipped() -> None:
    spec_id = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHHHB", 0, 0, 2, 0, 2, 2, 0x99, 16, 11, 32, 0)
    event = struct.pack("<IIIH", 7, 4, 2, 0x99) + bytes(16) + struct.pack("<H", 11) + bytes(32) + struct.pack("<I", 0)
    log = eventlog.parse(old_event(0, EventType.NO_ACTION, spec_id) + event)
    assert (log.banks, log.events[1].digests) == ((HashAlg.SHA256,), {HashAlg.SHA256: bytes(32)})
    twice = struct.pack("<IIIH", 7, 4, 2, 0x99) + bytes(16) + struct.pack("<H", 0x99) + bytes(16) + bytes(4)
    with pytest.raises(MalformedLog, match="one digest for each algorithm"):
        eventlog.parse(old_event(0, EventType.NO_ACTION, spec_id) + twice + b"\1")


def test_no_action_events_extend_nothing() -> None:
    platform = Record(0, EventType.NO_ACTION, b"SP800-155 Event3" + bytes(20))
    nowhere = platform._replace(pcr=eventlog.NO_PCR)
    log = eventlog.parse(written([platform, nowhere, separator(0)]))
    assert [event.digests for event in log.events[:3]] == [{}, {}, {}]
    assert replay.pcr_values(log) == replay.pcr_values(eventlog.parse(written([separator(0)])))


@pytest.mark.parametrize("last", [b"\1", b"\5", b"", b"\3\0"])
def test_an_odd_start_up_locality_is_malformed(last: bytes) -> None:
    with pytest.raises(MalformedLog, match="a start-up locality of 0, 3 or 4"):
        eventlog.parse(written([Record(0, EventType.NO_ACTION, b"StartupLocality\0" + last), separator(0)]))


def test_two_start_up_localities_are_malformed() -> None:
    locality = Record(0, EventType.NO_ACTION, b"StartupLocality\0\3")
    with pytest.raises(MalformedLog, match="one StartupLocality event"):
        eventlog.parse(written([locality, locality, separator(0)]))


def test_the_number_of_events_is_capped() -> None:
    event = old_event(0, EventType.SEPARATOR, b"")
    assert len(eventlog.parse(event * eventlog.MAX_EVENTS).events) == eventlog.MAX_EVENTS
    with pytest.raises(MalformedLog, match=f"at most {eventlog.MAX_EVENTS} events"):
        eventlog.parse(event * (eventlog.MAX_EVENTS + 1))


def judge(log: bytes) -> None:
    """Everything that reads a log; only MalformedLog may come out."""
    try:
        read = eventlog.parse(log)
    except MalformedLog:
        return
    assert read.format in LogFormat
    for event in read.events:
        describe(event.type, event.data)
    for bank in read.banks:
        observe(replay.replay_unproven(read, bank=bank))


@given(st.binary(max_size=300))
def test_any_bytes(log: bytes) -> None:
    judge(log)
    judge(LOG[:HEADER] + log)


@given(st.data())
def test_mutated_real_logs(data: st.DataObject) -> None:
    log = bytearray(data.draw(st.sampled_from(SMALL)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(log) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "number"])):
            case "set":
                log[at] = data.draw(st.integers(0, 255))
            case "cut":
                del log[at : at + data.draw(st.integers(1, 64))]
            case "insert":
                log[at:at] = data.draw(st.binary(max_size=64))
            case _:
                log[at : at + 4] = struct.pack("<I", data.draw(st.sampled_from([0, 1, 0xFFFF, 1 << 31, 0xFFFFFFFF])))
        if not log:
            return
    judge(bytes(log))


@given(st.integers(0, 0xFFFFFFFF) | st.sampled_from(list(EventType)), st.integers(0, 23), st.binary(max_size=400))
def test_any_event(kind: int, pcr: int, data: bytes) -> None:
    judge(written([Record(pcr, kind, data), separator(7)]))


def test_every_byte_of_a_quoted_digest_counts() -> None:
    """Host A's log: each byte of each SHA-256 digest, and each PCR number."""
    (entry,) = [entry for entry in logs_of("replays") if entry.name.startswith("a-secureboot-on")]
    raw = entry.read(entry.name)
    quoted = entry.pcrs[HashAlg.SHA256]
    for event in parsed(entry).events:
        if not event.digests:
            continue
        digest_at = raw.index(event.digests[HashAlg.SHA256], event.offset)
        for at in (*range(event.offset, event.offset + 4), *range(digest_at, digest_at + 32)):
            changed = bytearray(raw)
            changed[at] ^= 0x80
            with pytest.raises((MalformedLog, replay.ReplayMismatch)):
                replay.replay(eventlog.parse(bytes(changed)), bank=HashAlg.SHA256, quoted=quoted)
