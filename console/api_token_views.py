"""API Tokens, in the user menu: one's own tokens, a new one shown once, and their revocation."""

from typing import Any, Final
from uuid import UUID

from django import forms
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_safe
from typing_extensions import override

from console import api_tokens
from inventory.authorize import Privilege
from inventory.errors import Refused, ServiceError
from inventory.forms import ClarityForm, ConfirmForm
from inventory.models import RoleAssignment
from inventory.views.dialogs import dialog

PERIODS: Final = [(30, "30 days"), (90, "90 days"), (365, "A year")]
CUSTOM: Final = "privileges"


class ApiTokenForm(ClarityForm):
    name = forms.CharField(label="Name", max_length=80, help_text="What it is for, for example backup script")
    days = forms.TypedChoiceField(label="Ends after", choices=PERIODS, coerce=int, initial=90)
    role = forms.ChoiceField(
        label="At most", required=False,
        choices=[("", "All that I may do"), *RoleAssignment.RoleName.choices, (CUSTOM, "Single privileges")],
        help_text="of your own rights at the time it is used; a token never has more than you",
    )  # fmt: skip
    privileges = forms.MultipleChoiceField(
        label="Single privileges", required=False, choices=[(one.value, one.value) for one in Privilege],
        widget=forms.CheckboxSelectMultiple(attrs={"class": "clr-checkbox"}),
    )  # fmt: skip

    @override
    def clean(self) -> dict[str, Any]:
        """What was ticked counts where it was chosen to; an answer that could be read in two ways is asked again."""
        found: dict[str, Any] = super().clean() or {}
        is_custom, ticked = found.get("role") == CUSTOM, found.get("privileges")
        if is_custom and not ticked:
            self.add_error("privileges", "Tick at least one")
        if ticked and not is_custom:
            self.add_error("role", "Choose Single privileges, or tick none")
        return found | {"role": ""} if is_custom else found


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    tokens = api_tokens.tokens_of(actor=user_of(request))
    return render(request, "console/api_tokens.html", {"tokens": tokens, "now": timezone.now()})


@require_http_methods(["GET", "HEAD", "POST"])
def add(request: HttpRequest) -> HttpResponse:
    """The form; once it is sent, the token in the same dialog. It is in no address, session or message."""
    form = ApiTokenForm(request.POST or None)
    error, status = None, 200
    if request.method == "POST":
        if form.is_valid():
            try:
                made = api_tokens.create_token(user=user_of(request), actor=user_of(request), **form.cleaned_data)
            except ServiceError as exc:
                error, status = exc, exc.http_status
            else:
                return _answer(request, "console/api_token_created.html", {"made": made}, 201)
        else:
            status = 422
    return _answer(request, "console/api_token_form.html", {"form": form, "error": error}, status)


def revoke(request: HttpRequest, token_id: UUID) -> HttpResponse:
    row = api_tokens.token_of(token_id=token_id, actor=user_of(request))

    def submit(_: dict[str, Any]) -> str:
        api_tokens.revoke_token(token_id=token_id, actor=user_of(request))
        return reverse("api-tokens")

    context = {"title": f"Revoke {row.name}", "row": row, "back": reverse("api-tokens")}
    return dialog(request, template="console/api_token_revoke.html", form=ConfirmForm, submit=submit, context=context)


def user_of(request: HttpRequest) -> User:
    """The login wall lets nobody unknown through; this says so to whoever reads on."""
    if not isinstance(request.user, User):
        raise Refused("not_permitted", "nobody is logged in")
    return request.user


def _answer(request: HttpRequest, template: str, values: dict[str, Any], status: int) -> HttpResponse:
    shared = {
        "frame": "_dialog.html" if request.headers.get("HX-Request") == "true" else "base.html",
        "here": request.get_full_path(),
        "title": "New API token",
        "button": "Create",
        "back": reverse("api-tokens"),
    }
    return render(request, template, shared | values, status=status)
