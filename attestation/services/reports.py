"""What people see of attestation: the table of hosts, one host's report, its boot log. Reads rows, asks nobody."""

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from django.db.models import QuerySet
from django.utils import timezone

from attestation.engine.boot import eventlog
from attestation.engine.boot.describe import describe
from attestation.engine.boot.replay import Coverage, fullest_bank, pcr_values, replay_unproven
from attestation.engine.errors import Malformed
from attestation.models import (
    AttestationPolicy,
    EventLog,
    Evidence,
    HostAttestation,
    PendingRegistration,
    ReferenceSet,
    TpmIdentity,
    Verdict,
    VerdictStatus,
)
from attestation.services import appraisals, enrolment, gate, references
from attestation.services.policies import policy_of
from inventory.authorize import VIEW, Actor, authorize, visible
from inventory.errors import NotFound
from inventory.models import Host
from inventory.services.hosts import host_of
from inventory.services.listings import FIRST, Listing, Paging, cut, listed

TIMELINE: Final = 50
_PCR_MEANINGS: Final = {
    0: "Firmware code", 1: "Firmware settings", 2: "Option ROMs", 3: "Option ROM settings", 4: "Boot loader, kernel",
    5: "Boot loader settings, partitions", 6: "Platform events", 7: "Secure Boot", 8: "Kernel command line",
    9: "Files read by the boot loader", 10: "Files run since boot (IMA)", 14: "Machine owner keys",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostLine:
    """One line of Monitor, Security."""

    host: Host
    has_tpm: bool
    is_required: bool
    status: VerdictStatus
    message: str
    secure_boot: bool | None
    checked_at: datetime | None
    passed_at: datetime | None


@dataclass(frozen=True, slots=True)
class PcrRow:
    """Hexadecimal values, empty where there is none. `expected`: of the boot that became the baseline, for comparison
    by eye: firmware registers may differ without harm. `agrees`: log and quote; None where the log does not tell."""

    index: int
    meaning: str
    expected: str
    quoted: str
    replayed: str
    agrees: bool | None


@dataclass(frozen=True, slots=True)
class EventLine:
    """One event of a boot log. `is_covered`: its data hash to the measured digest, else they are only a claim."""

    number: int
    pcr: int
    type: str
    summary: str
    fields: Sequence[tuple[str, str]]
    digest: str
    is_covered: bool


@dataclass(frozen=True, slots=True)
class HostReport:
    """All of one host. `verdict` is the one that is looked at: the last on evidence, where no other was asked for."""

    host: Host
    identity: TpmIdentity | None
    standing: HostAttestation | None
    status: VerdictStatus
    is_required: bool
    is_trusted: bool
    policy: AttestationPolicy
    reference: ReferenceSet | None
    verdict: Verdict | None
    is_latest: bool
    bank: str
    pcrs: Sequence[PcrRow]
    acceptable: Sequence[references.Acceptable]
    timeline: Sequence[Verdict]
    candidate: PendingRegistration | None
    other_tpm: PendingRegistration | None


def is_required(policy: AttestationPolicy, *, has_tpm: bool) -> bool:
    if policy.require == AttestationPolicy.Require.AUTO:
        return has_tpm
    return policy.require == AttestationPolicy.Require.ALWAYS


def hosts_of_cluster(*, cluster_id: UUID, actor: Actor, paging: Paging = FIRST) -> Listing[Host]:
    """Hosts with all that `line_of` needs, by name."""
    authorize(actor, VIEW)
    return listed(visible(_hosts(), actor).filter(cluster=cluster_id), paging)


def hosts_of_datacenter(*, datacenter_id: UUID, actor: Actor, paging: Paging = FIRST) -> Listing[Host]:
    authorize(actor, VIEW)
    return listed(visible(_hosts(), actor).filter(cluster__datacenter=datacenter_id), paging)


def all_hosts(*, actor: Actor, paging: Paging = FIRST) -> Listing[Host]:
    authorize(actor, VIEW)
    return listed(visible(_hosts(), actor), paging)


def _hosts() -> "QuerySet[Host]":
    return Host.objects.select_related("cluster__attestation_policy", "tpm_identity", "attestation__verdict").order_by(
        "name", "id"
    )


def line_of(host: Host) -> HostLine:
    """Of a host as the lists above give it; asks nothing more of the database."""
    has_tpm = getattr(host, "tpm_identity", None) is not None
    standing: HostAttestation | None = getattr(host, "attestation", None)
    policy = getattr(host.cluster, "attestation_policy", None) or AttestationPolicy(cluster=host.cluster)
    if standing is None or not has_tpm:
        return HostLine(
            host, has_tpm, is_required(policy, has_tpm=has_tpm), VerdictStatus.NOT_APPLICABLE,
            "no TPM of this host is enrolled", None, None, None,
        )  # fmt: skip
    verdict = standing.verdict
    return HostLine(
        host, has_tpm, is_required(policy, has_tpm=has_tpm), VerdictStatus(standing.status), standing.message,
        None if verdict is None else verdict.secure_boot, standing.checked_at, standing.passed_at,
    )  # fmt: skip


def statuses_of(ids: Sequence[UUID]) -> Mapping[UUID, VerdictStatus]:
    """Of hosts with an enrolled TPM, for badges. One query."""
    rows = HostAttestation.objects.filter(host__in=ids, host__tpm_identity__isnull=False)
    return {host_id: VerdictStatus(status) for host_id, status in rows.values_list("host_id", "status")}


def report(*, host_id: UUID, actor: Actor, verdict_id: int | None = None) -> HostReport:
    """Raises NotFound `host_not_found`, `verdict_not_found`."""
    host = host_of(host_id)
    authorize(actor, VIEW, host)
    identity = TpmIdentity.objects.select_related("ek_anchor").filter(host=host).first()
    standing = HostAttestation.objects.select_related("verdict").filter(host=host).first()
    policy, active = policy_of(host.cluster), appraisals.active_reference(host.cluster_id)
    latest = None if standing is None else standing.verdict_id
    verdict = None
    if verdict_id is not None or latest is not None:
        verdict = references.verdict_of(verdict_id or latest or 0, actor=actor)
        if verdict.host_id != host.pk:
            raise NotFound("verdict_not_found", f"there is no verdict {verdict_id} of {host}")
    status = VerdictStatus.NOT_APPLICABLE
    if identity is not None:
        status = VerdictStatus.PENDING if standing is None else VerdictStatus(standing.status)
    bank, pcrs = _pcr_table(verdict)
    is_latest = verdict is not None and verdict.pk == latest
    return HostReport(
        host=host,
        identity=identity,
        standing=standing,
        status=status,
        is_required=is_required(policy, has_tpm=identity is not None),
        is_trusted=standing is not None and gate.is_fresh(standing, policy, active, now=timezone.now()),
        policy=policy,
        reference=active,
        verdict=verdict,
        is_latest=is_latest,
        bank=bank,
        pcrs=pcrs,
        acceptable=references.acceptable(verdict) if verdict is not None and is_latest else [],
        timeline=list(Verdict.objects.filter(host=host, is_change=True)[:TIMELINE]),
        candidate=enrolment.matching_registration(host) if identity is None else None,
        other_tpm=None if identity is None else enrolment.other_tpm_of(identity),
    )


def verdicts(*, host_id: UUID, actor: Actor, paging: Paging = FIRST) -> Listing[Verdict]:
    """Newest first."""
    host = host_of(host_id)
    authorize(actor, VIEW, host)
    return listed(Verdict.objects.select_related("host", "reference").filter(host=host), paging)


def boot_events(
    *, verdict_id: int, actor: Actor, pcr: int | None = None, paging: Paging = FIRST
) -> tuple[Listing[EventLine], Sequence[int]]:
    """One page of a verdict's boot log, and the PCRs that it extends.

    Raises NotFound `verdict_not_found`, `boot_log_not_kept`.
    """
    verdict = references.verdict_of(verdict_id, actor=actor)
    log = None if verdict.evidence is None else verdict.evidence.event_log
    if log is None:
        raise NotFound("boot_log_not_kept", f"no boot log is kept with this verdict of {verdict.host}")
    lines = _lines(log)
    pcrs = sorted({line.pcr for line in lines if line.digest})
    chosen = [line for line in lines if pcr is None or line.pcr == pcr]
    return cut(chosen, paging), pcrs


def _lines(log: EventLog) -> Sequence[EventLine]:
    return _parsed_lines(log.pk)


@lru_cache(maxsize=8)
def _parsed_lines(sha256: str) -> tuple[EventLine, ...]:
    """Of a log that is kept, by its digest: such a row never changes."""
    content = gzip.decompress(bytes(EventLog.objects.values_list("content_gz", flat=True).get(pk=sha256)))
    try:
        parsed = eventlog.parse(content)
    except Malformed:
        return ()
    bank = fullest_bank(parsed)
    measured = {} if bank is None else {each.number: each for each in replay_unproven(parsed, bank=bank).events}
    lines = []
    for event in parsed.events:
        told, found = describe(event.type, event.data), measured.get(event.number)
        lines.append(
            EventLine(
                number=event.number,
                pcr=event.pcr if event.pcr <= eventlog.LAST_PCR else -1,
                type=told.type,
                summary=told.summary,
                fields=told.fields,
                digest="" if found is None else found.digest.hex(),
                is_covered=found is not None and found.coverage is not Coverage.NONE,
            )
        )
    return tuple(lines)


def _pcr_table(verdict: Verdict | None) -> tuple[str, Sequence[PcrRow]]:
    evidence = None if verdict is None else verdict.evidence
    if verdict is None or evidence is None:
        return "", []
    quoted = evidence.pcrs
    bank = max(quoted, key=lambda label: len(next(iter(quoted[label].values()), "")), default="sha256")
    of_quote: dict[str, str] = quoted.get(bank, {})
    of_log = {} if evidence.event_log is None else _replayed(evidence.event_log.pk).get(bank, {})
    of_baseline = _baseline_values(verdict.reference, bank)
    rows = []
    for index in sorted({*map(int, of_quote), *map(int, of_log)} & set(range(24))):
        key = str(index)
        in_quote, in_log = of_quote.get(key, ""), of_log.get(key, "")
        agrees = in_quote == in_log if in_quote and in_log else None
        rows.append(PcrRow(index, _PCR_MEANINGS.get(index, ""), of_baseline.get(key, ""), in_quote, in_log, agrees))
    return bank, rows


@lru_cache(maxsize=64)
def _replayed(sha256: str) -> dict[str, dict[str, str]]:
    content = gzip.decompress(bytes(EventLog.objects.values_list("content_gz", flat=True).get(pk=sha256)))
    try:
        return appraisals.pcrs_as_json(pcr_values(eventlog.parse(content)))
    except Malformed:
        return {}


def _baseline_values(reference: ReferenceSet | None, bank: str) -> dict[str, str]:
    if reference is None or reference.from_verdict_id is None:
        return {}
    row = Evidence.objects.filter(verdict=reference.from_verdict_id).values_list("pcrs", flat=True).first()
    found: dict[str, Any] = row or {}
    return dict(found.get(bank, {}))
