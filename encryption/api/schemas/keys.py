"""Keys of the key servers."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from ninja import Schema
from pydantic import Field

from encryption.models import (
    Key,
)
from inventory.api.frame import Input, PageOut
from inventory.api.schemas import Ref

KeyState = Literal["pre_active", "active", "deactivated", "compromised", "destroyed", "missing"]


class KeyOut(Schema):
    """A key at the key provider, known by its ID there, and the virtual machines whose secrets it wraps.

    `checked_at`: when its state was last read there. `last_used_at`: when a worker last fetched it, `last_used_by`
    whom, `last_used_for` which job with its target. `due_at`: when a storage policy has it replaced; null: none does.
    `is_foreign`: made by somebody else and added here.
    """

    id: UUID
    key_id: str
    name: str
    algorithm: str
    state: KeyState
    created_at: datetime
    checked_at: datetime | None
    last_used_at: datetime | None
    last_used_by: str
    last_used_for: str
    due_at: datetime | None
    is_foreign: bool
    virtual_machines: list[Ref]

    @classmethod
    def of(cls, row: Key) -> Self:
        vms = {secret.virtual_machine_id: secret.virtual_machine for secret in row.wrapped_secrets.all()}
        plain = {name: getattr(row, name) for name in cls.model_fields if name != "virtual_machines"}
        return cls.model_validate(plain | {"virtual_machines": [Ref.of(vm) for vm in vms.values()]})


class KeyPage(PageOut):
    items: list[KeyOut]


class RevokeIn(Input):
    """`reason` is one of KMIP: unspecified, key_compromise, superseded, cessation_of_operation."""

    reason: Annotated[str, Field(max_length=40)]


class AdoptKeyIn(Input):
    """`key`: its identifier at the key provider, or its name there."""

    key: Annotated[str, Field(max_length=255)]


class DestroyIn(Input):
    """`confirm` repeats the key's ID at the key provider (`key_id`)."""

    confirm: Annotated[str, Field(max_length=255)]
