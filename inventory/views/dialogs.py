"""Dialogs: one form at one address that is a native <dialog> for htmx and a page without scripts.

The template extends "dialog.html" (see templates/README.md). The submit function calls one service; what that refuses
is shown in the dialog with its hint, and the input stays.
"""

import json
from collections.abc import Callable
from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import redirect, render

from inventory.errors import ServiceError
from inventory.forms import ConfirmForm


def dialog(
    request: HttpRequest,
    *,
    template: str,
    form: Callable[..., forms.Form],
    submit: Callable[[dict[str, Any]], str],
    initial: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
) -> HttpResponse:
    """GET shows the form, POST submits it.

    `form` is called as a Django form class is. `submit` gets the cleaned input and returns the address of the page to
    be on afterwards ("" to stay on the present one; its object is then read again).
    """
    if request.method in ("GET", "HEAD"):
        return _show(request, template, form(initial=initial), context)
    if request.method != "POST":
        return HttpResponseNotAllowed(["GET", "HEAD", "POST"])
    bound = form(request.POST, initial=initial)
    if not bound.is_valid():
        return _show(request, template, bound, context, status=422)
    try:
        page = submit(bound.cleaned_data)
    except ServiceError as exc:
        return _show(request, template, bound, context, status=exc.http_status, error=exc)
    return done(request, page)


def form(
    request: HttpRequest,
    shape: Callable[..., forms.Form],
    submit: Callable[[dict[str, Any]], str],
    initial: dict[str, Any] | None = None,
    *,
    template: str = "dialog_form.html",
    **context: Any,
) -> HttpResponse:
    """A dialog that is `text` and the fields of `shape`. `title`, `button`, `back`; `is_danger`: the button is red."""
    return dialog(request, template=template, form=shape, submit=submit, initial=initial, context=context)


def confirm(
    request: HttpRequest, submit: Callable[[dict[str, Any]], str], question: str, **context: Any
) -> HttpResponse:
    """A dialog that asks one question, with the context of `form`."""
    return form(request, ConfirmForm, submit, text=question, **context)


def done(request: HttpRequest, page: str = "", *, from_page: bool = False) -> HttpResponse:
    """The answer after a change: htmx closes the dialog and shows `page`, a plain browser is redirected to it.
    `from_page`: it was no dialog, so `page` is shown from its top."""
    if request.headers.get("HX-Request") != "true":
        return redirect(page or "home")
    headers = {"HX-Trigger": json.dumps({"dialog-done": True, "activity": True, "tasks-changed": True})}
    if page:
        swap = "innerHTML scroll:top show:none" if from_page else "innerHTML show:none"
        headers["HX-Location"] = json.dumps({"path": page, "target": "#content", "swap": swap})
    return HttpResponse(status=204, headers=headers)


def _show(
    request: HttpRequest,
    template: str,
    form: forms.Form,
    context: dict[str, Any] | None,
    *,
    status: int = 200,
    error: ServiceError | None = None,
) -> HttpResponse:
    frame = "_dialog.html" if request.headers.get("HX-Request") == "true" else "base.html"
    values = {"form": form, "error": error, "frame": frame, "here": request.get_full_path(), **(context or {})}
    return render(request, template, values, status=status)
