"""Hosts: added by URI, connected and read by a worker, edited, removed."""

from typing import Final
from uuid import UUID

from django.db import IntegrityError, transaction
from django.utils import timezone

from inventory import alarms, events, jobs
from inventory.authorize import SYSTEM, Actor, authorize
from inventory.engine.hypervisor import HostFacts, Hypervisor
from inventory.errors import Conflict, Invalid, NotFound, ServiceError
from inventory.jobs import Progress
from inventory.models import LIVE_STATUSES, Host, Job, Severity, TargetKind, VirtualMachine
from inventory.services import connections, sync
from inventory.services.places import checked_name, cluster_of
from inventory.services.virtual_machines import refuse_removal

CONNECT: Final = jobs.register(jobs.JobKind("inventory.connect_host", "Connect host"))
REFRESH: Final = jobs.register(jobs.JobKind("inventory.refresh_host", "Refresh host"))
ADD: Final = "inventory.add_host"
EDIT: Final = "inventory.edit_host"
REMOVE: Final = "inventory.remove_host"
READ: Final = "inventory.refresh_host"
LOST: Final = "host.disconnected"  # the alarm


def add_host(
    *,
    cluster_id: UUID,
    name: str,
    uri: str,
    actor: Actor,
    migration_uri: str = "",
    vtpm_state_path: str = "",
) -> Job:
    """Adds a host and starts the job that connects it and reads what is on it.

    Raises Invalid for a name or URI that is not allowed, Conflict `host_exists`. Whether the host answers shows in the
    job; a host that does not stays in the inventory, disconnected, to be edited, tried again or removed.
    """
    cluster = cluster_of(cluster_id)
    authorize(actor, ADD, cluster)
    host = Host(cluster=cluster)
    _fill(host, name, uri, migration_uri, vtpm_state_path)
    try:
        with transaction.atomic():
            host.save(force_insert=True)
            events.record(
                "host.added",
                f"{host} added to {cluster}",
                target=host,
                actor=actor,
                uri=host.uri,
            )
            return jobs.start(CONNECT, target=host, actor=actor)
    except IntegrityError as exc:
        raise _exists(host) from exc


def refresh_host(*, host_id: UUID, actor: Actor) -> Job:
    """Reads the host anew; the way to try a disconnected host again."""
    host = host_of(host_id)
    authorize(actor, READ, host)
    return jobs.start(REFRESH, target=host, actor=actor)


def edit_host(
    *,
    host_id: UUID,
    name: str,
    uri: str,
    actor: Actor,
    migration_uri: str = "",
    vtpm_state_path: str = "",
) -> Job | None:
    """Changes name and ways to the host. With another URI it is connected anew, by the job that is returned."""
    host = host_of(host_id)
    authorize(actor, EDIT, host)
    before = (host.name, host.uri, host.migration_uri, host.vtpm_state_path)
    _fill(host, name, uri, migration_uri, vtpm_state_path)
    if before == (host.name, host.uri, host.migration_uri, host.vtpm_state_path):
        return None
    try:
        with transaction.atomic():
            fields = ["name", "uri", "migration_uri", "vtpm_state_path"]
            if host.uri != before[1]:
                host.state, host.state_reason = Host.State.CONNECTING, ""
                fields += ["state", "state_reason"]
            host.save(update_fields=fields)
            events.record("host.edited", f"Settings of {host} changed", target=host, actor=actor, uri=host.uri)
            return jobs.start(CONNECT, target=host, actor=actor) if host.uri != before[1] else None
    except IntegrityError as exc:
        raise _exists(host) from exc


def remove_host(*, host_id: UUID, actor: Actor) -> None:
    """Drops the host and its virtual machines from the inventory. Nothing changes on the host itself.

    Raises Conflict `target_busy` while a job is at work on it or one of its virtual machines.
    """
    host = host_of(host_id)
    authorize(actor, REMOVE, host)
    with transaction.atomic():
        Host.objects.select_for_update().filter(pk=host.pk).first()
        live = Job.objects.filter(status__in=LIVE_STATUSES, target_kind=TargetKind.HOST, target_id=host.pk)
        if live.exists():
            raise Conflict("target_busy", f"{host} is busy", hint="wait for it in Recent Tasks, or cancel it there")
        rows = VirtualMachine.objects.filter(host=host)
        refuse_removal(rows)
        events.record(
            "host.removed",
            f"{host} removed from the inventory",
            target=host,
            actor=actor,
            uri=host.uri,
            virtual_machines=rows.count(),
        )
        gone = list(rows.values_list("pk", flat=True))
        host.delete()
        alarms.drop_alarms(TargetKind.VIRTUAL_MACHINE, gone)
        alarms.drop_alarms(TargetKind.HOST, [host_id])


def host_of(host_id: UUID) -> Host:
    found = Host.objects.select_related("cluster__datacenter").filter(pk=host_id).first()
    if found is None:
        raise NotFound("host_not_found", f"there is no host {host_id}")
    return found


def run_connect_host(job: Job, progress: Progress) -> None:
    """The work of `inventory.connect_host` and `inventory.refresh_host`."""
    host = _target(job)
    progress.step("connecting")
    try:
        with connections.open_host(host) as hypervisor:
            progress.step("reading host and virtual machines")
            connected(host, hypervisor, actor=job.actor, job=job)
    except ServiceError as exc:
        disconnected(host, exc, job=job)
        raise


def connected(
    host: Host, hypervisor: Hypervisor, *, actor: str = SYSTEM.username, job: Job | None = None
) -> sync.Synced:
    """Notes that the host answers, reads its facts, and syncs it. Worker side.

    Raises Conflict `host_known_already` where the same machine is in the inventory under another name, and
    HypervisorError where it cannot be read.
    """
    facts = hypervisor.facts()
    _refuse_twice(host, facts)
    values = {name: getattr(facts, name) for name in facts.__dataclass_fields__}
    values |= {"abilities": hypervisor.abilities().as_row(), "abilities_checked_at": timezone.now()}
    with transaction.atomic():
        # The URI belongs to the condition: a host that has been edited meanwhile is somebody else's to report on.
        mine = Host.objects.filter(pk=host.pk, uri=host.uri)
        before = mine.values_list("state", flat=True).first()
        if before is None:
            raise NotFound("host_not_found", f"{host.name} was changed or removed meanwhile")
        mine.update(state=Host.State.CONNECTED, state_reason="", **values)
        if before != Host.State.CONNECTED:
            events.record("host.connected", f"{host.name} is connected", target=host, actor=actor, job=job)
            alarms.clear_alarm(LOST, target=host, job=job, is_told=True)
    synced = sync.sync_host(host, hypervisor, actor=actor, job=job)
    host.refresh_from_db()
    return synced


def refresh_facts(host: Host, hypervisor: Hypervisor) -> None:
    """Free memory, versions and the like; no event. Worker side, may raise HypervisorError."""
    facts = hypervisor.facts()
    Host.objects.filter(pk=host.pk).update(**{name: getattr(facts, name) for name in facts.__dataclass_fields__})


def disconnected(host: Host, error: ServiceError, *, job: Job | None = None) -> None:
    """Notes that the host does not answer, with the reason; an event only when that is news. Worker side."""
    reason = str(error)[:500]
    with transaction.atomic():
        mine = Host.objects.filter(pk=host.pk, uri=host.uri)
        before = mine.values_list("state", "state_reason").first()
        if before is None or before == (Host.State.DISCONNECTED, reason):
            return
        mine.update(state=Host.State.DISCONNECTED, state_reason=reason)
        alarms.raise_alarm(
            LOST, f"{host.name} is disconnected: {error.message}", target=host, severity=Severity.ERROR,
            remedy=error.hint or "see why the host does not answer; it is tried again all the time", job=job,
            evidence=[f"{error.code}: {reason}"], is_told=True,
        )  # fmt: skip
        if before[0] != Host.State.DISCONNECTED:
            events.record(
                "host.disconnected",
                f"{host.name} is disconnected: {reason}",
                target=host,
                actor=SYSTEM.username if job is None else job.actor,
                severity=Severity.ERROR,
                job=job,
                code=error.code,
            )


def _refuse_twice(host: Host, facts: HostFacts) -> None:
    if facts.host_uuid is None:
        return
    same = Host.objects.filter(host_uuid=facts.host_uuid).exclude(pk=host.pk).first()
    if same is not None:
        raise Conflict(
            "host_known_already",
            f"{host.name} is the same machine as {same.name} (host UUID {facts.host_uuid})",
            hint=f"remove one of them, or give each its own host_uuid in libvirtd.conf if they differ from {same.name}",
        )


def _fill(host: Host, name: str, uri: str, migration_uri: str, vtpm_state_path: str) -> None:
    host.name = checked_name(name, 120)
    host.uri = connections.check_uri(uri.strip()).text
    host.migration_uri = migration_uri.strip()
    if host.migration_uri:
        connections.check_migration_uri(host.migration_uri)
    host.vtpm_state_path = vtpm_state_path.strip()
    path = host.vtpm_state_path
    if path and (not path.startswith("/") or len(path) > 1000 or not path.isprintable() or ".." in path.split("/")):
        raise Invalid("path_invalid", "the vTPM state folder must be an absolute path", hint="leave it empty if unsure")


def _exists(host: Host) -> Conflict:
    by_uri = Host.objects.filter(uri=host.uri).exclude(pk=host.pk).first()
    text = f"{by_uri.name} has this URI already" if by_uri else f"there is a host {host.name} already"
    return Conflict("host_exists", text, hint="choose another name, or edit that host")


def _target(job: Job) -> Host:
    host = Host.objects.filter(pk=job.target_id).first()
    if host is None:
        raise NotFound("host_not_found", f"{job.target_name} is no longer in the inventory")
    return host
