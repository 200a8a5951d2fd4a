"""Who came in, from where, and what was denied: each is an event, through the pages and the API."""

from ipaddress import ip_network

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from console.source_address import client_address
from inventory.models import Event, Host, Outcome, Severity
from inventory.services import access
from tests.api_client import Caller, caller

PASSWORD = "correct horse battery staple"
PROXIES = [ip_network("127.0.0.1"), ip_network("10.0.0.0/8"), ip_network("2001:db8::/64")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.9", "192.0.2.1"),  # written by somebody who is no proxy
        ("127.0.0.1", "198.51.100.9", "198.51.100.9"),
        ("127.0.0.1", "6.6.6.6, 198.51.100.9, 10.1.2.3", "198.51.100.9"),  # through two proxies; the first is a claim
        ("127.0.0.1", "198.51.100.9, nonsense", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("2001:db8::5", "2001:db8:1::7", "2001:db8:1::7"),
        ("::ffff:127.0.0.1", "198.51.100.9", "198.51.100.9"),
        ("fe80::1%eth0", "", "fe80::1"),
        ("", "198.51.100.9", ""),  # a unix socket
        ("127.0.0.1", ", ".join(["10.0.0.1"] * 500), "10.0.0.1"),
    ],
)
def test_the_address_is_the_peers_or_what_known_proxies_say(peer: str, forwarded: str, address: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == address


def told(kind: str) -> list[tuple[str, str, str, str]]:
    rows = Event.objects.filter(kind=kind).order_by("id")
    return [(row.actor, row.source_address, row.outcome, row.reason) for row in rows]


def test_login_and_logout_are_events(client: Client, db: None) -> None:
    User.objects.create_user("bob", password=PASSWORD)
    client.post(reverse("login"), {"username": "bob", "password": "no"}, REMOTE_ADDR="192.0.2.5")
    client.post(reverse("login"), {"username": "bob", "password": PASSWORD}, REMOTE_ADDR="192.0.2.5")
    client.post(reverse("logout"), REMOTE_ADDR="192.0.2.6")
    assert told("user.login_failed") == [("bob", "192.0.2.5", Outcome.DENIED, "wrong_credentials")]
    assert told("user.logged_in") == [("bob", "192.0.2.5", Outcome.SUCCESS, "")]
    assert told("user.logged_out") == [("bob", "192.0.2.6", Outcome.SUCCESS, "")]


def test_a_name_that_is_no_users_is_not_kept(client: Client, db: None) -> None:
    """It may be a password in the wrong field."""
    for name in (PASSWORD, "with\0nul", "x" * 200):
        client.post(reverse("login"), {"username": name, "password": "x"})
    assert {row.actor for row in Event.objects.all()} <= {access.NOBODY}
    assert not any(PASSWORD in f"{row.message}{row.data}{row.reason}" for row in Event.objects.all())


def test_attempts_while_locked_are_told_once_a_minute(client: Client, db: None) -> None:
    User.objects.create_user("bob", password=PASSWORD)
    for _ in range(9):
        client.post(reverse("login"), {"username": "bob", "password": "no"})
    reasons = [reason for *_, reason in told("user.login_failed")]
    assert reasons.count("locked") == 1
    assert reasons.count("wrong_credentials") == 5


def test_behind_a_proxy_the_client_counts(client: Client, db: None, settings: Settings) -> None:
    """For the event, and for who is locked out."""
    settings.TRUSTED_PROXIES = PROXIES
    User.objects.create_user("bob", password=PASSWORD)
    for _ in range(6):
        client.post(reverse("login"), {"username": "bob", "password": "no"}, headers={"X-Forwarded-For": "192.0.2.66"})
    elsewhere = {"X-Forwarded-For": "192.0.2.77"}
    answer = client.post(reverse("login"), {"username": "bob", "password": PASSWORD}, headers=elsewhere)
    assert answer.status_code == 302
    assert told("user.logged_in") == [("bob", "192.0.2.77", Outcome.SUCCESS, "")]
    assert {address for _, address, *_ in told("user.login_failed")} == {"192.0.2.66"}


def test_a_refused_right_is_an_event_through_page_and_api(looker: Client, charlie: User, host: Host) -> None:
    page = reverse("inventory:refresh-host", args=[host.pk])
    assert looker.post(page, REMOTE_ADDR="192.0.2.8").status_code == 403
    assert looker.post(page, REMOTE_ADDR="192.0.2.8").status_code == 403
    row = Event.objects.get()
    assert (row.kind, row.actor, row.source_address) == ("access.denied", "charlie", "192.0.2.8")
    assert (row.outcome, row.severity, row.target_id) == (Outcome.DENIED, Severity.WARNING, host.pk)
    assert (row.data["method"], row.data["path"]) == ("POST", page)
    assert row.reason
    Event.objects.all().delete()
    assert caller(charlie).post(f"/hosts/{host.pk}/refresh").status == 403
    assert [row.kind for row in Event.objects.order_by("id")] == ["api_token.created", "access.denied"]


def test_a_page_that_only_hides_what_one_may_not_do_records_nothing(looker: Client, host: Host) -> None:
    looker.get(reverse("inventory:summary", args=["host", host.pk]))
    assert not Event.objects.exists()


def test_what_a_user_does_has_the_users_address(admin: Client, host: Host, sent: object) -> None:
    admin.post(reverse("inventory:refresh-host", args=[host.pk]), REMOTE_ADDR="192.0.2.9")
    assert {row.source_address for row in Event.objects.filter(actor="alice")} <= {"192.0.2.9"}


def test_bad_tokens_are_told_once_a_minute_for_an_address(db: None) -> None:
    for _ in range(3):
        assert Caller("bartizan_wrong").get("/me").status == 401
    assert [row.kind for row in Event.objects.all()] == ["api_token.refused"]
    assert "wrong" not in str(vars(Event.objects.get()))
