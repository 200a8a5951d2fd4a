"""Second factors of users of this console, through pages, API and command line."""

import base64
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from console import second_factor, totp_key
from console.models import SecondFactor
from encryption.engine.secret import Secret
from inventory.errors import Refused
from inventory.models import Event, Outcome
from tests.api_client import ROOT, caller
from tests.console.authenticator import PASSWORD, Clock, Phone, clock_for, enrolled

pytestmark = pytest.mark.django_db
PAGE, ENROL, CODES, REMOVE = (
    "second-factor", "enrol-second-factor", "renew-recovery-codes", "remove-second-factor",
)  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return clock_for(monkeypatch)


@pytest.fixture
def bob(db: None) -> User:
    """With a password of this console, and no rights."""
    return User.objects.create_user("bob", password=PASSWORD)


@pytest.fixture
def client(bob: User) -> Client:
    """Bob's browser, logged in."""
    found = Client()
    found.force_login(bob)
    return found


@pytest.fixture
def phone(bob: User, clock: Clock) -> Phone:
    return enrolled(bob, clock)


def kinds() -> list[str]:
    return list(Event.objects.order_by("id").values_list("kind", flat=True))


def code_of(answer: Any) -> str:
    """Of a refusal: the API's, or that of an error page."""
    if answer.headers["Content-Type"].startswith("application/json"):
        return str(answer.json()["code"])
    found = re.search(r"<code>(\w+)</code>", answer.content.decode())
    return found[1] if found else ""


def send(client: Client, path: str, body: Mapping[str, object] | None = None, method: str = "POST") -> Any:
    """To the API, by session."""
    return client.generic(
        method, ROOT + path, data="" if body is None else json.dumps(body), content_type="application/json"
    )


class TestEnrolment:
    def begin(self, client: Client, clock: Clock) -> tuple[Phone, str]:
        """The phone that has scanned the page's QR code, and the form's ticket."""
        page = client.get(reverse(ENROL)).content.decode()
        ticket = re.search(r'name="ticket" value="([^"]+)"', page)
        key = re.search(r'id="totp-key">([A-Z2-7 ]+)<', page)
        assert ticket and key and 'src="data:image/svg+xml' in page
        return Phone(clock, _key(key[1])), unescape(ticket[1])

    def test_through_the_page(self, client: Client, bob: User, clock: Clock) -> None:
        assert "Not set up" in client.get(reverse(PAGE)).content.decode()
        phone, ticket = self.begin(client, clock)
        assert not SecondFactor.objects.exists()
        answer = client.post(reverse(ENROL), {"ticket": ticket, "code": phone.code()})
        codes = re.findall(r"<code>([a-z2-7]{5}(?:-[a-z2-7]{5}){3})</code>", answer.content.decode())
        assert (answer.status_code, len(set(codes))) == (201, 10)
        assert answer.headers["Cache-Control"] == "no-store, private"
        page = client.get(reverse(PAGE)).content.decode()
        assert "Set up" in page and codes[0] not in page
        assert (kinds(), Event.objects.get().actor) == (["second_factor.enrolled"], "bob")
        row = SecondFactor.objects.get()
        kept = f"{bytes(row.key_sealed)!r} {bytes(row.key_sealed).hex()} {vars(row)} {vars(Event.objects.get())}"
        for secret in (phone.key.reveal().hex(), repr(phone.key.reveal())[2:-1], *codes):
            assert secret not in kept

    def test_through_the_api(self, client: Client, clock: Clock) -> None:
        begun = send(client, "/second-factor/enrolment", method="GET").json()
        uri = urlsplit(begun["uri"])
        assert parse_qs(uri.query)["secret"] == [begun["key"]] and uri.path == "/Bartizan:bob@testserver"
        body = {"ticket": begun["ticket"], "code": Phone(clock, _key(begun["key"])).code()}
        answer = send(client, "/second-factor", body)
        assert (answer.status_code, len(answer.json()["recovery_codes"])) == (201, 10)
        state = send(client, "/second-factor", method="GET").json()
        assert state["is_local"] and not state["is_required"] and state["enrolled_at"]
        assert state["recovery_codes_left"] == 10

    def test_a_wrong_code_keeps_the_key(self, client: Client, clock: Clock) -> None:
        phone, ticket = self.begin(client, clock)
        answer = client.post(reverse(ENROL), {"ticket": ticket, "code": phone.wrong_code()})
        page = answer.content.decode()
        assert answer.status_code == 422 and "does not belong to this key" in page
        assert totp_key.text_of(phone.key) in page.replace(" ", "")
        assert client.post(reverse(ENROL), {"ticket": ticket, "code": ""}).status_code == 422
        answer = send(client, "/second-factor", {"ticket": ticket, "code": phone.wrong_code()})
        assert (answer.status_code, code_of(answer)) == (422, "code_wrong")
        assert client.post(reverse(ENROL), {"ticket": ticket, "code": phone.code()}).status_code == 201

    @pytest.mark.parametrize("whose", ["nobody's", "another's", "too old"])
    def test_a_ticket_that_does_not_hold(
        self, client: Client, alice: User, clock: Clock, whose: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        phone, ticket = self.begin(client, clock)
        if whose == "nobody's":
            ticket = "x" + ticket
        if whose == "another's":
            ticket = second_factor._ticket_of(phone.key, alice)
        if whose == "too old":
            monkeypatch.setattr(second_factor, "TICKET_SECONDS", -1)
        body = {"ticket": ticket, "code": phone.code()}
        answer = client.post(reverse(ENROL), body)
        assert answer.status_code == 422 and "shown too long ago" in answer.content.decode()
        assert totp_key.text_of(phone.key) not in answer.content.decode().replace(" ", "")
        answer = send(client, "/second-factor", body)
        assert (answer.status_code, code_of(answer)) == (422, "enrolment_ended")
        assert not SecondFactor.objects.exists()

    def test_a_second_one(self, client: Client, phone: Phone) -> None:
        for answer in (
            client.get(reverse(ENROL)),
            client.post(reverse(ENROL), {"ticket": "", "code": phone.next_code()}),
            send(client, "/second-factor/enrolment", method="GET"),
            send(client, "/second-factor", {"ticket": "", "code": "1"}),
        ):
            assert (answer.status_code, code_of(answer)) == (409, "second_factor_enrolled")

    def test_of_a_user_of_another_provider(self, admin: Client) -> None:
        """Who has no password here."""
        assert "at the provider" in admin.get(reverse(PAGE)).content.decode()
        for answer in (
            admin.get(reverse(ENROL)),
            admin.post(reverse(ENROL), {"ticket": "", "code": "123456"}),
            send(admin, "/second-factor/enrolment", method="GET"),
            send(admin, "/second-factor", {"ticket": "", "code": "123456"}),
        ):
            assert (answer.status_code, code_of(answer)) == (409, "second_factor_of_provider")

    def test_a_token_cannot_lock_its_user_out(self, bob: User) -> None:
        answer = caller(bob).post("/second-factor", {"ticket": "", "code": "123456"})
        assert (answer.status, answer.code) == (403, "token_may_not_enrol")


def _key(text: str) -> Secret:
    return Secret(base64.b32decode(text.replace(" ", "")))


def give_password(client: Client, page: str = "/api-tokens/") -> Any:
    return client.post(reverse("login"), {"username": "bob", "password": PASSWORD, "next": page})


def give_code(client: Client, code: str) -> Any:
    return client.post(reverse("login-code"), {"code": code}, REMOTE_ADDR="192.0.2.7")


class TestLogin:
    def test_password_then_code(self, phone: Phone) -> None:
        browser = Client()
        assert give_password(browser).headers["Location"] == reverse("login-code")
        assert browser.get(reverse("api-tokens")).status_code == 302, "not logged in yet"
        assert "Second step of logging in as bob" in browser.get(reverse("login-code")).content.decode()
        before = browser.session.session_key
        assert "user.logged_in" not in kinds()
        answer = give_code(browser, phone.next_code())
        assert answer.headers["Location"] == "/api-tokens/"
        assert browser.get(reverse("api-tokens")).status_code == 200
        assert browser.session.session_key != before
        assert "pending_login" not in browser.session
        told = Event.objects.get(kind="user.logged_in")
        assert (told.data, told.source_address) == ({"way": "page", "second_factor": "totp"}, "192.0.2.7")
        assert browser.get(reverse("login-code")).headers["Location"] == "/"

    def test_without_one_nothing_is_asked(self, bob: User) -> None:
        assert give_password(Client()).headers["Location"] == "/api-tokens/"
        assert Event.objects.get(kind="user.logged_in").data == {"way": "page", "second_factor": None}

    def test_a_wrong_code_and_one_that_was_used(self, phone: Phone) -> None:
        browser, other = Client(), Client()
        give_password(browser)
        give_password(other)
        used = phone.next_code()
        assert give_code(browser, used).status_code == 302
        answer = give_code(other, used)
        assert answer.status_code == 403 and "used before" in answer.content.decode()
        assert give_code(other, "").status_code == 422
        phone.clock.advance(30)
        assert give_code(other, phone.wrong_code()).status_code == 403
        assert other.get(reverse("api-tokens")).status_code == 302
        rows = Event.objects.filter(kind="user.login_failed")
        assert {(one.actor, one.outcome, one.reason) for one in rows} == {("bob", Outcome.DENIED, "code_refused")}
        assert rows.count() == 2

    def test_wrong_codes_make_everybody_wait_wherever_they_are(self, phone: Phone) -> None:
        browser = Client()
        give_password(browser)
        phone.clock.advance(30)
        for n in range(8):
            assert give_code(browser, phone.wrong_code()).status_code == 403
            assert SecondFactor.objects.get().failures == n + 1
            phone.clock.advance(2**n)
        give_code(browser, phone.wrong_code())
        other = Client()
        give_password(other)
        for _ in range(2):
            answer = other.post(reverse("login-code"), {"code": phone.code()}, REMOTE_ADDR="198.51.100.1")
            page = answer.content.decode()
            assert answer.status_code == 403 and "There were too many wrong codes" in page and "ait 5 minutes" in page
        assert SecondFactor.objects.get().failures == 9, "what is not looked at does not count"
        assert [one.reason for one in Event.objects.filter(kind="user.login_failed")].count("second_factor_locked") == 1
        phone.clock.advance(256)
        assert give_code(other, phone.code()).status_code == 302
        assert SecondFactor.objects.get().failures == 0

    def test_the_wait_has_an_end(self, bob: User, phone: Phone) -> None:
        now = phone.clock.now()
        SecondFactor.objects.update(failures=10**6, failed_at=now)
        phone.clock.advance(second_factor.LONGEST_WAIT)
        assert second_factor.check_login(user=bob, code=phone.code()) == "totp"

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("kind", ["totp", "recovery_code"])
    def test_a_code_given_many_times_at_once_is_taken_once(self, bob: User, phone: Phone, kind: str) -> None:
        code = phone.next_code() if kind == "totp" else phone.recovery_codes[0]

        def attempt(_: int) -> str:
            try:
                return second_factor.check_login(user=bob, code=code)
            except Refused as exc:
                return exc.code
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(attempt, range(4)))
        assert found.count(kind) == 1 and set(found) == {kind, "code_refused", "second_factor_locked"}

    def test_a_recovery_code_serves_once(self, phone: Phone) -> None:
        code = phone.recovery_codes[3]
        browser, other = Client(), Client()
        give_password(browser)
        give_password(other)
        assert give_code(browser, f" {code.upper().replace('-', ' ')} ").status_code == 302
        assert Event.objects.get(kind="user.logged_in").data["second_factor"] == "recovery_code"
        assert Event.objects.get(kind="second_factor.recovery_code_used").data["left"] == 9
        assert give_code(other, code).status_code == 403
        phone.clock.advance(1)
        assert give_code(other, phone.recovery_codes[4]).status_code == 302

    def test_no_code_without_the_password(self, phone: Phone) -> None:
        browser = Client()
        assert browser.get(reverse("login-code")).headers["Location"] == reverse("login")
        answer = give_code(browser, phone.next_code())
        assert answer.status_code == 403 and "give your password again" in answer.content.decode()
        browser.post(reverse("login"), {"username": "bob", "password": "wrong"})
        assert give_code(browser, phone.code()).status_code == 403
        assert browser.get(reverse("api-tokens")).status_code == 302

    @pytest.mark.parametrize("change", ["time", "password", "inactive", "gone"])
    def test_the_first_step_does_not_hold_for_long(
        self, bob: User, phone: Phone, change: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        browser = Client()
        give_password(browser)
        if change == "time":
            monkeypatch.setattr("console.login_views.PENDING_SECONDS", -1)
        if change == "password":
            bob.set_password("another of some length")
        bob.is_active = change != "inactive"
        bob.save()
        if change == "gone":
            bob.delete()
        assert give_code(browser, phone.next_code()).status_code == 403
        assert browser.get(reverse("api-tokens")).status_code == 302

    def test_one_that_was_taken_away_in_between(self, phone: Phone) -> None:
        """The password has to be given again: nobody comes in by a page that asks for a code, without one."""
        browser = Client()
        give_password(browser)
        second_factor.remove_for_command(username="bob")
        assert give_code(browser, phone.next_code()).status_code == 409
        assert browser.get(reverse("api-tokens")).status_code == 302
        assert give_password(browser).headers["Location"] == "/api-tokens/"

    def test_another_secret_key(self, phone: Phone, settings: Settings) -> None:
        """As after a restore on a machine with its own: recovery codes still serve."""
        settings.SECRET_KEY = "another" * 10
        browser = Client()
        give_password(browser)
        answer = give_code(browser, phone.next_code())
        assert answer.status_code == 409 and "another secret key" in answer.content.decode()
        assert give_code(browser, phone.recovery_codes[0]).status_code == 302

    def test_the_admin_is_no_way_around_it(self, bob: User, phone: Phone) -> None:
        User.objects.filter(pk=bob.pk).update(is_staff=True, is_superuser=True)
        browser = Client()
        at_door = browser.get("/admin/", follow=True)
        assert at_door.redirect_chain[-1][0] == "/login/?next=/admin/"
        body = {"username": "bob", "password": PASSWORD}
        assert browser.post("/admin/login/?next=/admin/", body).status_code == 405
        assert give_password(browser, "/admin/").headers["Location"] == reverse("login-code")
        assert browser.get("/admin/").status_code == 302
        assert give_code(browser, phone.next_code()).headers["Location"] == "/admin/"
        assert browser.get("/admin/").status_code == 200

    def test_who_is_no_staff_is_told_so(self, client: Client) -> None:
        assert client.get("/admin/", follow=True).status_code == 403


class TestRequired:
    @pytest.fixture(autouse=True)
    def _required(self, settings: Settings) -> None:
        settings.SECOND_FACTOR = "required"

    def test_without_one_there_is_nothing_but_its_set_up(self, client: Client, bob: User, clock: Clock) -> None:
        for name in (
            "home",
            "alarms",
            "tasks",
            PAGE,
            CODES,
            REMOVE,
            "api-tokens",
            "api-docs",
            "metrics",
            "admin:index",
        ):
            bearer = {"Authorization": "Bearer none"} if name == "api-docs" else {}
            answer = client.get(reverse(name), headers=bearer)
            if name in ("api-docs", "metrics"):
                assert answer.status_code in (302, 403), name
            else:
                assert answer.headers["Location"] == reverse(ENROL), name
        part = client.get(reverse("tasks"), headers={"HX-Request": "true"})
        assert (part.status_code, part.headers["HX-Redirect"]) == (403, reverse(ENROL))
        for path in ("/me", "/second-factor"):
            answer = send(client, path, method="GET")
            assert (answer.status_code, code_of(answer)) == (403, "second_factor_required")
        page = client.get(reverse(ENROL)).content.decode()
        assert "This console asks for a second factor" in page and "Log out bob" in page
        assert 'id="tree"' not in page, "the inventory is not shown"
        assert client.post(reverse("logout")).headers["Location"] == reverse("login")

    def test_with_one_everything_is_as_ever(self, client: Client, clock: Clock) -> None:
        phone, ticket = TestEnrolment().begin(client, clock)
        answer = client.post(reverse(ENROL), {"ticket": ticket, "code": phone.code()})
        assert answer.status_code == 201 and 'href="/"' in answer.content.decode()
        assert client.get(reverse("api-tokens")).status_code == 200
        assert send(client, "/second-factor", method="GET").json()["is_required"]

    def test_tokens_and_users_of_providers_are_not_asked(self, bob: User, admin: Client) -> None:
        assert caller(bob).get("/me").status == 200
        assert admin.get(reverse("api-tokens")).status_code == 200
        assert Client().get(reverse("login")).status_code == 200


class TestOwn:
    def both(self, client: Client, what: str, password: str, code: str) -> tuple[Any, Any]:
        """By page and API; each counts a failure, and the clock stands."""
        path = {REMOVE: "/second-factor/remove", CODES: "/second-factor/recovery-codes"}[what]
        body = {"password": password, "code": code}
        page = client.post(reverse(what), body)
        SecondFactor.objects.update(failures=0, failed_at=None)
        return page, send(client, path, body)

    @pytest.mark.parametrize("what", [REMOVE, CODES])
    def test_it_takes_password_and_code(self, client: Client, phone: Phone, what: str) -> None:
        assert client.get(reverse(what)).status_code == 200
        for password, code in (("wrong", phone.next_code()), (PASSWORD, phone.wrong_code())):
            page, answer = self.both(client, what, password, code)
            assert page.status_code == 403 and "is wrong" in page.content.decode()
            assert (answer.status_code, code_of(answer)) == (403, "code_refused")
            phone.clock.advance(2)
        page, answer = self.both(client, what, "", "")
        assert page.status_code == 422
        SecondFactor.objects.update(failures=5, failed_at=phone.clock.now())
        body = {"password": PASSWORD, "code": phone.code()}
        assert "There were too many wrong codes" in client.post(reverse(what), body).content.decode()
        assert len(SecondFactor.objects.get().recovery_digests) == 10
        told = Event.objects.filter(kind="second_factor.check_failed").values_list("reason", "outcome")
        assert set(told) == {("code_refused", Outcome.DENIED), ("second_factor_locked", Outcome.DENIED)}

    def test_removed(self, client: Client, bob: User, phone: Phone) -> None:
        body = {"password": PASSWORD, "code": phone.next_code()}
        assert client.post(reverse(REMOVE), body).headers["Location"] == reverse(PAGE)
        assert not SecondFactor.objects.exists()
        assert kinds() == ["second_factor.enrolled", "second_factor.removed"]
        for page, answer in (self.both(client, what, PASSWORD, phone.code()) for what in (REMOVE, CODES)):
            assert page.status_code == 409
            assert (answer.status_code, code_of(answer)) == (409, "second_factor_missing")
        phone = enrolled(bob, phone.clock)
        body = {"password": PASSWORD, "code": phone.recovery_codes[0]}
        assert send(client, "/second-factor/remove", body).status_code == 204
        assert not SecondFactor.objects.exists()

    def test_new_recovery_codes(self, client: Client, bob: User, phone: Phone) -> None:
        answer = client.post(reverse(CODES), {"password": PASSWORD, "code": phone.recovery_codes[0]})
        codes = re.findall(r"<code>([a-z2-7-]{23})</code>", answer.content.decode())
        assert (answer.status_code, len(codes)) == (201, 10)
        assert not set(codes) & set(phone.recovery_codes)
        body = {"password": PASSWORD, "code": phone.recovery_codes[1]}
        assert send(client, "/second-factor/recovery-codes", body).status_code == 403
        phone.clock.advance(1)
        answer = send(client, "/second-factor/recovery-codes", body | {"code": codes[0]})
        assert answer.status_code == 201 and len(answer.json()["recovery_codes"]) == 10
        assert kinds().count("second_factor.recovery_codes_made") == 2


class TestTakenAway:
    """By an administrator, from somebody who has lost the phone."""

    @pytest.fixture
    def admin(self, admin: Client, alice: User) -> Client:
        """Who may use Django's admin, too."""
        User.objects.filter(pk=alice.pk).update(is_staff=True)
        return admin

    def choose(self, client: Client, user: User) -> str:
        chosen = {"action": "remove_second_factor", "_selected_action": [user.pk]}
        return client.post(reverse("admin:auth_user_changelist"), chosen, follow=True).content.decode()

    def test_in_the_admin(self, admin: Client, bob: User, phone: Phone) -> None:
        assert "The second factor of bob is removed" in self.choose(admin, bob)
        assert not SecondFactor.objects.exists()
        told = Event.objects.get(kind="second_factor.removed")
        assert (told.actor, told.data["user"], told.severity) == ("alice", "bob", "warning")
        assert "There is no second factor of bob" in self.choose(admin, bob)

    def test_through_the_api(self, admin: Client, phone: Phone) -> None:
        assert send(admin, "/users/bob/second-factor", method="DELETE").status_code == 204
        for name, status, code in (("bob", 409, "second_factor_missing"), ("nobody", 404, "user_not_found")):
            answer = send(admin, f"/users/{name}/second-factor", method="DELETE")
            assert (answer.status_code, code_of(answer)) == (status, code)

    def test_not_ones_own(self, admin: Client, alice: User, clock: Clock) -> None:
        """Else a window left open would be enough."""
        alice.set_password(PASSWORD)
        alice.save(update_fields=["password"])
        admin.force_login(alice)
        enrolled(alice, clock)
        assert "Your own second factor" in self.choose(admin, alice)
        answer = send(admin, "/users/alice/second-factor", method="DELETE")
        assert (answer.status_code, code_of(answer)) == (403, "own_second_factor")
        assert SecondFactor.objects.exists()

    def test_not_by_others(self, client: Client, looker: Client, charlie: User, bob: User, phone: Phone) -> None:
        for browser in (client, looker):
            answer = send(browser, "/users/bob/second-factor", method="DELETE")
            assert (answer.status_code, code_of(answer)) == (403, "not_permitted")
        User.objects.filter(pk=charlie.pk).update(is_staff=True)
        assert looker.post(reverse("admin:auth_user_changelist"), {"action": "remove_second_factor"}).status_code == 403
        assert SecondFactor.objects.exists()

    def test_on_the_command_line(self, phone: Phone, capsys: pytest.CaptureFixture[str]) -> None:
        call_command("remove_second_factor", "bob")
        assert "is removed" in capsys.readouterr().out
        assert Event.objects.get(kind="second_factor.removed").actor == "Bartizan"
        for name, text in (("bob", "there is no second factor of bob"), ("nobody", "there is no user nobody")):
            with pytest.raises(CommandError, match=text):
                call_command("remove_second_factor", name)

    def test_the_list_of_users_says_who_has_one(self, admin: Client, phone: Phone) -> None:
        page = admin.get(reverse("admin:auth_user_changelist")).content.decode()
        shown = dict(re.findall(r'/user/(\d+)/change/">.*?field-has_second_factor"><img [^>]*alt="(\w+)"', page, re.S))
        assert shown[str(User.objects.get(username="bob").pk)] == "True"
        assert shown[str(User.objects.get(username="alice").pk)] == "False"
