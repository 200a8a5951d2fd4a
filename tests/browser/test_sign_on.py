"""The way to an OpenID provider and back, as the browser goes it: its policy and its cookies let it."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect
from pytest_django import Settings

from tests.browser.conftest import Console
from tests.console.sign_on.conftest import configure
from tests.console.sign_on.simulated_provider import SimulatedProvider

pytestmark = pytest.mark.browser


@pytest.fixture
def provider(settings: Settings) -> Iterator[SimulatedProvider]:
    """Another site than the console's, which is at localhost."""
    found = SimulatedProvider()
    found.start()
    configure(settings, found)
    yield found
    found.stop()


def test_to_the_provider_and_back(anonymous: Console, provider: SimulatedProvider) -> None:
    page = anonymous.page
    page.goto(anonymous.url + "/api-tokens/")
    button = page.get_by_role("link", name="Log in with Lab")
    expect(button).to_be_visible()
    assert anonymous.axe() == []
    anonymous.shot("sign-on-light")
    page.set_viewport_size({"width": 420, "height": 800})
    anonymous.shot("sign-on-narrow")
    button.press("Enter")
    page.wait_for_url(anonymous.url + "/api-tokens/")
    expect(page.get_by_role("heading", level=1)).to_have_text("API Tokens")
    page.context.clear_cookies()
    provider.claims = {"aud": "another-client"}
    page.goto(anonymous.url + "/login/oidc/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not permitted")
    assert anonymous.axe() == []
    anonymous.shot("sign-on-refused")
    anonymous.complaints[:] = [one for one in anonymous.complaints if "403" not in one]  # Chromium tells of the status
