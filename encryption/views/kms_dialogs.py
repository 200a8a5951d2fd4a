"""What the dialogs about key providers share."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from encryption.services import key_providers as services
from inventory.authorize import authorize
from inventory.forms import ConfirmForm
from inventory.views.dialogs import dialog


def page_of(cluster_id: UUID) -> str:
    return reverse("encryption:kms-cluster", args=[cluster_id])


def form(
    request: HttpRequest, shape: Any, submit: Any, initial: dict[str, Any] | None = None, **context: Any
) -> HttpResponse:
    template = context.pop("template", "encryption/kms_form.html")
    return dialog(request, template=template, form=shape, submit=submit, initial=initial, context=context)


def confirm(request: HttpRequest, submit: Any, question: str, **context: Any) -> HttpResponse:
    return form(request, ConfirmForm, submit, text=question, **context)


def act(
    request: HttpRequest, cluster_id: UUID, service: Callable[..., Any], question: str, page: str = "", **context: str
) -> HttpResponse:
    """Asks `question` of one key provider and calls the service at a yes; then `page`, or the provider's own."""
    authorize(request.user, services.MANAGE)
    cluster = services.cluster(cluster_id, actor=request.user)

    def submit(_: dict[str, Any]) -> str:
        service(cluster_id=cluster_id, actor=request.user)
        return page or page_of(cluster_id)

    return confirm(request, submit, question.format(cluster), back=page_of(cluster_id), **context)
