"""The history of the whole inventory: filtered, paged, exported."""

from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from inventory.api.frame import streamed
from inventory.authorize import authorize, may
from inventory.errors import Invalid
from inventory.forms import ConfirmForm, EventFilterForm
from inventory.services import checkpoints, event_history
from inventory.services.event_history import EventFilter, Format
from inventory.views.dialogs import dialog
from inventory.views.paging import asked_page, pager


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """A filter that cannot be read shows no events: what is listed must be what was asked for."""
    form = EventFilterForm(request.GET)
    is_valid = form.is_valid()
    wanted = form.wanted() if is_valid else EventFilter(after=2**62)
    found = event_history.event_list(actor=request.user, wanted=wanted, paging=asked_page(request))
    context = {
        "form": form,
        "events": found.items,
        "page": pager(found),
        "query": urlencode(form.given()),
        "seal": event_history.seal_state(actor=request.user),
        "checkpoints": checkpoints.latest(actor=request.user),
        "may_sign": may(request.user, checkpoints.SIGN),
    }
    return render(request, "inventory/events.html", context, status=200 if is_valid else 422)


@require_safe
def export(request: HttpRequest) -> HttpResponseBase:
    form = EventFilterForm(request.GET)
    if not form.is_valid():
        raise Invalid("filter_invalid", f"the filter is wrong: {', '.join(form.errors)}", hint="go back and correct it")
    wanted = request.GET.get("format", Format.CSV)
    if wanted not in set(Format):
        raise Invalid("format_unknown", f"there is no format {wanted[:20]!r}", hint="csv or jsonl")
    return streamed(event_history.export_events(actor=request.user, wanted=form.wanted(), form=Format(wanted)))


def sign(request: HttpRequest) -> HttpResponse:
    """A worker signs; the page shows what came of it."""
    authorize(request.user, checkpoints.SIGN)

    def submit(_: dict[str, Any]) -> str:
        checkpoints.request_checkpoint(actor=request.user)
        return reverse("events")

    context = {"title": "Sign checkpoint", "button": "Sign", "back": reverse("events")}
    return dialog(request, template="inventory/sign_checkpoint.html", form=ConfirmForm, submit=submit, context=context)
