"""Change Password, in the user menu."""

from typing import Any

from django.contrib.auth import update_session_auth_hash
from django.contrib.auth.password_validation import password_validators_help_texts
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_safe

from console import own_password
from console.api_token_views import user_of
from console.forms import PasswordForm
from inventory.views.dialogs import dialog


@sensitive_post_parameters()
def change(request: HttpRequest) -> HttpResponse:
    user = user_of(request)

    def submit(data: dict[str, Any]) -> str:
        changed = own_password.change_password(current=data["current"], new=data["new"], actor=user)
        update_session_auth_hash(request, changed)
        return ""

    context = {
        "title": "Change password",
        "back": reverse("home"),
        "rules": password_validators_help_texts(),
        "has_password": own_password.has_password(actor=user),
    }
    return dialog(request, template="console/own_password.html", form=PasswordForm, submit=submit, context=context)


@require_safe
def admin_form(request: HttpRequest) -> HttpResponse:
    """In the place of the Django admin's own form, which records nothing."""
    return redirect("change-password")
