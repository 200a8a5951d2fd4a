"""Routes of a VM's vTPM. Adding and removing are `apply_vm_options`, for which these are short ways."""

from uuid import UUID

from django.http import HttpRequest, HttpResponse
from ninja import Router

from encryption.api.schemas import OptionsPlanOut, RemoveVtpmIn, ReplaceVtpmCertificateIn, VtpmOut
from encryption.services import vtpm, vtpm_certificates
from inventory.api.frame import actor_of
from inventory.api.schemas import JobOut

router = Router(tags=["vTPM"])


@router.get("/virtual-machines/{uuid:vm_id}/vtpm", response=VtpmOut)
def get_vtpm(request: HttpRequest, vm_id: UUID) -> VtpmOut:
    return VtpmOut.of(vtpm.vtpm_of(vm_id=vm_id, actor=actor_of(request)))


@router.get("/virtual-machines/{uuid:vm_id}/vtpm/plan", response=OptionsPlanOut)
def plan_vtpm(request: HttpRequest, vm_id: UUID, present: bool) -> OptionsPlanOut:
    """What adding a vTPM (`present`), or removing it, would do. Changes nothing."""
    return OptionsPlanOut.of_change(vtpm.plan_vtpm(vm_id=vm_id, present=present, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/vtpm", response={202: JobOut})
def add_vtpm(request: HttpRequest, vm_id: UUID) -> JobOut:
    """A TPM 2.0, its state encrypted from the first byte. The VM must be off and have UEFI; its home is encrypted."""
    return JobOut.of(vtpm.add_vtpm(vm_id=vm_id, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/vtpm/remove", response={202: JobOut})
def remove_vtpm(request: HttpRequest, vm_id: UUID, wanted: RemoveVtpmIn) -> JobOut:
    """Destroys its state: what the guest has only there (BitLocker's key, credentials) is lost. The VM must be off."""
    return JobOut.of(vtpm.remove_vtpm(vm_id=vm_id, confirm=wanted.confirm, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/vtpm/certificates/read", response={202: JobOut})
def read_vtpm_certificates(request: HttpRequest, vm_id: UUID) -> JobOut:
    """Reads them from a copy of the vTPM's state; the VM may run."""
    return JobOut.of(vtpm_certificates.read_certificates(vm_id=vm_id, actor=actor_of(request)))


@router.put("/virtual-machines/{uuid:vm_id}/vtpm/certificates/{nv_index}", response={202: JobOut})
def replace_vtpm_certificate(
    request: HttpRequest, vm_id: UUID, nv_index: int, wanted: ReplaceVtpmCertificateIn
) -> JobOut:
    """Another certificate for this endorsement key, in the place of the one in the TPM. The VM must be off."""
    return JobOut.of(
        vtpm_certificates.replace_certificate(
            vm_id=vm_id, nv_index=nv_index, certificate=wanted.certificate_pem.encode(), actor=actor_of(request)
        )
    )


@router.get("/virtual-machines/{uuid:vm_id}/vtpm/certificates/{nv_index}/{what}")
def download_vtpm_certificate(request: HttpRequest, vm_id: UUID, nv_index: int, what: str) -> HttpResponse:
    """`what`: certificate.der, certificate.pem, or key.pem for the endorsement key's public key."""
    found = vtpm_certificates.download(vm_id=vm_id, nv_index=nv_index, what=what, actor=actor_of(request))
    return HttpResponse(found.content, content_type=found.media_type)
