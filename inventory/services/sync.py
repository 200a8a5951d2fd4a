"""What a host reports becomes rows and events. The only writer of facts.

Facts are read first, outside any transaction. Then one transaction reads the rows again, compares and writes, so two
processes that look at the same host at once do not disturb each other (see engine/reconcile.py).
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from inventory import events
from inventory.authorize import SYSTEM
from inventory.engine.hypervisor import DatastoreFacts, DomainMissing, Hypervisor, VmFacts
from inventory.engine.reconcile import Changed, KnownVm, Plan, power_event, reconcile
from inventory.errors import NotFound, ServiceError
from inventory.models import (
    LIVE_STATUSES,
    Datastore,
    Event,
    Host,
    Job,
    Severity,
    TargetKind,
    VirtualMachine,
)
from inventory.services import connections, vm_rows

log = logging.getLogger(__name__)

ChangedHook = Callable[[Host], None]
_CHANGED: Final[list[ChangedHook]] = []


@dataclass(frozen=True, slots=True)
class Moving:
    """VMs, by libvirt's UUID, that a job of an app above brings to a host or takes from it: it tells when they have
    arrived."""

    arriving: frozenset[UUID] = frozenset()
    leaving: frozenset[UUID] = frozenset()


MovingHook = Callable[[Host], Moving]
_MOVING: Final[list[MovingHook]] = []

# So many uuids are asked for by name; for more, all rows of other hosts are looked through.
FEW = 500


def register_changed(hook: ChangedHook) -> None:
    """`hook` runs after rows of virtual machines of a host were written anew, in the same transaction: for what apps
    above conclude from facts. It must be as cheap for ten thousand VMs as for one."""
    _CHANGED.append(hook)


def register_moving(hook: MovingHook) -> None:
    """`hook` names domains of which the host is not believed yet that they are there, or no longer: for a moment of a
    migration both hosts have one, and the job that moves the row may be late, for its worker has died."""
    _MOVING.append(hook)


def _moving(host: Host) -> Moving:
    found = [hook(host) for hook in _MOVING]
    return Moving(
        frozenset(uuid for one in found for uuid in one.arriving),
        frozenset(uuid for one in found for uuid in one.leaving),
    )


def _without_arriving(moving: Moving, facts: list[VmFacts]) -> list[VmFacts]:
    return [fact for fact in facts if fact.uuid not in moving.arriving] if moving.arriving else facts


def _without_leaving(moving: Moving, rows: QuerySet[VirtualMachine], facts: list[VmFacts]) -> QuerySet[VirtualMachine]:
    """Rows of VMs that have left already stay as they are, until the job says where they are."""
    left = moving.leaving - {fact.uuid for fact in facts} if moving.leaving else None
    return rows.exclude(uuid__in=left) if left else rows


def _tell(host: Host, plan: Plan) -> None:
    if not plan.is_empty:
        for hook in _CHANGED:
            hook(host)


@dataclass(frozen=True, slots=True)
class Synced:
    """How many virtual machines a round found, and what it changed."""

    total: int
    new: int = 0
    changed: int = 0
    gone: int = 0


def sync_host(host: Host, hypervisor: Hypervisor, *, actor: str = SYSTEM.username, job: Job | None = None) -> Synced:
    """Brings all rows of the host in line with what libvirt reports. Raises HypervisorError where it cannot be read.

    On the host's first round one event tells the numbers; later every new, changed, gone and moved VM has its own.
    """
    read_at = timezone.now()
    mine = VirtualMachine.objects.filter(host=host)
    known = dict(mine.exclude(definition_sha256="").values_list("uuid", "definition_sha256"))
    kept = frozenset(vm_rows.kept_definitions(mine))
    moving = _moving(host)
    facts = _without_arriving(moving, list(hypervisor.virtual_machines(known_definitions=kept)))
    sync_datastores(host, hypervisor)
    facts, elsewhere = _settle_claims(host, facts, known.keys())
    with transaction.atomic():
        is_first = not _lock(host) and not mine.exists()
        plan = reconcile(vm_rows.load(_without_leaving(moving, mine, facts)), elsewhere, facts, read_at=read_at)
        new = vm_rows.write(plan, host.pk)
        vm_rows.keep_definitions(host.pk, facts)
        synced = Synced(len(facts), len(plan.new), len(plan.changed), len(plan.gone))
        _record(host, plan, new, tells_new=not is_first)
        if is_first:
            _record_first(host, synced, actor, job)
        _tell(host, plan)
        Host.objects.filter(pk=host.pk).update(last_seen_at=read_at)
    return synced


def refresh_virtual_machine(vm: VirtualMachine, hypervisor: Hypervisor) -> VirtualMachine:
    """Reads one VM anew and updates `vm` in place. One that the host no longer has is marked as gone.

    Raises HypervisorError where the host cannot be asked.
    """
    refresh_uuids(vm.host, hypervisor, [vm.uuid])
    vm.refresh_from_db()
    return vm


def refresh_uuids(host: Host, hypervisor: Hypervisor, uuids: Iterable[UUID]) -> None:
    """Reads some virtual machines anew by libvirt's UUIDs, also such as are not known yet."""
    read_at = timezone.now()
    wanted = set(uuids)
    facts = []
    for uuid in wanted:
        try:
            facts.append(hypervisor.virtual_machine(uuid))
        except DomainMissing:
            log.debug("%s no longer has domain %s", host, uuid)
    moving = _moving(host)
    facts = _without_arriving(moving, facts)
    mine = VirtualMachine.objects.filter(host=host, uuid__in=wanted)
    facts, elsewhere = _settle_claims(host, facts, set(mine.values_list("uuid", flat=True)))
    with transaction.atomic():
        _lock(host)
        # All rows given are those asked for, so whatever is missing among the facts is gone.
        plan = reconcile(vm_rows.load(_without_leaving(moving, mine, facts)), elsewhere, facts, read_at=read_at)
        new = vm_rows.write(plan, host.pk)
        vm_rows.keep_definitions(host.pk, facts)
        _record(host, plan, new, tells_new=True)
        _tell(host, plan)


def sync_datastores(host: Host, hypervisor: Hypervisor) -> None:
    """Storage pools become datastores; a fixed number of queries."""
    found = {facts.name: facts for facts in hypervisor.datastores()}
    with transaction.atomic():
        _lock(host)
        rows = Datastore.objects.filter(host=host)
        known = {row.name: row for row in rows}
        rows.exclude(name__in=found).delete()
        changed = [
            Datastore(host=host, **_datastore_values(facts))
            for name, facts in found.items()
            if name not in known or _datastore_values(facts) != _datastore_row(known[name])
        ]
        Datastore.objects.bulk_create(
            changed,
            update_conflicts=True,
            unique_fields=["host", "name"],
            update_fields=["kind", "path", "is_active", "capacity_bytes", "available_bytes"],
        )


def _datastore_values(facts: DatastoreFacts) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in facts.__dataclass_fields__}


def _datastore_row(row: Datastore) -> dict[str, Any]:
    return {name: getattr(row, name) for name in DatastoreFacts.__dataclass_fields__}


def _lock(host: Host) -> bool:
    """Holds off other writers of this host's rows until the transaction ends; whether it has been synced before."""
    seen = Host.objects.select_for_update().filter(pk=host.pk).values_list("last_seen_at", flat=True)
    for at in seen:
        return at is not None
    raise NotFound("host_not_found", f"host {host.name} is no longer in the inventory")


def _settle_claims(
    host: Host, facts: list[VmFacts], known: Iterable[UUID]
) -> tuple[list[VmFacts], dict[UUID, KnownVm]]:
    """Rows of other hosts that belong here now, because their VM has moved.

    A VM that another host reports too is another VM with the same UUID (a copied definition), unless it is only
    arriving here (a transient domain while a migration runs): then its facts wait for the end of the migration; or a
    host that has answered has lost it: then it has come from there, and the other host's is the copy.
    """
    unknown = {fact.uuid: fact for fact in facts}
    for uuid in known:
        unknown.pop(uuid, None)
    if not unknown:
        return facts, {}
    rows = VirtualMachine.objects.exclude(host=host)
    if len(unknown) <= FEW:
        rows = rows.filter(uuid__in=unknown)
    claims: dict[UUID, list[tuple[UUID, UUID, bool, datetime]]] = defaultdict(list)
    found_rows = rows.values_list("uuid", "id", "host_id", "is_present", "last_changed_at")
    for uuid, row_id, owner_id, is_present, changed_at in found_rows:
        if uuid in unknown:
            claims[uuid].append((row_id, owner_id, is_present, changed_at))
    if not claims:
        return facts, {}
    told = _ask_others({(owner, uuid) for uuid, found in claims.items() for _, owner, present, _ in found if present})
    free: list[UUID] = []
    waiting: set[UUID] = set()
    for uuid, found in claims.items():
        present = [row for row in found if row[2]]
        if any(told.get((row[1], uuid)) for row in present):
            found = [row for row in present if told.get((row[1], uuid)) is False]
            if not found:
                if not unknown[uuid].is_persistent:
                    waiting.add(uuid)
                continue
        # Of several rows the one that was there last; one that is present comes before those that are long gone.
        free.append(max(found, key=lambda row: (row[2], row[3]))[0])
    elsewhere = {vm.uuid: vm for vm in vm_rows.load(VirtualMachine.objects.filter(pk__in=free))}
    return [fact for fact in facts if fact.uuid not in waiting], elsewhere


def _ask_others(claims: set[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], bool]:
    """By (host id, VM uuid), whether those hosts still have it. A host that does not answer is left out, and has lost
    its claim: its VMs may have been started elsewhere because it is dead."""
    by_host: dict[UUID, list[UUID]] = defaultdict(list)
    for host_id, uuid in claims:
        by_host[host_id].append(uuid)
    told: dict[tuple[UUID, UUID], bool] = {}
    for other in Host.objects.filter(pk__in=by_host):
        try:
            with connections.open_host(other) as hypervisor:
                for uuid in by_host[other.pk]:
                    told[other.pk, uuid] = _has(hypervisor, uuid)
        except ServiceError as exc:
            log.info("%s cannot be asked about moved virtual machines: %s", other, exc.code)
    return told


def _has(hypervisor: Hypervisor, uuid: UUID) -> bool:
    try:
        hypervisor.virtual_machine(uuid)
    except DomainMissing:
        return False
    return True


def _record_first(host: Host, synced: Synced, actor: str, job: Job | None) -> None:
    events.record(
        "host.synced", f"{host.name} added with {synced.total} virtual machines", target=host, actor=actor, job=job,
        virtual_machines=synced.total,
    )  # fmt: skip


def _record(host: Host, plan: Plan, new: dict[UUID, VirtualMachine], *, tells_new: bool) -> None:
    """The events of one round, in one INSERT a batch."""
    if plan.is_empty:
        return
    about = {change.before.id for change in plan.changed} | {vm.id for vm in plan.gone}
    busy: dict[UUID, Job] = {}
    if about:
        live = Job.objects.filter(target_kind=TargetKind.VIRTUAL_MACHINE, status__in=LIVE_STATUSES)
        busy = {job.target_id: job for job in live if job.target_id in about}
    names = _host_names(change.before.host_id for change in plan.changed if change.has_moved)
    found: list[Event] = []
    if tells_new:
        for vm in new.values():
            text = f"{vm.name} found on {host.name}"
            found.append(_event("vm.discovered", text, vm.pk, vm.name, data={"host": host.name}))
    for change in plan.changed:
        found.extend(_events_of(host, change, busy.get(change.before.id), names))
    for gone in plan.gone:
        text = f"{gone.record.name} is no longer on {host.name}"
        job = busy.get(gone.id)
        found.append(
            _event(
                "vm.gone",
                text,
                gone.id,
                gone.record.name,
                severity=Severity.INFO if job else Severity.WARNING,
                job=job,
                data={"host": host.name},
            )
        )
    Event.objects.bulk_create(found)


def _events_of(host: Host, change: Changed, job: Job | None, names: dict[UUID, str]) -> list[Event]:
    name, vm_id = change.record.name, change.before.id
    found: list[Event] = []
    if change.has_moved:
        source = names.get(change.before.host_id, "another host")
        text = f"{name} moved from {source} to {host.name}"
        found.append(_event("vm.moved", text, vm_id, name, job=job, data={"from": source, "to": host.name}))
    if change.is_back:
        text = f"{name} is on {host.name} again"
        found.append(_event("vm.discovered", text, vm_id, name, job=job, data={"host": host.name, "again": True}))
    if change.fields:
        # A change of what protects a VM, with no job of ours at work, was made behind our back.
        drift = change.is_about_security and job is None
        text = f"{name} changed: " + ", ".join(field.replace("_", " ") for field in change.fields)
        if drift:
            text += " (not by this console)"
        found.append(
            _event(
                "vm.changed",
                text,
                vm_id,
                name,
                severity=Severity.WARNING if drift else Severity.INFO,
                job=job,
                data={"fields": list(change.fields), "drift": job is None},
            )
        )
    before = change.before.record.power_state
    kind = power_event(before, change.record.power_state)
    if kind and change.before.is_present:
        text = f"{name} is {kind.removeprefix('vm.').replace('_', ' ')} on {host.name}"
        severity = Severity.ERROR if kind == "vm.crashed" else Severity.INFO
        data = {"before": before, "after": change.record.power_state}
        found.append(_event(kind, text, vm_id, name, severity=severity, job=job, data=data))
    return found


def _event(
    kind: str,
    message: str,
    vm_id: UUID,
    name: str,
    *,
    data: dict[str, Any],
    severity: Severity = Severity.INFO,
    job: Job | None = None,
) -> Event:
    return events.draft(
        kind, message, target=events.Subject(TargetKind.VIRTUAL_MACHINE, vm_id, name),
        actor=SYSTEM if job is None else job.actor, severity=severity, job=job, data=data,
    )  # fmt: skip


def _host_names(ids: Iterable[UUID]) -> dict[UUID, str]:
    wanted = set(ids)
    return dict(Host.objects.filter(pk__in=wanted).values_list("pk", "name")) if wanted else {}
