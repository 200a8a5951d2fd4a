"""Logins and logouts become events, whichever page they came by."""

from typing import Any, Final

from axes.handlers.proxy import AxesProxyHandler
from django.contrib.auth import BACKEND_SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.http import HttpRequest

from inventory.services import access

# Of those who are known elsewhere; the others come by a page of this console.
WAYS: Final = {
    "console.sign_on.oidc_backend.OidcBackend": "oidc",
    "console.sign_on.ldap_backend.DirectoryBackend": "ldap",
}
PAGE: Final = "page"
SECOND_FACTOR: Final = "second_factor"
"""In the session: what came after the password, if something did."""


def register() -> None:
    user_logged_in.connect(logged_in, dispatch_uid="console.logged_in")
    user_logged_out.connect(logged_out, dispatch_uid="console.logged_out")
    user_login_failed.connect(login_failed, dispatch_uid="console.login_failed")


def logged_in(request: HttpRequest | None = None, user: User | None = None, **_: Any) -> None:
    """A session that is made without a request (by a test, a shell) is nobody's login."""
    if user is not None and request is not None and request.method:
        way = WAYS.get(request.session.get(BACKEND_SESSION_KEY, ""), PAGE)
        access.record_login(user, way=way, second_factor=request.session.get(SECOND_FACTOR))


def logged_out(request: HttpRequest | None = None, user: User | None = None, **_: Any) -> None:
    if user is not None and request is not None and request.method:
        access.record_logout(user)


def login_failed(credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any) -> None:
    """django-axes refuses before the password is looked at, once there were too many attempts."""
    if request is not None:
        is_locked = not AxesProxyHandler.is_allowed(request, credentials)
        access.record_login_failed(str(credentials.get("username", "")), way=PAGE, is_locked=is_locked)
