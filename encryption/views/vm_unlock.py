"""Locked VMs on the pages: the badge, the action and its dialog."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from encryption.services import unlock
from inventory.authorize import Actor, authorize
from inventory.models import TargetKind, VirtualMachine
from inventory.views import pages
from inventory.views.dialogs import confirm
from inventory.views.extensions import Action, Badge, Count


def badges(target: Model) -> Sequence[Badge]:
    security = unlock.security_of(target) if isinstance(target, VirtualMachine) else None
    return [("label-danger", "lock", "Locked")] if security and security.locked_at else []


def counts(vms: QuerySet[VirtualMachine]) -> Sequence[Count]:
    """Nothing where none is locked."""
    locked = unlock.locked_among(vms)
    return [("danger", "lock", "Locked", locked)] if locked else []


def actions(target: Model, actor: Actor) -> Sequence[Action]:
    """Unlock, for an encrypted VM."""
    security = unlock.security_of(target) if isinstance(target, VirtualMachine) else None
    if security is None:
        return []
    why_not = "" if security.locked_at else "it is not locked"
    url = reverse("encryption:vm-unlock", args=[target.pk])
    return [Action("Unlock…", url, "unlock", "Security", why_not=why_not, action=unlock.ACTION)]


def unlock_vm(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """Asks, and starts the job that tries whether the VM's keys can be had again."""
    vm = pages.load_vm(vm_id, request.user)
    authorize(request.user, unlock.ACTION, vm)

    def submit(_: dict[str, Any]) -> str:
        unlock.unlock_vm(vm_id=vm_id, actor=request.user)
        return reverse("inventory:monitor", args=[TargetKind.VIRTUAL_MACHINE, vm_id])

    question = f"Fetch the keys of {vm} from its key provider again? Nothing is sent to its host."
    back = reverse("inventory:summary", args=[TargetKind.VIRTUAL_MACHINE, vm_id])
    return confirm(request, submit, question, title=f"Unlock {vm}", button="Unlock", back=back)
