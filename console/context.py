"""What the shell around every page needs to know."""

from functools import partial
from typing import Any, Final

from django.conf import settings
from django.http import HttpRequest

from console.appliance.views.sections import all_sections
from inventory.authorize import Actor
from inventory.services.alarms import unseen_count
from inventory.views import extensions

THEME_COOKIE: Final = "bartizan_theme"
THEMES: Final = ("light", "dark")
# Each stands alone, so that the hashed names of production need no rewriting of imports.
SCRIPTS: Final = tuple(f"js/{name}.js" for name in ("tree", "menu", "dialog", "tasks", "splitter", "search"))


def theme_of(request: HttpRequest) -> str:
    """Clarity's theme for this browser; a cookie with anything else counts as none."""
    theme = request.COOKIES.get(THEME_COOKIE, "")
    return theme if theme in THEMES else THEMES[0]


def _unseen(user: Actor | None) -> int:
    return 0 if user is None else unseen_count(actor=user)


def shell(request: HttpRequest) -> dict[str, Any]:
    """`layout` is the template that pages extend: the whole shell, or the content alone where htmx swaps that."""
    headers = request.headers
    only_content = (
        headers.get("HX-Request") == "true"
        and headers.get("HX-Target") == "content"
        and headers.get("HX-History-Restore-Request") != "true"
    )
    user = getattr(request, "user", None)  # missing where an error comes before the session
    return {
        "layout": "_content.html" if only_content else "base.html",
        "theme": theme_of(request),
        "other_theme": "light" if theme_of(request) == "dark" else "dark",
        "scripts": SCRIPTS,
        "single_sign_on": settings.OIDC.name if settings.OIDC else "",
        "navigation": extensions.navigation(user) if user is not None else (),
        "appliance_sections": all_sections(),
        "alarm_count": partial(_unseen, user),  # asked for only where the shell shows it
    }
