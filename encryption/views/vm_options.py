"""VM Options: the panel with its plan, and the card on the VM's Summary."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from encryption.forms import VmOptionsForm
from encryption.services import compliance, options, unlock
from encryption.services.options import VmOptions
from inventory.authorize import may
from inventory.errors import ServiceError
from inventory.views import pages
from inventory.views.dialogs import done

STOP_POLLING = 286  # htmx's own status: swap, and ask no more


@require_http_methods(["GET", "HEAD", "POST"])
def show(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """GET shows the panel, POST applies it, or with `preview` only shows what it would do."""
    found = options.vm_options(vm_id=vm_id, actor=request.user)
    form = VmOptionsForm(found, request.POST if request.method == "POST" else None)
    if request.method != "POST" or "preview" in request.POST or not form.is_valid():
        status = 422 if form.is_bound and not form.is_valid() else 200
        return render(request, "encryption/vm_options.html", _panel(request, found, form), status=status)
    try:
        sent = form.cleaned_data
        options.apply_options(
            vm_id=vm_id, wish=form.wish(), approved=sent["plan_digest"], confirm=sent["confirm"],
            full_verification=sent["full_verification"], actor=request.user,
        )  # fmt: skip
    except ServiceError as exc:
        context = _panel(request, found, form) | {"error": exc}
        return render(request, "encryption/vm_options.html", context, status=exc.http_status)
    return done(request, reverse("encryption:vm-options", args=[vm_id]), from_page=True)


@require_POST
def plan(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """The plan for the form's present input, as a fragment."""
    found = options.vm_options(vm_id=vm_id, actor=request.user)
    form = VmOptionsForm(found, request.POST)
    return render(request, "encryption/_vm_plan.html", _plan(request, found, form))


@require_safe
def progress(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """The steps of the change that is being applied, asked for again and again until it has ended."""
    found = options.apply_progress(vm_id=vm_id, actor=request.user)
    answer = render(request, "encryption/_plan_progress.html", {"progress": found, "vm_id": vm_id})
    if found is None or not found.job.is_live:
        answer.status_code = STOP_POLLING
    return answer


@require_safe
def card(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    found = options.vm_options(vm_id=vm_id, actor=request.user)
    context = {"found": found, "may_unlock": may(request.user, unlock.ACTION, found.vm)}
    return render(request, "encryption/_vm_card.html", context)


def _panel(request: HttpRequest, found: VmOptions, form: VmOptionsForm) -> dict[str, Any]:
    vm = pages.load_vm(found.vm.pk, request.user)
    context = pages.context(vm, request.user, tab="configure", section="encryption:vm-options")
    return (
        context
        | {"found": found, "form": form, "may_apply": may(request.user, options.CONFIGURE, vm)}
        | {"may_unlock": may(request.user, unlock.ACTION, vm), "may_check": may(request.user, compliance.ACTION, vm)}
        | _plan(request, found, form)
    )


def _plan(request: HttpRequest, found: VmOptions, form: VmOptionsForm) -> dict[str, Any]:
    if not form.is_bound or not form.is_valid():
        return {"plan": None}
    return {"plan": options.plan_options(vm_id=found.vm.pk, wish=form.wish(), actor=request.user), "approves": True}
