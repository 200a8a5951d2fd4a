"""What the dialogs about key providers share."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from encryption.services import key_providers as services
from inventory.authorize import authorize
from inventory.views.dialogs import confirm


def page_of(cluster_id: UUID) -> str:
    return reverse("encryption:kms-cluster", args=[cluster_id])


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
