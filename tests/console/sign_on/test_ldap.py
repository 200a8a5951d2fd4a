"""Log-in by a directory: a real slapd, over TLS."""

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Final

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from django_auth_ldap.backend import LDAPBackend
from pytest_django import Settings

from console.models import ExternalIdentity
from console.sign_on import ldap_backend
from console.sign_on.configuration import GroupType, Ldap
from inventory.authorize import VIEW_ALL, Role, may
from inventory.models import Event as Told
from inventory.models import RoleAssignment
from lab.pki import Authority, Issued
from tests.console.sign_on import slapd
from tests.console.sign_on.slapd import PEOPLE, SERVICE, SERVICE_PASSWORD, SUFFIX, Directory

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
BACKEND: Final = "console.sign_on.ldap_backend.DirectoryBackend"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, authority: Authority, identity: Issued) -> Iterator[Directory]:
    found = slapd.start(tmp_path_factory.mktemp("slapd"), authority, identity)
    yield found
    found.stop()


@pytest.fixture
def configured(settings: Settings, directory: Directory, ca_file: Path) -> Ldap:
    found = Ldap(
        url=directory.ldaps, ca_file=ca_file, bind_dn=SERVICE, bind_password=SERVICE_PASSWORD,
        user_base=f"ou=people,{SUFFIX}", user_filter="(uid=%(user)s)", username_attribute="uid",
        id_attribute="entryUUID", group_base=f"ou=groups,{SUFFIX}", group_type=GroupType.MEMBER,
    )  # fmt: skip
    settings.LDAP = found
    settings.AUTHENTICATION_BACKENDS = [*settings.AUTHENTICATION_BACKENDS, BACKEND]
    return found


def log_in(name: str, password: str = "", client: Client | None = None) -> int:
    """200: the form again, 302: in."""
    form = {"username": name, "password": password or PEOPLE.get(name, "x")}
    return (client or Client()).post(reverse("login"), form).status_code


def reasons() -> list[str]:
    return [event.reason for event in Told.objects.filter(kind="user.login_failed").order_by("id")]


def nothing_is_told(*words: str) -> None:
    texts = [str(vars(event)) for event in Told.objects.all()]
    assert not any(word in text for text in texts for word in (*PEOPLE.values(), SERVICE_PASSWORD, *words))


def test_the_first_login_makes_a_user_without_any_right(configured: Ldap, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"), caplog.at_level("DEBUG", logger="django_auth_ldap"):
        assert log_in("bob") == 302
    bob = User.objects.get()
    assert (bob.username, bob.is_staff, bob.is_superuser, bob.has_usable_password()) == ("bob", False, False, False)
    assert ExternalIdentity.objects.get().source == "ldap" and not may(bob, VIEW_ALL)
    events = list(Told.objects.order_by("id").values_list("kind", "actor", "data__way"))
    assert events == [("user.added", "Bartizan", "ldap"), ("user.logged_in", "bob", "ldap")]
    assert log_in("BOB", PEOPLE["bob"]) == 302 and User.objects.count() == 1
    nothing_is_told()
    assert not any(word in caplog.text for word in (*PEOPLE.values(), SERVICE_PASSWORD))


@pytest.mark.parametrize(
    ("name", "password"),
    [("bob", "wrong"), ("bob", PEOPLE["carol"]), ("nobody-there", "x"), ("*", PEOPLE["bob"]), ("b*", PEOPLE["bob"]),
     ("bob)(uid=*", PEOPLE["bob"]), ("bob,ou=people", PEOPLE["bob"])],
)  # fmt: skip
def test_a_wrong_name_or_password(configured: Ldap, name: str, password: str) -> None:
    assert log_in(name, password) == 200
    assert reasons() == ["wrong_credentials"] and not User.objects.exists()
    nothing_is_told()


def test_an_empty_password_is_none(configured: Ldap) -> None:
    """A directory takes it for an anonymous bind (RFC 4513, 5.1.2), and says yes."""
    assert ldap_backend.DirectoryBackend().authenticate(None, username="bob", password="") is None


def test_guessing_locks_the_name_for_the_address(configured: Ldap) -> None:
    answers = [log_in("bob", "wrong") for _ in range(6)]
    assert answers[0] == 200 and answers[-1] == 429
    assert log_in("bob") == 429


def test_start_tls(configured: Ldap, settings: Settings, directory: Directory) -> None:
    """The directory refuses a password that comes without TLS."""
    settings.LDAP = replace(configured, url=directory.ldap)
    assert log_in("bob") == 302


@pytest.mark.parametrize("scheme", ["ldaps", "ldap"])
def test_another_authority_or_name_is_not_trusted(
    configured: Ldap, settings: Settings, directory: Directory, tmp_path: Path, scheme: str
) -> None:
    url = directory.ldaps if scheme == "ldaps" else directory.ldap
    other = tmp_path / "other.pem"
    other.write_bytes(Authority.create(tmp_path / "other", "Other").certificate_pem)
    for ca_file in (other, other.with_name("gone")):
        settings.LDAP = replace(configured, url=url, ca_file=ca_file)
        assert log_in("bob") == 503
    settings.LDAP = replace(configured, url=url.replace("127.0.0.1", "127.0.0.2"))
    assert log_in("bob") == 503
    settings.LDAP = replace(configured, url=url)
    assert log_in("bob") == 302
    assert reasons() == ["directory_unreachable", "directory_failed"]


def test_tls_is_what_the_policy_takes() -> None:
    """As GnuTLS itself understands it."""
    done = subprocess.run(
        ["gnutls-cli", "--list", "--priority", ldap_backend.TLS_PRIORITY], capture_output=True, text=True, check=True
    )
    suites = re.findall(r"^(TLS_\w+)\s.*(TLS[\d.]+)$", done.stdout, re.MULTILINE)
    assert {version for _, version in suites} == {"TLS1.2", "TLS1.3"}
    assert all("_GCM_" in name and ("_ECDHE_" in name or version == "TLS1.3") for name, version in suites)


@contextmanager
def agreeing() -> Iterator[str]:
    """A server that says yes to StartTLS (RFC 4511, 4.14.2) and then nothing more."""
    over = Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as asked:
                asked.recv(4096)
                asked.sendall(bytes.fromhex("300c02010178070a010004000400"))
                over.wait()

        thread = Thread(target=answer)
        thread.start()
        yield f"ldap://127.0.0.1:{server.getsockname()[1]}"
        over.set()
        thread.join()


def test_a_directory_that_is_down_or_hangs(
    configured: Ldap, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Local users get in all the same. What was typed as a name may be a password, and is not logged."""
    monkeypatch.setattr(ldap_backend, "TIMEOUT_SECONDS", 1)
    User.objects.create_user("local", password="correct horse battery staple")
    with socket.create_server(("127.0.0.1", 0)) as silent, agreeing() as agreed:
        port = silent.getsockname()[1]
        for url in (agreed, "ldaps://127.0.0.1:1", f"ldaps://127.0.0.1:{port}", f"ldap://127.0.0.1:{port}"):
            settings.LDAP = replace(configured, url=url)
            client = Client()
            answer = client.post(reverse("login"), {"username": "typed-name", "password": PEOPLE["bob"]})
            assert (answer.status_code, answer.context["code"]) == (503, "directory_unreachable")
            assert "users of this console itself can still log in" in answer.content.decode().lower()
            assert log_in("local", "correct horse battery staple", client) == 302
    assert reasons() == ["directory_unreachable"], "told once a minute"
    nothing_is_told("typed-name")
    assert "cannot be asked" in caplog.text and "typed-name" not in caplog.text


def test_a_wrong_password_of_the_console_itself(configured: Ldap, settings: Settings) -> None:
    settings.LDAP = replace(configured, bind_password="wrong")
    assert log_in("bob") == 503
    assert reasons() == ["directory_failed"]


def test_groups_that_were_made_here_give_their_roles(configured: Ldap, settings: Settings) -> None:
    auditors = Group.objects.create(name="ldap:auditors")
    Group.objects.bulk_create(
        Group(name=name) for name in ("auditors", "ldap:everybody", "ldap:posix", "oidc:auditors")
    )
    RoleAssignment.objects.create(group=auditors, role=Role.AUDITOR, assigned_by="test")
    assert (log_in("bob"), log_in("carol")) == (302, 302)

    def groups(name: str) -> list[str]:
        return sorted(User.objects.get(username=name).groups.values_list("name", flat=True))

    assert (groups("bob"), groups("carol")) == (["ldap:auditors"], [])
    assert may(User.objects.get(username="bob"), VIEW_ALL)
    for group_type, found in (
        (GroupType.NESTED, ["ldap:auditors", "ldap:everybody"]),
        (GroupType.POSIX, ["ldap:posix"]),
    ):
        settings.LDAP = replace(configured, group_type=group_type)
        assert log_in("bob") == 302
        assert groups("bob") == found
    settings.LDAP = replace(configured, group_base="")
    assert log_in("bob") == 302 and groups("bob") == []


def test_nobody_takes_over_a_local_user_by_the_name(
    configured: Ldap, monkeypatch: pytest.MonkeyPatch, directory: Directory
) -> None:
    """Nor is the directory asked, so it gets no password that was typed for the local user."""
    User.objects.create_superuser("Administrator", password="correct horse battery staple")
    asked: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(LDAPBackend, "authenticate", lambda *_, username, **__: asked.append(username))
        assert log_in("administrator") == 200
    assert asked == [] and reasons() == ["wrong_credentials"]
    assert User.objects.count() == 1 and not ExternalIdentity.objects.exists()


def test_a_name_in_the_directory_that_another_user_has_here(configured: Ldap, settings: Settings) -> None:
    """Logged in there by another attribute than that of the name."""
    User.objects.create_user("bob")
    settings.LDAP = replace(configured, user_filter="(cn=%(user)s)")
    assert log_in("bob of the directory", PEOPLE["bob"]) == 409
    assert reasons() == ["user_name_taken"] and User.objects.count() == 1


def test_who_was_disabled_here_stays_disabled(configured: Ldap, client: Client) -> None:
    assert log_in("bob", client=client) == 302
    User.objects.update(is_active=False)
    assert client.get(reverse("api-tokens")).status_code == 302, "the session ended too"
    assert log_in("bob") == 403
    assert reasons() == ["account_disabled"]


def test_a_directory_that_shows_no_identifier(configured: Ldap, settings: Settings) -> None:
    settings.LDAP = replace(configured, id_attribute="objectGUID")
    assert log_in("bob") == 403
    assert reasons() == ["identity_unusable"]


@pytest.mark.parametrize(
    ("attribute", "value", "found"),
    [("objectGUID", b"\xff" * 16, "ff" * 16), ("objectGUID", "A" * 16, "41" * 16), ("entryUUID", "0-1", "0-1")],
)
def test_identifiers(attribute: str, value: object, found: str) -> None:
    """A GUID of bytes that happen to be text is a GUID all the same."""
    assert ldap_backend._identifier({attribute: [value]}, attribute) == found
