"""Two-person approval: what waits, approving it, and the switches."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from inventory.authorize import VIEW_ALL, authorize, may
from inventory.errors import NotFound
from inventory.forms import ConfirmForm
from inventory.services import approvals
from inventory.views.dialogs import dialog
from inventory.views.paging import asked_page, pager


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    found = approvals.waiting(actor=request.user, paging=asked_page(request))
    context = {
        "lines": [(job, approvals.may_approve(job, actor=request.user)) for job in found.items],
        "page": pager(found),
        "rules": approvals.rules(actor=request.user) if may(request.user, VIEW_ALL) else (),
        "may_change": may(request.user, approvals.CHANGE),
    }
    return render(request, "inventory/approvals.html", context)


def approve(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """Shows what was asked for, and has it done."""
    found = approvals.waiting_job(job_id=job_id, actor=request.user)
    authorize(request.user, found.job.approval_right, approvals.target_of(found.job))

    def submit(_: dict[str, Any]) -> str:
        approvals.approve_job(job_id=job_id, actor=request.user)
        return reverse("approvals")

    context = {"title": "Approve", "button": "Approve", "back": reverse("approvals"), "found": found}
    return dialog(request, template="inventory/approve.html", form=ConfirmForm, submit=submit, context=context)


def switch(request: HttpRequest, action: str) -> HttpResponse:
    """On at once, off by a second person."""
    authorize(request.user, approvals.CHANGE)
    rule = next((one for one in approvals.rules(actor=request.user) if one.action == action), None)
    if rule is None:
        raise NotFound("two_person_rule_not_found", f"there is no two-person rule {action[:60]}")

    def submit(_: dict[str, Any]) -> str:
        (approvals.switch_off if rule.is_on else approvals.switch_on)(action=action, actor=request.user)
        return reverse("approvals")

    button = "Ask for switching off" if rule.is_on else "Switch on"
    context = {"title": "Two-person approval", "button": button, "back": reverse("approvals"), "rule": rule}
    return dialog(request, template="inventory/two_person_rule.html", form=ConfirmForm, submit=submit, context=context)
