"""A VM's vTPM: the page in Configure, its dialogs, and certificates as files."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from encryption.forms.kms import CertificateForm
from encryption.services import options, vtpm
from encryption.services import vtpm_certificates as certificates
from inventory.authorize import authorize, may
from inventory.forms import ConfirmForm, ConfirmNameForm
from inventory.models import TargetKind
from inventory.views import pages
from inventory.views.dialogs import confirm, form


@require_safe
def show(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    context = pages.context(vm, request.user, tab="configure", section="encryption:vm-vtpm") | {
        "found": vtpm.vtpm_of(vm_id=vm_id, actor=request.user),
        "may_change": may(request.user, options.ENCRYPT, vm),
    }
    return render(request, "encryption/vm_vtpm.html", context)


def add(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, options.ENCRYPT, vm)

    def submit(_: dict[str, Any]) -> str:
        vtpm.add_vtpm(vm_id=vm_id, approved=_approved(request), actor=request.user)
        return reverse("inventory:monitor", args=[TargetKind.VIRTUAL_MACHINE, vm_id])

    return form(
        request, ConfirmForm, submit, template="encryption/vm_vtpm_dialog.html", title="Add vTPM", button="Add",
        text=f"Give {vm} a virtual TPM 2.0?", back=_page(vm_id),
        plan=vtpm.plan_vtpm(vm_id=vm_id, present=True, actor=request.user),
    )  # fmt: skip


def remove(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, options.DECRYPT, vm)

    def submit(data: dict[str, Any]) -> str:
        vtpm.remove_vtpm(vm_id=vm_id, confirm=data["confirm"], approved=_approved(request), actor=request.user)
        return reverse("inventory:monitor", args=[TargetKind.VIRTUAL_MACHINE, vm_id])

    return form(
        request, ConfirmNameForm, submit, template="encryption/vm_vtpm_dialog.html", title="Remove vTPM",
        button="Remove", text=f"Take the virtual TPM out of {vm} and destroy its state?", back=_page(vm_id),
        plan=vtpm.plan_vtpm(vm_id=vm_id, present=False, actor=request.user),
    )  # fmt: skip


def read(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, certificates.READ.name, vm)

    def submit(_: dict[str, Any]) -> str:
        certificates.read_certificates(vm_id=vm_id, actor=request.user)
        return _page(vm_id)

    text = f"Read the endorsement keys' certificates from a copy of the vTPM state of {vm}? It may run meanwhile."
    return confirm(request, submit, text, title="Read certificates", button="Read", back=_page(vm_id))


def replace(request: HttpRequest, vm_id: UUID, nv_index: int) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, certificates.REPLACE.name, vm)

    def submit(data: dict[str, Any]) -> str:
        certificates.replace_certificate(
            vm_id=vm_id, nv_index=nv_index, certificate=data["certificate"].encode(), actor=request.user
        )
        return _page(vm_id)

    text = (
        f"A certificate that your CA has issued for the endorsement key's public key. {vm} must be powered off; the "
        "certificate in its vTPM is replaced, and nobody checks who signed the new one."
    )
    return form(
        request, CertificateForm, submit, title="Replace EK certificate", button="Replace", text=text,
        back=_page(vm_id),
    )  # fmt: skip


@require_safe
def download(request: HttpRequest, vm_id: UUID, nv_index: int, what: str) -> HttpResponse:
    found = certificates.download(vm_id=vm_id, nv_index=nv_index, what=what, actor=request.user)
    return HttpResponse(
        found.content,
        content_type=found.media_type,
        headers={"Content-Disposition": f'attachment; filename="{found.file_name}"'},
    )


def _approved(request: HttpRequest) -> str:
    """The digest of the plan that the dialog showed."""
    return request.POST.get("plan_digest", "")[:64]


def _page(vm_id: UUID) -> str:
    return reverse("encryption:vm-vtpm", args=[vm_id])
