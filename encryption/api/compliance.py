"""Routes of compliance: the last answer, and asking for a look."""

from uuid import UUID

from django.http import HttpRequest
from ninja import Router

from encryption.api.schemas import ComplianceOut
from encryption.services import compliance
from inventory.api.frame import actor_of
from inventory.api.schemas import JobOut

router = Router(tags=["Compliance"])


@router.get("/virtual-machines/{uuid:vm_id}/compliance", response=ComplianceOut)
def get_compliance(request: HttpRequest, vm_id: UUID) -> ComplianceOut:
    """Whether the VM is what its policies say, as last observed on its host."""
    return ComplianceOut.of(compliance.compliance_of(vm_id=vm_id, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/check-compliance", response={202: JobOut})
def check_vm_compliance(request: HttpRequest, vm_id: UUID) -> JobOut:
    """A worker reads headers and definition on the VM's host. Nothing is changed."""
    return JobOut.of(compliance.check_vm(vm_id=vm_id, actor=actor_of(request)))


@router.post("/storage-policies/{uuid:policy_id}/check-compliance", response={202: JobOut})
def check_policy_compliance(request: HttpRequest, policy_id: UUID) -> JobOut:
    """The same for every VM that has the policy in some part."""
    return JobOut.of(compliance.check_policy(policy_id=policy_id, actor=actor_of(request)))


@router.post("/hosts/{uuid:host_id}/check-compliance", response={202: JobOut})
def check_host_compliance(request: HttpRequest, host_id: UUID) -> JobOut:
    """The same for every encrypted VM of the host."""
    return JobOut.of(compliance.check_host(host_id=host_id, actor=actor_of(request)))
