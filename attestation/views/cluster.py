"""Configure, Attestation of a cluster: its policy, and its reference values in versions."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from attestation import forms
from attestation.services import policies, reference_lines, references
from attestation.services.policies import PolicyWish
from inventory.authorize import authorize, may
from inventory.models import TargetKind
from inventory.views import pages
from inventory.views.dialogs import confirm, form
from inventory.views.paging import asked_page, pager

SECTION = "attestation:cluster"
VERSIONS_A_PAGE = 20
# Parts of reference values in the words of the pages.
PARTS = {
    "secure_boot": "Secure Boot", "authorities": "Signers", "components": "Components",
    "pin_configuration": "GRUB's own files", "command_lines": "Command lines", "revocations": "Revocations (dbx)",
    "ima": "Files run since boot", "ima.allowed": "Files run since boot", "ima.excluded": "Files not looked at",
    "ima.keys": "Keys that sign files", "ima.tolerate_violations": "Violations tolerated",
}  # fmt: skip


@require_safe
def show(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    target = pages.load(TargetKind.CLUSTER, cluster_id, request.user)
    rows = references.versions(cluster_id=cluster_id, actor=request.user, paging=asked_page(request, VERSIONS_A_PAGE))
    active = references.active_of(cluster_id=cluster_id, actor=request.user)
    context = pages.context(target, request.user, tab="configure", section=SECTION) | {
        "policy": policies.policy(cluster_id=cluster_id, actor=request.user),
        "rows": rows,
        "active": active,
        "contents": None if active is None else reference_lines.lines_of(active),
        "page": pager(rows, VERSIONS_A_PAGE),
        "may_edit_policy": may(request.user, policies.EDIT, target),
        "may_edit": may(request.user, references.EDIT, target),
    }
    return render(request, "attestation/cluster.html", context)


@require_safe
def version(request: HttpRequest, reference_id: UUID) -> HttpResponse:
    row = references.reference_of(reference_id, actor=request.user)
    context = pages.context(row.cluster, request.user, tab="configure", section=SECTION) | {
        "row": row,
        "active": references.active_of(cluster_id=row.cluster_id, actor=request.user),
        "changes": [(PARTS.get(one.part, one.part), one) for one in references.changes_of(row)[:500]],
        "contents": reference_lines.lines_of(row),
        "may_approve": may(request.user, references.APPROVE, row.cluster),
    }
    return render(request, "attestation/reference.html", context)


def edit_policy(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    cluster = pages.load(TargetKind.CLUSTER, cluster_id, request.user)
    authorize(request.user, policies.EDIT, cluster)
    found = policies.policy(cluster_id=cluster_id, actor=request.user)
    back = page_of(cluster_id)

    def submit(data: dict[str, Any]) -> str:
        policies.edit_policy(cluster_id=cluster_id, wish=PolicyWish(**data), actor=request.user)
        return back

    initial = {name: getattr(found, name) for name in PolicyWish.__dataclass_fields__}
    return form(
        request, forms.PolicyForm, submit, initial, title="Attestation policy", button="Save", back=back,
    )  # fmt: skip


def edit_references(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    cluster = pages.load(TargetKind.CLUSTER, cluster_id, request.user)
    authorize(request.user, references.EDIT, cluster)
    active = references.active_of(cluster_id=cluster_id, actor=request.user)
    back = page_of(cluster_id)

    def submit(data: dict[str, Any]) -> str:
        body = reference_lines.body_of(forms.ReferencesForm.lines(data), active)
        references.save_references(cluster_id=cluster_id, body=body, reason=data["reason"], actor=request.user)
        return back

    initial = forms.ReferencesForm.initial_of(reference_lines.lines_of(active))
    text = "A new version is made; the old ones stay. All hosts of the cluster are attested anew when it is in force."
    return form(
        request, forms.ReferencesForm, submit, initial, title="Edit reference values", button="Make version",
        text=text, back=back,
    )  # fmt: skip


def approve(request: HttpRequest, reference_id: UUID) -> HttpResponse:
    row = references.reference_of(reference_id, actor=request.user)
    authorize(request.user, references.APPROVE, row.cluster)
    back = reverse("attestation:reference", args=[reference_id])

    def submit(_: dict[str, Any]) -> str:
        references.approve_references(reference_id=reference_id, actor=request.user)
        return back

    text = f"Put {row}, made by {row.made_by}, in force? All hosts of the cluster are attested anew."
    return confirm(request, submit, text, title="Approve reference values", button="Approve", back=back)


def page_of(cluster_id: UUID) -> str:
    return reverse(SECTION, args=[cluster_id])
