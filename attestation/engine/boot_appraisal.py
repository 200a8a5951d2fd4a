"""A host's boot log against the PCRs that its TPM quoted, and against reference values. In this order:

1. parse the log; 2. replay every bank that was quoted, and each has to agree; 3. observe the boot in the strongest of
them; 4. check what was observed. Without a quote the log is replayed for itself, which proves nothing, and said so.

A verifier that polls gets the same log and values again and again: `BootAppraiser` keeps what it concluded from them.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from attestation.engine.boot import eventlog, secure_boot
from attestation.engine.boot.check import BootReference
from attestation.engine.boot.components import Boot, observe
from attestation.engine.boot.replay import (
    LOGGED_PCRS,
    NoSuchBank,
    PcrMismatch,
    ReplayedLog,
    ReplayMismatch,
    fullest_bank,
    pcr_values,
    replay,
    replay_unproven,
)
from attestation.engine.findings import Finding, FindingCode, Severity
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.pcrs import PcrValues

DEFAULT_CACHE_SIZE = 1024
# IMA's register grows all the time, and 16 and 23 are anybody's to reset and extend: no boot log speaks of them.
_NOT_OF_THE_BOOT = frozenset({10, 16, 23})
_RESTORE = "find out what was loaded at boot, or who changed the log; reboot the host, and attest it again"


@dataclass(frozen=True, slots=True)
class BootAppraisal:
    """`boot` is None where nothing may be concluded from the log. `values`: what the log alone gives, in all banks."""

    findings: tuple[Finding, ...]
    boot: Boot | None = None
    values: PcrValues | None = None
    event_count: int = 0


class BootAppraiser:
    """Appraises boots against one set of reference values (None: no more than the log's own consistency).

    Remembers the last `cache_size` conclusions by the log's digest and the quoted values. Not for several threads.
    """

    def __init__(self, reference: BootReference | None, *, cache_size: int = DEFAULT_CACHE_SIZE) -> None:
        self.reference = reference
        self._cache_size = cache_size
        self._known: OrderedDict[tuple[object, ...], BootAppraisal] = OrderedDict()

    def appraise(self, log: bytes, quoted: PcrValues | None) -> BootAppraisal:
        """`quoted`: PCR values that a verified quote vouches for, or None when there is no quote at all."""
        key = HashAlg.SHA256.digest(log), None if quoted is None else _values_key(quoted)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = appraise_boot(log, quoted, self.reference)
            if len(self._known) > self._cache_size:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return known


def _values_key(quoted: PcrValues) -> tuple[object, ...]:
    return tuple(
        (bank, pcr, value)
        for bank, values in quoted.items()
        for pcr, value in values.items()
        if pcr not in _NOT_OF_THE_BOOT
    )


def appraise_boot(log: bytes, quoted: PcrValues | None, reference: BootReference | None) -> BootAppraisal:
    """The steps at the head of this file, without a memory."""
    if not log:
        return BootAppraisal((log_missing(Severity.ERROR),))
    try:
        parsed = eventlog.parse(log)
    except eventlog.MalformedLog as exc:
        remedy = "look at how the agent reads the log; an old TPM 1.2 or a cut log cannot be appraised"
        return BootAppraisal((Finding(FindingCode.LOG_MALFORMED, Severity.ERROR, str(exc), remedy),))
    if not parsed.events:
        # Nothing but padding, as an ACPI log area has it that firmware never wrote to.
        return BootAppraisal((log_missing(Severity.ERROR),))
    values = pcr_values(parsed)
    empty = BootAppraisal((), None, values, len(parsed.events))
    if quoted is None:
        return _unproven(parsed, empty, reference)
    replayed: dict[HashAlg, ReplayedLog] = {}
    findings: list[Finding] = []
    for bank in sorted(quoted, key=lambda bank: bank.size, reverse=True):
        of_boot = {pcr: value for pcr, value in quoted[bank].items() if pcr not in _NOT_OF_THE_BOOT}
        if not of_boot:
            continue
        try:
            replayed[bank] = replay(parsed, bank=bank, quoted=of_boot)
        except ReplayMismatch as exc:
            findings += [_mismatch(exc.bank, mismatch) for mismatch in exc.mismatches]
        except NoSuchBank:
            continue
    if findings:
        return replace(empty, findings=tuple(findings))
    if not replayed:
        return replace(empty, findings=(_nothing_comparable(parsed.banks),))
    strongest = next(iter(replayed.values()))
    boot = observe(strongest)
    findings += _checked(boot, reference)
    findings += _unquoted(strongest, values.get(strongest.bank, {}))
    return replace(empty, findings=tuple(findings), boot=boot)


def _checked(boot: Boot, reference: BootReference | None) -> tuple[Finding, ...]:
    if reference is not None:
        return reference.check(boot)
    return (*boot.problems, *secure_boot.findings(boot.secure_boot, required=False))


def _unproven(parsed: eventlog.UntrustedLog, empty: BootAppraisal, reference: BootReference | None) -> BootAppraisal:
    message = "there is no quote: what the log says is replayed, and nothing of it is proven"
    remedy = "give the TPM's quote, its signature, the attestation key and the nonce"
    not_proven = Finding(FindingCode.NOT_PROVEN, Severity.WARNING, message, remedy)
    bank = fullest_bank(parsed)
    if bank is None:
        return replace(empty, findings=(not_proven,))
    boot = observe(replay_unproven(parsed, bank=bank))
    found = _checked(boot, reference)
    if reference is None:
        # Nobody has said what this boot should be, and nothing shows that it is one: no reason to fail a host.
        found = tuple(replace(each, severity=_at_most_warning(each.severity)) for each in found)
    return replace(empty, findings=(not_proven, *found), boot=boot)


def _at_most_warning(severity: Severity) -> Severity:
    return Severity.WARNING if severity is Severity.ERROR else severity


def log_missing(severity: Severity) -> Finding:
    """The finding of a host that keeps no boot log, or sends none."""
    message = "there is no boot log: nothing shows what the host has booted"
    remedy = (
        "boot with a loader that keeps the firmware's log (with Secure Boot off, GRUB's plain `linux` command does"
        " not), and have the agent send /sys/kernel/security/tpm0/binary_bios_measurements"
    )
    return Finding(FindingCode.LOG_MISSING, severity, message, remedy)


def _mismatch(bank: HashAlg, mismatch: PcrMismatch) -> Finding:
    message = f"the boot log does not give the quoted value of PCR {mismatch.pcr} ({bank.label})"
    if mismatch.matching_event is not None and mismatch.matching_event >= 0:
        message += f": it does up to event {mismatch.matching_event}, and what follows was not measured"
    return Finding(
        FindingCode.LOG_DOES_NOT_REPLAY,
        Severity.ERROR,
        message,
        _RESTORE,
        mismatch.pcr,
        mismatch.matching_event,
        expected=mismatch.quoted.hex(),
        observed=mismatch.replayed.hex(),
    )


def _nothing_comparable(banks: tuple[HashAlg, ...]) -> Finding:
    has = ", ".join(bank.label for bank in banks)
    message = f"the boot log has no digests for any PCR that was quoted; it has those of {has or 'no known bank'}"
    remedy = "have the agent quote PCRs 0 to 9 and 14 in a bank that the firmware measures into"
    return Finding(FindingCode.BANK_INACTIVE, Severity.ERROR, message, remedy)


def _unquoted(log: ReplayedLog, values: Mapping[int, bytes]) -> list[Finding]:
    left = sorted((values.keys() & LOGGED_PCRS) - (log.proven or frozenset()))
    if not left:
        return []
    message = f"the quote does not cover PCR {', '.join(map(str, left))}: what the log says of them is not proven"
    remedy = "have the agent quote PCRs 0 to 9 and 14"
    return [Finding(FindingCode.NOT_PROVEN, Severity.WARNING, message, remedy, left[0])]
