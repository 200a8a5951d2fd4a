"""Files in clear that were left on hosts."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from ninja import Schema
from pydantic import Field

from encryption.models import (
    Leftover,
)
from inventory.api.frame import Input, PageOut
from inventory.api.schemas import Ref

LeftoverKind = Literal[
    "original", "plain_copy", "backing_file", "saved_state", "core_dump", "nvram_copy", "vtpm_state", "half_written",
    "same_size",
]  # fmt: skip


class DestroyLeftoverIn(Input):
    """`confirm` repeats the file's name, without its folder."""

    confirm: Annotated[str, Field(max_length=255)]


class KeepLeftoverIn(Input):
    reason: Annotated[str, Field(max_length=300)]


class LeftoverOut(Schema):
    """A file with something of an encrypted virtual machine in clear. `evidence`: what shows it, in lines for people.

    `kept_at`: since when somebody answers for its being kept; else null.
    """

    id: UUID
    host: Ref
    path: str
    kind: LeftoverKind
    size_bytes: int
    evidence: list[str]
    virtual_machine: Ref | None
    found_at: datetime
    kept_at: datetime | None
    kept_by: str
    kept_reason: str

    @classmethod
    def of(cls, row: Leftover) -> Self:
        values = {name: getattr(row, name) for name in cls.model_fields if name not in ("host", "virtual_machine")}
        vm = row.virtual_machine
        return cls.model_validate(values | {"host": Ref.of(row.host), "virtual_machine": Ref.of(vm) if vm else None})


class LeftoverPage(PageOut):
    items: list[LeftoverOut]
