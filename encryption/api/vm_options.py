"""Routes of a VM's encryption: what is, what would be done, and the job that does it."""

from uuid import UUID

from django.http import HttpRequest
from ninja import Router

from encryption.api.schemas import (
    ApplyIn,
    ApplyManyIn,
    DeepRecryptIn,
    ManyWishIn,
    OptionsPlanOut,
    PlanOut,
    RecryptPlanIn,
    VmOptionsOut,
    VmPlanOut,
    VmResultOut,
    WishIn,
)
from encryption.services import deep_recrypt, options, options_many, passphrases, recrypt, recrypt_ways, unlock
from encryption.services.recrypt_ways import Way
from inventory.api.frame import actor_of
from inventory.api.schemas import JobOut

router = Router(tags=["VM options"])


@router.get("/virtual-machines/{uuid:vm_id}/options", response=VmOptionsOut)
def get_vm_options(request: HttpRequest, vm_id: UUID) -> VmOptionsOut:
    return VmOptionsOut.of(options.vm_options(vm_id=vm_id, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/options/plan", response=OptionsPlanOut)
def plan_vm_options(request: HttpRequest, vm_id: UUID, wanted: WishIn) -> OptionsPlanOut:
    """What would be done, from what is known now. Changes nothing."""
    return OptionsPlanOut.of_change(options.plan_options(vm_id=vm_id, wish=wanted.wish(), actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/options", response={202: JobOut})
def apply_vm_options(request: HttpRequest, vm_id: UUID, wanted: ApplyIn) -> JobOut:
    """Starts the job that does what the plan shows."""
    return JobOut.of(
        options.apply_options(
            vm_id=vm_id,
            wish=wanted.wish(),
            approved=wanted.plan_digest,
            confirm=wanted.confirm,
            full_verification=wanted.full_verification,
            actor=actor_of(request),
        )
    )


@router.post("/virtual-machines/{uuid:vm_id}/recrypt", response={202: JobOut})
def recrypt_vm(request: HttpRequest, vm_id: UUID) -> JobOut:
    """Starts the job that gives the VM a new key (KEK); its data keys and its data stay, and it may run."""
    return JobOut.of(recrypt.recrypt_vm(vm_id=vm_id, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/recrypt/plan", response=PlanOut)
def plan_recrypt(request: HttpRequest, vm_id: UUID, wanted: RecryptPlanIn) -> PlanOut:
    """What one of the three ways of recrypting would do, from what is known now. Changes nothing."""
    actor = actor_of(request)
    return PlanOut.of(recrypt_ways.plan_recrypt(vm_id=vm_id, way=Way(wanted.way), parts=wanted.chosen(), actor=actor))


@router.post("/virtual-machines/{uuid:vm_id}/recrypt/deep", response={202: JobOut})
def deep_recrypt_vm(request: HttpRequest, vm_id: UUID, wanted: DeepRecryptIn) -> JobOut:
    """Starts the job that copies parts of the VM under new volume keys, and gives it a new key (KEK). Disks may be
    copied while it runs, its home only while it is off."""
    actor = actor_of(request)
    return JobOut.of(
        deep_recrypt.deep_recrypt_vm(
            vm_id=vm_id,
            parts=wanted.chosen(),
            kms_cluster_id=wanted.key_provider_id,
            full_verification=wanted.full_verification,
            actor=actor,
        )
    )


@router.post("/virtual-machines/{uuid:vm_id}/recrypt/passphrases", response={202: JobOut})
def rotate_passphrases(request: HttpRequest, vm_id: UUID) -> JobOut:
    """Starts the job that gives every LUKS image of a powered-off VM a new passphrase; volume keys and data stay."""
    return JobOut.of(passphrases.rotate_passphrases(vm_id=vm_id, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/unlock", response={202: JobOut})
def unlock_vm(request: HttpRequest, vm_id: UUID) -> JobOut:
    """Starts the job that tries whether the VM's keys can be had; a locked VM is then free, or its job says why not."""
    return JobOut.of(unlock.unlock_vm(vm_id=vm_id, actor=actor_of(request)))


@router.post("/key-providers/{uuid:provider_id}/recrypt", response={202: JobOut})
def recrypt_provider(request: HttpRequest, provider_id: UUID) -> JobOut:
    """Starts one job that gives every VM with a key of this provider a new one."""
    return JobOut.of(recrypt.recrypt_provider(cluster_id=provider_id, actor=actor_of(request)))


@router.post("/virtual-machines/options/plan", response=list[VmPlanOut])
def plan_many_vm_options(request: HttpRequest, wanted: ManyWishIn) -> list[VmPlanOut]:
    """What would be done to each of many VMs. Changes nothing."""
    plans = options_many.plan_many(vm_ids=wanted.virtual_machines, wish=wanted.wish(), actor=actor_of(request))
    return [VmPlanOut.of(one) for one in plans]


@router.post("/virtual-machines/options", response={202: list[VmResultOut]})
def apply_many_vm_options(request: HttpRequest, wanted: ApplyManyIn) -> list[VmResultOut]:
    """Starts a job for each VM; one that is refused holds up no other."""
    results = options_many.apply_many(
        vm_ids=wanted.virtual_machines, wish=wanted.wish(), approved=wanted.plan_digests, actor=actor_of(request)
    )
    return [VmResultOut.of(one) for one in results]
