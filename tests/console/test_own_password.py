"""A user's own password: the page, the API, and the commands that tell it in the history."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from inventory.models import Event, Outcome
from tests.api_client import ROOT, caller
from tests.console.authenticator import PASSWORD

pytestmark = pytest.mark.django_db
PAGE, NEW = "change-password", "another long enough phrase"


@pytest.fixture
def bob(db: None) -> User:
    return User.objects.create_user("bob", password=PASSWORD)


@pytest.fixture
def client(bob: User) -> Client:
    found = Client()
    found.force_login(bob)
    return found


def by_page(client: Client, current: str = PASSWORD, new: str = NEW, again: str | None = None) -> tuple[int, str]:
    answer = client.post(reverse(PAGE), {"current": current, "new": new, "again": new if again is None else again})
    return answer.status_code, answer.content.decode()


def by_api(client: Client, current: str = PASSWORD, new: str = NEW) -> Any:
    body = json.dumps({"current": current, "new": new})
    return client.post(f"{ROOT}/password", body, content_type="application/json")


def is_password(text: str) -> bool:
    return User.objects.get(username="bob").check_password(text)


@pytest.mark.parametrize("way", ["page", "api"])
def test_changed_and_told_and_only_this_session_goes_on(client: Client, bob: User, way: str) -> None:
    elsewhere = Client()
    elsewhere.force_login(bob)
    status = by_page(client)[0] if way == "page" else by_api(client).status_code
    assert (status, is_password(NEW)) == (302 if way == "page" else 204, True)
    assert client.get(reverse(PAGE)).status_code == 200
    assert elsewhere.get(reverse(PAGE)).status_code == 302
    event = Event.objects.get()
    assert (event.kind, event.actor, event.data["account"]) == ("user.changed", "bob", "bob")
    assert event.data["fields"] == ["password"] and NEW not in f"{vars(event)}"


def test_a_wrong_password_is_told_and_counted(client: Client) -> None:
    for _ in range(3):
        status, page = by_page(client, current="not this one")
        assert (status, "The present password is wrong" in page) == (403, True)
    for _ in range(2):
        answer = by_api(client, current="nor this one")
        assert (answer.status_code, answer.json()["code"]) == (403, "password_wrong")
    assert by_api(client).json()["code"] == "password_locked", "also the right one, for a while"
    status, page = by_page(client)
    assert (status, "here were too many wrong passwords of bob" in page, is_password(PASSWORD)) == (403, True, True)
    found = Event.objects.filter(kind="user.password_refused")
    assert found.count() == Event.objects.count() == 5
    assert all((one.actor, one.outcome) == ("bob", Outcome.DENIED) for one in found)


@pytest.mark.parametrize("new", ["short", "password1234"])
def test_a_weak_one_is_refused_with_the_rule(client: Client, new: str) -> None:
    status, page = by_page(client, new=new)
    answer = by_api(client, new=new)
    assert (status, answer.status_code, answer.json()["code"]) == (422, 422, "password_weak")
    assert answer.json()["message"].replace("'", "&#x27;") in page and is_password(PASSWORD)


def test_two_different_ones(client: Client) -> None:
    status, page = by_page(client, again="another long enough praise")
    assert (status, "not the same as above" in page, is_password(PASSWORD)) == (422, True, True)
    assert by_page(client, new="", again="")[0] == 422


def test_who_is_known_elsewhere_has_none_to_change(client: Client, bob: User) -> None:
    assert "Change Password" in client.get(reverse("second-factor")).content.decode()
    bob.set_unusable_password()
    bob.save()
    client.force_login(bob)
    assert "Change Password" not in client.get(reverse("second-factor")).content.decode()
    page = client.get(reverse(PAGE)).content.decode()
    assert "You have no password here" in page and 'name="new"' not in page
    assert by_page(client)[0] == 409
    assert by_api(client).json()["code"] == "password_of_provider"


def test_a_token_is_not_enough(bob: User) -> None:
    refused = caller(bob).post("/password", {"current": PASSWORD, "new": NEW})
    assert (refused.status, refused.body["code"]) == (403, "token_may_not_change_password")
    assert is_password(PASSWORD)


def test_nobody_without_login(db: None) -> None:
    assert by_page(Client())[0] == 302
    assert by_api(Client()).status_code == 401


def test_the_form_of_djangos_admin_is_this_one(client: Client) -> None:
    assert client.get(reverse("admin:password_change")).headers["Location"] == reverse(PAGE)


def test_commands_tell_it_too(bob: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getpass", lambda prompt="": NEW)
    call_command("changepassword", "bob", verbosity=0)
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", NEW)
    call_command("createsuperuser", interactive=False, username="carol", email="", verbosity=0)
    assert is_password(NEW) and User.objects.get(username="carol").is_superuser
    told = [(one.kind, one.actor, one.data["account"]) for one in Event.objects.order_by("id")]
    assert told == [("user.changed", "Bartizan", "bob"), ("user.added", "Bartizan", "carol")]
