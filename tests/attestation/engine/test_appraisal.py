"""Quote, identity, boot log and IMA list together. Each part alone has its own tests."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from attestation.engine.appraisal import Appraisal, Evidence, Identity, appraise
from attestation.engine.baseline import baseline
from attestation.engine.boot.check import BootReference
from attestation.engine.boot_appraisal import BootAppraiser
from attestation.engine.findings import Finding, FindingCode, Severity, Verdict
from attestation.engine.ima.check import ImaPolicy
from attestation.engine.ima_appraisal import ImaEvidence
from attestation.engine.reference import ImaReference
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.attest import ClockInfo, parse_quote
from attestation.engine.tpm.endorsement import check_chain, parse_certificate
from attestation.engine.tpm.pcrs import PcrSelection, PcrValues, initial_value
from attestation.engine.tpm.public import parse_tpm2b_public, parse_tpmt_public
from attestation.engine.tpm.quote import QuoteCheck, verify
from attestation.engine.tpm.signature import parse_signature
from tests.attestation.recorded import EVIDENCE, GOOGLE, HOST_A, HOST_B, Entry, entries
from tests.attestation.signer import SoftwareTpm

BY_NAME = {entry.name: entry for entry in entries()}
A, B = BY_NAME["a-secureboot-on/eventlog.bin"], BY_NAME["b-secureboot-off/eventlog.bin"]
LOG_A, LOG_B = (HOST_A / "eventlog.bin").read_bytes(), (HOST_B / "eventlog.bin").read_bytes()
AK_A = parse_tpm2b_public((HOST_A / "ak.pub").read_bytes())
ENROLLED_A = Identity(AK_A.name)
NO_REFERENCE = BootAppraiser(None)


def quote_of(entry: Entry, *, values: PcrValues | None = None, nonce: bytes | None = None) -> QuoteCheck:
    quote = entry.quotes[0]
    data = entry.read(quote["ak"])
    return verify(
        parse_quote(entry.read(quote["attest"])),
        parse_signature(entry.read(quote["sig"])),
        parse_tpm2b_public(data) if quote["ak"].endswith(".pub") else parse_tpmt_public(data),
        nonce=bytes.fromhex(quote["nonce"]) if nonce is None else nonce,
        values=values,
    )


def of_a(
    log: bytes | None = LOG_A,
    *,
    boots: BootAppraiser = NO_REFERENCE,
    identity: Identity | None = ENROLLED_A,
    values: PcrValues | None = A.pcrs,
) -> Appraisal:
    return appraise(Evidence(quote_of(A, values=values), log), boots, identity=identity)


def codes(appraisal: Appraisal) -> list[tuple[FindingCode, int | None]]:
    return [(finding.code, finding.pcr) for finding in appraisal.findings]


def claims_nothing(appraisal: Appraisal) -> bool:
    return appraisal.secure_boot is None and appraisal.authorities == () and appraisal.boot is None


@pytest.mark.parametrize("values", [A.pcrs, None], ids=["with values", "by the log"])
def test_a_good_host_passes_and_its_claims_are_proven(values: PcrValues | None) -> None:
    appraisal = of_a(values=values)
    assert (appraisal.verdict, appraisal.findings) == (Verdict.PASSED, ())
    assert appraisal.secure_boot is True and appraisal.event_count == 48
    assert [each.variable for each in appraisal.authorities] == ["db", "SbatLevel", "MokListRT"]
    assert appraisal.boot is not None and appraisal.boot.is_proven
    assert appraisal.quote is not None and appraisal.quote.pcrs is not None
    assert appraisal.pcrs[HashAlg.SHA256][7] == A.pcrs[HashAlg.SHA256][7]


def test_secure_boot_off_is_a_warning_until_somebody_requires_it() -> None:
    evidence = Evidence(quote_of(B, values=B.pcrs), LOG_B)
    ak = parse_tpm2b_public((HOST_B / "ak.pub").read_bytes())
    appraisal = appraise(evidence, NO_REFERENCE, identity=Identity(ak.name))
    assert appraisal.verdict is Verdict.WARNING and appraisal.secure_boot is False
    assert codes(appraisal) == [(FindingCode.SECURE_BOOT_OFF, 7), (FindingCode.SETUP_MODE, 7)]


def test_a_baseline_of_one_boot_fails_another() -> None:
    boot = of_a().boot
    assert boot is not None
    boots = BootAppraiser(BootReference(baseline(boot)))
    assert of_a(boots=boots).verdict is Verdict.PASSED
    ak = parse_tpm2b_public((HOST_B / "ak.pub").read_bytes())
    other = appraise(Evidence(quote_of(B, values=B.pcrs), LOG_B), boots, identity=Identity(ak.name))
    assert other.verdict is Verdict.FAILED and (FindingCode.SECURE_BOOT_OFF, 7) in codes(other)


@pytest.mark.parametrize(
    ("name", "pcr"), [("d-log-edited/eventlog-claims-on.bin", 7), ("d-log-edited/eventlog-event-removed.bin", 8)]
)
@pytest.mark.parametrize("with_values", [True, False])
def test_an_edited_log_claims_nothing(name: str, pcr: int, with_values: bool) -> None:
    entry = BY_NAME[name]
    values = entry.pcrs if with_values else None
    evidence = Evidence(quote_of(entry, values=values), entry.read(entry.name))
    appraisal = appraise(evidence, NO_REFERENCE, identity=None)
    assert appraisal.verdict is Verdict.FAILED and claims_nothing(appraisal)
    assert (FindingCode.LOG_DOES_NOT_REPLAY, pcr if with_values else None) in codes(appraisal)


def test_no_changed_byte_of_a_measured_digest_passes() -> None:
    """Digests from all over the log, in the bank that is quoted."""
    check, changed = quote_of(A, values=A.pcrs), 0
    places = [
        at for at in range(len(LOG_A) - 34) if LOG_A[at : at + 2] == b"\x0b\0" and LOG_A[at - 26 : at - 24] == b"\2\0"
    ]
    for start in places[:8]:
        for place in range(start + 2, start + 34):
            wrong = LOG_A[:place] + bytes([LOG_A[place] ^ 1]) + LOG_A[place + 1 :]
            appraisal = appraise(Evidence(check, wrong), NO_REFERENCE, identity=ENROLLED_A)
            assert appraisal.verdict is Verdict.FAILED and claims_nothing(appraisal)
            changed += 1
    assert changed == 8 * 32


def test_the_boot_of_another_host_fails() -> None:
    appraisal = of_a(LOG_B)
    assert appraisal.verdict is Verdict.FAILED and claims_nothing(appraisal)
    wrong = {pcr for code, pcr in codes(appraisal) if code is FindingCode.LOG_DOES_NOT_REPLAY}
    assert wrong == set(map(int, B.facts["pcrs_differing_from_a"]["sha256"]))


def test_a_log_alone_proves_nothing() -> None:
    appraisal = appraise(Evidence(None, LOG_A), NO_REFERENCE, identity=None)
    assert (appraisal.verdict, codes(appraisal)) == (Verdict.WARNING, [(FindingCode.NOT_PROVEN, None)])
    assert appraisal.secure_boot is True and appraisal.quote is None
    assert appraisal.boot is not None and not appraisal.boot.is_proven


def test_a_log_alone_still_fails_what_is_wanted() -> None:
    boot = of_a().boot
    assert boot is not None
    boots = BootAppraiser(BootReference(baseline(boot)))
    assert appraise(Evidence(None, LOG_A), boots, identity=None).verdict is Verdict.WARNING
    assert appraise(Evidence(None, LOG_B), boots, identity=None).verdict is Verdict.FAILED


@pytest.mark.parametrize("log", [b"", LOG_A[:-7], bytes(40), b"\1" * 40])
@pytest.mark.parametrize("with_quote", [True, False])
def test_a_log_that_cannot_be_read_is_no_secure_boot(log: bytes, with_quote: bool) -> None:
    check = quote_of(A, values=A.pcrs) if with_quote else None
    appraisal = appraise(Evidence(check, log), NO_REFERENCE, identity=None)
    code = FindingCode.LOG_MALFORMED if log.strip(b"\0") else FindingCode.LOG_MISSING
    assert appraisal.verdict is Verdict.FAILED and claims_nothing(appraisal) and (code, None) in codes(appraisal)
    bad_quote = replace(quote_of(A, nonce=b"another"), quote=None)
    assert (code, None) in codes(appraise(Evidence(bad_quote, log), NO_REFERENCE, identity=None))


def test_a_missing_log_fails_where_a_boot_is_wanted() -> None:
    boot = of_a().boot
    assert boot is not None
    appraisal = of_a(None)
    assert (appraisal.verdict, codes(appraisal)) == (Verdict.WARNING, [(FindingCode.LOG_MISSING, None)])
    assert of_a(None, boots=BootAppraiser(BootReference(baseline(boot)))).verdict is Verdict.FAILED


def test_a_refused_quote_takes_the_claims_away() -> None:
    appraisal = appraise(Evidence(quote_of(A, nonce=b"another"), LOG_A), NO_REFERENCE, identity=ENROLLED_A)
    assert appraisal.verdict is Verdict.FAILED and claims_nothing(appraisal) and appraisal.quote is None
    assert codes(appraisal) == [(FindingCode.NONCE_MISMATCH, None)] and appraisal.event_count == 48


def test_values_that_were_not_quoted_take_the_claims_away() -> None:
    """Host B's values beside host A's quote: B's log fits them, and nothing of it is A's."""
    for log in (LOG_A, LOG_B):
        appraisal = of_a(log, values=B.pcrs)
        assert appraisal.verdict is Verdict.FAILED and claims_nothing(appraisal)
        assert codes(appraisal) == [(FindingCode.PCR_MISMATCH, None)]


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (Identity(None), "has not been activated"),
        (Identity(b"\0\x0b" + bytes(32)), "another key"),
    ],
)
def test_a_key_that_is_not_the_activated_one_claims_nothing(identity: Identity, words: str) -> None:
    appraisal = of_a(identity=identity)
    assert appraisal.verdict is Verdict.FAILED and claims_nothing(appraisal) and appraisal.quote is None
    (finding,) = appraisal.findings
    assert finding.code is FindingCode.AK_NOT_ACTIVATED and words in finding.message


def test_without_enrolment_the_key_is_said_to_be_unknown() -> None:
    appraisal = of_a(identity=None)
    assert appraisal.verdict is Verdict.PASSED
    assert [(each.code, each.severity) for each in appraisal.findings] == [
        (FindingCode.AK_NOT_ACTIVATED, Severity.INFO)
    ]


def test_a_clock_that_went_back_fails() -> None:
    now = of_a().quote
    assert now is not None
    later = replace(now.attested.clock, clock=now.attested.clock.clock + 1)
    appraisal = of_a(identity=Identity(AK_A.name, later))
    assert appraisal.verdict is Verdict.FAILED and codes(appraisal) == [(FindingCode.CLOCK_WENT_BACK, None)]
    earlier = ClockInfo(0, now.attested.clock.reset_count - 1, 0, True)
    rebooted = of_a(identity=Identity(AK_A.name, earlier))
    assert (rebooted.verdict, codes(rebooted)) == (Verdict.PASSED, [(FindingCode.HOST_REBOOTED, None)])


def test_a_tpm_of_an_unknown_maker_claims_nothing() -> None:
    leaf = parse_certificate((HOST_A / "ek-cert-rsa.der").read_bytes())
    other = parse_certificate((GOOGLE / "tpm_ek_root_1.cer").read_bytes())
    middle, root = (
        parse_certificate((EVIDENCE / "captured/ca" / name).read_bytes()) for name in ("intermediate.pem", "root.pem")
    )
    evidence = Evidence(quote_of(A, values=A.pcrs), LOG_A)
    for anchor, verdict in ((root, Verdict.PASSED), (other, Verdict.FAILED)):
        chain = check_chain(leaf, [middle], [anchor], now=datetime(2026, 12, 1, tzinfo=UTC))
        appraisal = appraise(evidence, NO_REFERENCE, identity=ENROLLED_A, endorsement=chain)
        assert appraisal.verdict is verdict and claims_nothing(appraisal) is (verdict is Verdict.FAILED)
        assert codes(appraisal) == [(FindingCode.EK_UNTRUSTED, None)] * (verdict is Verdict.FAILED)


def test_a_whole_recorded_attestation_of_a_public_cloud() -> None:
    entry = BY_NAME["go-tpm-tools/gce-cos-85-no-nonce/eventlog.bin"]
    check = quote_of(entry, values=entry.pcrs)
    log = entry.read(entry.name)
    appraisal = appraise(Evidence(check, log), NO_REFERENCE, identity=None)
    assert appraisal.secure_boot is True and appraisal.verdict is Verdict.WARNING  # the first of its quotes is of sha1
    unproven = appraise(Evidence(quote_of(entry), log), NO_REFERENCE, identity=None)
    assert (FindingCode.NOT_PROVEN, 10) in codes(unproven) and claims_nothing(unproven)
    boot = of_a().boot
    assert boot is not None
    wanted = BootAppraiser(BootReference(baseline(boot)))
    assert appraise(Evidence(quote_of(entry), log), wanted, identity=None).verdict is Verdict.FAILED


def test_conclusions_are_remembered_by_log_and_values() -> None:
    boots = BootAppraiser(None, cache_size=2)
    quoted = {HashAlg.SHA256: {pcr: A.pcrs[HashAlg.SHA256][pcr] for pcr in range(10)}}
    first = boots.appraise(LOG_A, quoted)
    grown = {HashAlg.SHA256: {**quoted[HashAlg.SHA256], 10: bytes(32), 16: bytes(32)}}
    assert boots.appraise(LOG_A, quoted) is first and boots.appraise(LOG_A, grown) is first
    other = {HashAlg.SHA256: {**quoted[HashAlg.SHA256], 7: bytes(32)}}
    assert boots.appraise(LOG_A, other).boot is None and boots.appraise(LOG_A, None) is not first
    assert boots.appraise(LOG_A, quoted) is not first  # two others have taken its place


# From here on with a TPM in software, whose key signs what it is told.
TPM = SoftwareTpm()
LINES = [
    (b"boot_aggregate", b"\0" * 32),
    (b"/usr/bin/bash", hashlib.sha256(b"bash").digest()),
    (b"/usr/bin/cat", hashlib.sha256(b"cat").digest()),
]


def ima_lines(lines: list[tuple[bytes, bytes]]) -> tuple[bytes, list[bytes]]:
    """An ima-ng list, and PCR 10 (SHA-256) behind each of its lines."""
    text, value, values = b"", bytes(32), []
    for path, digest in lines:
        named = b"sha256:\0" + digest
        data = len(named).to_bytes(4, "little") + named + (len(path) + 1).to_bytes(4, "little") + path + b"\0"
        template = hashlib.sha1(data, usedforsecurity=False).hexdigest().encode()
        text += b"10 " + template + b" ima-ng sha256:" + digest.hex().encode() + b" " + path + b"\n"
        value = hashlib.sha256(value + hashlib.sha256(data).digest()).digest()
        values.append(value)
    return text, values


TEXT, AFTER = ima_lines(LINES)
FILES = ImaPolicy(
    ImaReference(allowed={path.decode(): frozenset({f"sha256:{digest.hex()}"}) for path, digest in LINES[:2]})
)


def with_ima(
    ima: ImaEvidence | None,
    value: bytes = AFTER[-1],
    *,
    files: ImaPolicy | None = None,
    clock: ClockInfo | None = None,
    reset_count: int = 1,
    values_sent: bool = True,
) -> Appraisal:
    """PCR 10 alone is quoted; the log is empty of PCRs on purpose, as boots have their own tests."""
    values = {HashAlg.SHA256: {10: value}}
    check = TPM.quote(values, nonce=b"nonce", reset_count=reset_count, values_sent=values_sent)
    return appraise(Evidence(check, None, ima), NO_REFERENCE, files, identity=Identity(TPM.ak.name, clock))


def ima_findings(appraisal: Appraisal) -> list[Finding]:
    return [finding for finding in appraisal.findings if finding.code is not FindingCode.LOG_MISSING]


def test_files_are_judged_by_what_pcr_10_proves() -> None:
    fine = with_ima(ImaEvidence(TEXT))
    assert ima_findings(fine) == [] and fine.ima_state is not None and fine.ima_state.lines == 3
    assert fine.measurements is not None and fine.measurements.is_proven
    (finding,) = ima_findings(with_ima(ImaEvidence(TEXT), files=FILES))
    assert (finding.code, finding.event) == (FindingCode.UNAPPROVED_FILE, 2)


def test_a_list_that_ran_ahead_of_the_quote_goes_on_at_the_next_poll() -> None:
    first = with_ima(ImaEvidence(TEXT), AFTER[1], files=FILES)
    assert ima_findings(first) == [] and first.ima_state is not None and first.ima_state.lines == 2
    rest = TEXT.split(b"\n", 2)[2]
    then = with_ima(ImaEvidence(rest, 2, first.ima_state), files=FILES, clock=ClockInfo(0, 1, 0, True))
    assert [finding.code for finding in ima_findings(then)] == [FindingCode.UNAPPROVED_FILE]
    assert then.ima_state is not None and then.ima_state.lines == 3


def test_an_agent_that_starts_over_is_followed() -> None:
    first = with_ima(ImaEvidence(TEXT), AFTER[1])
    again = with_ima(ImaEvidence(TEXT, 0, first.ima_state), clock=ClockInfo(0, 1, 0, True))
    assert ima_findings(again) == [] and again.ima_state is not None and again.ima_state.lines == 3


def test_lines_of_the_boot_before_are_asked_for_again() -> None:
    first = with_ima(ImaEvidence(TEXT), AFTER[1])
    rest = TEXT.split(b"\n", 2)[2]
    rebooted = with_ima(ImaEvidence(rest, 2, first.ima_state), clock=ClockInfo(0, 1, 0, True), reset_count=2)
    assert {finding.code for finding in rebooted.findings} >= {FindingCode.NOT_PROVEN, FindingCode.HOST_REBOOTED}
    assert rebooted.verdict is Verdict.WARNING and rebooted.ima_state is None
    # An agent that goes on so hides its list, and that is no pass.
    hiding = with_ima(ImaEvidence(rest, 2, None), clock=ClockInfo(0, 2, 0, True), reset_count=2)
    assert hiding.verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (TEXT.replace(b"cat", b"dog"), FindingCode.IMA_DOES_NOT_REPLAY),
        (TEXT.split(b"\n", 1)[1], FindingCode.IMA_DOES_NOT_REPLAY),
        (b"", FindingCode.IMA_DOES_NOT_REPLAY),
        (b"10 nonsense\n", FindingCode.IMA_MALFORMED),
        (b"\xff" * 100, FindingCode.IMA_MALFORMED),
    ],
)
def test_an_edited_list_fails(text: bytes, code: FindingCode) -> None:
    appraisal = with_ima(ImaEvidence(text))
    assert appraisal.verdict is Verdict.FAILED and appraisal.ima_state is None and appraisal.measurements is None
    assert [finding.code for finding in ima_findings(appraisal)] == [code]


def test_a_list_is_missed_only_where_files_are_to_be_approved() -> None:
    assert ima_findings(with_ima(None)) == []
    (finding,) = ima_findings(with_ima(None, files=FILES))
    assert (finding.code, finding.severity) == (FindingCode.IMA_MISSING, Severity.ERROR)


def test_a_list_without_a_quoted_register_is_not_proven() -> None:
    appraisal = appraise(
        Evidence(quote_of(A, values=A.pcrs), LOG_A, ImaEvidence(TEXT)), NO_REFERENCE, identity=ENROLLED_A
    )
    assert (FindingCode.NOT_PROVEN, 10) in codes(appraisal) and appraisal.ima_state is None


def test_values_that_did_not_come_are_found_from_log_and_list() -> None:
    selection = PcrSelection.of(HashAlg.SHA256, 10, 23)
    values = {HashAlg.SHA256: {10: AFTER[-1], 23: initial_value(HashAlg.SHA256, 23)}}
    check = TPM.quote(values, nonce=b"nonce", values_sent=False)
    assert check.quote is not None and check.quote.attested.selection == selection
    identity = Identity(TPM.ak.name)
    proven = appraise(Evidence(check, LOG_A, ImaEvidence(TEXT)), NO_REFERENCE, identity=identity)
    assert proven.ima_state is not None and proven.ima_state.lines == 3
    # Nothing of the boot is quoted, and nothing is claimed of it.
    assert proven.secure_boot is None
    other = appraise(Evidence(check, LOG_A, ImaEvidence(TEXT[:-90])), NO_REFERENCE, identity=identity)
    assert other.ima_state is None and other.verdict is not Verdict.PASSED


def test_a_quote_of_too_few_registers_does_not_prove_the_rest() -> None:
    values = {HashAlg.SHA256: {pcr: A.pcrs[HashAlg.SHA256][pcr] for pcr in (0, 4, 7)}}
    check = TPM.quote(values, nonce=b"nonce")
    appraisal = appraise(Evidence(check, LOG_A), NO_REFERENCE, identity=Identity(TPM.ak.name))
    (finding,) = [each for each in appraisal.findings if each.code is FindingCode.NOT_PROVEN]
    assert "PCR 1, 2, 3, 5, 6, 8, 9, 14" in finding.message and appraisal.verdict is Verdict.WARNING
    assert appraisal.secure_boot is True


def test_each_quoted_bank_has_to_agree() -> None:
    values = {bank: {pcr: A.pcrs[bank][pcr] for pcr in range(10)} for bank in (HashAlg.SHA1, HashAlg.SHA256)}
    identity = Identity(TPM.ak.name)
    fine = appraise(Evidence(TPM.quote(values, nonce=b"nonce"), LOG_A), NO_REFERENCE, identity=identity)
    assert fine.secure_boot is True
    for bank in values:
        wrong = {**values, bank: {**values[bank], 4: bytes(bank.size)}}
        appraisal = appraise(Evidence(TPM.quote(wrong, nonce=b"nonce"), LOG_A), NO_REFERENCE, identity=identity)
        assert appraisal.verdict is Verdict.FAILED and claims_nothing(appraisal)


def test_a_bank_that_the_log_does_not_have_is_named() -> None:
    check = TPM.quote({HashAlg.SHA384: {pcr: bytes(48) for pcr in range(10)}}, nonce=b"nonce")
    appraisal = appraise(Evidence(check, LOG_A), NO_REFERENCE, identity=Identity(TPM.ak.name))
    assert appraisal.verdict is Verdict.FAILED and claims_nothing(appraisal)
    assert (FindingCode.BANK_INACTIVE, None) in codes(appraisal)
