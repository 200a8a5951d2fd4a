"""Routes of new virtual machines: the plan, and the job that makes one."""

from typing import Annotated, Literal
from uuid import UUID

from django.http import HttpRequest
from ninja import Router
from pydantic import Field

from encryption.api.schemas.vm_options import OptionsPlanOut
from encryption.services import new_vm
from encryption.services.new_vm import Guest, NewDisk, NewVm
from encryption.services.options import Vmotion
from inventory.api.frame import Input, Text, actor_of
from inventory.api.schemas import JobOut

router = Router(tags=["New virtual machines"])


class NewDiskIn(Input):
    """`policy_id`: the storage policy that it is made by; one that encrypts makes a LUKS image."""

    size_bytes: int
    policy_id: UUID


class NewVmIn(Input):
    """A VM to be made on a datastore, and on the host of that. `policy_id` is the home's; a vTPM encrypts the home,
    whatever policy is named. `network`: libvirt's name of it; `iso`: a path on the host; empty for none."""

    name: Text
    disks: Annotated[list[NewDiskIn], Field(max_length=64)]
    policy_id: UUID
    guest: Guest = Guest.LINUX
    firmware: Literal["uefi", "bios"] = "uefi"
    vcpus: int = 2
    memory_bytes: int = 4 * 2**30
    network: Annotated[str, Field(max_length=64)] = ""
    iso: Annotated[str, Field(max_length=1000)] = ""
    key_provider_id: UUID | None = None
    vtpm: bool = False
    secure_boot: bool = False
    vbs: bool = False
    encrypted_vmotion: Literal["disabled", "opportunistic", "required"] | None = None

    def wanted(self, datastore_id: UUID) -> NewVm:
        return NewVm(
            name=self.name,
            datastore_id=datastore_id,
            disks=tuple(NewDisk(one.size_bytes, one.policy_id) for one in self.disks),
            policy_id=self.policy_id,
            guest=self.guest,
            is_uefi=self.firmware == "uefi",
            vcpus=self.vcpus,
            memory_bytes=self.memory_bytes,
            network=self.network,
            iso=self.iso,
            kms_cluster_id=self.key_provider_id,
            vtpm=self.vtpm,
            secure_boot=self.secure_boot,
            vbs=self.vbs,
            encrypted_vmotion=Vmotion(self.encrypted_vmotion) if self.encrypted_vmotion else None,
        )


class CreateVmIn(NewVmIn):
    """`plan_digest`: of the plan that was seen; where the plan is another one by now nothing is begun."""

    plan_digest: Annotated[str, Field(max_length=64)] = ""


@router.post("/datastores/{uuid:datastore_id}/virtual-machines/plan", response=OptionsPlanOut)
def plan_new_vm(request: HttpRequest, datastore_id: UUID, wanted: NewVmIn) -> OptionsPlanOut:
    """What would be made. Changes nothing."""
    return OptionsPlanOut.of_change(new_vm.plan_new_vm(new=wanted.wanted(datastore_id), actor=actor_of(request)))


@router.post("/datastores/{uuid:datastore_id}/virtual-machines", response={202: JobOut})
def create_vm(request: HttpRequest, datastore_id: UUID, wanted: CreateVmIn) -> JobOut:
    """Starts the job that makes a virtual machine, powered off, encrypted from its first byte where its policies say
    so. One at a time is made on a host."""
    return JobOut.of(
        new_vm.create_vm(new=wanted.wanted(datastore_id), approved=wanted.plan_digest, actor=actor_of(request))
    )
