"""Who calls the REST API: an API token, or the session of a page of this console. Everybody else gets 401."""

from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpRequest
from ninja.security import APIKeyCookie, HttpBearer
from ninja.utils import check_csrf
from typing_extensions import override

from console import api_tokens
from inventory.errors import Refused


class Token(HttpBearer):
    """`Authorization: Bearer bartizan_...`, see API Tokens in the user menu."""

    openapi_bearerFormat = "bartizan_..."  # noqa: N815  OpenAPI's own name

    @override
    def authenticate(self, request: HttpRequest, token: str) -> User | None:
        user = api_tokens.user_of(token)
        if user is not None:
            request.user = user  # the services' actor; there is no session here
        return user


class Session(APIKeyCookie):
    """The console's own session cookie; whatever changes something needs the CSRF header besides."""

    param_name = settings.SESSION_COOKIE_NAME

    @override
    def __call__(self, request: HttpRequest) -> Any:
        """A request with an Authorization header stands by that alone: a bad token is not saved by a cookie."""
        if "Authorization" in request.headers or not request.user.is_authenticated:
            return None
        if check_csrf(request) is not None:
            raise Refused(
                "csrf_failed",
                "the protection against forged requests did not match",
                hint="send the header X-CSRFToken, or use an API token instead of the session",
            )
        return request.user

    @override
    def authenticate(self, request: HttpRequest, key: str | None) -> User | None:
        """Not asked: `__call__` has decided."""
        return None


def by_token(request: HttpRequest) -> bool:
    return "Authorization" in request.headers


def refuse_tokens(request: HttpRequest, code: str, text: str, *, hint: str) -> None:
    """For what only a session may do: who has got hold of a token must not be able to keep or widen that."""
    if by_token(request):
        raise Refused(code, text, hint=hint)
