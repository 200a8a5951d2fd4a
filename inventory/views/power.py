"""Power of a VM, its removal from the inventory, and its serial console."""

from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from inventory import forms
from inventory.authorize import Actor, authorize
from inventory.models import Job, TargetKind
from inventory.services import console, power, saved_state, virtual_machines
from inventory.views import pages
from inventory.views.dialogs import dialog


class _PowerService(Protocol):
    def __call__(self, *, vm_id: UUID, actor: Actor) -> Job: ...


@dataclass(frozen=True, slots=True)
class _Verb:
    label: str
    service: _PowerService
    consequence: str
    action: str
    is_destructive: bool = False


VERBS: Final = {
    "on": _Verb("Power on", power.power_on, "The virtual machine starts on its host.", power.POWER_ON.name),
    "shut-down": _Verb(
        "Shut down guest",
        power.shut_down,
        "The guest's operating system is asked to shut down. It may take its time, or refuse.",
        power.SHUT_DOWN.name,
    ),
    "off": _Verb(
        "Power off",
        power.power_off,
        "The virtual machine stops at once, as if its cable were pulled. What the guest has not written is lost.",
        power.POWER_OFF.name,
        is_destructive=True,
    ),
    "reboot": _Verb(
        "Reboot",
        power.reboot,
        "The guest's operating system is asked to restart.",
        power.REBOOT.name,
        is_destructive=True,
    ),
}


def change_power(request: HttpRequest, vm_id: UUID, verb: str) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    chosen = VERBS[verb]
    authorize(request.user, chosen.action, vm)
    back = reverse("inventory:summary", args=[TargetKind.VIRTUAL_MACHINE, vm_id])

    def submit(data: dict[str, Any]) -> str:
        chosen.service(vm_id=vm_id, actor=request.user)
        return "" if request.headers.get("HX-Request") == "true" else back

    context = {"title": f"{chosen.label} {vm.name}", "verb": chosen, "vm": vm, "back": back}
    return dialog(request, template="inventory/vm_power.html", form=forms.ConfirmForm, submit=submit, context=context)


def remove_vm(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, virtual_machines.REMOVE, vm)
    steps = pages.path_of(vm)

    def submit(data: dict[str, Any]) -> str:
        virtual_machines.remove_from_inventory(vm_id=vm_id, actor=request.user)
        return steps[-2].url

    context = {"title": f"Remove {vm.name}", "kind": TargetKind.VIRTUAL_MACHINE, "place": vm, "back": steps[-1].url}
    return dialog(
        request, template="inventory/place_remove.html", form=forms.ConfirmForm, submit=submit, context=context
    )


def discard_saved_state(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, saved_state.DISCARD.name, vm)
    back = reverse("inventory:summary", args=[TargetKind.VIRTUAL_MACHINE, vm_id])

    def submit(data: dict[str, Any]) -> str:
        saved_state.discard_saved_state(vm_id=vm_id, confirm=data["confirm"], actor=request.user)
        return "" if request.headers.get("HX-Request") == "true" else back

    context = {"title": "Discard saved state", "vm": vm, "back": back}
    return dialog(
        request, template="inventory/vm_saved_state.html", form=forms.ConfirmNameForm, submit=submit, context=context
    )


@require_safe
def show_console(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """What the guest has printed on its first serial port; read again every two seconds while it runs."""
    vm = pages.load_vm(vm_id, request.user)
    read = console.console_text(vm_id=vm_id, actor=request.user)
    context = pages.context(vm, request.user, tab="") | {"read": read}
    return render(request, "inventory/vm_console.html", context)
