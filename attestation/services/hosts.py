"""Attesting a host because somebody asks, or because it came back; tidying up what attestations leave."""

from datetime import timedelta
from typing import Final
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from attestation.models import (
    GOOD,
    EventLog,
    Evidence,
    HostAttestation,
    PendingRegistration,
    Verdict,
    VerdictReason,
    VerdictStatus,
)
from attestation.services import schedule, verifier
from attestation.services.enrolment import identity_of
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, Unavailable, Untrusted
from inventory.jobs import Progress
from inventory.models import Host, Job
from inventory.services.connections import Hypervisor
from inventory.services.hosts import host_of

ATTEST: Final = jobs.register(jobs.JobKind("attestation.attest_host", "Attest host", queue=schedule.QUEUE))
KEEP_NEWEST: Final = 100
KEEP_CHANGES: Final = timedelta(days=180)
KEEP_REGISTRATIONS: Final = timedelta(days=30)


@transaction.atomic
def attest_host(*, host_id: UUID, actor: Actor) -> Job:
    """Starts the job that attests the host now. Raises Conflict `host_not_enrolled`, `target_busy`."""
    host = host_of(host_id)
    authorize(actor, ATTEST.name, host)
    identity_of(host)
    job = jobs.start(ATTEST, target=host, actor=actor)
    events.record("host.attestation_requested", f"Attestation of {host} requested", target=host, actor=actor, job=job)
    return job


def run_attest_host(job: Job, progress: Progress) -> None:
    """Worker side. Fails with `host_not_trusted` where the verdict is bad, and where nothing answers."""
    host = host_of(job.target_id)
    identity_of(host)
    progress.step("asking the host's agent")
    before = HostAttestation.objects.filter(host=host).values_list("checked_at", flat=True).first()
    if not verifier.attest_hosts([host.pk], reason=VerdictReason.DEMAND):
        raise Conflict(
            "host_being_attested", f"{host} is being attested just now", hint="look at its report in a moment"
        )
    standing = HostAttestation.objects.select_related("verdict").get(host=host)
    if standing.status == VerdictStatus.UNREACHABLE:
        raise Unavailable("agent_unreachable", f"{host} cannot be attested: {standing.message}", hint="see its report")
    if standing.status not in GOOD or standing.checked_at == before:
        raise Untrusted("host_not_trusted", f"{host} failed its attestation: {standing.message}", hint="see its report")


def after_reconnect(host: Host, hypervisor: Hypervisor) -> None:
    """A host that answers again may have booted anew: its last verdict opens no gate until there is a new one."""
    if HostAttestation.objects.filter(host=host).exists():
        schedule.void_and_attest(host.pk, reason=VerdictReason.RECONNECT)


def prune() -> int:
    """Drops evidence and verdicts that nobody needs: of each host the newest 100 stay, and changes for half a year.
    Returns how many verdicts went."""
    now = timezone.now()
    dropped = 0
    for host_id in Host.objects.filter(verdicts__isnull=False).distinct().values_list("pk", flat=True):
        of_host = Verdict.objects.filter(host=host_id)
        oldest = of_host.values_list("pk", flat=True)[KEEP_NEWEST - 1 : KEEP_NEWEST].first()
        if oldest is None:
            continue
        old = of_host.filter(pk__lt=oldest, made_references__isnull=True)
        kept = old.filter(is_change=True, checked_at__gte=now - KEEP_CHANGES)
        Evidence.objects.filter(verdict__in=old).exclude(verdict__in=kept.filter(status=VerdictStatus.FAILED)).delete()
        count, _ = old.exclude(pk__in=kept.values("pk")).delete()
        dropped += count
    Evidence.objects.filter(verdict__isnull=True, taken_at__lt=now - timedelta(days=1)).delete()
    EventLog.objects.filter(evidence__isnull=True, first_seen_at__lt=now - timedelta(days=1)).delete()
    PendingRegistration.objects.filter(created_at__lt=now - KEEP_REGISTRATIONS).delete()
    return dropped
