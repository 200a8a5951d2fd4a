"""Routes of virtual hardware: what a host can give, and what Windows 11 would miss in a VM."""

from datetime import datetime
from uuid import UUID

from django.http import HttpRequest
from ninja import Router, Schema

from inventory.api.frame import actor_of
from inventory.services.host_abilities import host_abilities
from inventory.services.windows_readiness import RequirementState, windows_readiness

router = Router()


class AbilityOut(Schema):
    """`remedy` is empty where nothing is missing."""

    code: str
    name: str
    is_there: bool
    text: str
    remedy: str


class AbilitiesOut(Schema):
    """`checked_at` is empty, and there are no abilities, where the host has not been asked yet."""

    checked_at: datetime | None
    abilities: list[AbilityOut]


class RequirementOut(Schema):
    """`remedy` is empty where it is met."""

    code: str
    name: str
    state: RequirementState
    text: str
    remedy: str


class ReadinessOut(Schema):
    is_ready: bool
    requirements: list[RequirementOut]


@router.get("/hosts/{uuid:host_id}/abilities", response=AbilitiesOut, tags=["Hosts"])
def list_host_abilities(request: HttpRequest, host_id: UUID) -> AbilitiesOut:
    """What virtual hardware the host can give: UEFI, Secure Boot, vTPM, nested virtualization and so on."""
    host, found = host_abilities(host_id=host_id, actor=actor_of(request))
    return AbilitiesOut(
        checked_at=host.abilities_checked_at if found else None,
        abilities=[AbilityOut.model_validate(one, from_attributes=True) for one in found],
    )


@router.get("/virtual-machines/{uuid:vm_id}/windows-11-readiness", response=ReadinessOut, tags=["Virtual machines"])
def get_windows_readiness(request: HttpRequest, vm_id: UUID) -> ReadinessOut:
    """Whether the VM is what Windows 11 asks of a machine, point by point."""
    found = windows_readiness(vm_id=vm_id, actor=actor_of(request))
    return ReadinessOut(
        is_ready=found.is_ready,
        requirements=[RequirementOut.model_validate(one, from_attributes=True) for one in found.requirements],
    )
