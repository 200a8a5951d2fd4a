"""Log-in by a real OpenID provider, in a process of its own: what it demands of a client, and what it gives."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

import pytest
import requests
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from console.sign_on.configuration import Oidc
from console.sign_on.views import BACKEND
from inventory.authorize import VIEW_ALL, Role, may
from inventory.models import Event, RoleAssignment
from tests.console.sign_on.real_provider import CLIENT_ID, CLIENT_SECRET, PASSWORD

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
ROOT: Final = Path(__file__).parents[3]
BACK: Final = "http://testserver/login/oidc/callback/"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.console.sign_on.real_provider", str(tmp_path_factory.mktemp("idp")), BACK]
    with subprocess.Popen(command, cwd=ROOT, env={"PATH": os.defpath}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        issuer = process.stdout.readline().strip()
        assert issuer.startswith("http://127.0.0.1:")
        yield issuer
        process.terminate()


@pytest.fixture
def provider(issuer: str, settings: Settings) -> str:
    settings.OIDC = Oidc(
        name="Real", issuer=issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET, scopes="openid profile",
        username_claim="preferred_username", groups_claim="groups", ca_file=None,
    )  # fmt: skip
    settings.AUTHENTICATION_BACKENDS = [*settings.AUTHENTICATION_BACKENDS, BACKEND]
    return issuer


def proven(client: Client, name: str) -> str:
    """The address to which the provider sends the browser back, once the person has given their password there."""
    browser = requests.Session()
    browser.trust_env = False
    page = browser.get(client.get(reverse("oidc-begin")).headers["Location"])
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert token is not None, page.text
    form = {"csrfmiddlewaretoken": token[1], "username": name, "password": PASSWORD}
    answer = browser.post(page.url, form, allow_redirects=False)
    while not answer.headers["Location"].startswith(BACK):
        answer = browser.get(urljoin(answer.url, answer.headers["Location"]), allow_redirects=False)
    return str(answer.headers["Location"])


def log_in(client: Client, name: str) -> Any:
    return client.get(proven(client, name))


def test_the_first_login_and_the_second(provider: str) -> None:
    for _ in range(2):
        client = Client()
        assert log_in(client, "bob").headers["Location"] == "/"
        assert client.get(reverse("api-tokens")).context["user"].username == "bob"
    assert not may(User.objects.get(), VIEW_ALL)
    assert Event.objects.filter(kind="user.logged_in", actor="bob", data__way="oidc").count() == 2


def test_a_group_gives_its_role(client: Client, provider: str) -> None:
    auditors = Group.objects.create(name="oidc:auditors")
    RoleAssignment.objects.create(group=auditors, role=Role.AUDITOR, assigned_by="test")
    log_in(client, "bob")
    assert client.get(reverse("appliance:crypto-modules")).status_code == 200


def test_a_code_serves_once(client: Client, provider: str) -> None:
    """Even for the browser that has all that belongs to it."""
    address = proven(client, "bob")
    kept = client.cookies["bartizan_oidc"].value
    assert client.get(address).status_code == 302
    again = Client()
    again.cookies["bartizan_oidc"] = kept
    answer = again.get(address)
    assert (answer.status_code, answer.context["code"]) == (403, "oidc_refused")


def test_another_browser_gets_nothing_by_the_address(client: Client, provider: str) -> None:
    answer = Client().get(proven(client, "bob"))
    assert (answer.status_code, answer.context["code"]) == (403, "oidc_state_wrong")
    assert not User.objects.exists()


def test_a_client_secret_that_is_wrong(client: Client, provider: str, settings: Settings) -> None:
    address = proven(client, "bob")
    settings.OIDC = Oidc(
        name="Real", issuer=provider, client_id=CLIENT_ID, client_secret="wrong", scopes="openid profile",
        username_claim="preferred_username", groups_claim="groups", ca_file=None,
    )  # fmt: skip
    assert client.get(address).context["code"] == "oidc_refused"


def test_the_name_of_a_local_user(client: Client, provider: str) -> None:
    User.objects.create_superuser("administrator")
    assert log_in(client, "administrator").status_code == 409
    assert User.objects.count() == 1 and client.get(reverse("api-tokens")).status_code == 302
