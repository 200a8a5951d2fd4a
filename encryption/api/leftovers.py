"""Routes of leftovers: files in which something of an encrypted virtual machine lies in clear."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router

from encryption.api.schemas import DestroyLeftoverIn, KeepLeftoverIn, LeftoverOut, LeftoverPage
from encryption.services import leftovers
from inventory.api.frame import PageQuery, actor_of, page_of
from inventory.api.schemas import JobOut

router = Router(tags=["Leftovers"])


@router.get("/hosts/{uuid:host_id}/leftovers", response=LeftoverPage)
def list_leftovers_of_host(request: HttpRequest, host_id: UUID, page: Query[PageQuery]) -> dict[str, Any]:
    """As a worker last found them, by path; kept ones too."""
    found = leftovers.leftovers_of_host(host_id=host_id, actor=actor_of(request), paging=page.paging())
    return page_of(found, LeftoverOut.of)


@router.get("/datastores/{uuid:datastore_id}/leftovers", response=LeftoverPage)
def list_leftovers_of_datastore(request: HttpRequest, datastore_id: UUID, page: Query[PageQuery]) -> dict[str, Any]:
    """Those below the datastore's folder."""
    found = leftovers.leftovers_of_datastore(datastore_id=datastore_id, actor=actor_of(request), paging=page.paging())
    return page_of(found, LeftoverOut.of)


@router.post("/hosts/{uuid:host_id}/leftovers/find", response={202: JobOut})
def find_leftovers(request: HttpRequest, host_id: UUID) -> JobOut:
    """Starts the job that looks through the host's folders. It changes nothing there."""
    return JobOut.of(leftovers.find_leftovers(host_id=host_id, actor=actor_of(request)))


@router.post("/leftovers/{uuid:leftover_id}/destroy", response={202: JobOut})
def destroy_leftover(request: HttpRequest, leftover_id: UUID, wanted: DestroyLeftoverIn) -> JobOut:
    """Starts the job that overwrites and deletes the file, if nothing uses it and it is still what was found."""
    found = leftovers.destroy_leftover(leftover_id=leftover_id, confirm=wanted.confirm, actor=actor_of(request))
    return JobOut.of(found)


@router.post("/leftovers/{uuid:leftover_id}/keep", response=LeftoverOut)
def keep_leftover(request: HttpRequest, leftover_id: UUID, wanted: KeepLeftoverIn) -> LeftoverOut:
    """Leaves the file in clear; it is listed with the reason, and is no alarm."""
    found = leftovers.keep_leftover(leftover_id=leftover_id, reason=wanted.reason, actor=actor_of(request))
    return LeftoverOut.of(found)
