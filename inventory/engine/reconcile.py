"""What a host reports against what is known of it: virtual machines new, changed, gone, or come from elsewhere.

Pure: rows come in as values, and a plan goes out. Facts are as old as the moment when their reading began, so a row
that has changed since (by another process that saw newer facts) is left alone until the next round.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from inventory.engine.hypervisor import DiskFacts, Power, VmFacts
from inventory.engine.platform import Platform


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """What is stored of one disk."""

    target: str
    device: str
    bus: str
    format: str
    source: str
    is_read_only: bool
    is_encrypted: bool
    capacity_bytes: int
    allocation_bytes: int


@dataclass(frozen=True, slots=True)
class VmRecord:
    """What is stored of one virtual machine; field names are those of the model. Disks are in the order of targets."""

    name: str
    is_persistent: bool
    power_state: str
    firmware: str
    has_secure_boot: bool
    machine: str
    vcpus: int
    memory_bytes: int
    nvram_path: str
    is_nvram_encrypted: bool
    tpm_model: str
    tpm_version: str
    is_tpm_encrypted: bool
    is_autostarted: bool
    has_managed_save: bool
    snapshot_count: int
    memory_snapshot_count: int
    dumps_core: bool
    platform: str
    definition_sha256: str
    disks: tuple[DiskRecord, ...]


@dataclass(frozen=True, slots=True)
class KnownVm:
    """A row: `host_id` and `is_present` say where it was last seen."""

    id: UUID
    uuid: UUID
    host_id: UUID
    is_present: bool
    changed_at: datetime
    record: VmRecord


@dataclass(frozen=True, slots=True)
class Changed:
    """`fields` are what to tell people (sizes are not told); empty where only the row needs writing."""

    before: KnownVm
    record: VmRecord
    fields: tuple[str, ...]
    has_moved: bool = False
    is_back: bool = False

    @property
    def is_about_security(self) -> bool:
        return not SECURITY_FIELDS.isdisjoint(self.fields)


@dataclass(frozen=True, slots=True)
class Plan:
    new: tuple[tuple[UUID, VmRecord], ...]
    changed: tuple[Changed, ...]
    gone: tuple[KnownVm, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.new or self.changed or self.gone)


SECURITY_FIELDS: Final = frozenset(
    {
        "firmware",
        "has_secure_boot",
        "nvram_path",
        "is_nvram_encrypted",
        "tpm_model",
        "tpm_version",
        "is_tpm_encrypted",
        "disk_encryption",
        "has_managed_save",
        "memory_snapshot_count",
        "dumps_core",
        "vbs",
    }
)
_TOLD: Final = (
    "name",
    "is_persistent",
    "firmware",
    "has_secure_boot",
    "machine",
    "vcpus",
    "memory_bytes",
    "nvram_path",
    "is_nvram_encrypted",
    "tpm_model",
    "tpm_version",
    "is_tpm_encrypted",
    "is_autostarted",
    "has_managed_save",
    "snapshot_count",
    "memory_snapshot_count",
    "dumps_core",
)


def reconcile(
    known: Iterable[KnownVm],
    elsewhere: Mapping[UUID, KnownVm],
    facts: Iterable[VmFacts],
    *,
    read_at: datetime,
    is_whole: bool = True,
) -> Plan:
    """Compares the rows of one host with what it reports.

    `elsewhere`: rows of other hosts, by libvirt's UUID, that are free to move here; the caller has made sure that their
    own host no longer has them. `is_whole` False: `facts` are not all of the host, so nothing is taken for gone.
    """
    by_uuid = {vm.uuid: vm for vm in known}
    new: list[tuple[UUID, VmRecord]] = []
    changed: list[Changed] = []
    seen: set[UUID] = set()
    for fact in facts:
        if fact.uuid in seen:
            continue
        seen.add(fact.uuid)
        row = by_uuid.get(fact.uuid)
        moved = False
        if row is None:
            row = elsewhere.get(fact.uuid)
            moved = row is not None
        if row is None:
            new.append((fact.uuid, record_of(fact)))
        elif moved or row.changed_at <= read_at:
            change = _compare(row, fact, moved)
            if change is not None:
                changed.append(change)
    gone = [
        vm for vm in by_uuid.values() if is_whole and vm.is_present and vm.uuid not in seen and vm.changed_at <= read_at
    ]
    return Plan(tuple(new), tuple(changed), tuple(gone))


def record_of(fact: VmFacts) -> VmRecord:
    tpm = fact.tpm
    return VmRecord(
        name=fact.name,
        is_persistent=fact.is_persistent,
        power_state=fact.power.value,
        firmware=fact.firmware,
        has_secure_boot=fact.has_secure_boot,
        machine=fact.machine,
        vcpus=fact.vcpus,
        memory_bytes=fact.memory_bytes,
        nvram_path=fact.nvram_path,
        is_nvram_encrypted=fact.nvram_secret_uuid is not None,
        tpm_model="" if tpm is None else tpm.model,
        tpm_version="" if tpm is None else tpm.version,
        is_tpm_encrypted=tpm is not None and tpm.is_encrypted,
        is_autostarted=fact.is_autostarted,
        has_managed_save=fact.has_managed_save,
        snapshot_count=fact.snapshot_count,
        memory_snapshot_count=fact.memory_snapshot_count,
        dumps_core=fact.dumps_core,
        platform=fact.platform.as_text(),
        definition_sha256=fact.definition_sha256,
        disks=tuple(sorted((_disk_record(disk) for disk in fact.disks), key=lambda disk: disk.target)),
    )


def power_event(before: str, after: str) -> str | None:
    """The kind of event for a change of power state; None where there is nothing to tell."""
    if before == after or after == Power.UNKNOWN.value:
        return None
    was_on = before in {Power.ON.value, Power.PAUSED.value}
    if after == Power.OFF.value:
        return "vm.powered_off" if was_on or before == Power.CRASHED.value else None
    if after == Power.ON.value:
        return "vm.resumed" if before == Power.PAUSED.value else "vm.powered_on"
    return "vm.paused" if after == Power.PAUSED.value else "vm.crashed"


def _disk_record(disk: DiskFacts) -> DiskRecord:
    return DiskRecord(
        target=disk.target,
        device=disk.device,
        bus=disk.bus,
        format=disk.format,
        source=disk.source,
        is_read_only=disk.is_read_only,
        is_encrypted=disk.is_encrypted,
        capacity_bytes=disk.capacity_bytes,
        allocation_bytes=disk.allocation_bytes,
    )


def _compare(row: KnownVm, fact: VmFacts, moved: bool) -> Changed | None:
    if not fact.definition_sha256:
        # The XML was refused: keep what was known, and let the digest show that it is not current.
        record = replace(row.record, power_state=fact.power.value, definition_sha256="")
    else:
        record = _with_known_sizes(record_of(fact), row.record)
    is_back = not row.is_present and not moved
    if record == row.record and not moved and not is_back:
        return None
    return Changed(row, record, _told(row.record, record), has_moved=moved, is_back=is_back)


def _with_known_sizes(record: VmRecord, before: VmRecord) -> VmRecord:
    """A size of 0 means that it was not asked for; the last one known still holds for the same file."""
    known = {disk.target: disk for disk in before.disks}
    disks = []
    for disk in record.disks:
        old = known.get(disk.target)
        if disk.capacity_bytes == 0 and old is not None and old.source == disk.source:
            disk = replace(disk, capacity_bytes=old.capacity_bytes, allocation_bytes=old.allocation_bytes)
        disks.append(disk)
    return replace(record, disks=tuple(disks))


def _told(before: VmRecord, after: VmRecord) -> tuple[str, ...]:
    fields = [name for name in _TOLD if getattr(before, name) != getattr(after, name)]
    old = {disk.target: disk for disk in before.disks}
    new = {disk.target: disk for disk in after.disks}
    if [_identity(disk) for disk in before.disks] != [_identity(disk) for disk in after.disks]:
        fields.append("disks")
    if any(
        (target in old and old[target].is_encrypted) != (target in new and new[target].is_encrypted)
        for target in old.keys() | new.keys()
    ):
        fields.append("disk_encryption")
    if before.platform and before.platform != after.platform and _has_vbs(before) != _has_vbs(after):
        fields.append("vbs")
    if not fields and before.definition_sha256 != after.definition_sha256:
        fields.append("definition")
    return tuple(fields)


def _has_vbs(record: VmRecord) -> bool:
    return Platform.from_text(record.platform).has_vbs(has_secure_boot=record.has_secure_boot)


def _identity(disk: DiskRecord) -> tuple[str, str, str, str, str, bool]:
    return (disk.target, disk.device, disk.bus, disk.format, disk.source, disk.is_read_only)
