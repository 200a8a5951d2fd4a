"""Log-in by an OpenID provider: who gets in, as whom, and every answer that is not believed. The provider is simulated;
test_real_provider.py has a real one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from console.models import ExternalIdentity
from console.sign_on import identities
from inventory.authorize import VIEW_ALL, Role, may
from inventory.models import Event, Outcome, RoleAssignment
from lab.pki import Authority, Issued
from tests.console.sign_on.conftest import configure, log_in
from tests.console.sign_on.simulated_provider import SECRET, SimulatedProvider, challenge_of, encoded, key_of, unsigned

pytestmark = pytest.mark.django_db
PAGE = "/api-tokens/"
# Not counted from now: parameters are made when tests are collected, which may be long before they run.
BEFORE, LATER = 1_000_000_000, 4_000_000_000


def who(client: Client) -> str:
    """Empty: nobody."""
    found = client.get(PAGE)
    return str(found.context["user"].username) if found.status_code == 200 else ""


def refused(client: Client, provider: SimulatedProvider, why: str, status: int = 403, **changed: str) -> str:
    """Not let in, for this reason, which the page and the history tell in words. Those words."""
    answer = log_in(client, provider, **changed)
    assert (answer.status_code, answer.context["code"]) == (status, why), answer.content
    assert not client.session.get("_auth_user_id")
    event = Event.objects.filter(kind="user.login_failed").latest("id")
    assert (event.actor, event.reason, event.data["way"]) == ("nobody", why, "oidc")
    assert event.outcome == (Outcome.FAILURE if status == 503 else Outcome.DENIED)
    planted = ("planted-code", "planted-access-token", SECRET, provider.nonce)
    assert not any(one in f"{vars(event)}{answer.content!r}" for one in planted)
    return event.message


def test_the_first_login_makes_a_user_without_any_right(client: Client, provider: SimulatedProvider) -> None:
    answer = log_in(client, provider, next_page="/events/?kind=x")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/events/?kind=x")
    bob = User.objects.get()
    assert (bob.username, bob.is_staff, bob.is_superuser, bob.has_usable_password()) == ("bob", False, False, False)
    identity = ExternalIdentity.objects.get()
    assert (identity.source, identity.issuer, identity.subject) == ("oidc", provider.issuer, "0f3a")
    assert not may(bob, VIEW_ALL) and who(client) == "bob"
    events = list(Event.objects.order_by("id").values_list("kind", "actor", "data__way"))
    assert events == [("user.added", "Bartizan", "oidc"), ("user.logged_in", "bob", "oidc")]


def test_the_second_login_finds_the_user_by_the_identity_not_by_the_name(
    client: Client, provider: SimulatedProvider
) -> None:
    log_in(client, provider)
    provider.claims = {"preferred_username": "robert"}
    log_in(Client(), provider)
    assert User.objects.get().username == "bob"


def test_the_code_is_exchanged_with_the_secret_and_the_verifier(client: Client, provider: SimulatedProvider) -> None:
    log_in(client, provider)
    (asked,) = provider.asked
    assert asked["grant_type"] == "authorization_code" and asked["code"] == "planted-code"
    assert challenge_of(asked["code_verifier"]) == provider.challenge
    assert asked["redirect_uri"] == "http://testserver/login/oidc/callback/"
    assert asked["authorization"].startswith("Basic ") and "client_secret" not in asked


def test_the_secret_goes_into_the_body_where_the_provider_wants_that(
    client: Client, provider: SimulatedProvider
) -> None:
    provider.document = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    log_in(client, provider)
    assert provider.asked[0]["client_secret"] == SECRET and who(client) == "bob"


def test_a_group_that_was_made_here_gives_its_role_and_takes_it_again(
    client: Client, provider: SimulatedProvider
) -> None:
    auditors = Group.objects.create(name="oidc:auditors")
    RoleAssignment.objects.create(group=auditors, role=Role.AUDITOR, assigned_by="test")
    local = Group.objects.create(name="auditors")
    provider.claims = {"groups": ["auditors", "unknown-here"]}
    log_in(client, provider)
    bob = User.objects.get()
    assert [group.name for group in bob.groups.all()] == ["oidc:auditors"] and may(bob, VIEW_ALL)
    assert not Group.objects.filter(name__contains="unknown").exists()
    bob.groups.add(local)
    provider.claims = {"groups": None}
    log_in(Client(), provider)
    assert [group.name for group in bob.groups.all()] == ["auditors"], "only what the provider gave is taken"
    changes = [event.data for event in Event.objects.filter(kind="user.groups_changed").order_by("id")]
    assert [(one["added"], one["removed"]) for one in changes] == [(["oidc:auditors"], []), ([], ["oidc:auditors"])]


def test_administrators_of_the_provider_are_none_here(client: Client, provider: SimulatedProvider) -> None:
    provider.claims = {"is_staff": True, "is_superuser": True, "groups": ["administrators"]}
    Group.objects.create(name="administrators")
    log_in(client, provider)
    bob = User.objects.get()
    assert not bob.is_staff and not bob.is_superuser and not bob.groups.exists()


@pytest.mark.parametrize("name", ["bob", "BOB", "\uff42\uff4f\uff42"])
def test_nobody_takes_over_a_local_user_by_the_name(client: Client, provider: SimulatedProvider, name: str) -> None:
    User.objects.create_superuser("bob")
    provider.claims = {"preferred_username": name}
    assert "another user of this console is called" in refused(client, provider, "user_name_taken", 409)
    assert not ExternalIdentity.objects.exists() and User.objects.count() == 1


def test_another_person_with_the_same_name_there_is_another(client: Client, provider: SimulatedProvider) -> None:
    log_in(client, provider)
    provider.claims = {"sub": "another"}
    refused(Client(), provider, "user_name_taken", 409)


def test_two_first_logins_at_once_make_one_user(
    client: Client, provider: SimulatedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has looked before the first wrote."""
    log_in(Client(), provider)
    known, looks = identities._known, iter([True, False])
    monkeypatch.setattr(identities, "_known", lambda proven: None if next(looks) else known(proven))
    log_in(client, provider)
    assert who(client) == "bob" and User.objects.count() == 1


@pytest.mark.parametrize("name", ["Bartizan", "nobody", "with blank", "a\nb", "x" * 151, "<b>"])
def test_names_that_no_user_here_can_have(client: Client, provider: SimulatedProvider, name: str) -> None:
    provider.claims = {"preferred_username": name}
    refused(client, provider, "identity_unusable")
    assert not User.objects.exists()


@pytest.mark.parametrize(
    "claims",
    [{"preferred_username": None}, {"preferred_username": ["bob"]}, {"groups": {"a": 1}}, {"groups": [1]}, {"sub": ""},
     {"sub": "x" * 256}],
)  # fmt: skip
def test_claims_of_no_use(client: Client, provider: SimulatedProvider, claims: dict[str, Any]) -> None:
    provider.claims = claims
    answer = log_in(client, provider)
    assert answer.context["code"] in ("identity_unusable", "oidc_token_refused")
    assert not User.objects.exists()


def test_who_was_disabled_here_stays_disabled(client: Client, provider: SimulatedProvider) -> None:
    log_in(client, provider)
    User.objects.update(is_active=False)
    assert who(client) == "", "the session ended too"
    refused(Client(), provider, "account_disabled")
    assert not User.objects.get().is_active


def test_sessions_end_when_the_provider_is_switched_off(
    client: Client, provider: SimulatedProvider, settings: Settings
) -> None:
    log_in(client, provider)
    settings.AUTHENTICATION_BACKENDS = settings.AUTHENTICATION_BACKENDS[:-1]
    assert who(client) == ""


@pytest.mark.parametrize("claims", [
    {"iss": "https://elsewhere.example"}, {"iss": None}, {"aud": "another-client"}, {"aud": None}, {"aud": []},
    {"aud": "another-client", "azp": "bartizan"}, {"aud": ["bartizan", "another-client"]},
    {"aud": ["bartizan", "another-client"], "azp": "another-client"}, {"azp": "another-client"},
    {"nonce": "another-login"}, {"nonce": None}, {"exp": BEFORE}, {"exp": None}, {"exp": "soon"},
    {"iat": None}, {"iat": LATER}, {"nbf": LATER}, {"sub": None},
    {"at_hash": encoded(b"of another token")},
])  # fmt: skip
def test_an_id_token_whose_claims_are_wrong(
    client: Client, provider: SimulatedProvider, claims: dict[str, Any]
) -> None:
    provider.claims = claims
    refused(client, provider, "oidc_token_refused")
    assert not User.objects.exists()


def test_an_id_token_for_several_clients_with_azp(client: Client, provider: SimulatedProvider) -> None:
    provider.claims = {"aud": ["bartizan", "another-client"], "azp": "bartizan"}
    log_in(client, provider)
    assert who(client) == "bob"


@pytest.mark.parametrize(("algorithm", "key"), [("RS256", "rsa"), ("PS256", "rsa"), ("ES256", "p256")])
def test_approved_signatures(client: Client, provider: SimulatedProvider, algorithm: str, key: str) -> None:
    provider.keys, provider.algorithm, provider.signed_with = ["other", key], algorithm, key
    log_in(client, provider)
    assert who(client) == "bob"


@pytest.mark.parametrize(("algorithm", "key"), [("RS512", "rsa"), ("ES384", "p384"), ("none", "rsa")])
def test_other_algorithms_are_refused(client: Client, provider: SimulatedProvider, algorithm: str, key: str) -> None:
    provider.keys, provider.algorithm, provider.signed_with = ["rsa", key], algorithm, key
    refused(client, provider, "oidc_token_refused")


def test_a_token_of_a_key_that_is_not_the_providers(client: Client, provider: SimulatedProvider) -> None:
    provider.signed_with = "other"
    refused(client, provider, "oidc_token_refused")


def test_a_token_whose_content_was_changed(client: Client, provider: SimulatedProvider) -> None:
    begun = client.get(reverse("oidc-begin"))
    answer = provider.went(begun.headers["Location"])
    head, _, signature = provider.id_token().split(".")
    changed = unsigned({"iss": provider.issuer, "sub": "administrator"}).split(".")[1]
    provider.token = f"{head}.{changed}.{signature}"
    assert client.get(reverse("oidc-finish"), answer).context["code"] == "oidc_token_refused"


def test_a_token_signed_with_the_client_secret_or_the_public_key(client: Client, provider: SimulatedProvider) -> None:
    """The old confusion of HMAC with what is public."""
    for algorithm in ("HS256", "RS256"):
        provider.token = f"{encoded({'alg': algorithm, 'kid': 'rsa'})}.{encoded({'sub': 'x'})}.{encoded(b'0' * 32)}"
        refused(client, provider, "oidc_token_refused")


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "..", "é.é.é", "a" * 300_000])
def test_no_token_at_all(client: Client, provider: SimulatedProvider, token: str) -> None:
    provider.token = token
    refused(client, provider, "oidc_token_refused")


@pytest.mark.parametrize("published", [
    {"kty": "RSA", "n": encoded((1 << 1023 | 1).to_bytes(128, "big")), "e": "AQAB"},  # 1024 bits
    {"kty": "oct", "k": encoded(SECRET.encode())}, {"kty": "RSA", "n": "!", "e": "AQAB"}, {"kty": "EC"}, {},
    key_of("rsa").as_dict(private=False) | {"use": "enc"}, key_of("p384").as_dict(private=False),
])  # fmt: skip
def test_keys_that_may_not_sign(client: Client, provider: SimulatedProvider, published: dict[str, Any]) -> None:
    provider.keys, provider.published = [], [published]
    assert "no key that may sign" in refused(client, provider, "oidc_answer_refused")


def test_a_state_that_is_not_this_browsers(client: Client, provider: SimulatedProvider) -> None:
    refused(client, provider, "oidc_state_wrong", state="x" * 43)
    refused(client, provider, "oidc_state_wrong", state="")
    answer = provider.went(Client().get(reverse("oidc-begin")).headers["Location"])
    assert client.get(reverse("oidc-finish"), answer).context["code"] == "oidc_state_wrong"
    assert client.get(reverse("oidc-finish")).status_code == 403
    assert provider.asked == [], "no code was sent on"


def test_an_answer_serves_once(client: Client, provider: SimulatedProvider) -> None:
    begun = client.get(reverse("oidc-begin"))
    answer = provider.went(begun.headers["Location"])
    assert client.get(reverse("oidc-finish"), answer).status_code == 302
    client.post(reverse("logout"))
    assert client.get(reverse("oidc-finish"), answer).context["code"] == "oidc_state_wrong"
    assert len(provider.asked) == 1 and who(client) == ""


def test_a_pending_login_that_was_changed_in_the_browser(client: Client, provider: SimulatedProvider) -> None:
    begun = client.get(reverse("oidc-begin"))
    answer = provider.went(begun.headers["Location"])
    value = client.cookies["bartizan_oidc"].value
    client.cookies["bartizan_oidc"] = value.replace(answer["state"], "a" * 43)
    assert client.get(reverse("oidc-finish"), answer | {"state": "a" * 43}).context["code"] == "oidc_state_wrong"


def test_the_cookie_of_a_pending_login_stays_where_it_belongs(
    client: Client, provider: SimulatedProvider, settings: Settings
) -> None:
    settings.HTTPS = True
    begun = client.get(reverse("oidc-begin"))
    cookie = begun.cookies["bartizan_oidc"]
    assert (cookie["path"], cookie["max-age"], cookie["samesite"]) == ("/login/oidc/", 600, "Lax")
    assert cookie["httponly"] and cookie["secure"]
    assert "redirect_uri=https%3A%2F%2Ftestserver" in begun.headers["Location"]


def test_an_answer_of_another_provider(client: Client, provider: SimulatedProvider) -> None:
    refused(client, provider, "oidc_answer_refused", iss="https://elsewhere.example")
    provider.document = {"authorization_response_iss_parameter_supported": True}
    refused(client, provider, "oidc_answer_refused")
    log_in(client, provider, iss=provider.issuer)
    assert who(client) == "bob"


def test_the_provider_says_no(client: Client, provider: SimulatedProvider) -> None:
    words = refused(client, provider, "oidc_refused", code="", error="access_denied")
    assert words == "the identity provider refused the login: access_denied"
    assert "script" not in refused(client, provider, "oidc_refused", code="", error="<script>")
    provider.status, provider.answer = 400, {"error": "invalid_grant", "error_description": "planted-code is used"}
    assert refused(client, provider, "oidc_refused").endswith("invalid_grant")
    provider.status, provider.answer = 200, {}
    refused(client, provider, "oidc_token_refused")


@pytest.mark.parametrize("status", [302, 429, 500])
def test_a_token_endpoint_that_has_trouble(client: Client, provider: SimulatedProvider, status: int) -> None:
    provider.status = status
    log_in(client, provider)
    assert not client.session.get("_auth_user_id")
    assert Event.objects.get(kind="user.login_failed").reason in ("oidc_unreachable", "oidc_token_refused")


@pytest.mark.parametrize("document", [
    {"issuer": "https://elsewhere.example"}, {"issuer": None}, {"token_endpoint": None}, {"jwks_uri": "ftp://127.0.0.1/"},
    {"token_endpoint": "http://192.0.2.1/token"}, {"authorization_endpoint": "javascript:alert(1)"},
])  # fmt: skip
def test_a_discovery_document_that_is_not_believed(
    client: Client, provider: SimulatedProvider, document: dict[str, Any]
) -> None:
    provider.document = document
    answer = client.get(reverse("oidc-begin"))
    assert (answer.status_code, answer.context["code"]) == (403, "oidc_answer_refused")


def test_a_provider_that_is_down(client: Client, provider: SimulatedProvider, settings: Settings) -> None:
    User.objects.create_user("local", password="correct horse battery staple")
    settings.OIDC = provider.settings(issuer="http://127.0.0.1:1")
    answer = client.get(reverse("oidc-begin"))
    assert (answer.status_code, answer.context["code"]) == (503, "oidc_unreachable")
    assert "users of this console itself can still log in" in answer.content.decode().lower()
    assert Event.objects.get().reason == "oidc_unreachable"
    client.post(reverse("login"), {"username": "local", "password": "correct horse battery staple"})
    assert who(client) == "local"


@pytest.fixture
def other_ca(tmp_path: Path) -> Path:
    found = tmp_path / "other.pem"
    found.write_bytes(Authority.create(tmp_path / "other", "Other").certificate_pem)
    return found


def test_tls_to_the_provider(
    client: Client, settings: Settings, identity: Issued, ca_file: Path, other_ca: Path
) -> None:
    """Trusted by the CA that is named, and by no other; and no way out of TLS."""
    with serving(identity) as provider:
        configure(settings, provider, ca_file=ca_file)
        log_in(client, provider)
        assert who(client) == "bob"
        for trusted in (other_ca, other_ca.with_name("gone"), None):
            settings.OIDC = provider.settings(ca_file=trusted)
            assert Client().get(reverse("oidc-begin")).context["code"] == "oidc_unreachable"
        configure(settings, provider, ca_file=ca_file)
        provider.document = {"token_endpoint": f"http://127.0.0.1:{provider.port}/token"}
        assert Client().get(reverse("oidc-begin")).context["code"] == "oidc_answer_refused"


def test_the_name_in_the_providers_certificate_counts(
    client: Client, settings: Settings, authority: Authority, ca_file: Path
) -> None:
    with serving(authority.issue("elsewhere", dns=["elsewhere.example"], server=True)) as provider:
        configure(settings, provider, ca_file=ca_file)
        assert client.get(reverse("oidc-begin")).context["code"] == "oidc_unreachable"


@contextmanager
def serving(identity: Issued) -> Iterator[SimulatedProvider]:
    found = SimulatedProvider()
    found.start(identity)
    yield found
    found.stop()


@pytest.mark.parametrize("page", ["https://evil.example/", "//evil.example/", "/" + "x" * 501])
def test_next_leads_to_no_other_site_and_fits_a_cookie(client: Client, provider: SimulatedProvider, page: str) -> None:
    assert log_in(client, provider, next_page=page).headers["Location"] == "/"


def test_the_button(client: Client, provider: SimulatedProvider) -> None:
    page = client.get(reverse("login"), {"next": PAGE}).content.decode()
    assert "Log in with Lab" in page and 'href="/login/oidc/?next=/api-tokens/"' in page
    log_in(client, provider)
    assert client.get(reverse("oidc-begin")).headers["Location"] == "/", "who is in already stays"


def test_off_by_default(client: Client) -> None:
    assert "Log in with" not in client.get(reverse("login")).content.decode()
    for name in ("oidc-begin", "oidc-finish"):
        assert client.get(reverse(name)).status_code == 404
        assert client.post(reverse(name)).status_code == 405
