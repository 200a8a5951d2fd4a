"""A host's IMA list against the quoted PCR 10, the boot it belongs to, and the files that are allowed.

A poll brings the lines since the last one: the replay goes on from the state that the last appraisal gave back. NOT
judged: that lines are missing at the end. List and quote are not taken at one moment, so the quoted value may be that
of an earlier line; what comes behind it is judged at the next poll.
"""

from dataclasses import dataclass

from attestation.engine.findings import Finding, FindingCode, Severity
from attestation.engine.ima import measurements
from attestation.engine.ima.check import ImaPolicy, boot_aggregate_finding
from attestation.engine.ima.measurements import IMA_PCR, ImaMismatch, ImaState, MalformedList, Measurements
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.pcrs import PcrValues

_ASK_AGAIN = "have the agent send the whole list of this boot, and PCR 10 in the quote"


@dataclass(frozen=True, slots=True)
class ImaEvidence:
    """`text`: the list in ASCII from line `first_line` on. `state`: where the last appraisal of this boot ended.

    `has_rebooted`: the quote shows a boot since then, so the state is none, and lines that were asked for by it are of
    no use: the caller asks again, from line 0.
    """

    text: bytes
    first_line: int = 0
    state: ImaState | None = None
    has_rebooted: bool = False


@dataclass(frozen=True, slots=True)
class ImaAppraisal:
    """`state` is where the next poll goes on, None when this one failed: then the whole list is asked for again."""

    findings: tuple[Finding, ...] = ()
    measurements: Measurements | None = None
    state: ImaState | None = None


def appraise_ima(evidence: ImaEvidence | None, quoted: PcrValues | None, policy: ImaPolicy | None) -> ImaAppraisal:
    """`quoted`: proven PCR values, None without a quote. `policy` None: no file is looked for, only the replay done."""
    if evidence is None:
        return ImaAppraisal() if policy is None else ImaAppraisal((_missing(),))
    if evidence.has_rebooted and evidence.first_line:
        message = "the host has booted since, and its IMA list was asked for from a line of the boot before"
        return ImaAppraisal((Finding(FindingCode.NOT_PROVEN, Severity.WARNING, message, _ASK_AGAIN, IMA_PCR),))
    banks = [bank for bank, values in (quoted or {}).items() if IMA_PCR in values]
    findings: list[Finding] = []
    if not banks:
        message = f"PCR {IMA_PCR} is not quoted: what the IMA list says is not proven"
        findings.append(Finding(FindingCode.NOT_PROVEN, Severity.WARNING, message, _ASK_AGAIN, IMA_PCR))
    state = _state_for(evidence, max(banks, key=lambda bank: bank.size) if banks else HashAlg.SHA256)
    value = (quoted or {}).get(state.bank, {}).get(IMA_PCR)
    try:
        measured = measurements.replay(
            measurements.parse(evidence.text, first_line=evidence.first_line), state=state, quoted=value
        )
    except MalformedList as exc:
        findings.append(Finding(FindingCode.IMA_MALFORMED, Severity.ERROR, str(exc), _ASK_AGAIN, IMA_PCR))
        return ImaAppraisal(tuple(findings))
    except ImaMismatch as exc:
        remedy = "ask for the whole list; when it does not replay either, treat the host as compromised"
        observed = f"{exc.lines} lines"
        findings.append(
            Finding(FindingCode.IMA_DOES_NOT_REPLAY, Severity.ERROR, str(exc), remedy, IMA_PCR, observed=observed)
        )
        return ImaAppraisal(tuple(findings))
    except ValueError as exc:
        findings.append(Finding(FindingCode.IMA_DOES_NOT_REPLAY, Severity.ERROR, str(exc), _ASK_AGAIN, IMA_PCR))
        return ImaAppraisal(tuple(findings))
    other_boot = boot_aggregate_finding(measured, quoted or {})
    if other_boot is not None:
        return ImaAppraisal((*findings, other_boot))
    if policy is not None:
        findings += policy.check(measured)
    return ImaAppraisal(tuple(findings), measured, measured.state if measured.is_proven else None)


def _state_for(evidence: ImaEvidence, bank: HashAlg) -> ImaState:
    # An agent that has restarted sends the list from its beginning, whatever line was asked for.
    if evidence.state is None or evidence.first_line == 0:
        return ImaState.at_boot(bank)
    return evidence.state


def value_of_whole_list(text: bytes, bank: HashAlg) -> bytes | None:
    """PCR 10 behind the last line of a list from its beginning; None where it cannot be read."""
    try:
        listed = measurements.parse(text)
        return measurements.replay(listed, state=ImaState.at_boot(bank), quoted=None).state.value
    except MalformedList:
        return None


def _missing() -> Finding:
    message = "there is no IMA list, although the reference values want files to be approved"
    remedy = "boot the host with an IMA policy (ima_policy=tcb), and let the agent read the list"
    return Finding(FindingCode.IMA_MISSING, Severity.ERROR, message, remedy, IMA_PCR)
