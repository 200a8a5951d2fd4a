"""A simulated OpenID provider, and this console's log-in by it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from console.sign_on.views import BACKEND
from lab.pki import Authority, Issued
from tests.console.sign_on.simulated_provider import SimulatedProvider


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("sign-on-ca"), "Directories")


@pytest.fixture(scope="session")
def identity(authority: Authority) -> Issued:
    """Of a server on this machine, by address and as localhost."""
    return authority.issue("directory", dns=["localhost"], ips=["127.0.0.1"], server=True)


@pytest.fixture
def ca_file(authority: Authority, tmp_path: Path) -> Path:
    found = tmp_path / "ca.pem"
    found.write_bytes(authority.certificate_pem)
    return found


@pytest.fixture
def provider(settings: Settings) -> Iterator[SimulatedProvider]:
    """On loopback, without TLS; this console is told of it."""
    found = SimulatedProvider()
    found.start()
    configure(settings, found)
    yield found
    found.stop()


def configure(settings: Settings, provider: SimulatedProvider, **changes: object) -> None:
    settings.OIDC = provider.settings(**changes)
    if BACKEND not in settings.AUTHENTICATION_BACKENDS:
        settings.AUTHENTICATION_BACKENDS = [*settings.AUTHENTICATION_BACKENDS, BACKEND]


def log_in(client: Client, provider: SimulatedProvider, next_page: str = "", **changed: str) -> Any:
    """The way of a browser: the button, the provider, and back with what it says (`changed`)."""
    begun = client.get(reverse("oidc-begin"), {"next": next_page} if next_page else {})
    assert begun.status_code == 302, begun.content
    answer = provider.went(begun.headers["Location"]) | changed
    return client.get(reverse("oidc-finish"), {name: value for name, value in answer.items() if value})
