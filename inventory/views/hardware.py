"""Pages of virtual hardware: what a host can give, and what Windows 11 would miss in a VM."""

from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from inventory.models import TargetKind
from inventory.services.host_abilities import host_abilities
from inventory.services.windows_readiness import windows_readiness
from inventory.views import extensions, pages

extensions.add_section(TargetKind.HOST, extensions.Section("Hardware", "Abilities", "inventory:host-abilities"))
extensions.add_card(TargetKind.VIRTUAL_MACHINE, "inventory:windows-card", is_last=True)


@require_safe
def abilities(request: HttpRequest, host_id: UUID) -> HttpResponse:
    host, found = host_abilities(host_id=host_id, actor=request.user)
    context = pages.context(host, request.user, tab="configure", section="inventory:host-abilities")
    return render(request, "inventory/host_abilities.html", context | {"abilities": found})


@require_safe
def windows_card(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """For the Summary tab."""
    found = windows_readiness(vm_id=vm_id, actor=request.user)
    return render(request, "inventory/_windows_card.html", {"found": found})
