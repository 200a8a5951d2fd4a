"""New virtual machines: one page with its plan, reached from data centers, clusters and hosts."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from encryption.forms.new_vm import DISKS, NewVmForm, chosen
from encryption.services import new_vm
from inventory.authorize import Actor
from inventory.errors import Invalid, ServiceError
from inventory.models import Cluster, Datacenter, Host, TargetKind
from inventory.views.dialogs import done
from inventory.views.extensions import Action

_PLACES = {Host: TargetKind.HOST, Cluster: TargetKind.CLUSTER, Datacenter: TargetKind.DATACENTER}


def actions(target: Model, actor: Actor) -> Sequence[Action]:
    kind = _PLACES.get(type(target))
    if kind is None:
        return []
    why_not = "it is not connected" if isinstance(target, Host) and target.state != Host.State.CONNECTED else ""
    url = f"{reverse('encryption:new-vm')}?{kind}={target.pk}"
    return [Action("New Virtual Machine…", url, "vm", "New", why_not=why_not, is_page=True, action=new_vm.ACTION)]


@require_http_methods(["GET", "HEAD", "POST"])
def show(request: HttpRequest) -> HttpResponse:
    """GET shows the form, for a place that is named; POST makes the VM, or with `preview` only shows the plan."""
    found = _choices(request)
    is_asked = request.method == "POST" and "preview" not in request.POST
    form = NewVmForm(found, request.POST if request.method == "POST" else None, follows=not is_asked)
    context = {"form": form, "found": found, "here": request.get_full_path()}
    if request.method != "POST" or not form.is_valid():
        status = 422 if form.is_bound else 200
        return render(request, "encryption/new_vm.html", context | {"plan": None}, status=status)
    try:
        if "preview" in request.POST:
            return render(request, "encryption/new_vm.html", context | _plan(request, form))
        job = new_vm.create_vm(new=form.wanted(), approved=form.cleaned_data["plan_digest"], actor=request.user)
    except ServiceError as exc:
        context |= {"form": NewVmForm(found, request.POST, follows=True), "error": exc}
        return render(request, "encryption/new_vm.html", context, status=exc.http_status)
    return done(request, reverse("inventory:monitor", args=[TargetKind.HOST, job.target_id]), from_page=True)


@require_POST
def plan(request: HttpRequest) -> HttpResponse:
    """The plan for the form's present input, as a fragment; none while the input is not whole. With it the controls
    that depend on others, where they are not as the page shows them."""
    form = NewVmForm(_choices(request), request.POST, follows=True)
    context = {"form": form, "is_oob": request.POST.get("unusable", "") != form.unusable}
    if form.is_valid():
        try:
            context |= _plan(request, form)
        except ServiceError as exc:
            context["error"] = exc
    return render(request, "encryption/new_vm_plan.html", context)


def _choices(request: HttpRequest) -> new_vm.Choices:
    wanted = chosen(request.POST)
    return new_vm.choices(actor=request.user, disk_count=DISKS, place=_place(request), chosen=wanted)


def _plan(request: HttpRequest, form: NewVmForm) -> dict[str, Any]:
    return {"plan": new_vm.plan_new_vm(new=form.wanted(), actor=request.user), "approves": True}


def _place(request: HttpRequest) -> tuple[TargetKind, UUID] | None:
    kind = next((kind for kind in _PLACES.values() if kind in request.GET), None)
    if kind is None:
        return None
    try:
        return kind, UUID(request.GET[kind])
    except ValueError as exc:
        raise Invalid("place_id_malformed", "that is no id of a place", hint="choose one in the inventory") from exc
