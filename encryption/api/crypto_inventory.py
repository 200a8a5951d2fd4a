"""Routes of crypto inventories: signed lists of what protects every VM."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from ninja import Query, Router, Schema

from encryption.services import crypto_inventory
from inventory.api.frame import PageOut, PageQuery, actor_of, page_of
from inventory.api.schemas import JobOut

router = Router(tags=["Crypto inventory"])


class CryptoInventoryOut(Schema):
    """`made_at` is null until a worker has made it; `key`: the fingerprint of the key that signed it."""

    id: UUID
    asked_at: datetime
    asked_by: str
    made_at: datetime | None
    virtual_machines: int
    encrypted_parts: int
    key: str


class CryptoInventoryPage(PageOut):
    items: list[CryptoInventoryOut]


@router.get("/crypto-inventories", response=CryptoInventoryPage)
def list_crypto_inventories(request: HttpRequest, page: Query[PageQuery]) -> dict[str, Any]:
    """The newest first. The last ten are kept."""
    found = crypto_inventory.inventories(actor=actor_of(request), paging=page.paging())
    return page_of(found, CryptoInventoryOut.from_orm)


@router.post("/crypto-inventories", response={202: JobOut})
def make_crypto_inventory(request: HttpRequest) -> JobOut:
    """A worker makes and signs one; the job's target is its id."""
    return JobOut.of(crypto_inventory.request_inventory(actor=actor_of(request)))


@router.get("/crypto-inventories/{uuid:inventory_id}", response=CryptoInventoryOut)
def get_crypto_inventory(request: HttpRequest, inventory_id: UUID) -> CryptoInventoryOut:
    found = crypto_inventory.inventory(inventory_id=inventory_id, actor=actor_of(request))
    return CryptoInventoryOut.from_orm(found)


@router.get("/crypto-inventories/{uuid:inventory_id}/file", response={200: str})
def download_crypto_inventory(request: HttpRequest, inventory_id: UUID) -> HttpResponse:
    """The signed file. Verify it with `./bartizan manage verify-inventory FILE`. Reading it is an event."""
    row = crypto_inventory.download_inventory(inventory_id=inventory_id, actor=actor_of(request))
    return HttpResponse(row.content, content_type="application/json", headers={"Cache-Control": "no-store, private"})
