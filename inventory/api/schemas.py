"""What the routes of the inventory give and take. Facts only: no parameters, checkpoints or claims of jobs."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from ninja import Schema
from pydantic import Field
from typing_extensions import override

from inventory import jobs
from inventory.api.frame import Input, PageOut
from inventory.models import (
    Alarm,
    Cluster,
    Datacenter,
    Datastore,
    Disk,
    Event,
    Firmware,
    Host,
    Job,
    JobStatus,
    Outcome,
    PowerState,
    Severity,
    TargetKind,
    VirtualMachine,
)
from inventory.services.checkpoints import Signed

Name = Annotated[str, Field(max_length=120)]
Uri = Annotated[str, Field(max_length=500)]
FolderPath = Annotated[str, Field(max_length=1000)]
HostState = Literal["connecting", "connected", "disconnected"]


class Ref(Schema):
    """Another object, by its id and name."""

    id: UUID
    name: str

    @classmethod
    def of(cls, row: Datacenter | Cluster | Host | VirtualMachine) -> Self:
        return cls(id=row.pk, name=row.name)


class Target(Schema):
    """What a job or an event is about. `id` is empty for the console itself; the object may be gone by now."""

    kind: TargetKind
    id: UUID | None
    name: str

    @classmethod
    def of(cls, row: Job | Event | Alarm) -> Self:
        return cls(kind=TargetKind(row.target_kind), id=row.target_id, name=row.target_name)


class DatacenterOut(Schema):
    id: UUID
    name: str
    cluster_count: int
    host_count: int

    @classmethod
    def of(cls, row: Datacenter) -> Self:
        counts = vars(row)
        return cls(id=row.pk, name=row.name, cluster_count=counts["cluster_count"], host_count=counts["host_count"])


class ClusterOut(Schema):
    id: UUID
    name: str
    datacenter: Ref
    host_count: int

    @classmethod
    def of(cls, row: Cluster) -> Self:
        return cls(id=row.pk, name=row.name, datacenter=Ref.of(row.datacenter), host_count=vars(row)["host_count"])


class HostOut(Schema):
    """A hypervisor host with what it last reported. Sizes are bytes."""

    id: UUID
    name: str
    cluster: Ref
    datacenter: Ref
    uri: str
    migration_uri: str
    vtpm_state_path: str
    state: HostState
    state_reason: str
    last_seen_at: datetime | None
    added_at: datetime
    host_uuid: UUID | None
    hostname: str
    hypervisor: str
    hypervisor_version: str
    libvirt_version: str
    cpu_model: str
    cpu_count: int
    memory_bytes: int
    memory_free_bytes: int
    is_encrypted_connection: bool

    @classmethod
    def of(cls, row: Host) -> Self:
        return cls.model_validate(
            {name: getattr(row, name) for name in cls.model_fields if name not in {"cluster", "datacenter"}}
            | {"cluster": Ref.of(row.cluster), "datacenter": Ref.of(row.cluster.datacenter)}
        )


class DatastoreOut(Schema):
    """A storage pool on one host. Sizes are bytes."""

    id: UUID
    name: str
    host: Ref
    kind: str
    path: str
    is_active: bool
    capacity_bytes: int
    available_bytes: int

    @classmethod
    def of(cls, row: Datastore) -> Self:
        return cls.model_validate(
            {name: getattr(row, name) for name in cls.model_fields if name != "host"} | {"host": Ref.of(row.host)}
        )


class DiskOut(Schema):
    """Sizes are bytes; `format` is the driver's type in libvirt."""

    target: str
    device: str
    bus: str
    format: str
    source: str
    is_read_only: bool
    is_encrypted: bool
    capacity_bytes: int
    allocation_bytes: int

    @classmethod
    def of(cls, row: Disk) -> Self:
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class TpmOut(Schema):
    model: str
    version: str
    is_encrypted: bool


_PLAIN = (
    "id", "uuid", "name", "is_present", "is_persistent", "power_state", "firmware", "has_secure_boot", "machine",
    "vcpus", "memory_bytes", "is_nvram_encrypted", "first_seen_at", "last_changed_at",
)  # fmt: skip


class VmLine(Schema):
    """A virtual machine as lists show it.

    `id` is this console's, `uuid` the domain's in libvirt. `is_present` is false once its host no longer lists it.
    `is_encrypted`: any disk, the NVRAM or the vTPM state is.
    """

    id: UUID
    uuid: UUID
    name: str
    host: Ref
    cluster: Ref
    datacenter: Ref
    is_present: bool
    is_persistent: bool
    power_state: PowerState
    firmware: Firmware
    has_secure_boot: bool
    machine: str
    vcpus: int
    memory_bytes: int
    tpm: TpmOut | None
    is_nvram_encrypted: bool
    is_encrypted: bool
    first_seen_at: datetime
    last_changed_at: datetime

    @classmethod
    def of(cls, row: VirtualMachine, *, is_encrypted: bool) -> Self:
        return cls.model_validate(cls.values(row, is_encrypted))

    @classmethod
    def values(cls, row: VirtualMachine, is_encrypted: bool) -> dict[str, Any]:
        tpm = TpmOut(model=row.tpm_model, version=row.tpm_version, is_encrypted=row.is_tpm_encrypted)
        return {name: getattr(row, name) for name in _PLAIN} | {
            "host": Ref.of(row.host),
            "cluster": Ref.of(row.host.cluster),
            "datacenter": Ref.of(row.host.cluster.datacenter),
            "tpm": tpm if row.tpm_model else None,
            "is_encrypted": is_encrypted,
        }


class VmOut(VmLine):
    """A virtual machine with its disks. `has_vbs`: its hardware is what virtualization-based security needs."""

    has_vbs: bool
    nvram_path: str
    is_autostarted: bool
    has_managed_save: bool
    snapshot_count: int
    memory_snapshot_count: int
    dumps_core: bool
    disks: list[DiskOut]

    @override
    @classmethod
    def values(cls, row: VirtualMachine, is_encrypted: bool) -> dict[str, Any]:
        names = (
            "has_vbs", "nvram_path", "is_autostarted", "has_managed_save", "snapshot_count", "memory_snapshot_count",
            "dumps_core",
        )  # fmt: skip
        own = {name: getattr(row, name) for name in names} | {"disks": [DiskOut.of(disk) for disk in row.disks.all()]}
        return super().values(row, is_encrypted) | own


class ConfirmNameIn(Input):
    """`confirm` repeats the virtual machine's name."""

    confirm: Annotated[str, Field(max_length=255)]


class ConsoleTextOut(Schema):
    """What the guest last printed on its serial port.

    `text` is empty while nothing has been read yet: ask again in two seconds. `problem` says why it cannot be read.
    """

    text: str | None
    age_seconds: float | None
    problem: str


class JobOut(Schema):
    """One long operation: `done` of `total` units of the present `step`.

    `percent` is empty where the total is not known. Ask again until `is_live` is false.
    `approved_by`: the second person, of one that waited for approval.
    """

    id: UUID
    kind: str
    label: str
    target: Target
    actor: str
    status: JobStatus
    is_live: bool
    step: str
    done: int
    total: int
    percent: int | None
    error_code: str
    message: str
    approved_by: str
    cancel_requested: bool
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, row: Job) -> Self:
        return cls.model_validate(
            {name: getattr(row, name) for name in cls.model_fields if name not in {"label", "target"}}
            | {"label": jobs.label(row), "target": Target.of(row)}
        )


class EventOut(Schema):
    """One line of history. `sequence` and `digest` are its seal, given within seconds (docs/events.md)."""

    id: int
    sequence: int | None
    time: datetime
    kind: str
    severity: Severity
    outcome: Outcome
    reason: str
    target: Target
    actor: str
    source_address: str
    message: str
    data: dict[str, Any]
    job_id: UUID | None
    plan_digest: str
    digest: str

    @classmethod
    def of(cls, row: Event) -> Self:
        return cls.model_validate(
            {name: getattr(row, name) for name in cls.model_fields if name != "target"} | {"target": Target.of(row)}
        )


class CheckpointOut(Schema):
    """A signature over the history: `events` of them, of which the last has `digest`. `text` is what to keep elsewhere;
    `key` is the fingerprint of the key that signed."""

    at: datetime
    events: int
    digest: str
    key: str
    text: str

    @classmethod
    def of(cls, row: Signed) -> Self:
        one = row.checkpoint
        return cls(at=row.at, events=one.sequence, digest=one.digest, key=one.key, text=one.text)


class AlarmOut(Schema):
    """A state that needs somebody. `cleared_at` is null while it lasts; `evidence`: lines that show what was seen."""

    id: UUID
    kind: str
    severity: Severity
    target: Target
    message: str
    remedy: str
    evidence: list[str]
    raised_at: datetime
    seen_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str
    cleared_at: datetime | None

    @classmethod
    def of(cls, row: Alarm) -> Self:
        return cls.model_validate(
            {name: getattr(row, name) for name in cls.model_fields if name != "target"} | {"target": Target.of(row)}
        )


class NodeOut(Schema):
    """A line of a tree; `words` tell its state."""

    kind: TargetKind
    id: UUID
    name: str
    has_children: bool
    words: str
    is_encrypted: bool
    warns: bool


class ChildrenOut(Schema):
    """At most as many `nodes` as were asked for, of `total`."""

    nodes: list[NodeOut]
    total: int


class HitOut(Schema):
    """An object that was found; `detail` tells where it is."""

    kind: TargetKind
    id: UUID
    name: str
    detail: str


class DatacenterPage(PageOut):
    items: list[DatacenterOut]


class ClusterPage(PageOut):
    items: list[ClusterOut]


class HostPage(PageOut):
    items: list[HostOut]


class DatastorePage(PageOut):
    items: list[DatastoreOut]


class VmPage(PageOut):
    items: list[VmLine]


class JobPage(PageOut):
    items: list[JobOut]


class AlarmPage(PageOut):
    items: list[AlarmOut]


class EventPage(PageOut):
    items: list[EventOut]


class NameIn(Input):
    name: Name


class ClusterIn(Input):
    datacenter_id: UUID
    name: Name


class HostIn(Input):
    """`uri` is how this console reaches the host, `migration_uri` how other hosts do (empty: the same)."""

    cluster_id: UUID
    name: Name
    uri: Uri
    migration_uri: Uri = ""
    vtpm_state_path: FolderPath = ""


class HostChange(Input):
    """What is left out stays as it is."""

    name: Name | None = None
    uri: Uri | None = None
    migration_uri: Uri | None = None
    vtpm_state_path: FolderPath | None = None


class HostChanged(Schema):
    """`job` connects the host anew, where its URI was changed."""

    host: HostOut
    job: JobOut | None
