"""Routes of a VM's hard disks: added, attached, detached, and detached ones destroyed."""

from uuid import UUID

from django.http import HttpRequest
from ninja import Router

from encryption.api.schemas import AddDiskIn, AttachDiskIn, DestroyLeftoverIn, DetachedDiskOut
from encryption.services import disks
from inventory.api.frame import actor_of
from inventory.api.schemas import JobOut

router = Router(tags=["Hard disks"])


@router.get("/virtual-machines/{uuid:vm_id}/detached-disks", response=list[DetachedDiskOut])
def list_detached_disks(request: HttpRequest, vm_id: UUID) -> list[DetachedDiskOut]:
    """Encrypted disks that the virtual machine no longer has, and whose keys are kept."""
    return [DetachedDiskOut.of(row) for row in disks.vm_disks(vm_id=vm_id, actor=actor_of(request)).detached]


@router.post("/virtual-machines/{uuid:vm_id}/disks", response={202: JobOut})
def add_disk(request: HttpRequest, vm_id: UUID, wanted: AddDiskIn) -> JobOut:
    """A new, empty disk; under an encrypting policy a LUKS image from its first byte. The VM must be off."""
    return JobOut.of(disks.add_disk(vm_id=vm_id, actor=actor_of(request), **wanted.dict()))


@router.post("/virtual-machines/{uuid:vm_id}/disks/attach", response={202: JobOut})
def attach_disk(request: HttpRequest, vm_id: UUID, wanted: AttachDiskIn) -> JobOut:
    """An image that is there; a detached encrypted disk opens with the key that was kept. The VM must be off."""
    return JobOut.of(disks.attach_disk(vm_id=vm_id, actor=actor_of(request), **wanted.dict()))


@router.post("/virtual-machines/{uuid:vm_id}/disks/{target}/detach", response={202: JobOut})
def detach_disk(request: HttpRequest, vm_id: UUID, target: str) -> JobOut:
    """Its file stays, and so does the key of an encrypted one; its storage policy is forgotten. The VM must be off."""
    return JobOut.of(disks.detach_disk(vm_id=vm_id, target=target, actor=actor_of(request)))


@router.post("/detached-disks/{uuid:disk_id}/destroy", response={202: JobOut})
def destroy_detached_disk(request: HttpRequest, disk_id: UUID, wanted: DestroyLeftoverIn) -> JobOut:
    """The image, and the only key to it."""
    actor = actor_of(request)
    return JobOut.of(disks.destroy_detached_disk(secret_uuid=disk_id, confirm=wanted.confirm, actor=actor))
