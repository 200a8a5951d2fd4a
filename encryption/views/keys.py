"""One key of a key provider: what it protects, its history, and its end."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from encryption.forms import kms as forms
from encryption.services import keys as services
from encryption.services.key_providers import cluster
from encryption.services.keys import MANAGE
from encryption.views.kms_dialogs import act, page_of
from inventory.authorize import authorize, may
from inventory.views.dialogs import form


@require_safe
def detail(request: HttpRequest, key_id: UUID) -> HttpResponse:
    found = services.key(key_id, actor=request.user)
    context = {
        "key": found,
        "events": services.history(found),
        "is_ended": found.state in services.ENDED,
        "may_manage": may(request.user, MANAGE),
    }
    return render(request, "encryption/kms_key.html", context)


def refresh(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    question = "Ask {} for the state of every key?"
    return act(request, cluster_id, services.request_refresh, question, title="Refresh keys", button="Refresh")


def adopt(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    authorize(request.user, MANAGE)
    owner = cluster(cluster_id, actor=request.user)

    def submit(data: dict[str, Any]) -> str:
        services.adopt(cluster_id=cluster_id, wanted=data["wanted"], actor=request.user)
        return page_of(cluster_id)

    return form(
        request, forms.AdoptKeyForm, submit, title="Add existing key", button="Add", back=page_of(cluster_id),
        text=f"A key that is at {owner} already and not in the list, such as one that an earlier console made. A "
        "worker looks for it. Nothing at the key provider is changed.",
    )  # fmt: skip


def revoke(request: HttpRequest, key_id: UUID) -> HttpResponse:
    authorize(request.user, MANAGE)
    found = services.key(key_id, actor=request.user)

    def submit(data: dict[str, Any]) -> str:
        services.revoke(key_id=key_id, reason=data["reason"], actor=request.user)
        return _page(key_id)

    return form(
        request, forms.RevokeKeyForm, submit, title="Revoke key", button="Revoke", back=_page(key_id), is_danger=True,
        text=f"Key {found} can never become active again. A key in use is revoked only as compromised; its VMs "
        "still open, and should be brought under another key.",
    )  # fmt: skip


def destroy(request: HttpRequest, key_id: UUID) -> HttpResponse:
    authorize(request.user, MANAGE)
    found = services.key(key_id, actor=request.user)
    warning = " It was made by somebody else: VMs that this console does not know may need it."

    def submit(data: dict[str, Any]) -> str:
        services.destroy(key_id=key_id, confirm=data["confirm"], actor=request.user)
        return _page(key_id)

    return form(
        request, forms.DestroyKeyForm, submit, title="Destroy key", button="Destroy", is_danger=True,
        back=_page(key_id),
        text=f"Key {found} is destroyed at {found.cluster}, for ever. Copies of VMs, exports and backups that were "
        "encrypted under it, wherever they are, can then never be opened again."
        + (warning if found.is_foreign else ""),
    )  # fmt: skip


def _page(key_id: UUID) -> str:
    return reverse("encryption:kms-key", args=[key_id])
