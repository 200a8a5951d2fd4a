"""Routes of trust anchors, waiting TPMs, and the console's CA toward agents."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router

from attestation.api.schemas import AnchorIn, AnchorOut, RegistrationOut, RegistrationPage, VerifierCaOut
from attestation.services import anchors, enrolment, verifier_identity
from inventory.api.frame import PageQuery, actor_of, page_of

router = Router(tags=["Attestation"])


@router.get("/trust-anchors", response=list[AnchorOut])
def list_trust_anchors(request: HttpRequest) -> list[AnchorOut]:
    """Certificates of TPM makers, by name."""
    return [AnchorOut.of(row) for row in anchors.anchors(actor=actor_of(request))]


@router.post("/trust-anchors", response={201: AnchorOut})
def add_trust_anchor(request: HttpRequest, wanted: AnchorIn) -> AnchorOut:
    """Pins a certificate. Compare its fingerprint with what the maker publishes first."""
    return AnchorOut.of(anchors.add_anchor(name=wanted.name, certificate=wanted.certificate, actor=actor_of(request)))


@router.delete("/trust-anchors/{uuid:anchor_id}", response={204: None})
def remove_trust_anchor(request: HttpRequest, anchor_id: UUID) -> None:
    """Hosts whose TPMs it alone vouches for fail their next attestation."""
    anchors.remove_anchor(anchor_id=anchor_id, actor=actor_of(request))


@router.get("/tpm-registrations", response=RegistrationPage)
def list_tpm_registrations(request: HttpRequest, page: Query[PageQuery]) -> dict[str, Any]:
    """TPMs that have answered their challenge and are no host's, newest first."""
    return page_of(enrolment.registrations(actor=actor_of(request), paging=page.paging()), RegistrationOut.of)


@router.delete("/tpm-registrations/{uuid:registration_id}", response={204: None})
def dismiss_tpm_registration(request: HttpRequest, registration_id: UUID) -> None:
    """Forgets it; its agent may register again."""
    enrolment.dismiss_registration(registration_id=registration_id, actor=actor_of(request))


@router.get("/verifier-ca", response=VerifierCaOut)
def get_verifier_ca(request: HttpRequest) -> VerifierCaOut:
    """The CA by which agents know this console."""
    return VerifierCaOut(certificate_pem=verifier_identity.public_ca_pem(actor=actor_of(request)))
