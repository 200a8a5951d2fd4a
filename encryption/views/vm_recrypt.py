"""Recrypt: a dialog with the three ways of giving a VM new keys, and the plan of the one that is chosen."""

from functools import partial
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_POST

from encryption.forms import RecryptForm
from encryption.services import deep_recrypt, passphrases, recrypt, recrypt_ways
from encryption.services.recrypt_ways import Recryptable, Way
from inventory.authorize import authorize
from inventory.models import TargetKind
from inventory.views import pages
from inventory.views.dialogs import dialog


def recrypt_vm(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """Asks which way, and starts its job."""
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, recrypt.ACTION, vm)
    found = recrypt_ways.recryptable(vm_id=vm_id, actor=request.user)

    def submit(data: dict[str, Any]) -> str:
        if data["way"] == Way.VOLUME_KEYS:
            deep_recrypt.deep_recrypt_vm(
                vm_id=vm_id, parts=frozenset(data["parts"]), full_verification=data["full_verification"],
                actor=request.user,
            )  # fmt: skip
        elif data["way"] == Way.PASSPHRASES:
            passphrases.rotate_passphrases(vm_id=vm_id, actor=request.user)
        else:
            recrypt.recrypt_vm(vm_id=vm_id, actor=request.user)
        return reverse("inventory:monitor", args=[TargetKind.VIRTUAL_MACHINE, vm_id])

    context = {
        "title": f"Recrypt {vm}",
        "button": "Recrypt",
        "vm": vm,
        "found": found,
        "plan": _plan(request, vm_id, found),
        "back": reverse("encryption:vm-options", args=[vm_id]),
    }
    template = "encryption/vm_recrypt.html"
    return dialog(request, template=template, form=partial(RecryptForm, found), submit=submit, context=context)


@require_POST
def plan(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """The plan for the form's present input, as a fragment."""
    found = recrypt_ways.recryptable(vm_id=vm_id, actor=request.user)
    return render(request, "encryption/_vm_plan.html", {"plan": _plan(request, vm_id, found)})


def _plan(request: HttpRequest, vm_id: UUID, found: Recryptable) -> object:
    """Of what was chosen, at first of the way that is offered first; None for input that is none."""
    if request.method != "POST":
        return recrypt_ways.plan_recrypt(vm_id=vm_id, way=Way.KEY, actor=request.user)
    form = RecryptForm(found, request.POST)
    if not form.is_valid():
        return None
    way, parts = Way(form.cleaned_data["way"]), frozenset(form.cleaned_data["parts"])
    return recrypt_ways.plan_recrypt(vm_id=vm_id, way=way, parts=parts, actor=request.user)
