"""Enrolling a host's TPM, accepting another one, letting one go, forgetting a registration."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from attestation import forms
from attestation.services import enrolment, hosts
from attestation.views.report import page_of
from inventory.authorize import Actor, authorize
from inventory.models import Host, TargetKind
from inventory.views import pages
from inventory.views.dialogs import confirm, form
from inventory.views.extensions import Action


def actions(target: Model, actor: Actor) -> Sequence[Action]:
    """Of a host."""
    if not isinstance(target, Host):
        return []
    if getattr(target, "tpm_identity", None) is None:
        url = reverse("attestation:enrol", args=[target.pk])
        return [Action("Enrol TPM…", url, "certificate", "Security", action=enrolment.ENROL)]
    url = reverse("attestation:attest", args=[target.pk])
    return [Action("Attest…", url, "shield-check", "Security", action=hosts.ATTEST.name)]


def enrol(request: HttpRequest, host_id: UUID) -> HttpResponse:
    host = _host(request, host_id)
    wanted = enrolment.matching_registration(host)

    def submit(data: dict[str, Any]) -> str:
        enrolment.enrol_host(
            host_id=host_id, registration_id=UUID(data["registration"]), actor=request.user, reason=data["reason"],
            contact_host=data["contact_host"],
        )  # fmt: skip
        return page_of(host_id)

    text = (
        f"{host} is known by this TPM from then on, and attested at once. Agents register by themselves; only TPMs that"
        " have answered a challenge are offered."
    )
    initial = {} if wanted is None else {"registration": str(wanted.pk)}
    return form(
        request, _choosing(request, forms.EnrolForm), submit, initial, title="Enrol TPM", button="Enrol", text=text,
        back=page_of(host_id),
    )  # fmt: skip


def accept_new_tpm(request: HttpRequest, host_id: UUID) -> HttpResponse:
    host = _host(request, host_id)
    identity = enrolment.identity_of(host)
    wanted = enrolment.other_tpm_of(identity)

    def submit(data: dict[str, Any]) -> str:
        enrolment.accept_new_tpm(
            host_id=host_id, registration_id=UUID(data["registration"]), actor=request.user, reason=data["reason"],
            contact_host=data["contact_host"],
        )  # fmt: skip
        return page_of(host_id)

    text = f"The old TPM of {host} is forgotten. Do this only when you know why the host has another one."
    initial = {} if wanted is None else {"registration": str(wanted.pk)}
    return form(
        request, _choosing(request, forms.AcceptTpmForm), submit, initial, title="Accept new TPM", button="Accept",
        text=text, back=page_of(host_id),
    )  # fmt: skip


def remove(request: HttpRequest, host_id: UUID) -> HttpResponse:
    host = _host(request, host_id)
    enrolment.identity_of(host)

    def submit(data: dict[str, Any]) -> str:
        enrolment.remove_identity(host_id=host_id, reason=data["reason"], actor=request.user)
        return page_of(host_id)

    text = (
        f"{host} is attested no longer. Where its cluster asks attestation of hosts with an enrolled TPM only, it gets"
        " keys without a verdict from then on."
    )
    return form(
        request, forms.ReasonForm, submit, title="Remove TPM", button="Remove", text=text, back=page_of(host_id)
    )


def dismiss(request: HttpRequest, registration_id: UUID) -> HttpResponse:
    authorize(request.user, enrolment.ENROL)
    found = enrolment.registration_of(registration_id, actor=request.user)
    back = reverse("attestation:trust")

    def submit(_: dict[str, Any]) -> str:
        enrolment.dismiss_registration(registration_id=registration_id, actor=request.user)
        return back

    text = f"Forget the registration of agent {found.agent_id}? It comes again when the agent restarts."
    return confirm(request, submit, text, title="Dismiss registration", button="Dismiss", back=back)


def _host(request: HttpRequest, host_id: UUID) -> Host:
    host = pages.load(TargetKind.HOST, host_id, request.user)
    authorize(request.user, enrolment.ENROL, host)
    if not isinstance(host, Host):
        raise TypeError(type(host).__name__)
    return host


def _choosing(request: HttpRequest, shape: type[forms.EnrolForm]) -> Any:
    def made(*args: Any, **kwargs: Any) -> forms.EnrolForm:
        return shape(enrolment.registrations(actor=request.user).items, *args, **kwargs)

    return made
