"""Hard disks of a VM: the page in Configure, and the dialogs that add, attach, detach and destroy."""

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
from encryption.services import disks as services
from inventory.authorize import Actor, authorize, may
from inventory.views import pages
from inventory.views.dialogs import confirm, form
from inventory.views.extensions import Action


def actions(target: Model, actor: Actor) -> Sequence[Action]:
    url = reverse("encryption:vm-disks", args=[target.pk])
    return [Action("Hard Disks…", url, "hard-disk", "Edit", is_page=True, action=services.ADD.name)]


@require_safe
def show(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    context = pages.context(vm, request.user, tab="configure", section="encryption:vm-disks") | {
        "found": services.vm_disks(vm_id=vm_id, actor=request.user),
        "may_change": may(request.user, services.ADD.name, vm),
    }
    return render(request, "encryption/vm_disks.html", context)


def add(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, services.ADD.name, vm)
    found = services.vm_disks(vm_id=vm_id, actor=request.user)

    def submit(data: dict[str, Any]) -> str:
        services.add_disk(
            vm_id=vm_id, size_bytes=int(data["size_gib"] * 2**30) // 512 * 512, datastore_id=UUID(data["datastore"]),
            image_format=data["image_format"], policy_id=UUID(data["policy"]), actor=request.user,
        )  # fmt: skip
        return _page(vm_id)

    text = "An empty disk. Under an encrypting policy it is a LUKS image from its first byte."
    return form(
        request, partial(forms.AddDiskForm, found=found), submit, title="Add hard disk", button="Add", text=text,
        back=_page(vm_id),
    )  # fmt: skip


def attach(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, services.ATTACH.name, vm)
    found = services.vm_disks(vm_id=vm_id, actor=request.user)

    def submit(data: dict[str, Any]) -> str:
        services.attach_disk(vm_id=vm_id, path=data["path"], policy_id=UUID(data["policy"]), actor=request.user)
        return _page(vm_id)

    text = (
        "An image that is there already. A plain one is attached without encryption, and encrypted in VM Options then."
    )
    return form(
        request, partial(forms.AttachDiskForm, found=found), submit, {"path": request.GET.get("path", "")[:1000]},
        title="Attach existing disk", button="Attach", text=text, back=_page(vm_id),
    )  # fmt: skip


def detach(request: HttpRequest, vm_id: UUID, target: str) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, services.DETACH.name, vm)

    def submit(_: dict[str, Any]) -> str:
        services.detach_disk(vm_id=vm_id, target=target, actor=request.user)
        return _page(vm_id)

    text = (
        f"Take {target[:32]} out of {vm}? Its file stays, and so does the key of an encrypted one. Its storage policy "
        "is forgotten."
    )
    return confirm(request, submit, text, title="Detach hard disk", button="Detach", back=_page(vm_id))


def destroy(request: HttpRequest, secret_uuid: UUID) -> HttpResponse:
    row = services.detached_disk(secret_uuid=secret_uuid, actor=request.user)
    authorize(request.user, services.DESTROY.name, row.virtual_machine)
    back = _page(row.virtual_machine_id)

    def submit(data: dict[str, Any]) -> str:
        services.destroy_detached_disk(secret_uuid=secret_uuid, confirm=data["confirm"], actor=request.user)
        return back

    text = f"{row.path} is overwritten and deleted, with the only key to it. Copies of it can then never be opened."
    return form(
        request, forms.DestroyLeftoverForm, submit, title="Destroy detached disk", button="Destroy", text=text,
        back=back, is_danger=True,
    )  # fmt: skip


def _page(vm_id: UUID) -> str:
    return reverse("encryption:vm-disks", args=[vm_id])
