"""One's own account in the browser: a second factor set up, asked for at the login, required; another password.

Wide and light, narrow and dark.
"""

import base64
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from django_otp.oath import totp
from pytest_django import Settings

from console import own_password
from tests.browser.conftest import PASSWORD, Console

LOOKS = (("light", 1440), ("dark", 420))
TASKS_EVERY_SECONDS = 2
NEW_PASSWORD = "another long enough phrase"
pytestmark = [pytest.mark.browser, pytest.mark.slow]


def change_password(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes so long that the tasks pane would ask meanwhile, with the session that ends by it."""
    page, change = console.page, own_password.change_password
    traffic: list[str] = []

    def slow(**given: Any) -> User:
        if given["current"] == PASSWORD:
            time.sleep(TASKS_EVERY_SECONDS)
        return change(**given)

    monkeypatch.setattr(own_password, "change_password", slow)
    page.on("request", lambda request: traffic.append(f"{request.method} {urlsplit(request.url).path}"))
    page.on("response", lambda response: traffic.append(f"{response.status} {urlsplit(response.url).path}"))
    page.get_by_label("User admin").click()
    page.get_by_role("menuitem", name="Change Password…").click()
    page.locator("dialog #id_current").wait_for()
    assert page.evaluate("document.activeElement.id") == "id_current"
    for present in ("not this one", PASSWORD):
        page.fill("dialog #id_current", present)
        page.fill("dialog #id_new", NEW_PASSWORD)
        page.fill("dialog #id_again", NEW_PASSWORD)
        page.keyboard.press("Enter")
        if present != PASSWORD:
            page.get_by_text("The present password is wrong").wait_for()
            console.look("own-password", LOOKS)
            assert [text for text in console.complaints if "403" not in text] == []  # Chromium tells of the status
            console.complaints.clear()
    page.locator("dialog").wait_for(state="detached")
    asked = [line for line in traffic[: traffic.index("204 /password/")] if not line.startswith(("2", "4"))]
    assert asked[-1] == "POST /password/"


def test_a_second_factor(console: Console, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    page = console.open(reverse("second-factor"))
    console.look("second-factor-none", LOOKS)
    page.get_by_role("link", name="Set up…").click()
    page.locator("dialog img.qr").wait_for()
    assert page.locator("dialog img.qr").evaluate("image => image.naturalWidth") > 100
    assert page.evaluate("document.activeElement.id") == "id_code"
    console.look("second-factor-set-up", LOOKS)
    key = base64.b32decode(page.locator("#totp-key").inner_text().replace(" ", ""))
    page.fill("dialog #id_code", f"{totp(key):06}")
    page.keyboard.press("Enter")
    page.locator("dialog .codes").wait_for()
    console.look("second-factor-codes", LOOKS)
    codes = page.locator("dialog .codes code").all_inner_texts()
    page.get_by_role("link", name="Done").click()
    page.get_by_role("link", name="New recovery codes…").wait_for()
    console.look("second-factor", LOOKS)
    page.get_by_role("link", name="Remove…").click()
    page.locator("dialog #id_password").wait_for()
    console.look("second-factor-remove", LOOKS)
    page.keyboard.press("Escape")

    change_password(console, monkeypatch)
    console.log_out()
    page.fill("#id_username", "admin")
    page.fill("#id_password", NEW_PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/login/code/")
    assert page.evaluate("document.activeElement.id") == "id_code"
    console.look("login-code", LOOKS)
    page.fill("#id_code", codes[0])
    page.keyboard.press("Enter")
    page.wait_for_selector("#tasks-rows table")

    page.goto(console.url + reverse("remove-second-factor"))
    page.fill("#id_password", NEW_PASSWORD)
    page.fill("#id_code", codes[1])
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Set up…").wait_for()
    settings.SECOND_FACTOR = "required"
    page.goto(console.url + "/")
    page.wait_for_url("**/second-factor/enrol/")
    console.look("second-factor-required", LOOKS)
    page.get_by_role("button", name="Log out admin").click()
    page.wait_for_selector("#id_username")
