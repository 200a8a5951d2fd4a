"""What appraisal concludes: findings, each with a name that stays, and the verdict that follows from them.

Words as in RATS (RFC 9334): evidence is appraised against reference values, and the result is a verdict. A finding is a
value and not an exception, because a report shows all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The state of one host. UNREACHABLE is not FAILED: nothing is known about such a host, also nothing bad."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    PENDING = "pending"
    NOT_APPLICABLE = "not_applicable"


class Severity(StrEnum):
    """ERROR fails the verdict, WARNING lowers it, INFO only tells."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class FindingCode(StrEnum):
    """The reasons that a report, an alarm, the API and the command line name. Codes are never renamed."""

    # the quote, and the key that signed it
    QUOTE_MALFORMED = "quote_malformed"
    NONCE_MISMATCH = "nonce_mismatch"
    BAD_SIGNATURE = "bad_signature"
    WEAK_DIGEST = "weak_digest"
    KEY_UNRESTRICTED = "key_unrestricted"
    BANK_INACTIVE = "bank_inactive"
    PCR_MISMATCH = "pcr_mismatch"
    # the TPM behind the key
    AK_NOT_ACTIVATED = "ak_not_activated"
    EK_UNTRUSTED = "ek_untrusted"
    CLOCK_WENT_BACK = "clock_went_back"
    CLOCK_UNSAFE = "clock_unsafe"
    HOST_REBOOTED = "host_rebooted"
    # the boot log
    LOG_MISSING = "log_missing"
    LOG_MALFORMED = "log_malformed"
    LOG_DOES_NOT_REPLAY = "log_does_not_replay"
    EVENT_DATA_FORGED = "event_data_forged"
    SECURE_BOOT_OFF = "secure_boot_off"
    SECURE_BOOT_UNKNOWN = "secure_boot_unknown"
    SETUP_MODE = "setup_mode"
    SHIM_VALIDATION_OFF = "shim_validation_off"
    UNKNOWN_SIGNER = "unknown_signer"
    UNKNOWN_COMPONENT = "unknown_component"
    DBX_OUTDATED = "dbx_outdated"
    COMMAND_LINE_CHANGED = "command_line_changed"
    # the running system (IMA)
    IMA_MISSING = "ima_missing"
    IMA_MALFORMED = "ima_malformed"
    IMA_VIOLATION = "ima_violation"
    IMA_DOES_NOT_REPLAY = "ima_does_not_replay"
    UNAPPROVED_FILE = "unapproved_file"
    # the evidence as a whole
    NOT_PROVEN = "not_proven"


@dataclass(frozen=True, slots=True)
class Finding:
    """One named reason. `message` tells what is the case, `remedy` what to do; both are plain sentences in lower case.

    `event` is the index in the event log (from 0), `pcr` the register concerned; both None where there is none.
    `expected` and `observed` are texts for people: hex digests, names, counts. Neither ever holds raw evidence bytes.
    """

    code: FindingCode
    severity: Severity
    message: str
    remedy: str
    pcr: int | None = None
    event: int | None = None
    expected: str = ""
    observed: str = ""


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """FAILED with any error, else WARNING with any warning, else PASSED. No findings at all is PASSED."""
    severities = {finding.severity for finding in findings}
    if Severity.ERROR in severities:
        return Verdict.FAILED
    return Verdict.WARNING if Severity.WARNING in severities else Verdict.PASSED
