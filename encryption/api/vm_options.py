"""Routes of a VM's encryption: what is, what would be done, and the job that does it."""

from uuid import UUID

from django.http import HttpRequest
from ninja import Router

from encryption.api.schemas import PlanOut, VmOptionsOut, WishIn
from encryption.services import options, recrypt, unlock
from inventory.api.frame import actor_of
from inventory.api.schemas import JobOut

router = Router(tags=["VM options"])


@router.get("/virtual-machines/{uuid:vm_id}/options", response=VmOptionsOut)
def get_vm_options(request: HttpRequest, vm_id: UUID) -> VmOptionsOut:
    return VmOptionsOut.of(options.vm_options(vm_id=vm_id, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/options/plan", response=PlanOut)
def plan_vm_options(request: HttpRequest, vm_id: UUID, wanted: WishIn) -> PlanOut:
    """What would be done, from what is known now. Changes nothing."""
    return PlanOut.of(options.plan_options(vm_id=vm_id, wish=wanted.wish(), actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/options", response={202: JobOut})
def apply_vm_options(request: HttpRequest, vm_id: UUID, wanted: WishIn) -> JobOut:
    """Starts the job that does what the plan shows."""
    return JobOut.of(options.apply_options(vm_id=vm_id, wish=wanted.wish(), actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/recrypt", response={202: JobOut})
def recrypt_vm(request: HttpRequest, vm_id: UUID) -> JobOut:
    """Starts the job that gives the VM a new key (KEK); its data keys and its data stay, and it may run."""
    return JobOut.of(recrypt.recrypt_vm(vm_id=vm_id, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/unlock", response={202: JobOut})
def unlock_vm(request: HttpRequest, vm_id: UUID) -> JobOut:
    """Starts the job that tries whether the VM's keys can be had; a locked VM is then free, or its job says why not."""
    return JobOut.of(unlock.unlock_vm(vm_id=vm_id, actor=actor_of(request)))


@router.post("/key-providers/{uuid:provider_id}/recrypt", response={202: JobOut})
def recrypt_provider(request: HttpRequest, provider_id: UUID) -> JobOut:
    """Starts one job that gives every VM with a key of this provider a new one."""
    return JobOut.of(recrypt.recrypt_provider(cluster_id=provider_id, actor=actor_of(request)))
