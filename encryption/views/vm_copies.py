"""Clone, export and import on the pages, and the list of exported VMs."""

from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from encryption import forms
from encryption.services import bundles, vm_files
from encryption.services import clone as clone_service
from encryption.services import export as export_service
from encryption.services import import_vm as import_service
from inventory.authorize import Actor, authorize, may
from inventory.errors import Conflict, NotFound
from inventory.forms import ConfirmForm
from inventory.models import Host, TargetKind, VirtualMachine
from inventory.views import pages
from inventory.views.dialogs import confirm, dialog
from inventory.views.extensions import Action
from inventory.views.paging import asked_page, pager


def vm_actions(target: Model, actor: Actor) -> Sequence[Action]:
    if not isinstance(target, VirtualMachine):
        return []
    why_not = ""
    try:
        vm_files.refuse_unfit(target)
    except Conflict as exc:
        why_not = exc.message
    return [
        Action(
            "Clone…", reverse("encryption:vm-clone", args=[target.pk]), "clone", "Copy", why_not=why_not,
            action=clone_service.ACTION,
        ),
        Action(
            "Export…", reverse("encryption:vm-export", args=[target.pk]), "export", "Copy", why_not=why_not,
            action=export_service.ACTION,
        ),
    ]  # fmt: skip


def host_actions(target: Model, actor: Actor) -> Sequence[Action]:
    why_not = "" if isinstance(target, Host) and target.state == Host.State.CONNECTED else "it is not connected"
    url = reverse("encryption:import-vm", args=[target.pk])
    return [Action("Import VM…", url, "import", "New", why_not=why_not, action=import_service.ACTION)]


def clone(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """Asks for the name and the choices, and starts the job."""
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, clone_service.ACTION, vm)

    def submit(data: dict[str, Any]) -> str:
        clone_service.clone_vm(
            vm_id=vm_id,
            name=data["name"],
            key=clone_service.KeyChoice(data.get("key") or clone_service.KeyChoice.NEW),
            vtpm=clone_service.TpmChoice(data.get("vtpm") or clone_service.TpmChoice.COPY),
            actor=request.user,
        )
        return _monitor(vm)

    is_protected = export_service.is_protected(vm)
    context = {
        "title": f"Clone {vm}",
        "button": "Clone",
        "vm": vm,
        "is_protected": is_protected,
        "back": reverse("inventory:summary", args=[TargetKind.VIRTUAL_MACHINE, vm_id]),
    }
    shape = partial(forms.CloneForm, vm=vm, is_protected=is_protected)
    return dialog(
        request, template="encryption/vm_clone.html", form=shape, submit=submit, initial={"name": f"{vm.name}-clone"},
        context=context,
    )  # fmt: skip


def export(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """Asks, for a plain VM also whether its data may leave in clear, and starts the job."""
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, export_service.ACTION, vm)

    def submit(data: dict[str, Any]) -> str:
        export_service.export_vm(vm_id=vm_id, in_clear=bool(data.get("in_clear")), actor=request.user)
        return _monitor(vm)

    is_protected = export_service.is_protected(vm)
    context = {
        "title": f"Export {vm}",
        "button": "Export",
        "vm": vm,
        "is_protected": is_protected,
        "clear": export_service.parts_in_clear(vm),
        "back": reverse("inventory:summary", args=[TargetKind.VIRTUAL_MACHINE, vm_id]),
    }
    shape = ConfirmForm if is_protected else forms.ExportInClearForm
    return dialog(request, template="encryption/vm_export.html", form=shape, submit=submit, context=context)


def import_vm(request: HttpRequest, host_id: UUID) -> HttpResponse:
    """Asks which bundle goes where under which name, and starts the job."""
    host = Host.objects.filter(pk=host_id).first()
    if host is None:
        raise NotFound("host_not_found", f"there is no host {host_id}")
    authorize(request.user, import_service.ACTION, host)

    def submit(data: dict[str, Any]) -> str:
        import_service.import_vm(
            bundle_id=UUID(data["bundle"]),
            host_id=host_id,
            datastore_id=UUID(data["datastore"]),
            name=data["name"],
            identity=import_service.Identity(data["identity"]),
            actor=request.user,
        )
        return reverse("inventory:monitor", args=[TargetKind.HOST, host_id])

    found = bundles.usable(actor=request.user)
    stores = import_service.datastores(host)
    context = {
        "title": f"Import VM on {host}",
        "button": "Import",
        "has_bundles": bool(found),
        "back": reverse("inventory:summary", args=[TargetKind.HOST, host_id]),
    }
    shape = partial(forms.ImportForm, bundles=found, datastores=stores)
    initial = {"bundle": request.GET.get("bundle", ""), "name": found[0].vm_name if found else ""}
    return dialog(
        request, template="encryption/vm_import.html", form=shape, submit=submit, initial=initial, context=context
    )


@require_safe
def bundles_page(request: HttpRequest) -> HttpResponse:
    found = bundles.bundles(actor=request.user, paging=asked_page(request))
    context = {
        "found": found,
        "page": pager(found),
        "may_manage": may(request.user, bundles.MANAGE),
    }
    return render(request, "encryption/bundles.html", context)


def look(request: HttpRequest) -> HttpResponse:
    authorize(request.user, bundles.MANAGE)

    def submit(_: dict[str, Any]) -> str:
        bundles.request_look(actor=request.user)
        return reverse("encryption:bundles")

    question = "Have a worker look into the exchange folder for bundles that were put there by hand?"
    back = reverse("encryption:bundles")
    return confirm(request, submit, question, title="Look for exported VMs", button="Look", back=back)


def delete(request: HttpRequest, bundle_id: UUID) -> HttpResponse:
    authorize(request.user, bundles.MANAGE)
    found = bundles.bundle(bundle_id, actor=request.user)

    def submit(_: dict[str, Any]) -> str:
        bundles.delete_bundle(bundle_id=bundle_id, actor=request.user)
        return reverse("encryption:bundles")

    question = f"Delete the folder {found} with the disks in it? Copies that were made of it elsewhere stay."
    return confirm(
        request, submit, question, title="Delete exported VM", button="Delete", back=reverse("encryption:bundles"),
        is_danger=True,
    )  # fmt: skip


def _monitor(vm: VirtualMachine) -> str:
    return reverse("inventory:monitor", args=[TargetKind.VIRTUAL_MACHINE, vm.pk])
