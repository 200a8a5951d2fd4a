"""The shell's own pages: home, theme, search, recent tasks, errors."""

from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_GET, require_POST, require_safe

from console.context import THEME_COOKIE, THEMES
from console.errors import error_page
from inventory.services import search as inventory_search
from inventory.services.activity import cancel_job
from inventory.views import activity


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    return redirect("inventory:root")


@login_not_required
def login_locked(request: HttpRequest, response: HttpResponse | None = None, credentials: Any = None) -> HttpResponse:
    """django-axes calls this in place of another try."""
    minutes = int(settings.AXES_COOLOFF_TIME * 60)
    hint = f"wait {minutes} minutes and try again"
    return render(request, "console/login.html", {"locked_hint": hint}, status=429)


@login_not_required
@require_POST
def choose_theme(request: HttpRequest) -> HttpResponse:
    """Keeps the choice in a cookie of this browser and goes back to the page it came from."""
    # The page that is shown may be another than the one that held the form: htmx changes only the content.
    back = request.headers.get("Referer") or request.POST.get("next", "")
    if not url_has_allowed_host_and_scheme(back, {request.get_host()}, require_https=request.is_secure()):
        back = "/"
    theme = request.POST.get("theme", "")
    if theme not in THEMES:
        return error_page(request, 422, f"there is no theme {theme[:20]!r}", hint="choose light or dark")
    response = redirect(back)
    response.set_cookie(
        THEME_COOKIE, theme, max_age=365 * 24 * 3600, httponly=True, samesite="Lax", secure=settings.HTTPS
    )
    return response


@require_GET
def search(request: HttpRequest) -> HttpResponse:
    """Objects by name or UUID: a short list for the box in the header, a page otherwise."""
    text = request.GET.get("q", "").strip()[:200]
    context = {"text": text, "hits": inventory_search.search(actor=request.user, text=text)}
    live = request.headers.get("HX-Target") == "search-results"
    return render(request, "console/_search_results.html" if live else "console/search.html", context)


@require_GET
def tasks(request: HttpRequest) -> HttpResponse:
    """The pane at the foot of every page; 204 while its content would be what the browser has (`v`)."""
    now = activity.version()
    seen = request.GET.get("v", "")
    if seen == now.token:
        return HttpResponse(status=204)
    context = {"tasks": activity.recent_tasks(request.user), "version": now}
    response = render(request, "console/_tasks.html", context)
    if seen and activity.news(seen) != now.news:
        response.headers["HX-Trigger"] = "activity"
    return response


@require_POST
def cancel_task(request: HttpRequest, job_id: UUID) -> HttpResponse:
    cancel_job(job_id=job_id, actor=request.user)
    if request.headers.get("HX-Request") == "true":
        return HttpResponse(status=204, headers={"HX-Trigger": "tasks-changed"})
    return redirect("home")


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return error_page(
        request,
        403,
        "the form's protection against forged requests did not match",
        hint="reload the page and send the form again; cookies must be allowed",
        code="csrf_failed",
    )


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return error_page(request, 403, "you may not do that", hint="ask an administrator for the right")


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return error_page(request, 404, "there is no such page", hint="go on from the inventory")


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return error_page(request, 400, "the request is malformed")


def server_error(request: HttpRequest) -> HttpResponse:
    return error_page(request, 500, "an internal error", hint="its details are in the web process's log")
