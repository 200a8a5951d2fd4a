"""Input for one's own account."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from django import forms
from typing_extensions import override

from inventory.errors import ServiceError
from inventory.forms import ClarityForm

Result = TypeVar("Result")
_LONGEST_CODE: Final = 40  # a recovery code has 23 characters, some people put blanks in


def _code(label: str, help_text: str) -> forms.CharField:
    attributes = {"autocomplete": "one-time-code", "autocapitalize": "none", "spellcheck": "false"}
    widget = forms.TextInput(attrs=attributes)
    return forms.CharField(label=label, max_length=_LONGEST_CODE, help_text=help_text, widget=widget)


class CodeForm(ClarityForm):
    code = _code("Code", "6 digits from your authenticator, or a recovery code")


class EnrolForm(ClarityForm):
    code = _code("Code", "the 6 digits that your authenticator shows now")


def _password(label: str, autocomplete: str = "current-password") -> forms.CharField:
    widget = forms.PasswordInput(attrs={"autocomplete": autocomplete})
    return forms.CharField(label=label, max_length=4096, strip=False, widget=widget)


class PasswordForm(ClarityForm):
    current = _password("Present password")
    new = _password("New password", "new-password")
    again = _password("New password again", "new-password")

    @override
    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if "new" in data and "again" in data and data["new"] != data["again"]:
            self.add_error("again", "not the same as above")
        return data


class CheckForm(ClarityForm):
    """Who is at the keyboard, once more."""

    password = _password("Password")
    code = _code("Code", "6 digits from your authenticator, or a recovery code")


def tried(form: forms.Form, act: Callable[[dict[str, Any]], Result]) -> tuple[Result | None, ServiceError | None, int]:
    """What a form came to: the result of `act` on its input, or why there is none, and the status of the answer."""
    if not form.is_bound:
        return None, None, 200
    if not form.is_valid():
        return None, None, 422
    try:
        return act(form.cleaned_data), None, 200
    except ServiceError as exc:
        return None, exc, exc.http_status
