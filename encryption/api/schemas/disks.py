"""Hard disks added, attached and detached."""

from typing import Annotated, Self
from uuid import UUID

from ninja import Schema
from pydantic import Field

from encryption.models import (
    WrappedSecret,
)
from inventory.api.frame import Input


class AddDiskIn(Input):
    """`size_bytes` in whole sectors of 512. An encrypting policy wants the format raw."""

    size_bytes: int
    datastore_id: UUID
    image_format: Annotated[str, Field(max_length=16)] = "raw"
    policy_id: UUID


class AttachDiskIn(Input):
    """`path`: of an image on the host, below the folder of one of its datastores."""

    path: Annotated[str, Field(max_length=1000)]
    policy_id: UUID


class DetachedDiskOut(Schema):
    """An encrypted disk that its virtual machine no longer has. `target`: what it was there."""

    id: UUID
    target: str
    path: str
    size_bytes: int
    key_id: str

    @classmethod
    def of(cls, row: WrappedSecret) -> Self:
        return cls(
            id=row.secret_uuid, target=row.target, path=row.path, size_bytes=row.size_bytes, key_id=row.key.key_id
        )
