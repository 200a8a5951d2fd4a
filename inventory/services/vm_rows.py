"""Rows of virtual machines as values for engine/reconcile.py, and back. A fixed number of queries each, whatever their
number; only the writing of what is new or changed grows with it, a batch at a time."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import F, QuerySet
from django.utils import timezone

from inventory.engine.hypervisor import VmFacts
from inventory.engine.reconcile import Changed, DiskRecord, KnownVm, Plan, VmRecord
from inventory.models import Disk, VirtualMachine, VmDefinition

_FIELDS: Final = tuple(name for name in VmRecord.__dataclass_fields__ if name != "disks")
_DISK_FIELDS: Final = tuple(DiskRecord.__dataclass_fields__)
_BATCH: Final = 500
MOST_CHARACTERS: Final = 256 * 1024
"""Of a definition that is stored: those of people have some thousands."""

# Told, within the transaction, which disks their VM no longer has: (VM id, target).
DetachedHook = Callable[[Sequence[tuple[UUID, str]]], None]
_DETACHED: Final[list[DetachedHook]] = []


def register_detached(hook: DetachedHook) -> None:
    """Lets an app above forget what it knows of disks that were detached."""
    _DETACHED.append(hook)


def load(rows: QuerySet[VirtualMachine]) -> list[KnownVm]:
    """Two queries."""
    disks: dict[UUID, list[DiskRecord]] = defaultdict(list)
    found = Disk.objects.filter(virtual_machine__in=rows.order_by()).order_by("target")
    for owner, *values in found.values_list("virtual_machine_id", *_DISK_FIELDS):
        disks[owner].append(DiskRecord(*values))
    ordered = rows.order_by("id").values_list("id", "uuid", "host_id", "is_present", "last_changed_at", *_FIELDS)
    return [
        KnownVm(row[0], row[1], row[2], row[3], row[4], VmRecord(*[*row[5:], tuple(disks.get(row[0], ()))]))
        for row in ordered
    ]


def write(plan: Plan, host_id: UUID) -> dict[UUID, VirtualMachine]:
    """Writes new, changed and gone virtual machines of the host; the new rows by libvirt's UUID. In a transaction.

    Rows of changed ones and their disks keep their ids: keys and jobs hang on them.
    """
    now = timezone.now()
    new = {uuid: VirtualMachine(uuid=uuid, host_id=host_id, **_values(record)) for uuid, record in plan.new}
    VirtualMachine.objects.bulk_create(new.values())
    disks = [
        Disk(virtual_machine=new[uuid], **_disk_values(disk)) for uuid, record in plan.new for disk in record.disks
    ]
    Disk.objects.bulk_create(disks)
    if plan.changed:
        _write_changed(plan.changed, host_id, now)
    if plan.gone:
        gone = [vm.id for vm in plan.gone]
        rows = VirtualMachine.objects.filter(pk__in=gone)
        rows.update(is_present=False, power_state="unknown", last_changed_at=now)
    return new


def kept_definitions(rows: QuerySet[VirtualMachine]) -> Iterable[str]:
    """The digests of those whose definition is stored as it now is. One query, without the definitions."""
    found = rows.filter(stored_definition__sha256=F("definition_sha256")).order_by()
    return found.values_list("definition_sha256", flat=True).iterator()


def keep_definitions(host_id: UUID, facts: Iterable[VmFacts]) -> None:
    """Stores the definitions that came along, where they are other ones than before. Two queries where none is."""
    came = {fact.uuid: fact for fact in facts if fact.definition}
    if not came:
        return
    rows = VirtualMachine.objects.filter(host=host_id).order_by()
    if len(came) <= _BATCH:
        rows = rows.filter(uuid__in=came)
    changed = []
    for vm_id, vm_uuid, stored in rows.values_list("id", "uuid", "stored_definition__sha256").iterator():
        fact = came.get(vm_uuid)
        if fact is not None and fact.definition_sha256 != stored:
            xml = fact.definition if len(fact.definition) <= MOST_CHARACTERS else ""
            changed.append(VmDefinition(virtual_machine_id=vm_id, sha256=fact.definition_sha256, xml=xml))
    VmDefinition.objects.bulk_create(
        changed, batch_size=_BATCH, update_conflicts=True, unique_fields=["virtual_machine"],
        update_fields=["sha256", "xml"],
    )  # fmt: skip


def _write_changed(changed: Iterable[Changed], host_id: UUID, now: datetime) -> None:
    # An upsert by primary key: one statement a batch, where bulk_update would write a CASE for each field and row.
    rows = [
        VirtualMachine(
            id=change.before.id, uuid=change.before.uuid, host_id=host_id, is_present=True, **_values(change.record)
        )
        for change in changed
    ]
    VirtualMachine.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["id"],
        update_fields=["host", "is_present", "last_changed_at", *_FIELDS],
    )
    touched = [change for change in changed if change.record.disks != change.before.record.disks]
    if not touched:
        return
    before = {(change.before.id, disk.target): disk for change in touched for disk in change.before.record.disks}
    after = {(change.before.id, disk.target): disk for change in touched for disk in change.record.disks}
    dropped = [key for key in before if key not in after]
    for owner, targets in _by_owner(dropped).items():
        Disk.objects.filter(virtual_machine_id=owner, target__in=targets).delete()
    if dropped:
        for hook in _DETACHED:
            hook(dropped)
    Disk.objects.bulk_create(
        [
            Disk(virtual_machine_id=owner, **_disk_values(disk))
            for (owner, target), disk in after.items()
            if before.get((owner, target)) != disk
        ],
        update_conflicts=True,
        unique_fields=["virtual_machine", "target"],
        update_fields=[name for name in _DISK_FIELDS if name != "target"],
    )


def _by_owner(keys: Iterable[tuple[UUID, str]]) -> Mapping[UUID, list[str]]:
    found: dict[UUID, list[str]] = defaultdict(list)
    for owner, target in keys:
        found[owner].append(target)
    return found


def _values(record: VmRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _FIELDS}


def _disk_values(disk: DiskRecord) -> dict[str, Any]:
    return {name: getattr(disk, name) for name in _DISK_FIELDS}
