"""New keys for a VM."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from inventory.api.frame import Input


class RecryptPlanIn(Input):
    """`parts` count for new volume keys alone: disks by target, "nvram", "vtpm". Left out or null: all of them."""

    way: Literal["key", "passphrases", "volume_keys"]
    parts: Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=256)] | None = None

    def chosen(self) -> frozenset[str] | None:
        return None if self.parts is None else frozenset(self.parts)


class DeepRecryptIn(Input):
    """`parts`: disks by target, "nvram", "vtpm"; left out or null: all that are encrypted.

    `key_provider_id` left out: where the VM's key is now. `full_verification`: every byte of a copy that is made while
    the VM is off is compared, not samples.
    """

    parts: Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=256)] | None = None
    key_provider_id: UUID | None = None
    full_verification: bool = False

    def chosen(self) -> frozenset[str] | None:
        return None if self.parts is None else frozenset(self.parts)
