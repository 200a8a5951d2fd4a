"""Chromium against Django's live server, with every complaint of the browser collected."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright
from pytest_django.live_server_helper import LiveServer

from console.launch.assets import AXE, cut_served
from tests import sample
from tests.sample import Sample

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / "node_modules"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PASSWORD = "correct horse battery staple"
# A breach of the policy becomes an error on the console, where the page collects it.
LISTENER = """
addEventListener('securitypolicyviolation', e => console.error('CSP ' + e.violatedDirective + ' ' + e.blockedURI))
"""

LOOKS = (("light", 1440), ("dark", 1440), ("light", 420))


@dataclass(slots=True)
class Console:
    """A page with what it complained about; `url` is the server's root."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        self.page.wait_for_selector("#tasks-rows table")
        return self.page

    def log_out(self) -> None:
        """From the user menu. Until the login page comes, the one that is left may ask for the tasks."""
        self.page.locator(".user summary").click()
        self.page.get_by_role("menuitem", name="Log out").click()
        self.page.get_by_label("Password").wait_for()
        self.complaints[:] = [text for text in self.complaints if "401" not in text]

    def axe(self) -> list[str]:
        """Violations of WCAG 2.1 A and AA, each as rule and elements."""
        if not self.page.evaluate("'axe' in window"):
            # Evaluated by the debugger: a <script> would need the policy's permission.
            self.page.evaluate((MODULES / AXE).read_text(encoding="utf-8"))
        found = self.page.evaluate(
            "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa'], resultTypes: ['violations']})"
            ".then(r => r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html.slice(0, 160)).join(' | ')))"
        )
        return [str(item) for item in found]

    def look(self, name: str, looks: Iterable[tuple[str, int]] = LOOKS) -> None:
        """What is shown now breaks no rule and fits, in each theme and width; then as it was."""
        first_theme, first_size = self._theme(), self.page.viewport_size
        for theme, width in looks:
            self._set_theme(theme)
            self.page.set_viewport_size({"width": width, "height": 900})
            self.shot(f"{name}-{theme}-{width}")
            assert self.axe() == [], f"{name} {theme} {width}"
            assert self.page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} {theme} {width}"
        self._set_theme(first_theme)
        if first_size:
            self.page.set_viewport_size(first_size)

    def _theme(self) -> str:
        return str(self.page.evaluate("document.body.getAttribute('cds-theme')"))

    def _set_theme(self, theme: str) -> None:
        self.page.evaluate("theme => document.body.setAttribute('cds-theme', theme)", theme)

    def shot(self, name: str) -> None:
        """A screenshot, where BARTIZAN_SCREENSHOTS names a folder for it."""
        if folder := os.environ.get("BARTIZAN_SCREENSHOTS"):  # noqa: TID251  a switch of the tests
            self.page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(scope="session")
def assets() -> None:
    """The served style sheet and icons, cut from the installed packages."""
    cut_served(ROOT, Path(settings.ASSETS_DIR))


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    """It ends with these tests: its event loop runs in this thread, where nobody could start another one beside it."""
    # Django would take that loop for an async view and refuse the database.
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as started:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield started


@pytest.fixture(scope="package")
def browser(playwright: Playwright) -> Iterator[Browser]:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture(autouse=True)
def _no_broker(sent: list[object]) -> None:
    """Nobody takes messages here, and nobody waits until the broker is found to be away."""


@pytest.fixture
def inventory(transactional_db: None) -> Sample:
    return sample.make()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    context.add_init_script(LISTENER)
    yield context
    context.close()


@pytest.fixture
def anonymous(assets: None, live_server: LiveServer, inventory: Sample, context: BrowserContext) -> Iterator[Console]:
    """A browser that is not logged in. The test fails if the page logged an error or broke the policy."""
    console = Console(context.new_page(), live_server.url)
    console.page.on("console", lambda m: console.complaints.append(m.text) if m.type == "error" else None)
    console.page.on("pageerror", lambda error: console.complaints.append(str(error)))
    yield console
    assert console.complaints == []


@pytest.fixture
def console(anonymous: Console) -> Console:
    """An administrator's browser. It has the session only: how people log in is tested by itself."""
    client = Client()
    client.force_login(User.objects.create_superuser("admin", password=PASSWORD))
    name = settings.SESSION_COOKIE_NAME
    anonymous.page.context.add_cookies([{"name": name, "value": client.cookies[name].value, "url": anonymous.url}])
    return anonymous
