"""Storage policies and what uses them."""

from typing import Annotated, Self
from uuid import UUID

from ninja import Schema
from pydantic import Field

from encryption.api.schemas.compliance import ComplianceState
from encryption.models import (
    StoragePolicy,
)
from encryption.services.storage_policies import PolicyUse, VmUse
from inventory.api.frame import Input, PageOut
from inventory.api.schemas import Name, Ref


class StoragePolicyOut(Schema):
    """What a VM's home or a disk must be. `max_key_age_days`: a VM whose key is older gets a new one; null: never."""

    id: UUID
    name: str
    description: str
    encrypts: bool
    is_builtin: bool
    max_key_age_days: int | None

    @classmethod
    def of(cls, row: StoragePolicy) -> Self:
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class StoragePolicyLine(StoragePolicyOut):
    """With its use: VMs whose home has it, disks that have it, and how many of all those VMs are not compliant."""

    virtual_machine_count: int
    disk_count: int
    noncompliant_count: int

    @classmethod
    def of_use(cls, use: PolicyUse) -> Self:
        return cls(
            **StoragePolicyOut.of(use.policy).dict(),
            virtual_machine_count=use.virtual_machines,
            disk_count=use.disks,
            noncompliant_count=use.noncompliant,
        )


class StoragePolicyIn(Input):
    """`max_key_age_days` 1 to 3650, or null."""

    name: Name
    description: Annotated[str, Field(max_length=300)] = ""
    encrypts: bool = True
    max_key_age_days: int | None = None


class PolicyNameIn(Input):
    name: Name


class PolicyVmOut(Schema):
    """A VM that has the policy for its home, for some disks (by target), or both."""

    virtual_machine: Ref
    is_home: bool
    disks: list[str]
    compliance: ComplianceState | None

    @classmethod
    def of_use(cls, use: VmUse) -> Self:
        state = use.compliance.state if use.compliance else None
        return cls.model_validate(
            {"virtual_machine": Ref.of(use.vm), "is_home": use.is_home, "disks": list(use.disks), "compliance": state}
        )


class PolicyVmPage(PageOut):
    items: list[PolicyVmOut]
