"""The one look of an error: a page, for htmx an alert on top of the page that asked, below /api/ JSON."""

from typing import Final

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from inventory.errors import Unavailable

API_PREFIX: Final = "/api/"
_TITLES: Final = {
    400: "That request cannot be read",
    403: "Not permitted",
    404: "Not found",
    409: "Not possible in the present state",
    422: "Something in the input is wrong",
    429: "Too many attempts",
    500: "Something went wrong here",
    503: "Not reachable at the moment",
}
_CODES: Final = {
    400: "malformed_request",
    403: "not_permitted",
    404: "not_found",
    405: "method_not_allowed",
    500: "internal_error",
}


# A lock not had in time, a deadlock that the database ended, or no connection: nobody's input, and over soon.
DATABASE_BUSY: Final = Unavailable(
    "database_busy", "the database did not carry this out", hint="try again; if it stays so, look at /readyz"
)


def error_page(request: HttpRequest, status: int, message: str, *, hint: str = "", code: str = "") -> HttpResponse:
    """`message` names what failed, `hint` what to do; neither holds key material (inventory/errors.py)."""
    if request.path_info.startswith(API_PREFIX):
        body = {"code": code or _CODES.get(status, "error"), "message": message, "hint": hint}
        return JsonResponse(body, status=status, headers={"Cache-Control": "no-store, private"})
    context = {
        "status": status,
        "title": _TITLES.get(status, "Error"),
        "message": message,
        "hint": hint[:1].upper() + hint[1:],
        "code": code,
    }
    if request.headers.get("HX-Request") != "true" or request.headers.get("HX-History-Restore-Request") == "true":
        return render(request, "console/error.html", context, status=status)
    response = render(request, "console/_error_alert.html", context, status=status)
    response.headers["HX-Retarget"] = "#alerts"
    response.headers["HX-Reswap"] = "beforeend"
    response.headers["HX-Reselect"] = ".alert"
    response.headers["HX-Push-Url"] = "false"
    return response
