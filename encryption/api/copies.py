"""Routes of clone, export and import, and of the exported VMs in the exchange folder."""

from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router, Schema
from pydantic import Field

from encryption.models import Bundle
from encryption.services import bundles, clone, export
from encryption.services import import_vm as imports
from encryption.services.clone import KeyChoice, TpmChoice
from encryption.services.import_vm import Identity
from inventory.api.frame import Input, PageOut, PageQuery, Text, actor_of, page_of
from inventory.api.schemas import JobOut

router = Router(tags=["Copies of VMs"])


class CloneIn(Input):
    """`key`: a KEK of its own, or the original's. `vtpm`: the same TPM, or a new one with another identity."""

    name: Text
    key: KeyChoice = KeyChoice.NEW
    vtpm: TpmChoice = TpmChoice.COPY


class ExportIn(Input):
    in_clear: bool = Field(False, description="A plain VM's data may lie readable in the exchange folder.")


class ImportIn(Input):
    """`identity`: the same VM (UUID, MAC addresses), or a new one."""

    bundle_id: UUID
    datastore_id: UUID
    name: Text
    identity: Identity = Identity.MOVE


class BundleOut(Schema):
    """An exported VM as a worker last saw it. `size_bytes` is its files' sum."""

    id: UUID
    folder: str
    state: Bundle.State
    reason: str
    vm_name: str
    vm_uuid: UUID | None
    size_bytes: int
    is_clear: bool
    made_at: datetime | None
    made_by: str
    console: str
    kms_cluster: UUID | None
    kms_cluster_name: str
    key_id: str

    @classmethod
    def of(cls, row: Bundle) -> Self:
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class BundlePage(PageOut):
    items: list[BundleOut]


@router.post("/virtual-machines/{uuid:vm_id}/clone", response={202: JobOut})
def clone_vm(request: HttpRequest, vm_id: UUID, wanted: CloneIn) -> JobOut:
    """Starts the job that copies a powered-off VM on its host. LUKS images keep their volume keys."""
    return JobOut.of(clone.clone_vm(vm_id=vm_id, actor=actor_of(request), **wanted.dict()))


@router.post("/virtual-machines/{uuid:vm_id}/export", response={202: JobOut})
def export_vm(request: HttpRequest, vm_id: UUID, wanted: ExportIn) -> JobOut:
    """Starts the job that writes a powered-off VM into the exchange folder; of an encrypted one ciphertext only."""
    return JobOut.of(export.export_vm(vm_id=vm_id, actor=actor_of(request), **wanted.dict()))


@router.post("/hosts/{uuid:host_id}/import", response={202: JobOut})
def import_vm(request: HttpRequest, host_id: UUID, wanted: ImportIn) -> JobOut:
    """Starts the job that brings an exported VM onto a host."""
    return JobOut.of(imports.import_vm(host_id=host_id, actor=actor_of(request), **wanted.dict()))


@router.get("/exported-vms", response=BundlePage)
def list_bundles(request: HttpRequest, page: Annotated[PageQuery, Query()]) -> object:
    """The latest first."""
    return page_of(bundles.bundles(actor=actor_of(request), paging=page.paging()), BundleOut.of)


@router.post("/exported-vms/look", response={204: None})
def look_for_bundles(request: HttpRequest) -> None:
    """A worker looks into the exchange folder soon, for bundles that were put there by hand."""
    bundles.request_look(actor=actor_of(request))


@router.delete("/exported-vms/{uuid:bundle_id}", response={202: JobOut})
def delete_bundle(request: HttpRequest, bundle_id: UUID) -> JobOut:
    """Starts the job that deletes the bundle's folder."""
    return JobOut.of(bundles.delete_bundle(bundle_id=bundle_id, actor=actor_of(request)))
