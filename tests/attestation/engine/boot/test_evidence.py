"""Every recorded log yields what its manifest states: format, PCRs, Secure Boot, signers, boot images, command line."""

import pytest

from attestation.engine.boot import eventlog, replay
from attestation.engine.boot.event_types import EventType
from attestation.engine.boot.secure_boot import secure_boot
from attestation.engine.tpm.algorithms import HashAlg
from tests.attestation.engine.boot.logs import best_bank, logs_of, parsed
from tests.attestation.recorded import Entry

NOT_PCRS = "go-eventlog/CCEL_unpadded.data.bin"
REPLAYING = [entry for entry in logs_of("replays") if entry.name != NOT_PCRS]
each_log = pytest.mark.parametrize("entry", REPLAYING, ids=[entry.name for entry in REPLAYING])


def test_the_evidence_is_there() -> None:
    assert len(REPLAYING) == 22
    assert len(logs_of("malformed")) == 6
    assert len(logs_of("rejected")) == 2


@each_log
def test_a_log_is_read_as_stated(entry: Entry) -> None:
    log = parsed(entry)
    assert log.format == entry.facts["format"]
    assert [bank.label for bank in log.banks] == entry.facts["algs"]
    assert len(log.events) == entry.facts["facts"]["events"]
    assert log.startup_locality == entry.facts["facts"].get("startup_locality")


@each_log
def test_a_log_replays_to_the_stated_values(entry: Entry) -> None:
    values = replay.pcr_values(parsed(entry))
    for bank, stated in entry.pcrs.items():
        assert values[bank] == {pcr: stated[pcr] for pcr in values[bank]}
        if "evidence" not in entry.facts:
            assert set(values[bank]) == set(stated)


@each_log
def test_stated_values_prove_a_log(entry: Entry) -> None:
    log = parsed(entry)
    bank = best_bank(log)
    quoted = entry.pcrs[bank]
    if quoted:
        assert replay.replay(log, bank=bank, quoted=quoted).proven == frozenset(replay.pcr_values(log)[bank])


@each_log
def test_secure_boot_and_signers_as_stated(entry: Entry) -> None:
    log = parsed(entry)
    state = secure_boot(replay.replay_unproven(log, bank=best_bank(log)))
    assert state.enabled is entry.facts["secure_boot"]
    assert [
        {"pcr": found.pcr, "variable": found.variable, "data_hex": found.data_hex}
        if found.certificate is None
        else {
            "pcr": found.pcr,
            "variable": found.variable,
            "subject": found.certificate.subject,
            "cert_sha256": found.certificate.sha256,
        }
        for found in state.authorities
    ] == entry.facts["facts"]["authorities_pcr7_or_rtmr"]


@each_log
def test_event_data_that_cannot_speak_are_found(entry: Entry) -> None:
    log = parsed(entry)
    measured = replay.replay_unproven(log, bank=best_bank(log)).events
    texts = [event.number for event in measured if event.pcr == 8 and event.coverage is replay.Coverage.NONE]
    assert texts == entry.facts.get("digest_mismatch_events", [])


@pytest.mark.parametrize("entry", logs_of("malformed"), ids=lambda entry: entry.name)
def test_a_malformed_log_is_refused(entry: Entry) -> None:
    with pytest.raises(eventlog.MalformedLog):
        parsed(entry)


@pytest.mark.parametrize("entry", logs_of("rejected"), ids=lambda entry: entry.name)
def test_an_edited_log_does_not_replay(entry: Entry) -> None:
    with pytest.raises(replay.ReplayMismatch) as caught:
        replay.replay(parsed(entry), bank=HashAlg.SHA256, quoted=entry.pcrs[HashAlg.SHA256])
    stated = int(entry.facts["expect"].rsplit(" ", 1)[1])
    assert [mismatch.pcr for mismatch in caught.value.mismatches] == [stated]


def test_a_confidential_computing_log_is_no_tpm_log() -> None:
    (entry,) = [entry for entry in logs_of("replays") if entry.name == NOT_PCRS]
    with pytest.raises(eventlog.NotTpmLog, match="Spec ID event at PCR 0"):
        parsed(entry)


def test_upstreams_count_of_authorities() -> None:
    (entry,) = [entry for entry in REPLAYING if "upstream_post_separator_authorities" in entry.facts]
    log = replay.replay_unproven(parsed(entry), bank=HashAlg.SHA256)
    end = next(event.number for event in log.events if event.pcr == 7 and event.type == EventType.SEPARATOR)
    late = [found for found in secure_boot(log).authorities if found.event > end]
    assert len(late) == entry.facts["upstream_post_separator_authorities"]
