"""Cryptographic modules in a browser: accessible in light and dark, wide and narrow; opened by keyboard."""

import pytest
from django.urls import reverse

from encryption.models import CryptoProcess
from encryption.services import crypto_modules
from tests.browser.conftest import Console

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def reported(inventory: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes; one of them with a provider that fails."""
    monkeypatch.setattr("encryption.services.crypto_modules.connections.close_all", lambda: None)
    monkeypatch.setattr(crypto_modules, "_this", crypto_modules._ThisProcess())
    for name in ("web", "worker-crypto"):
        crypto_modules.started(name)
    failed = CryptoProcess.objects.get(name="worker-crypto")
    failed.boundaries[0] |= {
        "provider": "FIPS provider",
        "provider_file": "/opt/bartizan/.venv/crypto/wheel/fips.so",
        "sha256": "0b02caa8" * 8,
    }
    failed.tests[2] |= {"passed": False, "detail": "another answer than the known one"}
    failed.label = CryptoProcess.Label.FAILED
    failed.save()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page(console: Console, reported: None, theme: str) -> None:
    console.page.context.add_cookies([{"name": "bartizan_theme", "value": theme, "url": console.url}])
    page = console.open(reverse("appliance:crypto-modules"))
    console.shot(f"crypto-modules-{theme}")
    assert console.axe() == []
    closed = page.locator("details.crypto-process:not([open])")
    assert closed.count() == 0  # the first and the one that failed
    page.locator("details.crypto-process summary").first.focus()
    page.keyboard.press("Enter")
    assert closed.count() == 1
    page.get_by_role("link", name="Run self-tests").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#dialog-slot dialog, #dialog-slot [role=dialog]")
    console.shot(f"crypto-modules-dialog-{theme}")
    assert console.axe() == []
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 420, "height": 900})
    page = console.open(reverse("appliance:crypto-modules"))
    console.shot(f"crypto-modules-420-{theme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    assert console.axe() == []
