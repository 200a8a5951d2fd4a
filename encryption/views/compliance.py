"""Compliance on the pages: badges of VMs, and asking for a look."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from encryption.services import compliance
from encryption.services.storage_policies import policy_use
from inventory.authorize import Actor, authorize
from inventory.models import Host, Job, TargetKind, VirtualMachine
from inventory.views import pages
from inventory.views.dialogs import confirm
from inventory.views.extensions import Action, Badge

_BADGES = {
    "noncompliant": ("label-danger", "exclamation-triangle", "Not compliant"),
    "unknown": ("label-warning", "unknown-status", "Compliance not known"),
}


def badges(target: Model) -> Sequence[Badge]:
    """Nothing for a compliant VM: what is as it should be needs no mark."""
    if not isinstance(target, VirtualMachine):
        return []
    state = compliance.marks_of([target.pk]).get(target.pk)
    return [_BADGES[state.compliance]] if state and state.compliance in _BADGES else []


def list_badges(ids: Sequence[UUID]) -> Mapping[UUID, Sequence[Badge]]:
    """Locked, and the answer of the last look; one query."""
    found: dict[UUID, list[Badge]] = {}
    for vm_id, marks in compliance.marks_of(ids).items():
        found[vm_id] = [("label-danger", "lock", "Locked")] if marks.is_locked else []
        if marks.compliance in _BADGES:
            found[vm_id].append(_BADGES[marks.compliance])
    return found


def actions(target: Model, actor: Actor) -> Sequence[Action]:
    """Of a host."""
    if not isinstance(target, Host):
        return []
    url = reverse("encryption:host-check", args=[target.pk])
    return [Action("Check Compliance…", url, "shield-check", "Security", action=compliance.ACTION)]


def check_vm(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    vm = pages.load_vm(vm_id, request.user)
    text = f"Read the headers of the files of {vm} and its definition on its host now? Nothing is changed."
    back = reverse("encryption:vm-options", args=[vm_id])
    return _ask(request, text, lambda: compliance.check_vm(vm_id=vm_id, actor=request.user), vm, back)


def check_policy(request: HttpRequest, policy_id: UUID) -> HttpResponse:
    policy = policy_use(policy_id, actor=request.user).policy
    text = f"Look at every VM that has {policy}, on its host, now? Nothing is changed."
    back = reverse("encryption:policy", args=[policy_id])
    return _ask(request, text, lambda: compliance.check_policy(policy_id=policy_id, actor=request.user), policy, back)


def check_host(request: HttpRequest, host_id: UUID) -> HttpResponse:
    host = pages.load(TargetKind.HOST, host_id, request.user)
    text = f"Look at every encrypted VM of {host} now? Nothing is changed."
    back = reverse("inventory:summary", args=[TargetKind.HOST, host_id])
    return _ask(request, text, lambda: compliance.check_host(host_id=host_id, actor=request.user), host, back)


def _ask(request: HttpRequest, text: str, check: Callable[[], Job], target: Model, back: str) -> HttpResponse:
    authorize(request.user, compliance.ACTION, target)

    def submit(_: dict[str, Any]) -> str:
        check()
        return back

    return confirm(request, submit, text, title="Check compliance", button="Check now", back=back)
