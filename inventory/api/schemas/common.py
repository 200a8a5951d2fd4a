"""Words that many schemas use: names and addresses as they are given, references to other objects."""

from typing import Annotated, Self
from uuid import UUID

from ninja import Schema
from pydantic import Field

from inventory.models import Alarm, Cluster, Datacenter, Event, Host, Job, TargetKind, VirtualMachine

Name = Annotated[str, Field(max_length=120)]
Uri = Annotated[str, Field(max_length=500)]
FolderPath = Annotated[str, Field(max_length=1000)]


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
