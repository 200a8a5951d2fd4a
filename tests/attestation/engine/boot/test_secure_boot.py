"""Whoever is root after boot can edit the log at will and extend any PCR further, and never take one back."""

import pytest

from attestation.engine.boot import eventlog, replay
from attestation.engine.boot.event_types import EventType
from attestation.engine.boot.secure_boot import SecureBoot, findings, secure_boot
from attestation.engine.boot.uefi import SHIM_LOCK
from attestation.engine.findings import FindingCode, Severity
from attestation.engine.tpm.algorithms import HashAlg
from tests.attestation.engine.boot.logs import (
    Record,
    extended,
    firmware_part,
    logs_of,
    measured_variable,
    parsed,
    separator,
    written,
)

PK = (parsed(logs_of("replays")[0]).events[3].data)[38:]
OFF = [*firmware_part(secure_boot=b"\0", pk=PK), separator()]
ON = [*firmware_part(secure_boot=b"\1", pk=PK), separator()]
OPAQUE = EventType.EFI_PLATFORM_FIRMWARE_BLOB


def judged(log: list[Record], truth: list[Record] | None = None) -> SecureBoot:
    """The host extended `truth`, its log says `log`."""
    parsed_log = eventlog.parse(written(log))
    quoted = extended(log if truth is None else truth)
    return secure_boot(replay.replay(parsed_log, bank=HashAlg.SHA256, quoted=quoted))


def codes(state: SecureBoot) -> set[FindingCode]:
    return {problem.code for problem in state.problems}


def opaque(record: Record, *, data: bytes = b"blob") -> Record:
    """The same digest under another type and other data: what a log can always claim."""
    return Record(record.pcr, OPAQUE, data, record.data)


def signed_by(content: bytes, name: str = "db") -> Record:
    return measured_variable(name, content, vendor=SHIM_LOCK, kind=EventType.EFI_VARIABLE_AUTHORITY)


def test_on_and_off() -> None:
    on, off = judged(ON), judged(OFF)
    assert (on.enabled, on.setup_mode, on.complete, on.problems) == (True, False, True, ())
    assert (off.enabled, off.setup_mode, off.complete, off.problems) == (False, False, True, ())
    assert findings(on, required=True) == ()
    assert [(found.code, found.severity) for found in findings(off, required=True)] == [
        (FindingCode.SECURE_BOOT_OFF, Severity.ERROR)
    ]
    assert [found.severity for found in findings(off, required=False)] == [Severity.WARNING]


def test_a_second_boot_after_boot_does_not_count() -> None:
    state = judged([*OFF, *ON])
    assert state.enabled is False
    assert codes(state) == {FindingCode.EVENT_DATA_FORGED}


def test_a_relabelled_separator_is_still_the_end() -> None:
    """The real end is hidden under another type, and a fake firmware part put behind it."""
    hidden = [*OFF[:-1], opaque(OFF[-1]), *ON]
    assert judged(hidden, [*OFF, *ON]).enabled is not True


def test_a_relabelled_switch_hides_nothing() -> None:
    """SecureBoot = 0 as something opaque: then nothing is concluded, although a SecureBoot = 1 follows."""
    state = judged([opaque(OFF[0]), *OFF[1:-1], opaque(OFF[-1]), *ON], [*OFF, *ON])
    assert state.enabled is None
    assert FindingCode.EVENT_DATA_FORGED in codes(state)


def test_a_switch_under_another_type_still_counts() -> None:
    assert judged([OFF[0]._replace(type=EventType.EFI_ACTION), *OFF[1:]], OFF).enabled is False


@pytest.mark.parametrize("kind", [EventType.EFI_VARIABLE_BOOT, EventType.EFI_VARIABLE_DRIVER_CONFIG])
def test_the_content_alone_is_not_the_variable(kind: int) -> None:
    """MokListTrusted = 01 hashes to H(01); under the name SecureBoot, with a boot variable's rule, it would be "on"."""
    trusted = Record(7, EventType.IPL, b"MokListTrusted\0", b"\1")
    forged = Record(7, kind, measured_variable("SecureBoot", b"\1").data, b"\1")
    state = judged([forged, *OFF[1:]], [trusted, *OFF[1:]])
    assert state.enabled is None
    assert FindingCode.EVENT_DATA_FORGED in codes(state)


def test_edited_data_say_nothing() -> None:
    edited = Record(7, OFF[0].type, ON[0].data, OFF[0].data)
    state = judged([edited, *OFF[1:]], OFF)
    assert state.enabled is None
    assert codes(state) == {FindingCode.EVENT_DATA_FORGED}


@pytest.mark.parametrize(
    "log",
    [
        pytest.param(ON, id="edited, digests too"),
        pytest.param([*OFF[1:], OFF[0]], id="reordered"),
        pytest.param(OFF[:-1], id="cut"),
        pytest.param([*ON[:1], *OFF[1:]], id="spliced"),
        pytest.param([*OFF, signed_by(b"x")], id="extended in the log alone"),
        pytest.param([OFF[0], *OFF], id="repeated"),
    ],
)
def test_another_log_does_not_replay(log: list[Record]) -> None:
    with pytest.raises(replay.ReplayMismatch):
        judged(log, OFF)


def test_both_on_and_off_is_neither() -> None:
    state = judged([ON[0], *OFF])
    assert state.enabled is None
    assert codes(state) == {FindingCode.SECURE_BOOT_UNKNOWN}


def test_on_without_a_platform_key_is_no_proof() -> None:
    state = judged([*firmware_part(secure_boot=b"\1", pk=b""), separator()])
    assert (state.enabled, state.setup_mode) == (None, True)
    assert {found.code for found in findings(state, required=True)} == {
        FindingCode.SECURE_BOOT_UNKNOWN,
        FindingCode.SETUP_MODE,
    }


def test_an_absent_variable_is_neither_on_nor_off() -> None:
    state = judged([*firmware_part(secure_boot=b"", pk=PK), separator()])
    assert (state.enabled, state.problems) == (None, ())
    assert [found.code for found in findings(state, required=True)] == [FindingCode.SECURE_BOOT_UNKNOWN]


def test_without_a_separator_the_log_is_too_short() -> None:
    state = judged(ON[:-1])
    assert state.complete is False
    assert codes(state) == {FindingCode.SECURE_BOOT_UNKNOWN}


def test_an_error_separator_concludes_nothing() -> None:
    state = judged([*ON[:-1], Record(7, EventType.SEPARATOR, b"\1\0\0\0")])
    assert state.enabled is None


def test_pcr_7_must_be_quoted() -> None:
    log = [Record(4, EventType.EFI_ACTION, b"Calling EFI Application from Boot Option"), *ON]
    only_4 = {4: extended(log)[4]}
    state = secure_boot(replay.replay(eventlog.parse(written(log)), bank=HashAlg.SHA256, quoted=only_4))
    assert (state.enabled, state.authorities) == (None, ())


def test_shim_with_its_validation_off() -> None:
    state = judged([*ON, signed_by(b"sbat,1,2021030218\n", "SbatLevel"), signed_by(b"\1", "MokSBState")])
    assert (state.enabled, state.shim_validates, state.sbat_level) == (True, False, "sbat,1,2021030218")
    assert [found.code for found in findings(state, required=True)] == [FindingCode.SHIM_VALIDATION_OFF]


def test_a_hidden_signer_is_noticed() -> None:
    stranger = signed_by(b"any certificate")
    state = judged([*ON, opaque(stranger)], [*ON, stranger])
    assert state.enabled is True
    assert codes(state) == {FindingCode.EVENT_DATA_FORGED}


def test_every_byte_of_pcr_7_counts() -> None:
    """Host A's real log: whichever byte of a measured PCR 7 event changes, Secure Boot is not reported as fine."""
    (entry,) = [entry for entry in logs_of("replays") if entry.name.startswith("a-secureboot-on")]
    raw = entry.read(entry.name)
    quoted = entry.pcrs[HashAlg.SHA256]
    log = eventlog.parse(raw)
    for event, behind in zip(log.events, log.events[1:], strict=False):
        if event.pcr != 7:
            continue
        start = behind.offset - len(event.data)
        digest_at = raw.index(event.digests[HashAlg.SHA256], event.offset)
        # Each byte of short events, and of long ones each 16th: the rule is the same hash.
        places = range(start, behind.offset, 1 if len(event.data) < 256 else 16)
        for at in (*places, *range(digest_at, digest_at + 32)):
            changed = bytearray(raw)
            changed[at] ^= 0x01
            try:
                replayed = replay.replay(eventlog.parse(bytes(changed)), bank=HashAlg.SHA256, quoted=quoted)
            except (eventlog.MalformedLog, replay.ReplayMismatch):
                continue
            assert findings(secure_boot(replayed), required=True), f"byte {at} of event {event.number}"
