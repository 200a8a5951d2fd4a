"""Every recorded log as an appraisal sees it: alone, and against the PCR values that its manifest states."""

import pytest

from attestation.engine.boot.check import BootReference
from attestation.engine.boot_appraisal import appraise_boot
from attestation.engine.findings import FindingCode, Verdict, verdict_of
from attestation.engine.reference import ReferenceValues
from tests.attestation.engine.boot.logs import best_bank, logs_of, parsed
from tests.attestation.recorded import Entry

NOT_PCRS = "go-eventlog/CCEL_unpadded.data.bin"
REPLAYING = [entry for entry in logs_of("replays") if entry.name != NOT_PCRS]


@pytest.mark.parametrize("entry", REPLAYING, ids=[entry.name for entry in REPLAYING])
def test_a_log_alone_says_what_is_stated_and_proves_nothing(entry: Entry) -> None:
    appraisal = appraise_boot(entry.read(entry.name), None, None)
    assert appraisal.boot is not None
    assert appraisal.boot.secure_boot.enabled is entry.facts["secure_boot"]
    assert appraisal.event_count == entry.facts["facts"]["events"]
    assert appraisal.findings[0].code is FindingCode.NOT_PROVEN
    assert verdict_of(appraisal.findings) is Verdict.WARNING


@pytest.mark.parametrize("entry", REPLAYING, ids=[entry.name for entry in REPLAYING])
def test_stated_values_prove_what_is_stated(entry: Entry) -> None:
    bank = best_bank(parsed(entry))
    quoted = {bank: entry.pcrs[bank]}
    if not quoted[bank]:
        return
    appraisal = appraise_boot(entry.read(entry.name), quoted, None)
    assert appraisal.boot is not None
    assert appraisal.boot.is_proven
    assert appraisal.boot.secure_boot.enabled is entry.facts["secure_boot"]
    strict = appraise_boot(entry.read(entry.name), quoted, BootReference(ReferenceValues(secure_boot=True)))
    complete = entry.facts["secure_boot"] and appraisal.boot.secure_boot.complete
    assert verdict_of(strict.findings) is (Verdict.PASSED if complete else Verdict.FAILED)


@pytest.mark.parametrize("entry", logs_of("rejected"), ids=lambda entry: entry.name)
def test_an_edited_log_claims_nothing(entry: Entry) -> None:
    bank = best_bank(parsed(entry))
    appraisal = appraise_boot(entry.read(entry.name), {bank: entry.pcrs[bank]}, None)
    assert appraisal.boot is None
    assert [(each.code, each.pcr) for each in appraisal.findings] == [
        (FindingCode.LOG_DOES_NOT_REPLAY, int(entry.facts["expect"].rsplit(" ", 1)[1]))
    ]
