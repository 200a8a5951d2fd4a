"""Measurements against an ImaReference: findings for files that nothing approves.

A file is approved by an allowed digest for its path, by an excluded pattern, or by a signature of a given key.

NOT checked: buffers (ima-buf: keys added to keyrings, kexec command lines), which are no files; in which order or how
often files were measured; files that IMA's policy does not measure.
"""

from collections.abc import Mapping

from attestation.engine.boot.uefi import printable
from attestation.engine.findings import Finding, FindingCode, Severity
from attestation.engine.glob import Glob
from attestation.engine.ima.measurements import IMA_PCR, Measurements
from attestation.engine.ima.signatures import SigningKeys
from attestation.engine.reference import ImaReference
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.pcrs import PcrValues

# A host whose reference is of another release has thousands; the report shows the first ones and the number.
MAX_FINDINGS_OF_A_KIND = 100

_NONE: frozenset[bytes] = frozenset()
# The kernel hashes PCR 0 to 7 with SHA-1, and 0 to 9 with any other hash (ima_calc_boot_aggregate_tfm).
_AGGREGATED_PCRS = 10
_AGGREGATED_PCRS_SHA1 = 8


class ImaPolicy:
    """An ImaReference made ready: an allowlist of bytes, patterns compiled, keys loaded. Make one, check many hosts.

    Raises ValueError for a key, BadPattern for a pattern that cannot be used.
    """

    def __init__(self, reference: ImaReference) -> None:
        self.reference = reference
        self._allowed: Mapping[bytes, frozenset[bytes]] = {
            _as_measured(path): frozenset(digest.encode("ascii") for digest in digests)
            for path, digests in reference.allowed.items()
        }
        self._excluded = [Glob(pattern, separator="/") for pattern in reference.excluded]
        self._keys = SigningKeys(reference.keys)

    def check(self, measured: Measurements) -> tuple[Finding, ...]:
        """Findings for these lines only; what earlier pieces held was said then."""
        return (*self._violations(measured), *self._unapproved(measured))

    def unapproved(self, measured: Measurements) -> list[int]:
        """Entries of files that nothing approves."""
        allowed = self._allowed
        suspects = [
            entry
            for entry, (path, digest) in enumerate(zip(measured.paths, measured.digests, strict=True))
            if digest not in allowed.get(path, _NONE)
        ]
        first = 1 if measured.boot_aggregate is not None else 0
        no_files = measured.buffers.union(measured.violations)
        excluded: dict[bytes, bool] = {}
        return [
            entry
            for entry in suspects
            if entry >= first
            and entry not in no_files
            and not self._keys.approve(measured.digests[entry], measured.signatures.get(entry, b""))
            and not self._is_excluded(measured.paths[entry], excluded)
        ]

    def _is_excluded(self, path: bytes, seen: dict[bytes, bool]) -> bool:
        known = seen.get(path)
        if known is None:
            text = path.decode("utf-8", "replace")
            known = seen[path] = any(pattern.matches(text) for pattern in self._excluded)
        return known

    def _violations(self, measured: Measurements) -> list[Finding]:
        severity = Severity.WARNING if self.reference.tolerate_violations else Severity.ERROR
        excluded: dict[bytes, bool] = {}
        told = [each for each in measured.violations if not self._is_excluded(measured.paths[each], excluded)]
        found = [
            Finding(
                FindingCode.IMA_VIOLATION,
                severity,
                f"{_shown(measured.paths[entry])} changed while it was open, so its measurement says nothing",
                "see what writes to a file that is being run or read; exclude the path if that is its nature",
                pcr=IMA_PCR,
                event=measured.first_line + entry,
            )
            for entry in told[:MAX_FINDINGS_OF_A_KIND]
        ]
        if len(told) > MAX_FINDINGS_OF_A_KIND:
            found.append(_more(found[-1], len(told) - MAX_FINDINGS_OF_A_KIND))
        return found

    def _unapproved(self, measured: Measurements) -> list[Finding]:
        entries = self.unapproved(measured)
        found = [self._unapproved_file(measured, entry) for entry in entries[:MAX_FINDINGS_OF_A_KIND]]
        if len(entries) > MAX_FINDINGS_OF_A_KIND:
            found.append(_more(found[-1], len(entries) - MAX_FINDINGS_OF_A_KIND))
        return found

    def _unapproved_file(self, measured: Measurements, entry: int) -> Finding:
        path = measured.paths[entry]
        allowed = self._allowed.get(path)
        why = "has another content than the approved one" if allowed else "is not among the approved files"
        return Finding(
            FindingCode.UNAPPROVED_FILE,
            Severity.ERROR,
            f"{_shown(path)} {why}",
            "accept it into the reference values if it was installed on purpose; else find out who put it there",
            pcr=IMA_PCR,
            event=measured.first_line + entry,
            expected=b", ".join(sorted(allowed)).decode("ascii") if allowed else "an approved file",
            observed=printable(measured.digests[entry].decode("ascii", "replace")),
        )


def boot_aggregate_finding(measured: Measurements, pcrs: PcrValues) -> Finding | None:
    """Line 0 must be the hash of the quoted PCR 0 to 9, so that list and boot belong together.

    None where it is, where this piece begins later, and where the values of that bank are not at hand (not checked).
    """
    if measured.first_line or not measured.paths:
        return None
    aggregate = measured.boot_aggregate
    if aggregate is None:
        return _other_boot("the IMA list does not begin with boot_aggregate", "none")
    expected = _boot_aggregate(aggregate.partition(b":")[0].decode("ascii", "replace"), pcrs)
    if expected is None or expected == aggregate:
        return None
    return _other_boot("the IMA list is of another boot than the quoted PCRs", aggregate.decode("ascii", "replace"))


def _boot_aggregate(label: str, pcrs: PcrValues) -> bytes | None:
    try:
        bank = HashAlg.of_label(label)
    except KeyError:
        return None
    values = pcrs.get(bank, {})
    wanted = range(_AGGREGATED_PCRS_SHA1 if bank is HashAlg.SHA1 else _AGGREGATED_PCRS)
    if any(pcr not in values for pcr in wanted):
        return None
    digest = bank.digest(b"".join(values[pcr] for pcr in wanted))
    return f"{bank.label}:{digest.hex()}".encode("ascii")


def _other_boot(message: str, observed: str) -> Finding:
    return Finding(
        FindingCode.IMA_DOES_NOT_REPLAY,
        Severity.ERROR,
        message,
        "have the agent send the whole list of this boot; if it did, treat the list as edited",
        pcr=IMA_PCR,
        event=0,
        expected="boot_aggregate over the quoted PCR 0 to 9",
        observed=observed,
    )


def _more(last: Finding, count: int) -> Finding:
    return Finding(last.code, last.severity, f"{count} more of these are left out", last.remedy, pcr=IMA_PCR)


def _as_measured(path: str) -> bytes:
    return path.replace(" ", "_").encode("utf-8")


def _shown(path: bytes) -> str:
    return printable(path.decode("utf-8", "backslashreplace"))


def allowed_files(measured: Measurements) -> dict[str, frozenset[str]]:
    """For a baseline: what these lines measured, as ImaReference.allowed has it.

    Without paths that are not UTF-8: reference values are text, so such files need an excluded pattern or a signature.
    """
    found: dict[str, set[str]] = {}
    first = 1 if measured.boot_aggregate is not None else 0
    no_files = measured.buffers.union(measured.violations)
    for entry in range(first, len(measured.paths)):
        path = measured.paths[entry].decode("utf-8", "replace")
        if entry not in no_files and "\ufffd" not in path:
            found.setdefault(path, set()).add(measured.digests[entry].decode("ascii"))
    return {path: frozenset(digests) for path, digests in found.items()}
