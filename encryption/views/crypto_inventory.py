"""Crypto inventories: those that were made, a new one, the files, and the public key to verify them with."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from encryption.services import crypto_inventory as services
from inventory.authorize import authorize
from inventory.services import audit_key
from inventory.views.dialogs import confirm
from inventory.views.paging import asked_page, pager


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    found = services.inventories(actor=request.user, paging=asked_page(request))
    context = {"found": found, "page": pager(found), "kept": services.KEPT}
    return render(request, "encryption/crypto_inventories.html", context)


def make(request: HttpRequest) -> HttpResponse:
    authorize(request.user, services.EXPORT)

    def submit(data: dict[str, Any]) -> str:
        services.request_inventory(actor=request.user)
        return reverse("encryption:crypto-inventories")

    question = (
        "A worker lists what protects each disk, NVRAM and vTPM of every VM: cipher, key ID, key provider, age of the"
        " key, and the host and its verdict when keys were last sent. The file is signed, and holds no key."
    )
    back = reverse("encryption:crypto-inventories")
    return confirm(request, submit, question, title="New crypto inventory", button="Make", back=back)


@require_safe
def download(request: HttpRequest, inventory_id: UUID) -> HttpResponse:
    row = services.download_inventory(inventory_id=inventory_id, actor=request.user)
    return as_file(row.content, f"bartizan-crypto-inventory-{row.made_at:%Y%m%dT%H%M%SZ}.json", "application/json")


@require_safe
def public_key(request: HttpRequest) -> HttpResponse:
    return as_file(audit_key.public_pem(actor=request.user), "bartizan-audit-key.pem", "application/x-pem-file")


def as_file(content: str, name: str, content_type: str) -> HttpResponse:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store, private"}
    return HttpResponse(content, content_type=content_type, headers=headers)
