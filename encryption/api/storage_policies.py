"""Routes of storage policies."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router

from encryption.api.schemas import (
    PolicyNameIn,
    PolicyVmOut,
    PolicyVmPage,
    StoragePolicyIn,
    StoragePolicyLine,
    StoragePolicyOut,
)
from encryption.services import storage_policies
from inventory.api.frame import PageQuery, actor_of

router = Router(tags=["Storage policies"])


@router.get("/storage-policies", response=list[StoragePolicyLine])
def list_storage_policies(request: HttpRequest) -> list[StoragePolicyLine]:
    """All of them, with what they are used for."""
    return [StoragePolicyLine.of_use(use) for use in storage_policies.policies(actor=actor_of(request))]


@router.post("/storage-policies", response={201: StoragePolicyOut})
def create_storage_policy(request: HttpRequest, wanted: StoragePolicyIn) -> StoragePolicyOut:
    return StoragePolicyOut.of(storage_policies.create_policy(actor=actor_of(request), **wanted.dict()))


@router.get("/storage-policies/{uuid:policy_id}", response=StoragePolicyLine)
def get_storage_policy(request: HttpRequest, policy_id: UUID) -> StoragePolicyLine:
    return StoragePolicyLine.of_use(storage_policies.policy_use(policy_id, actor=actor_of(request)))


@router.put("/storage-policies/{uuid:policy_id}", response=StoragePolicyOut)
def edit_storage_policy(request: HttpRequest, policy_id: UUID, wanted: StoragePolicyIn) -> StoragePolicyOut:
    """A built-in one cannot be edited; whether one in use encrypts cannot be changed."""
    edited = storage_policies.edit_policy(policy_id=policy_id, actor=actor_of(request), **wanted.dict())
    return StoragePolicyOut.of(edited)


@router.delete("/storage-policies/{uuid:policy_id}", response={204: None})
def delete_storage_policy(request: HttpRequest, policy_id: UUID) -> None:
    """Refused for a built-in one and for one in use."""
    storage_policies.delete_policy(policy_id=policy_id, actor=actor_of(request))


@router.post("/storage-policies/{uuid:policy_id}/clone", response={201: StoragePolicyOut})
def clone_storage_policy(request: HttpRequest, policy_id: UUID, wanted: PolicyNameIn) -> StoragePolicyOut:
    """A policy of its own that says the same."""
    made = storage_policies.clone_policy(policy_id=policy_id, name=wanted.name, actor=actor_of(request))
    return StoragePolicyOut.of(made)


@router.get("/storage-policies/{uuid:policy_id}/virtual-machines", response=PolicyVmPage)
def list_policy_vms(request: HttpRequest, policy_id: UUID, page: Query[PageQuery]) -> dict[str, Any]:
    """The VMs that have it for their home or a disk, by name."""
    storage_policies.policy_use(policy_id, actor=actor_of(request))
    found, uses = storage_policies.vms_of_policy(policy_id, actor=actor_of(request), paging=page.paging())
    items = [PolicyVmOut.of_use(use) for use in uses]
    return {"items": items, "total": found.total, "page": found.number, "pages": found.pages}
