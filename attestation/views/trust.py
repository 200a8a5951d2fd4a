"""TPM Trust: the certificates that vouch for TPMs, and TPMs that have registered and are no host's yet."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from attestation import forms
from attestation.services import anchors, enrolment, verifier_identity
from inventory.authorize import authorize, may
from inventory.views.dialogs import confirm, form


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    rows = enrolment.registrations(actor=request.user)
    context = {
        "anchors": anchors.anchors(actor=request.user),
        "registrations": [(row, enrolment.matching_host(row), *enrolment.vouched(row)) for row in rows.items],
        "total": rows.total,
        "verifier_ca": verifier_identity.known_ca_pem(),
        "may_manage": may(request.user, anchors.MANAGE),
        "may_enrol": may(request.user, enrolment.ENROL),
    }
    return render(request, "attestation/trust.html", context)


@require_safe
def verifier_ca(request: HttpRequest) -> HttpResponse:
    headers = {"Content-Disposition": 'attachment; filename="bartizan-verifier-ca.pem"'}
    content = verifier_identity.public_ca_pem(actor=request.user)
    return HttpResponse(content, content_type="application/x-pem-file", headers=headers)


def add(request: HttpRequest) -> HttpResponse:
    authorize(request.user, anchors.MANAGE)
    back = reverse("attestation:trust")

    def submit(data: dict[str, Any]) -> str:
        anchors.add_anchor(name=data["name"], certificate=data["certificate"], actor=request.user)
        return back

    text = "TPMs whose certificates this CA has issued, or CAs below it, are trusted to be real."
    return form(request, forms.AnchorForm, submit, title="Add trust anchor", button="Add", text=text, back=back)


def remove(request: HttpRequest, anchor_id: UUID) -> HttpResponse:
    authorize(request.user, anchors.MANAGE)
    found = anchors.anchor_of(anchor_id, actor=request.user)
    back = reverse("attestation:trust")

    def submit(_: dict[str, Any]) -> str:
        anchors.remove_anchor(anchor_id=anchor_id, actor=request.user)
        return back

    text = f"Remove {found}? Hosts whose TPMs it alone vouches for fail their attestation and get no keys."
    return confirm(request, submit, text, title="Remove trust anchor", button="Remove", back=back)
