"""Can this host migrate encrypted to that one? No host tells; so a throw-away domain is migrated, and goes again.

It proves certificates, names, ports and firewall of the pair in one direction. NOT proven: the ports of disk copies,
which take the same certificates, and that a VM's processor and machine fit.
"""

import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import permutations
from typing import Final
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from encryption.engine.migration import Mode
from encryption.models import MigrationProbe, VmMigration
from inventory import events, jobs
from inventory.authorize import SYSTEM, VIEW, Actor, authorize
from inventory.errors import Conflict, NotFound, ServiceError, Unavailable
from inventory.jobs import Progress
from inventory.models import Cluster, Event, Host, Job, JobStatus, Severity, VirtualMachine
from inventory.services import connections
from inventory.services.connections import Hypervisor, HypervisorError, Migration

log = logging.getLogger(__name__)

PROBE: Final = jobs.register(jobs.JobKind("encryption.probe_migration", "Probe encrypted migration"))
ACTION: Final = "encryption.probe_migration"
FRESH: Final = timedelta(minutes=15)
MOST_VMS: Final = 20


@dataclass(frozen=True, slots=True)
class Cell:
    """What is known of one pair; `probe` None: never tried. On the diagonal `is_self`."""

    target: Host
    probe: MigrationProbe | None
    is_self: bool


@dataclass(frozen=True, slots=True)
class Line:
    source: Host
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Stuck:
    """A running VM that must migrate encrypted and can go to no host of its cluster, or whose last migration failed."""

    vm: VirtualMachine
    reason: str


@dataclass(frozen=True, slots=True)
class Matrix:
    hosts: tuple[Host, ...]
    lines: tuple[Line, ...]
    stuck: tuple[Stuck, ...]


def matrix(*, cluster_id: UUID, actor: Actor) -> Matrix:
    """Hosts by hosts, as last probed, and the VMs that could not move. A fixed number of queries."""
    cluster = _cluster(cluster_id)
    authorize(actor, VIEW, cluster)
    hosts = tuple(cluster.hosts.all())
    probes = {(row.source_id, row.target_id): row for row in MigrationProbe.objects.filter(source__in=hosts)}
    lines = tuple(
        Line(
            source,
            tuple(Cell(target, probes.get((source.pk, target.pk)), source.pk == target.pk) for target in hosts),
        )
        for source in hosts
    )
    return Matrix(hosts, lines, tuple(_stuck(hosts, probes)))


def _stuck(hosts: tuple[Host, ...], probes: dict[tuple[UUID, UUID], MigrationProbe]) -> Iterable[Stuck]:
    found: dict[UUID, Stuck] = {}
    rows = VirtualMachine.objects.filter(host__in=hosts, is_present=True)
    for source in hosts:
        ways = [probes.get((source.pk, target.pk)) for target in hosts if target.pk != source.pk]
        if not ways or any(way is None or way.is_ready for way in ways):
            continue
        required = rows.filter(host=source, power_state__in=("on", "paused"))
        wanted = set(
            VmMigration.objects.filter(virtual_machine__in=required, encrypted=Mode.REQUIRED).values_list(
                "virtual_machine_id", flat=True
            )
        )
        wanted |= set(required.filter(wrapped_secrets__isnull=False).values_list("pk", flat=True))
        for vm in required.filter(pk__in=wanted).select_related("host")[:MOST_VMS]:
            found[vm.pk] = Stuck(vm, f"must migrate encrypted, and {source} can do so to no host of its cluster")
    failed = Job.objects.filter(
        kind="encryption.migrate_vm", status=JobStatus.FAILED, target_id__in=rows.values("pk")
    ).order_by("-created_at")
    latest: dict[UUID, Job] = {}
    for job in failed[: 5 * MOST_VMS]:
        latest.setdefault(job.target_id, job)
    moved = dict(
        Event.objects.filter(kind="vm.migrated", target_id__in=latest).order_by("id").values_list("target_id", "time")
    )
    for vm in rows.filter(pk__in=latest).select_related("host")[:MOST_VMS]:
        job = latest[vm.pk]
        if vm.pk not in found and not (vm.pk in moved and moved[vm.pk] > job.created_at):
            found[vm.pk] = Stuck(vm, job.message)
    return found.values()


def _cluster(cluster_id: UUID) -> Cluster:
    found = Cluster.objects.select_related("datacenter").filter(pk=cluster_id).first()
    if found is None:
        raise NotFound("cluster_not_found", f"there is no cluster {cluster_id}")
    return found


@transaction.atomic
def probe_cluster(*, cluster_id: UUID, actor: Actor) -> Job:
    """Starts the job that tries all pairs of the cluster's connected hosts, in both directions.

    Raises NotFound, Refused, Conflict (`too_few_hosts`, `target_busy`).
    """
    cluster = _cluster(cluster_id)
    authorize(actor, ACTION, cluster)
    if len(_connected(cluster)) < 2:
        raise Conflict(
            "too_few_hosts", f"{cluster} has fewer than two connected hosts", hint="add or connect another host first"
        )
    job = jobs.start(PROBE, target=cluster, actor=actor)
    events.record(
        "cluster.migration_probe_requested", f"Probe of encrypted migration in {cluster} requested", target=cluster,
        actor=actor, job=job,
    )  # fmt: skip
    return job


def run_probe_cluster(job: Job, progress: Progress) -> None:
    """Worker side of `probe_cluster`."""
    cluster = _cluster(job.target_id)
    pairs = list(permutations(_connected(cluster), 2))
    progress.step("trying pairs of hosts", total=len(pairs))
    for number, (source, target) in enumerate(pairs):
        progress.advance(number)
        probe(source, target, actor=job.actor, job=job)


def probe_all() -> int:
    """On schedule; how many pairs were tried."""
    count = 0
    for cluster in Cluster.objects.all():
        for source, target in permutations(_connected(cluster), 2):
            probe(source, target, actor=SYSTEM)
            count += 1
    return count


def _connected(cluster: Cluster) -> list[Host]:
    return [host for host in cluster.hosts.filter(state=Host.State.CONNECTED) if connections.migration_uri(host)]


def probe(source: Host, target: Host, *, actor: Actor | str, job: Job | None = None) -> MigrationProbe:
    """Tries one pair now and writes what came of it; an event where that is news. A failure is a result, no error."""
    error: ServiceError | None = None
    try:
        with connections.open_host(target) as there, connections.open_host(source) as here:
            _try(here, there, target)
    except ServiceError as exc:
        error = exc
    return _note(source, target, error, actor=actor, job=job)


def _try(here: Hypervisor, there: Hypervisor, target: Host) -> None:
    probe_uuid = uuid.uuid4()
    try:
        here.start_probe(probe_uuid)
        here.migrate(probe_uuid, Migration(connections.migration_uri(target), uses_tls=True, is_transient=True))
    finally:
        for end in (here, there):
            try:
                end.end_probe(probe_uuid)
            except HypervisorError as exc:
                log.warning("a probe of migration is left over: %s", exc.message)


def _note(
    source: Host, target: Host, error: ServiceError | None, *, actor: Actor | str, job: Job | None
) -> MigrationProbe:
    code, reason, remedy = ("", "", "") if error is None else (error.code, error.message, error.hint)
    before = MigrationProbe.objects.filter(source=source, target=target).first()
    with transaction.atomic():
        row, _ = MigrationProbe.objects.update_or_create(
            source=source, target=target,
            defaults={
                "is_ready": error is None, "code": code[:64], "reason": reason[:500], "remedy": remedy[:500],
                "checked_at": timezone.now(),
            },
        )  # fmt: skip
        if before is None or (before.is_ready, before.code) != (row.is_ready, row.code):
            can = "can" if row.is_ready else "cannot"
            events.record(
                "host.migration_ready" if row.is_ready else "host.migration_not_ready",
                f"{source} {can} migrate encrypted to {target}" + (f": {reason}" if reason else ""), target=source,
                actor=actor, job=job, severity=Severity.INFO if row.is_ready else Severity.WARNING,
                target_host=target.name, code=code,
            )  # fmt: skip
    return row


def fresh(source: Host, target: Host, *, job: Job) -> MigrationProbe:
    """The last result if it is good and of late, else a new one. Worker side, before a move."""
    row = MigrationProbe.objects.filter(source=source, target=target).first()
    if row is not None and row.is_ready and timezone.now() - row.checked_at < FRESH:
        return row
    return probe(source, target, actor=job.actor, job=job)


def failure(row: MigrationProbe) -> ServiceError:
    """What a move that must be encrypted is refused with."""
    text = f"{row.source} cannot migrate encrypted to {row.target}: {row.reason}"
    kind = Unavailable if row.code in ("target_unreachable", "connection_refused", "host_timeout") else Conflict
    return kind(row.code or "migration_tls_unavailable", text, hint=row.remedy)
