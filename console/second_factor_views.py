"""Second Factor, in the user menu: set up, new recovery codes, removal, each of one's own account."""

from typing import Any, Final

import segno
from django.http import HttpRequest, HttpResponse, QueryDict
from django.http.request import split_domain_port
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from console import second_factor
from console.api_token_views import user_of
from console.forms import CheckForm, EnrolForm, tried
from inventory.views.dialogs import dialog

QR_SCALE: Final = 4  # pixels a module
QR_BORDER: Final = 4  # modules, ISO/IEC 18004, 6.3.8: light, whatever the theme


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    return render(request, "console/second_factor.html", {"state": second_factor.state_of(actor=user_of(request))})


@sensitive_post_parameters()
@require_http_methods(["GET", "HEAD", "POST"])
def enrol(request: HttpRequest) -> HttpResponse:
    """The key, until a code confirms it; then the recovery codes in the same dialog. Where a second factor is required
    and missing it is a page without the shell, which shows what the user may not see yet."""
    user, ticket = user_of(request), request.POST.get("ticket", "")
    is_forced = second_factor.must_enrol(user)
    form = EnrolForm(_sent(request))
    codes, error, status = tried(form, lambda data: second_factor.enrol(ticket=ticket, code=data["code"], actor=user))
    if codes is not None:
        return _codes(request, codes, is_forced=is_forced)
    begun = second_factor.begin_enrolment(place=place_of(request), actor=user, ticket=ticket)
    values = {
        "form": form, "error": error, "enrolment": begun, "qr": _qr(begun.uri), "title": "Set up a second factor",
        "button": "Confirm", "key": " ".join(begun.key[start : start + 4] for start in range(0, len(begun.key), 4)),
    }  # fmt: skip
    return _answer(request, "console/second_factor_enrol.html", values, status, is_forced=is_forced)


@sensitive_post_parameters()
@require_http_methods(["GET", "HEAD", "POST"])
def renew(request: HttpRequest) -> HttpResponse:
    user = user_of(request)
    second_factor.state_of(actor=user)
    form = CheckForm(_sent(request))
    codes, error, status = tried(form, lambda data: second_factor.renew_recovery_codes(actor=user, **data))
    if codes is not None:
        return _codes(request, codes, is_forced=False)
    values = {"form": form, "error": error, "title": "New recovery codes", "button": "Make new ones"}
    return _answer(request, "console/second_factor_renew.html", values, status, is_forced=False)


@sensitive_post_parameters()
def remove(request: HttpRequest) -> HttpResponse:
    user = user_of(request)
    second_factor.state_of(actor=user)

    def submit(data: dict[str, Any]) -> str:
        second_factor.remove_own(actor=user, **data)
        return reverse("second-factor")

    context = {"title": "Remove second factor", "back": reverse("second-factor")}
    return dialog(request, template="console/second_factor_remove.html", form=CheckForm, submit=submit, context=context)


def place_of(request: HttpRequest) -> str:
    """The name that this console was asked by."""
    return split_domain_port(request.get_host())[0].strip("[]")


def _qr(uri: str) -> str:
    """A data: URI of an SVG image; the policy allows these as images, and nothing of them runs."""
    return segno.make(uri, error="m", micro=False).svg_data_uri(scale=QR_SCALE, border=QR_BORDER, light="#fff")


def _sent(request: HttpRequest) -> QueryDict | None:
    return request.POST if request.method == "POST" else None


def _codes(request: HttpRequest, codes: tuple[str, ...], *, is_forced: bool) -> HttpResponse:
    return _answer(request, "console/second_factor_codes.html", {"codes": codes}, 201, is_forced=is_forced)


def _answer(
    request: HttpRequest, template: str, values: dict[str, Any], status: int, *, is_forced: bool
) -> HttpResponse:
    is_dialog = request.headers.get("HX-Request") == "true"
    shared = {
        "frame": "console/outside.html" if is_forced else "_dialog.html" if is_dialog else "base.html",
        "here": request.get_full_path(),
        "back": reverse("home" if is_forced else "second-factor"),
        "is_forced": is_forced,
    }
    return render(request, template, shared | values, status=status)
