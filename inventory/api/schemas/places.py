"""Data centers, clusters, hosts and datastores."""

from datetime import datetime
from typing import Literal, Self
from uuid import UUID

from ninja import Schema

from inventory.api.frame import Input, PageOut
from inventory.api.schemas.activity import JobOut
from inventory.api.schemas.common import FolderPath, Name, Ref, Uri
from inventory.models import Cluster, Datacenter, Datastore, Host

HostState = Literal["connecting", "connected", "disconnected"]


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


class DatacenterPage(PageOut):
    items: list[DatacenterOut]


class ClusterPage(PageOut):
    items: list[ClusterOut]


class HostPage(PageOut):
    items: list[HostOut]


class DatastorePage(PageOut):
    items: list[DatastoreOut]


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
