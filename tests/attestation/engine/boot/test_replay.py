from dataclasses import replace

import pytest

from attestation.engine.boot import eventlog, replay
from attestation.engine.boot.event_types import EventType
from attestation.engine.boot.replay import Coverage, NoSuchBank, ReplayedLog, ReplayMismatch
from attestation.engine.boot.uefi import GLOBAL_VARIABLE, SHIM_LOCK
from attestation.engine.tpm.algorithms import HashAlg
from tests.attestation.engine.boot.logs import SHA256, Record, extended, logs_of, parsed, separator, variable, written

ACTION = Record(4, EventType.EFI_ACTION, b"Calling EFI Application from Boot Option")
IMAGE = Record(4, EventType.EFI_BOOT_SERVICES_APPLICATION, bytes(32), b"the image")
RECORDS = [separator(0), ACTION, separator(4), IMAGE, separator(7)]


def log_of(records: list[Record]) -> eventlog.UntrustedLog:
    return eventlog.parse(written(records))


def coverage_of(record: Record) -> tuple[Coverage, bytes]:
    (event,) = replay.replay_unproven(log_of([record]), bank=SHA256).events
    return event.coverage, event.covered


def test_quoted_pcrs_prove_their_events() -> None:
    quoted = {pcr: value for pcr, value in extended(RECORDS).items() if pcr != 0}
    replayed = replay.replay(log_of(RECORDS), bank=SHA256, quoted=quoted)
    assert replayed.proven == frozenset({4, 7})
    assert [event.number for event in replayed.of_pcr(4)] == [2, 3, 4]
    assert replayed.of_pcr(0) == ()


def test_without_a_quote_nothing_is_proven() -> None:
    replayed = replay.replay_unproven(log_of(RECORDS), bank=SHA256)
    assert replayed.proven is None
    assert len(replayed.of_pcr(0)) == 1


def test_a_replayed_log_is_made_by_replay_alone() -> None:
    replayed = replay.replay_unproven(log_of(RECORDS), bank=SHA256)
    with pytest.raises(TypeError, match="comes from replay"):
        ReplayedLog(SHA256, (), {}, frozenset(range(24)), frozenset(), 0, {}, object())
    assert replace(replayed) == replayed


def test_no_quoted_values_are_no_quote() -> None:
    with pytest.raises(ValueError, match="replay needs quoted values"):
        replay.replay(log_of(RECORDS), bank=SHA256, quoted={})


def test_a_bank_must_be_in_the_log() -> None:
    with pytest.raises(NoSuchBank, match="no sha384 bank, only sha256"):
        replay.replay(log_of(RECORDS), bank=HashAlg.SHA384, quoted={0: bytes(48)})


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_pcr_0_starts_from_the_locality(locality: int) -> None:
    record = Record(0, EventType.NO_ACTION, b"StartupLocality\0" + bytes([locality]))
    started = SHA256.digest(bytes(31) + bytes([locality]) + separator(0).digest)
    values = replay.pcr_values(log_of([record, separator(0)]))
    assert values == {SHA256: {0: started}}


@pytest.mark.parametrize(
    ("truth", "matching"),
    [
        pytest.param([ACTION, separator(4)], 2, id="the log goes on further"),
        pytest.param([], -1, id="nothing was measured"),
        pytest.param([ACTION, separator(4), IMAGE, IMAGE], None, id="the log lacks its end"),
        pytest.param([separator(4), ACTION, IMAGE], None, id="reordered"),
    ],
)
def test_a_mismatch_says_up_to_where_the_log_fits(truth: list[Record], matching: int | None) -> None:
    quoted = {4: extended(truth).get(4, bytes(32))}
    with pytest.raises(ReplayMismatch, match="quoted sha256 values of PCR 4") as caught:
        replay.replay(log_of([ACTION, separator(4), IMAGE]), bank=SHA256, quoted=quoted)
    (mismatch,) = caught.value.mismatches
    assert (mismatch.pcr, mismatch.events, mismatch.matching_event) == (4, 3, matching)
    assert (mismatch.quoted, mismatch.replayed) == (quoted[4], extended([ACTION, separator(4), IMAGE])[4])


def test_all_mismatches_are_named() -> None:
    with pytest.raises(ReplayMismatch) as caught:
        replay.replay(log_of(RECORDS), bank=SHA256, quoted=dict.fromkeys(range(8), b"\1" * 32))
    assert [mismatch.pcr for mismatch in caught.value.mismatches] == list(range(8))


def test_a_log_that_keeps_silent_about_a_pcr_does_not_fit() -> None:
    """The lines of PCR 8 and 9 cut out as a whole."""
    truth = [*RECORDS, Record(8, EventType.IPL, b"grub_cmd: linux /evil", b"linux /evil")]
    with pytest.raises(ReplayMismatch) as caught:
        replay.replay(log_of(RECORDS), bank=SHA256, quoted={**extended(truth), 9: bytes(32)})
    assert [mismatch.pcr for mismatch in caught.value.mismatches] == [8]


def test_pcrs_of_others_are_left_alone() -> None:
    """IMA's, systemd's, and the resettable ones: no boot log speaks of them."""
    quoted = {**extended(RECORDS), **dict.fromkeys((10, 11, 12, 13, 15, 16, 17, 23), b"\2" * 32)}
    assert replay.replay(log_of(RECORDS), bank=SHA256, quoted=quoted).proven == frozenset({0, 4, 7})


def test_systemd_extends_on_what_its_stub_began() -> None:
    records = [*RECORDS, Record(11, EventType.IPL, ".linux\0".encode("utf-16-le"), b"the kernel")]
    phase = Record(11, EventType.IPL, b"", b"enter-initrd")
    replayed = replay.replay(log_of(records), bank=SHA256, quoted=extended([*records, phase]))
    assert (replayed.extended_later, replayed.proven) == (frozenset({11}), frozenset({0, 4, 7}))
    assert replayed.of_pcr(11) == ()
    windows = [*RECORDS, Record(11, EventType.COMPACT_HASH, b"\x10\0\0\0")]
    with pytest.raises(ReplayMismatch):
        replay.replay(log_of(windows), bank=SHA256, quoted=extended([*windows, phase]))


def test_the_fullest_bank() -> None:
    """A real log declares four banks, and its one event extends two of them."""
    (entry,) = [entry for entry in logs_of("replays") if entry.name.endswith("event-uefivar.bin")]
    assert replay.fullest_bank(parsed(entry)) is SHA256
    assert replay.fullest_bank(log_of(RECORDS)) is SHA256
    assert replay.fullest_bank(replace(log_of(RECORDS), banks=())) is None


def test_coverage_of_data() -> None:
    boot = variable(GLOBAL_VARIABLE, "Boot0001", b"option")
    shim = variable(SHIM_LOCK, "Shim", b"certificate")
    assert coverage_of(ACTION) == (Coverage.WHOLE, ACTION.data)
    assert coverage_of(IMAGE) == (Coverage.NONE, b"")
    assert coverage_of(Record(1, EventType.EFI_VARIABLE_BOOT, boot, b"option")) == (Coverage.CONTENT, b"option")
    assert coverage_of(Record(1, EventType.EFI_VARIABLE_BOOT, boot)) == (Coverage.WHOLE, boot)
    assert coverage_of(Record(7, EventType.EFI_VARIABLE_DRIVER_CONFIG, boot, b"option")) == (Coverage.NONE, b"")
    old_shim = Record(7, EventType.EFI_VARIABLE_AUTHORITY, shim + b"\xaf", shim)
    assert coverage_of(old_shim) == (Coverage.WHOLE, shim)
    # A byte too many is forgiven only behind the structure: here it would be a part of the content.
    inside = Record(7, EventType.EFI_VARIABLE_AUTHORITY, shim, shim[:-1])
    assert coverage_of(inside) == (Coverage.NONE, b"")


@pytest.mark.parametrize(
    ("data", "hashed", "text"),
    [
        (b"grub_cmd: set a=b\0", b"set a=b", b"set a=b"),
        (b"kernel_cmdline: /vmlinuz ro\0", b"/vmlinuz ro", b"/vmlinuz ro"),
        (b"grub_cmd set a=b\0", b"set a=b\0", b"set a=b"),
        (b"grub_kernel_cmdline /vmlinuz ro\0", b"/vmlinuz ro", b"/vmlinuz ro"),
    ],
)
def test_coverage_of_grubs_texts(data: bytes, hashed: bytes, text: bytes) -> None:
    assert coverage_of(Record(8, EventType.IPL, data, hashed)) == (Coverage.TEXT, text)
    assert coverage_of(Record(8, EventType.IPL, data, b"another")) == (Coverage.NONE, b"")
