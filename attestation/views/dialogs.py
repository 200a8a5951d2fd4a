"""What the dialogs of attestation share."""

from typing import Any

from django.http import HttpRequest, HttpResponse

from inventory.forms import ConfirmForm
from inventory.views.dialogs import dialog


def form(
    request: HttpRequest, shape: Any, submit: Any, initial: dict[str, Any] | None = None, **context: Any
) -> HttpResponse:
    template = context.pop("template", "attestation/form.html")
    return dialog(request, template=template, form=shape, submit=submit, initial=initial, context=context)


def confirm(request: HttpRequest, submit: Any, question: str, **context: Any) -> HttpResponse:
    return form(request, ConfirmForm, submit, text=question, **context)


def page_number(request: HttpRequest) -> int:
    text = request.GET.get("page", "1")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 1
