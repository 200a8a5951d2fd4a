"""Roles: what each may do, who has which where, and giving or taking one away."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from inventory.authorize import authorize, may
from inventory.errors import Invalid
from inventory.forms import ConfirmForm, RoleForm
from inventory.models import Cluster, Datacenter, TargetKind
from inventory.services import roles
from inventory.views import pages
from inventory.views.dialogs import dialog
from inventory.views.paging import asked_page, pager


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """All assignments, and the privileges of the five roles."""
    found = roles.assignments(actor=request.user, paging=asked_page(request))
    context = {
        "found": found,
        "page": pager(found),
        "meanings": roles.meanings(),
        "may_assign": may(request.user, roles.ASSIGN),
        "add_url": reverse("add-role"),
    }
    return render(request, "inventory/roles.html", context)


@require_safe
def of_place(request: HttpRequest, kind: str, target_id: UUID) -> HttpResponse:
    """Those that hold on one data center or cluster, on itself or from above."""
    target = pages.load(kind, target_id, request.user)
    place = roles.place_of(kind, target_id)
    found = roles.assignments(actor=request.user, place=place, paging=asked_page(request))
    context = pages.context(target, request.user, tab="configure", section=f"inventory:{kind}-permissions") | {
        "found": found,
        "page": pager(found),
        "may_assign": may(request.user, roles.ASSIGN, target),
        "add_url": f"{reverse('add-role')}?{kind}={target_id}",
    }
    return render(request, "inventory/object_permissions.html", context)


def add(request: HttpRequest) -> HttpResponse:
    """On the place that the address names, or on everything."""
    kind, place_id = _asked_place(request)
    place = roles.place_of(kind, place_id)
    authorize(request.user, roles.ASSIGN, place)
    users, groups = roles.holders(actor=request.user, place=place)
    back = _page_of(place)

    def submit(data: dict[str, Any]) -> str:
        roles.assign_role(
            role=data["role"], username=data["user"], group=data["group"], place_kind=kind, place_id=place_id,
            actor=request.user,
        )  # fmt: skip
        return back

    def form(*args: Any, **values: Any) -> RoleForm:
        return RoleForm(*args, users=users, groups=groups, **values)

    context = {"title": f"Assign a role on {place or 'everything'}", "button": "Assign", "back": back}
    return dialog(request, template="dialog.html", form=form, submit=submit, context=context)


def remove(request: HttpRequest, assignment_id: UUID) -> HttpResponse:
    row = roles.assignment_of(assignment_id, actor=request.user)
    authorize(request.user, roles.ASSIGN, row.place)
    back = _page_of(row.place)

    def submit(_: dict[str, Any]) -> str:
        roles.remove_role(assignment_id=assignment_id, actor=request.user)
        return back

    context = {"title": "Remove role", "row": row, "back": back}
    return dialog(request, template="inventory/role_remove.html", form=ConfirmForm, submit=submit, context=context)


def _asked_place(request: HttpRequest) -> tuple[str, UUID | None]:
    for kind in (TargetKind.DATACENTER, TargetKind.CLUSTER):
        if text := request.GET.get(kind):
            try:
                return kind, UUID(text)
            except ValueError as exc:
                raise Invalid("place_invalid", f"that is no {kind.label.lower()}'s id") from exc
    return "", None


def _page_of(place: Datacenter | Cluster | None) -> str:
    if place is None:
        return reverse("roles")
    return reverse(f"inventory:{pages.kind_of(place)}-permissions", args=[place.pk])
