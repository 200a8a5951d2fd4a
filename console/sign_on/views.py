"""To the OpenID provider, and back from it."""

import json
from dataclasses import asdict
from typing import Final

from django.conf import settings
from django.contrib.auth import login
from django.contrib.auth.decorators import login_not_required
from django.core.signing import BadSignature
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from console.errors import error_page
from console.sign_on import oidc
from console.sign_on.configuration import Oidc
from console.sign_on.identities import user_of
from inventory.errors import ServiceError
from inventory.services import access

BACKEND: Final = "console.sign_on.oidc_backend.OidcBackend"
# A login that has begun stands in a signed cookie of the browser that began it, so that nobody unknown can fill the
# database. The browser's user can read it: it binds what comes back to this browser, and is no secret from it.
COOKIE: Final = "bartizan_oidc"
MINUTES: Final = 10
LONGEST_PAGE: Final = 500  # browsers drop a cookie of more than 4096 bytes


@login_not_required
@require_GET
@never_cache
def begin(request: HttpRequest) -> HttpResponse:
    """Off to the provider. GET is safe: whoever is sent here can only log in as themselves."""
    provider = _configured()
    if request.user.is_authenticated:
        return redirect("home")
    page = request.GET.get("next", "")
    allowed = url_has_allowed_host_and_scheme(page, {request.get_host()}, require_https=request.is_secure())
    if not allowed or len(page) > LONGEST_PAGE:
        page = ""
    try:
        url, pending = oidc.begin(provider, redirect_uri=_redirect_uri(request), next_page=page)
    except ServiceError as exc:
        return _refused(request, exc)
    response = HttpResponseRedirect(url)
    response.set_signed_cookie(
        COOKIE, json.dumps(asdict(pending)), salt=COOKIE, max_age=MINUTES * 60, path=reverse("oidc-begin"),
        secure=settings.HTTPS, httponly=True, samesite="Lax",
    )  # fmt: skip
    return response


@login_not_required
@require_GET
@never_cache
def finish(request: HttpRequest) -> HttpResponse:
    """Back from the provider."""
    provider, pending = _configured(), _pending(request)
    try:
        proven = oidc.finish(
            provider, pending=pending, redirect_uri=_redirect_uri(request), answer=request.GET.dict()
        )  # fmt: skip
        user = user_of(proven)
    except ServiceError as exc:
        return _refused(request, exc)
    login(request, user, backend=BACKEND)
    return _forgetting(HttpResponseRedirect((pending and pending.next) or reverse("home")))


def _refused(request: HttpRequest, error: ServiceError) -> HttpResponse:
    access.record_login_refused(error, way="oidc")
    return _forgetting(error_page(request, error.http_status, error.message, hint=error.hint, code=error.code))


def _forgetting(response: HttpResponse) -> HttpResponse:
    """A login that has begun ends once, well or not."""
    response.delete_cookie(COOKIE, path=reverse("oidc-begin"), samesite="Lax")
    return response


def _configured() -> Oidc:
    if settings.OIDC is None:
        raise Http404
    found: Oidc = settings.OIDC
    return found


def _pending(request: HttpRequest) -> oidc.Pending | None:
    """None where this browser has begun none, or too long ago."""
    try:
        return oidc.Pending(**json.loads(request.get_signed_cookie(COOKIE, salt=COOKIE, max_age=MINUTES * 60) or "{}"))
    except (KeyError, BadSignature):
        return None


def _redirect_uri(request: HttpRequest) -> str:
    """This console's address as the browser knows it; the provider takes only what was registered there."""
    scheme = "https" if settings.HTTPS or request.is_secure() else "http"
    return f"{scheme}://{request.get_host()}{reverse('oidc-finish')}"
