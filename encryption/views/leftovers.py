"""Leftovers of encrypted VMs: the lists below a host's and a datastore's Monitor tab, and what is done about one."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from encryption import forms
from encryption.models import Leftover
from encryption.services import leftovers as services
from inventory.authorize import authorize, may
from inventory.models import Datastore, Host, TargetKind
from inventory.services.listings import Listing
from inventory.views import pages
from inventory.views.dialogs import confirm, form
from inventory.views.paging import asked_page, pager


@require_safe
def of_host(request: HttpRequest, host_id: UUID) -> HttpResponse:
    target = pages.load(TargetKind.HOST, host_id, request.user)
    rows = services.leftovers_of_host(host_id=host_id, actor=request.user, paging=asked_page(request))
    return _page(request, target, rows, "encryption:host-leftovers")


@require_safe
def of_datastore(request: HttpRequest, datastore_id: UUID) -> HttpResponse:
    target = pages.load(TargetKind.DATASTORE, datastore_id, request.user)
    rows = services.leftovers_of_datastore(datastore_id=datastore_id, actor=request.user, paging=asked_page(request))
    return _page(request, target, rows, "encryption:datastore-leftovers")


def _page(request: HttpRequest, target: pages.Place, rows: Listing[Leftover], section: str) -> HttpResponse:
    host = target if isinstance(target, Host) else target.host if isinstance(target, Datastore) else None
    context = pages.context(target, request.user, tab="monitor", section=section) | {
        "rows": rows,
        "host": host,
        "page": pager(rows),
        "may_find": may(request.user, services.FIND.name, host),
        "may_destroy": may(request.user, services.DESTROY.name, host),
    }
    return render(request, "encryption/leftovers.html", context)


def find(request: HttpRequest, host_id: UUID) -> HttpResponse:
    host = pages.load(TargetKind.HOST, host_id, request.user)
    authorize(request.user, services.FIND.name, host)
    back = reverse("encryption:host-leftovers", args=[host_id])

    def submit(_: dict[str, Any]) -> str:
        services.find_leftovers(host_id=host_id, actor=request.user)
        return back

    text = f"Look through the datastores of {host} and the folders of its libvirt? Files are read, nothing is changed."
    return confirm(request, submit, text, title="Find leftovers", button="Find", back=back)


def destroy(request: HttpRequest, leftover_id: UUID) -> HttpResponse:
    found = services.leftover(leftover_id=leftover_id, actor=request.user)
    authorize(request.user, services.DESTROY.name, found.host)
    back = reverse("encryption:host-leftovers", args=[found.host_id])

    def submit(data: dict[str, Any]) -> str:
        services.destroy_leftover(leftover_id=leftover_id, confirm=data["confirm"], actor=request.user)
        return back

    return form(
        request, forms.DestroyLeftoverForm, submit, template="encryption/leftover_destroy.html",
        title="Destroy leftover", found=found, back=back,
    )  # fmt: skip


def keep(request: HttpRequest, leftover_id: UUID) -> HttpResponse:
    found = services.leftover(leftover_id=leftover_id, actor=request.user)
    authorize(request.user, services.KEEP, found.host)
    back = reverse("encryption:host-leftovers", args=[found.host_id])

    def submit(data: dict[str, Any]) -> str:
        services.keep_leftover(leftover_id=leftover_id, reason=data["reason"], actor=request.user)
        return back

    text = f"{found.path} stays as it is, in clear. Your name and the reason are shown beside it, and it is no alarm."
    return form(request, forms.KeepLeftoverForm, submit, title="Keep leftover", button="Keep", text=text, back=back)
