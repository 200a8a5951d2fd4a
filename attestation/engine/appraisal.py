"""Evidence of one host, appraised: quote, identity, boot log, IMA list, in this order, to findings and a verdict.

A claim (Secure Boot, authorities, what booted) is made only from what a quote proves; where a quote was given and
proves nothing, there is no claim at all. Without a quote the log's own claims are shown, and the verdict says that
nothing is proven. What is enrolled, what was seen before and what is wanted come in; nothing is remembered here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from attestation.engine.boot.authorities import Authority
from attestation.engine.boot.components import Boot
from attestation.engine.boot.replay import LOGGED_PCRS
from attestation.engine.boot_appraisal import BootAppraisal, BootAppraiser, log_missing
from attestation.engine.findings import Finding, FindingCode, Severity, Verdict, verdict_of
from attestation.engine.ima.check import ImaPolicy
from attestation.engine.ima.measurements import IMA_PCR, ImaState, Measurements
from attestation.engine.ima_appraisal import ImaAppraisal, ImaEvidence, appraise_ima, value_of_whole_list
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.attest import ClockInfo
from attestation.engine.tpm.continuity import clock_findings
from attestation.engine.tpm.endorsement import ChainCheck
from attestation.engine.tpm.pcrs import PcrSelection, PcrValues, initial_value
from attestation.engine.tpm.quote import QuoteCheck, VerifiedQuote

_ACTIVATE = "have the agent register again, so that its key can be activated in the TPM"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What came from one host in one answer. None: did not come. `event_log` is binary, as securityfs has it."""

    quote: QuoteCheck | None
    event_log: bytes | None
    ima: ImaEvidence | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """What enrolment knows. `ak_name` is that of the *activated* key, None before; `clock` of the last good quote."""

    ak_name: bytes | None
    clock: ClockInfo | None = None


@dataclass(frozen=True, slots=True)
class Appraisal:
    """The result. `pcrs`: proven values where there are any, else what the log gives. `secure_boot` None: not known.

    `quote`, `boot` and `measurements` are what may be relied on further (a baseline, the next clock), None where
    nothing may. `ima_state` goes with the next poll's lines.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    secure_boot: bool | None
    pcrs: PcrValues
    event_count: int
    authorities: tuple[Authority, ...]
    quote: VerifiedQuote | None
    boot: Boot | None
    measurements: Measurements | None
    ima_state: ImaState | None


def appraise(
    evidence: Evidence,
    boots: BootAppraiser,
    files: ImaPolicy | None = None,
    *,
    identity: Identity | None,
    endorsement: ChainCheck | None = None,
) -> Appraisal:
    """Appraise one answer.

    `boots` and `files` hold the reference values. `identity` None: nobody is enrolled (offline), and the key's place in
    a TPM is told to be unknown. `endorsement`: the check of a certificate for the EK, or for the AK; None: none given.
    """
    check = evidence.quote
    quote = None if check is None else check.quote
    findings: list[Finding] = list(check.findings) if check is not None else []
    if check is not None:
        about_tpm = [*_identity_findings(quote, identity), *_endorsement_findings(endorsement)]
        findings += about_tpm
        if verdict_of(about_tpm) is Verdict.FAILED:
            # A true signature of a TPM that is not the host's own, or nobody knows: nothing is claimed from it.
            quote = None
    else:
        findings += _endorsement_findings(endorsement)
    boot, quote = _appraise_log(evidence, boots, quote)
    findings += boot.findings
    failed_quote = check is not None and (quote is None or quote.pcrs is None)
    observed = None if failed_quote else boot.boot
    quoted = None if quote is None else quote.pcrs
    ima = ImaAppraisal() if failed_quote else appraise_ima(_of_this_boot(evidence.ima, quote, identity), quoted, files)
    findings += ima.findings
    return Appraisal(
        verdict=verdict_of(findings),
        findings=tuple(findings),
        secure_boot=None if observed is None else observed.secure_boot.enabled,
        pcrs=_known_pcrs(boot.values or {}, quote),
        event_count=boot.event_count,
        authorities=() if observed is None else observed.secure_boot.authorities,
        quote=quote,
        boot=observed,
        measurements=ima.measurements,
        ima_state=ima.state,
    )


def _of_this_boot(
    ima: ImaEvidence | None, quote: VerifiedQuote | None, identity: Identity | None
) -> ImaEvidence | None:
    """Without the state of an earlier boot: PCR 10 begins anew with each."""
    before = None if identity is None else identity.clock
    if ima is None or quote is None or before is None:
        return ima
    if quote.attested.clock.reset_count == before.reset_count:
        return ima
    return replace(ima, state=None, has_rebooted=True)


def _identity_findings(quote: VerifiedQuote | None, identity: Identity | None) -> tuple[Finding, ...]:
    if identity is None:
        message = "nothing here shows that the key which signed is in a TPM: that takes an activation"
        return (Finding(FindingCode.AK_NOT_ACTIVATED, Severity.INFO, message, "enrol the host to have it activated"),)
    if identity.ak_name is None:
        message = "the host's attestation key has not been activated yet"
        return (Finding(FindingCode.AK_NOT_ACTIVATED, Severity.ERROR, message, _ACTIVATE),)
    if quote is None:
        return ()
    if quote.ak_name != identity.ak_name:
        return (
            Finding(
                FindingCode.AK_NOT_ACTIVATED,
                Severity.ERROR,
                "the quote is signed by another key than the one that was activated",
                _ACTIVATE,
                expected=identity.ak_name.hex(),
                observed=(quote.ak_name or b"").hex(),
            ),
        )
    return clock_findings(identity.clock, quote.attested.clock)


def _endorsement_findings(endorsement: ChainCheck | None) -> tuple[Finding, ...]:
    if endorsement is None or endorsement.is_trusted:
        return ()
    return (
        Finding(
            FindingCode.EK_UNTRUSTED,
            Severity.ERROR,
            f"the TPM is of no trusted maker: {endorsement.problem}",
            "compare its fingerprint with the maker's own word, then add the maker's certificate to the trust anchors",
        ),
    )


def _appraise_log(
    evidence: Evidence, boots: BootAppraiser, quote: VerifiedQuote | None
) -> tuple[BootAppraisal, VerifiedQuote | None]:
    """The boot's appraisal, and the quote with the values that the log has proven, if it came without values."""
    log = evidence.event_log
    if log is None:
        # Where nobody has said what should boot, a host without a log is no failure, only less than it could be.
        severity = Severity.WARNING if boots.reference is None else Severity.ERROR
        return BootAppraisal((log_missing(severity),)), quote
    if evidence.quote is None:
        return boots.appraise(log, None), None
    if quote is not None and quote.pcrs is not None:
        return boots.appraise(log, quote.pcrs), quote
    alone = boots.appraise(log, None)
    if alone.values is None:
        return alone, quote
    wrong_values = (each.code is FindingCode.PCR_MISMATCH and each.pcr is None for each in evidence.quote.findings)
    if quote is None or any(wrong_values):
        # The quote proves nothing: the log is read for its values alone, and its claims are left out.
        return BootAppraisal((), None, alone.values, alone.event_count), quote
    covered = quote.covering(_expected_values(quote.attested.selection, alone.values, evidence.ima))
    if covered is None:
        finding = _unlike_the_log(quote.attested.selection, alone.values, boots)
        return BootAppraisal((finding,), None, alone.values, alone.event_count), quote
    return boots.appraise(log, covered.pcrs), covered


def _expected_values(selection: PcrSelection, replayed: PcrValues, ima: ImaEvidence | None) -> PcrValues:
    """What the quoted PCRs hold if log and list are right, and nobody else extended any.

    Where IMA's list had grown between list and quote this does not find it: then the values have to come along.
    """
    values: dict[HashAlg, dict[int, bytes]] = {}
    for bank, pcr in selection:
        value = replayed.get(bank, {}).get(pcr)
        if pcr == IMA_PCR and ima is not None and ima.first_line == 0:
            value = value_of_whole_list(ima.text, bank)
        values.setdefault(bank, {})[pcr] = initial_value(bank, pcr) if value is None else value
    return values


def _unlike_the_log(selection: PcrSelection, replayed: PcrValues, boots: BootAppraiser) -> Finding:
    """No values came, and those of log and list have not the signed digest: wrong ones, or too few?"""
    remedy = "have the agent send the PCR values with the quote"
    others = sorted({pcr for bank, pcr in selection if pcr not in LOGGED_PCRS and pcr not in replayed.get(bank, {})})
    if not others:
        message = "the boot log does not give the PCR values that were quoted; which of them cannot be told"
        return Finding(FindingCode.LOG_DOES_NOT_REPLAY, Severity.ERROR, message, remedy)
    numbers = ", ".join(map(str, others))
    message = f"the quote covers PCR {numbers}, which no log here tells of: without its values nothing is proven"
    severity = Severity.WARNING if boots.reference is None else Severity.ERROR
    return Finding(FindingCode.NOT_PROVEN, severity, message, remedy, others[0])


def _known_pcrs(replayed: PcrValues, quote: VerifiedQuote | None) -> PcrValues:
    proven: PcrValues = {} if quote is None or quote.pcrs is None else quote.pcrs
    known: dict[HashAlg, Mapping[int, bytes]] = {}
    for bank in sorted({*replayed, *proven}):
        merged = {**replayed.get(bank, {}), **proven.get(bank, {})}
        if merged:
            known[bank] = dict(sorted(merged.items()))
    return known
