"""Routes of keys at the key providers. No key is ever here: only its ID there."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router

from encryption.api.schemas import AdoptKeyIn, DestroyIn, KeyOut, KeyPage, RevokeIn
from encryption.services import keys
from inventory.api.frame import PageQuery, actor_of, page_of
from inventory.api.schemas import JobOut

router = Router(tags=["Keys"])


@router.get("/key-providers/{uuid:provider_id}/keys", response=KeyPage)
def list_keys(request: HttpRequest, provider_id: UUID, page: Query[PageQuery]) -> dict[str, Any]:
    """The newest first. No key is ever here: only its ID at the provider."""
    found = keys.keys(cluster_id=provider_id, actor=actor_of(request), paging=page.paging())
    return page_of(found, KeyOut.of)


@router.post("/key-providers/{uuid:provider_id}/keys/refresh", response={202: JobOut})
def refresh_keys(request: HttpRequest, provider_id: UUID) -> JobOut:
    """A worker asks for the state of every key, and counts keys there that this console does not know."""
    return JobOut.of(keys.request_refresh(cluster_id=provider_id, actor=actor_of(request)))


@router.post("/key-providers/{uuid:provider_id}/keys/adopt", response={202: JobOut})
def adopt_key(request: HttpRequest, provider_id: UUID, wanted: AdoptKeyIn) -> JobOut:
    """A worker looks for a key that is there and not in the list, and adds it. Nothing there is changed."""
    return JobOut.of(keys.adopt(cluster_id=provider_id, wanted=wanted.key, actor=actor_of(request)))


@router.get("/keys/{uuid:key_id}", response=KeyOut)
def get_key(request: HttpRequest, key_id: UUID) -> KeyOut:
    return KeyOut.of(keys.key(key_id, actor=actor_of(request)))


@router.post("/keys/{uuid:key_id}/revoke", response={202: JobOut})
def revoke_key(request: HttpRequest, key_id: UUID, wanted: RevokeIn) -> JobOut:
    """For good. A key in use is revoked only as compromised."""
    return JobOut.of(keys.revoke(key_id=key_id, reason=wanted.reason, actor=actor_of(request)))


@router.post("/keys/{uuid:key_id}/destroy", response={202: JobOut})
def destroy_key(request: HttpRequest, key_id: UUID, wanted: DestroyIn) -> JobOut:
    """For ever. Refused while anything is encrypted under it."""
    return JobOut.of(keys.destroy(key_id=key_id, confirm=wanted.confirm, actor=actor_of(request)))
