"""What every answer passes: the content security policy, the login wall, and services' errors as pages or JSON."""

import logging
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.contrib.auth.views import redirect_to_login
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, QueryDict
from django.shortcuts import redirect, resolve_url
from typing_extensions import override

from console import second_factor
from console.errors import API_PREFIX, DATABASE_BUSY, error_page
from console.source_address import of_request
from encryption.services import crypto_modules
from inventory import events
from inventory.authorize import noting_refusals
from inventory.errors import ServiceError
from inventory.services import access

log = logging.getLogger(__name__)

# Nothing from elsewhere, nothing inline. data: is for Clarity's fonts and carets, which stand in its style sheet.
POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)

WITHOUT_SECOND_FACTOR: Final = frozenset(
    {"enrol-second-factor", "healthz", "login", "login-code", "logout", "readyz", "theme"}
)
HEALTH_PATHS: Final = frozenset({"/healthz", "/readyz"})  # the latter says it itself

GetResponse = Callable[[HttpRequest], HttpResponseBase]


class ContentSecurityPolicy:
    """Sets the policy on every answer that has none of its own."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response


class CryptoModules:
    """Answers 503 to everything but the health checks where this process's self-tests failed: it may not compute."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if (reason := crypto_modules.why_not_ready()) and request.path_info not in HEALTH_PATHS:
            text = f"This console does not answer: {reason}. Its administrator finds more in the web process's log.\n"
            return HttpResponse(text, status=503, content_type="text/plain; charset=utf-8")
        return self.get_response(request)


class Origin:
    """What a request does is recorded with its address, and each right that it lacked is an event of its own: written
    when the request has been answered, so that no transaction that was rolled back takes it along."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        with events.acting_from(of_request(request)), noting_refusals() as refusals:
            response = self.get_response(request)
            access.record_refusals(refusals, method=request.method or "", path=request.path_info)
        return response


class LoginRequired(LoginRequiredMiddleware):
    """Denies by default: only views marked with Django's `login_not_required` answer somebody unknown.

    The REST API is NOT covered: it knows its callers by token and answers 401 in JSON itself (console/api.py).
    """

    @override
    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., HttpResponseBase],
        view_args: tuple[object, ...],
        view_kwargs: dict[str, object],
    ) -> HttpResponseBase | None:
        if request.path_info.startswith(API_PREFIX):
            return None
        return super().process_view(request, view_func, view_args, view_kwargs)

    @override
    def handle_no_permission(  # type: ignore[override]  # the stubs know redirects only; Django sends any answer
        self, request: HttpRequest, view_func: Callable[..., HttpResponseBase]
    ) -> HttpResponseBase:
        if not _is_htmx(request):
            return redirect_to_login(request.get_full_path(), resolve_url("login"))
        # A fragment cannot show the login page; htmx goes there with the whole window and comes back to the page.
        page = urlsplit(request.headers.get("HX-Current-URL", "")).path or "/"
        query = QueryDict(mutable=True)
        query["next"] = page
        return HttpResponse(status=401, headers={"HX-Redirect": f"{resolve_url('login')}?{query.urlencode(safe='/')}"})

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Pages of somebody who is logged in stay out of caches, so that "back" after a logout shows nothing."""
        user = getattr(request, "user", None)  # missing where a middleware before the sessions has answered
        if user is not None and user.is_authenticated:
            response.headers.setdefault("Cache-Control", "no-store, private")
        return response


class SecondFactorRequired:
    """Where the operator asks for one (BARTIZAN_SECOND_FACTOR), a local user without a second factor comes to its
    set-up and to the way out, and no further. API tokens are not asked: a session made them that was."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., HttpResponseBase],
        view_args: tuple[object, ...],
        view_kwargs: dict[str, object],
    ) -> HttpResponseBase | None:
        address = request.resolver_match
        if address is None or address.view_name in WITHOUT_SECOND_FACTOR:
            return None
        # There an Authorization header stands for the caller alone, whatever session comes with it.
        by_token = "Authorization" in request.headers and (address.namespace == "api" or address.view_name == "metrics")
        if by_token or not second_factor.must_enrol(request.user):
            return None
        page = resolve_url("enrol-second-factor")
        if _is_htmx(request):
            return HttpResponse(status=403, headers={"HX-Redirect": page})
        if request.path_info.startswith(API_PREFIX):
            return error_page(
                request, 403, f"{request.user} has no second factor, which this console asks for",
                hint="set it up under Second Factor in the user menu", code="second_factor_required",
            )  # fmt: skip
        return redirect(page)


class ServiceErrors:
    """Answers a `ServiceError` that a view did not catch, and the database's own: JSON below /api/, an alert for htmx,
    else a page."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if response.status_code == 405 and request.path_info.startswith(API_PREFIX):
            return _method_refused(request, response)
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if isinstance(exception, OperationalError):
            log.warning("%s: the database did not carry it out", request.path_info, exc_info=exception)
            exception = DATABASE_BUSY
        if not isinstance(exception, ServiceError):
            return None
        return error_page(request, exception.http_status, exception.message, hint=exception.hint, code=exception.code)


def _method_refused(request: HttpRequest, response: HttpResponseBase) -> HttpResponse:
    """The framework answers a wrong method in plain text; the API's answers are JSON."""
    allowed = response.headers.get("Allow", "")
    answer = error_page(request, 405, f"{request.method} is not possible here", hint=f"use {allowed}")
    answer.headers["Allow"] = allowed
    return answer


def _is_htmx(request: HttpRequest) -> bool:
    return request.headers.get("HX-Request") == "true"
