"""Routes of virtual machines: lists, one, power, console, removal."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router
from pydantic import Field

from inventory.api.frame import PageQuery, Text, actor_of, page_of
from inventory.api.schemas import ConfirmNameIn, ConsoleTextOut, JobOut, VmLine, VmOut, VmPage
from inventory.models import Firmware, PowerState
from inventory.services import console, listings, power, saved_state, search
from inventory.services.search import VmFilter
from inventory.services.virtual_machines import remove_from_inventory

router = Router(tags=["Virtual machines"])

SORTS = "^-?(" + "|".join(search.SORTS) + ")$"


class VmQuery(PageQuery):
    """Which virtual machines, in what order."""

    text: Text = Field("", description="part of the name in any case, or a whole UUID")
    power_state: PowerState | None = None
    firmware: Firmware | None = None
    is_encrypted: bool | None = Field(None, description="whether any disk, the NVRAM or the vTPM state is")
    is_present: bool | None = Field(None, description="false: its host does not list it any more")
    host_id: UUID | None = None
    cluster_id: UUID | None = None
    datacenter_id: UUID | None = None
    sort: str = Field("name", pattern=SORTS, description=", ".join(search.SORTS) + '; "-" before it: downwards')

    def wanted(self) -> VmFilter:
        return VmFilter(
            text=self.text,
            power=self.power_state,
            firmware=self.firmware,
            is_encrypted=self.is_encrypted,
            is_present=self.is_present,
            host_id=self.host_id,
            cluster_id=self.cluster_id,
            datacenter_id=self.datacenter_id,
        )


@router.get("/virtual-machines", response=VmPage)
def list_virtual_machines(request: HttpRequest, query: Query[VmQuery]) -> dict[str, Any]:
    """Filtered, sorted and paged."""
    found = search.virtual_machines(
        actor=actor_of(request), wanted=query.wanted(), sort=query.sort, page=query.page, page_size=query.page_size
    )
    return page_of(found, lambda line: VmLine.of(line.vm, is_encrypted=line.is_encrypted))


@router.get("/virtual-machines/{uuid:vm_id}", response=VmOut)
def get_virtual_machine(request: HttpRequest, vm_id: UUID) -> VmOut:
    found = listings.virtual_machine(vm_id=vm_id, actor=actor_of(request))
    return VmOut.of(found.vm, is_encrypted=found.is_encrypted)


@router.delete("/virtual-machines/{uuid:vm_id}", response={204: None})
def remove_virtual_machine(request: HttpRequest, vm_id: UUID) -> None:
    """Drops a VM that its host no longer lists from the inventory."""
    remove_from_inventory(vm_id=vm_id, actor=actor_of(request))


@router.post("/virtual-machines/{uuid:vm_id}/power-on", response={202: JobOut})
def power_on(request: HttpRequest, vm_id: UUID) -> JobOut:
    return JobOut.of(power.power_on(vm_id=vm_id, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/shut-down", response={202: JobOut})
def shut_down(request: HttpRequest, vm_id: UUID) -> JobOut:
    """Asks the guest to shut down. The job ends once it has been asked."""
    return JobOut.of(power.shut_down(vm_id=vm_id, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/power-off", response={202: JobOut})
def power_off(request: HttpRequest, vm_id: UUID) -> JobOut:
    """Like pulling the plug: what the guest has not written is lost."""
    return JobOut.of(power.power_off(vm_id=vm_id, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/reboot", response={202: JobOut})
def reboot(request: HttpRequest, vm_id: UUID) -> JobOut:
    """Asks the guest to restart."""
    return JobOut.of(power.reboot(vm_id=vm_id, actor=actor_of(request)))


@router.post("/virtual-machines/{uuid:vm_id}/discard-saved-state", response={202: JobOut})
def discard_saved_state(request: HttpRequest, vm_id: UUID, wanted: ConfirmNameIn) -> JobOut:
    """Deletes the file that the guest was suspended to. What only its memory held is lost."""
    actor = actor_of(request)
    return JobOut.of(saved_state.discard_saved_state(vm_id=vm_id, confirm=wanted.confirm, actor=actor))


@router.get("/virtual-machines/{uuid:vm_id}/console", response=ConsoleTextOut)
def get_console(request: HttpRequest, vm_id: UUID) -> ConsoleTextOut:
    """What was last read of the serial port, at once; a worker is asked for more."""
    found = console.console_text(vm_id=vm_id, actor=actor_of(request))
    return ConsoleTextOut(text=found.text, age_seconds=found.age_seconds, problem=found.problem)
