"""Routes of clusters' attestation policies and reference values."""

import json
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router

from attestation.api.schemas import (
    ChangeOut,
    PolicyIn,
    PolicyOut,
    ReferenceDetails,
    ReferenceOut,
    ReferencePage,
    ReferencesIn,
)
from attestation.services import policies, references
from attestation.services.policies import PolicyWish
from inventory.api.frame import PageQuery, actor_of, page_of

router = Router(tags=["Attestation"])


@router.get("/clusters/{uuid:cluster_id}/attestation-policy", response=PolicyOut)
def get_attestation_policy(request: HttpRequest, cluster_id: UUID) -> PolicyOut:
    return PolicyOut.of(policies.policy(cluster_id=cluster_id, actor=actor_of(request)))


@router.put("/clusters/{uuid:cluster_id}/attestation-policy", response=PolicyOut)
def edit_attestation_policy(request: HttpRequest, cluster_id: UUID, wanted: PolicyIn) -> PolicyOut:
    """Whether keys need a good verdict, how fresh it must be, and how often hosts are attested."""
    wish = PolicyWish(wanted.require, wanted.freshness_minutes, wanted.interval_minutes, wanted.two_person_references)
    return PolicyOut.of(policies.edit_policy(cluster_id=cluster_id, wish=wish, actor=actor_of(request)))


@router.get("/clusters/{uuid:cluster_id}/reference-values", response=ReferencePage)
def list_reference_values(request: HttpRequest, cluster_id: UUID, page: Query[PageQuery]) -> dict[str, Any]:
    """Versions, newest first."""
    found = references.versions(cluster_id=cluster_id, actor=actor_of(request), paging=page.paging())
    return page_of(found, ReferenceOut.of)


@router.post("/clusters/{uuid:cluster_id}/reference-values", response={201: ReferenceOut})
def save_reference_values(request: HttpRequest, cluster_id: UUID, wanted: ReferencesIn) -> ReferenceOut:
    """A new version by hand."""
    body = json.dumps(wanted.body)
    made = references.save_references(cluster_id=cluster_id, body=body, reason=wanted.reason, actor=actor_of(request))
    return ReferenceOut.of(made)


@router.get("/reference-values/{uuid:reference_id}", response=ReferenceDetails)
def get_reference_values(request: HttpRequest, reference_id: UUID) -> ReferenceDetails:
    row = references.reference_of(reference_id, actor=actor_of(request))
    changes = [
        ChangeOut(kind=each.kind.value, part=each.part, subject=each.subject, before=each.before, after=each.after)
        for each in references.changes_of(row)
    ]
    return ReferenceDetails(**ReferenceOut.of(row).dict(), body=json.loads(row.body), changes=changes)


@router.post("/reference-values/{uuid:reference_id}/approve", response=ReferenceOut)
def approve_reference_values(request: HttpRequest, reference_id: UUID) -> ReferenceOut:
    """Puts a version in force; by a second administrator where the cluster's policy says so."""
    return ReferenceOut.of(references.approve_references(reference_id=reference_id, actor=actor_of(request)))
