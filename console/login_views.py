"""The one way in: password, then a code where the user has a second factor. Only then is there a session of the user.

In between the browser's session holds who gave the right password, signed, for five minutes.
"""

from dataclasses import dataclass
from typing import Any, Final

from django.contrib.auth import login
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView
from django.core import signing
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render, resolve_url
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe
from typing_extensions import override

from console import logins, second_factor
from console.forms import CodeForm, tried
from console.views import permission_denied
from inventory.errors import ServiceError
from inventory.services import access

PENDING: Final = "pending_login"
PENDING_SECONDS: Final = 5 * 60
_SALT: Final = "console.pending_login"


@dataclass(frozen=True, slots=True)
class Pending:
    """Somebody who gave the right password. `backend` is what looked at it, `page` where they were going."""

    user: User
    backend: str
    page: str


class Login(LoginView):
    template_name = "console/login.html"
    redirect_authenticated_user = True

    @override
    def form_valid(self, form: AuthenticationForm) -> Any:
        user = form.get_user()
        if not second_factor.is_enrolled(user):
            return super().form_valid(form)
        # The hash ends it with a new password.
        told = {
            "user": user.pk, "hash": user.get_session_auth_hash(), "backend": getattr(user, "backend", ""),
            "page": self.get_success_url(),
        }  # fmt: skip
        self.request.session[PENDING] = signing.dumps(told, salt=_SALT)
        return redirect("login-code")


@login_not_required
@never_cache
@sensitive_post_parameters()
@require_http_methods(["GET", "HEAD", "POST"])
def code(request: HttpRequest) -> HttpResponse:
    """Logs in with the right code, and the session's key changes with that (django.contrib.auth.login)."""
    if request.user.is_authenticated:
        return redirect("home")
    pending = _pending(request)
    if pending is None:
        return _too_late(request)
    form = CodeForm(request.POST if request.method == "POST" else None)
    found, error, status = tried(form, lambda data: _checked(pending.user, data["code"]))
    if found is not None:
        del request.session[PENDING]
        request.session[logins.SECOND_FACTOR] = found.value
        login(request, pending.user, backend=pending.backend)
        return redirect(pending.page)
    context = {"form": form, "error": error, "username": pending.user.username}
    return render(request, "console/login_code.html", context, status=status)


@login_not_required
@require_safe
def admin_login(request: HttpRequest) -> HttpResponse:
    """In the place of the Django admin's own form, which knows of no second factor."""
    if request.user.is_authenticated:  # who comes here is no staff; the login would send them back
        return permission_denied(request, PermissionError())
    query = QueryDict(mutable=True)
    query["next"] = request.GET.get("next", "/admin/")
    return redirect(f"{resolve_url('login')}?{query.urlencode(safe='/')}")


def _checked(user: User, code: str) -> second_factor.Factor:
    try:
        return second_factor.check_login(user=user, code=code)
    except ServiceError as exc:
        is_locked = exc.code == "second_factor_locked"
        access.record_code_refused(user, way=logins.PAGE, code=exc.code, is_locked=is_locked)
        raise


def _too_late(request: HttpRequest) -> HttpResponse:
    request.session.pop(PENDING, None)
    if request.method != "POST":
        return redirect("login")
    notice = "That took too long: give your password again."
    return render(request, "console/login.html", {"notice": notice}, status=403)


def _pending(request: HttpRequest) -> Pending | None:
    try:
        told = signing.loads(request.session.get(PENDING, ""), salt=_SALT, max_age=PENDING_SECONDS)
    except signing.BadSignature:
        return None
    user = User.objects.filter(pk=told["user"], is_active=True).first()
    if user is None or not constant_time_compare(told["hash"], user.get_session_auth_hash()):
        return None
    return Pending(user, told["backend"], told["page"])
