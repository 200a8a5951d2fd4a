"""Alarms of the whole inventory, and acknowledging one."""

from urllib.parse import urlencode
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST, require_safe

from inventory.authorize import may_somewhere
from inventory.services import alarms
from inventory.views.paging import asked_page, pager


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """Those that are live, or with `show=all` also those that are over."""
    show = "all" if request.GET.get("show") == "all" else "live"
    is_live = True if show == "live" else None
    found = alarms.alarm_list(actor=request.user, is_live=is_live, paging=asked_page(request))
    context = {
        "alarms": found.items,
        "page": pager(found),
        "query": urlencode({"show": show}),
        "show": show,
        "may_acknowledge": may_somewhere(request.user, alarms.ACKNOWLEDGE),
    }
    return render(request, "inventory/alarms.html", context)


@require_POST
def acknowledge(request: HttpRequest, alarm_id: UUID) -> HttpResponse:
    alarms.acknowledge_alarm(alarm_id=alarm_id, actor=request.user)
    if request.headers.get("HX-Request") == "true":
        return HttpResponse(status=204, headers={"HX-Trigger": "activity"})
    back = request.headers.get("Referer", "")
    if url_has_allowed_host_and_scheme(back, {request.get_host()}, require_https=request.is_secure()):
        return redirect(back)
    return redirect("alarms")
