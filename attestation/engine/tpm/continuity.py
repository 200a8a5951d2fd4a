"""Two looks at one TPM: do its clock and counters go on (TPM 2.0 Library, part 1, section 36, Timing Components)?

The clock counts milliseconds of power and is only set back when the TPM is cleared; resetCount counts TPM resets (a
boot), restartCount resumes from suspend. After a loss of power the clock may have fallen back by up to about an hour,
which the TPM admits by `safe` being no. NOT checked: how fast the clock runs.
"""

from attestation.engine.findings import Finding, FindingCode, Severity
from attestation.engine.tpm.attest import ClockInfo

_REMEDY = (
    "find out whether the TPM was cleared or replaced, or an old state of it was restored; when that was meant,"
    " enrol the host again"
)


def clock_findings(previous: ClockInfo | None, current: ClockInfo) -> tuple[Finding, ...]:
    """What the clock tells, compared with the last verified quote of the same key (None: there is none)."""
    findings = []
    if not current.safe:
        message = "the TPM says that its clock may have fallen back after a loss of power"
        remedy = "nothing to do: the TPM corrects this by itself within about an hour"
        findings.append(Finding(FindingCode.CLOCK_UNSAFE, Severity.INFO, message, remedy))
    if previous is None:
        return tuple(findings)
    rebooted = current.reset_count > previous.reset_count
    for what, before, now, may_fall in (
        ("reset count", previous.reset_count, current.reset_count, False),
        ("restart count", previous.restart_count, current.restart_count, rebooted),
        ("clock", previous.clock, current.clock, rebooted and not current.safe),
    ):
        if now < before and not may_fall:
            findings.append(
                Finding(
                    FindingCode.CLOCK_WENT_BACK,
                    Severity.ERROR,
                    f"the TPM's {what} went back",
                    _REMEDY,
                    expected=f"at least {before}",
                    observed=str(now),
                )
            )
    if rebooted:
        message = f"the host has booted {current.reset_count - previous.reset_count} time(s) since the last quote"
        findings.append(Finding(FindingCode.HOST_REBOOTED, Severity.INFO, message, "nothing to do"))
    return tuple(findings)
