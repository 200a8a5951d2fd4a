"""VM Storage Policies: the list, one policy with its VMs, and the dialogs."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from encryption import forms
from encryption.services import storage_policies as services
from inventory.authorize import authorize, may
from inventory.views.dialogs import confirm, form
from inventory.views.paging import asked_page, pager


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    context = {"uses": services.policies(actor=request.user), "may_manage": may(request.user, services.MANAGE)}
    return render(request, "encryption/policy_list.html", context)


@require_safe
def detail(request: HttpRequest, policy_id: UUID) -> HttpResponse:
    use = services.policy_use(policy_id, actor=request.user)
    found, vms = services.vms_of_policy(policy_id, actor=request.user, paging=asked_page(request))
    context = {"use": use, "policy": use.policy, "vms": vms, "page": pager(found)}
    return render(
        request, "encryption/policy_detail.html", context | {"may_manage": may(request.user, services.MANAGE)}
    )


def add(request: HttpRequest) -> HttpResponse:
    authorize(request.user, services.MANAGE)

    def submit(data: dict[str, Any]) -> str:
        return _page_of(services.create_policy(**data, actor=request.user).pk)

    return form(
        request, forms.StoragePolicyForm, submit, {"encrypts": "yes"},
        title="Create storage policy", button="Create", back=reverse("encryption:policies"),
    )  # fmt: skip


def edit(request: HttpRequest, policy_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)
    policy = services.policy_use(policy_id, actor=request.user).policy

    def submit(data: dict[str, Any]) -> str:
        return _page_of(services.edit_policy(policy_id=policy_id, **data, actor=request.user).pk)

    initial = {
        "name": policy.name, "description": policy.description, "encrypts": "yes" if policy.encrypts else "no",
        "max_key_age_days": policy.max_key_age_days,
    }  # fmt: skip
    return form(
        request, forms.StoragePolicyForm, submit, initial,
        title=f"Edit {policy}", button="Save", back=_page_of(policy_id),
    )  # fmt: skip


def clone(request: HttpRequest, policy_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)
    policy = services.policy_use(policy_id, actor=request.user).policy

    def submit(data: dict[str, Any]) -> str:
        return _page_of(services.clone_policy(policy_id=policy_id, name=data["name"], actor=request.user).pk)

    return form(
        request, forms.PolicyNameForm, submit, {"name": f"Copy of {policy}"[:80]},
        title=f"Clone {policy}", button="Clone", back=_page_of(policy_id),
    )  # fmt: skip


def delete(request: HttpRequest, policy_id: UUID) -> HttpResponse:
    authorize(request.user, services.MANAGE)
    policy = services.policy_use(policy_id, actor=request.user).policy

    def submit(_: dict[str, Any]) -> str:
        services.delete_policy(policy_id=policy_id, actor=request.user)
        return reverse("encryption:policies")

    return confirm(
        request, submit, f"Delete storage policy {policy}? No VM changes by this.",
        title="Delete storage policy", button="Delete", back=_page_of(policy_id),
    )  # fmt: skip


def _page_of(policy_id: UUID) -> str:
    return reverse("encryption:policy", args=[policy_id])
