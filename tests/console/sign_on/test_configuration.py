"""What the operator says of provider and directory: a wrong combination stops the start, and says what to do."""

from pathlib import Path
from typing import Final

import pytest

from console.env import SettingsError
from console.sign_on.configuration import VARIABLES, GroupType, read_ldap, read_oidc
from encryption.adapters import crypto_modules

OIDC: Final = {
    "BARTIZAN_OIDC_ISSUER": "https://sso.example.org/realms/lab", "BARTIZAN_OIDC_CLIENT_ID": "bartizan",
    "BARTIZAN_OIDC_CLIENT_SECRET": "planted-secret",
}  # fmt: skip
LDAP: Final = {
    "BARTIZAN_LDAP_URL": "ldaps://ldap.example.org",
    "BARTIZAN_LDAP_USER_BASE": "ou=people,dc=example,dc=org",
}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "BARTIZAN_OIDC_CLIENT_SECRET", "BARTIZAN_LDAP_BIND_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def given(monkeypatch: pytest.MonkeyPatch, *values: dict[str, str]) -> None:
    for one in values:
        for name, value in one.items():
            monkeypatch.setenv(name, value)


def test_off_by_default() -> None:
    assert read_oidc() is None and read_ldap() is None


def test_a_provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("planted-secret\n")
    given(monkeypatch, OIDC, {"BARTIZAN_OIDC_CLIENT_SECRET": "", "BARTIZAN_OIDC_CLIENT_SECRET_FILE": str(file)})
    found = read_oidc()
    assert found is not None and found.client_secret == "planted-secret" and "planted" not in repr(found)
    assert (found.name, found.scopes, found.username_claim, found.groups_claim, found.ca_file) == (
        "single sign-on", "openid profile", "preferred_username", "groups", None,
    )  # fmt: skip


@pytest.mark.parametrize("issuer", ["http://127.0.0.1:8080/o", "http://[::1]/o", "http://localhost:1/", "https://x"])
def test_issuers_that_are_taken(monkeypatch: pytest.MonkeyPatch, issuer: str) -> None:
    given(monkeypatch, OIDC, {"BARTIZAN_OIDC_ISSUER": issuer})
    assert read_oidc() is not None


@pytest.mark.parametrize(("name", "value", "words"), [
    ("ISSUER", "http://sso.example.org", "https"), ("ISSUER", "sso.example.org", "https"),
    ("ISSUER", "https://x/?a=b", "https"), ("ISSUER", "https://user@x/", "https"),
    ("ISSUER", "https://x:99999/", "https"), ("ISSUER", "http://127.0.0.1.example.org/", "https"),
    ("CLIENT_ID", "", "BARTIZAN_OIDC_CLIENT_ID is not set"),
    ("CLIENT_SECRET", "", "BARTIZAN_OIDC_CLIENT_SECRET_FILE"), ("CLIENT_SECRET", "é", "ASCII"),
    ("SCOPES", "profile", "openid"), ("CA_FILE", "relative", "absolute"), ("CA_FILE", "/nowhere", "cannot read"),
    ("CA_FILE", "/etc/hostname", "no certificate"),
])  # fmt: skip
def test_a_provider_that_cannot_be(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    given(monkeypatch, OIDC, {f"BARTIZAN_OIDC_{name}": value})
    with pytest.raises(SettingsError, match=f"BARTIZAN_OIDC_{name}") as told:
        read_oidc()
    assert words in str(told.value) and "planted" not in str(told.value)


@pytest.mark.parametrize("name", ["BARTIZAN_OIDC_CLIENT_ID", "BARTIZAN_LDAP_USER_BASE"])
def test_half_a_configuration_is_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    given(monkeypatch, {name: "x"})
    with pytest.raises(SettingsError, match=f"{name} is set"):
        read_oidc()
        read_ldap()


def test_a_directory(monkeypatch: pytest.MonkeyPatch, ca_file: Path) -> None:
    account = {"BARTIZAN_LDAP_BIND_DN": "cn=x", "BARTIZAN_LDAP_BIND_PASSWORD": "planted-password"}
    given(monkeypatch, LDAP, account, {"BARTIZAN_LDAP_CA_FILE": str(ca_file)})
    found = read_ldap()
    assert found is not None and not found.starts_tls and "planted" not in repr(found)
    assert (found.user_filter, found.username_attribute, found.id_attribute) == ("(uid=%(user)s)", "uid", "entryUUID")
    assert (found.group_base, found.group_type) == ("", GroupType.MEMBER)
    given(monkeypatch, {"BARTIZAN_LDAP_URL": "ldap://ldap.example.org:389", "BARTIZAN_LDAP_GROUP_TYPE": "ad-nested"})
    plain = read_ldap()
    assert plain is not None and plain.starts_tls and plain.group_type == GroupType.ACTIVE_DIRECTORY


@pytest.mark.parametrize(("name", "value", "words"), [
    ("URL", "ldapi:///run/slapd", "StartTLS"), ("URL", "ldap.example.org", "StartTLS"),
    ("URL", "https://x", "StartTLS"),
    ("URL", "ldaps://a ldaps://b:x", "StartTLS"), ("USER_BASE", "", "BARTIZAN_LDAP_USER_BASE is not set"),
    ("CA_FILE", "", "BARTIZAN_LDAP_CA_FILE is not set"), ("BIND_DN", "cn=x", "or neither"),
    ("USER_FILTER", "(uid=bob)", "must be like"), ("USER_FILTER", "uid=%(user)s", "must be like"),
    ("USER_FILTER", "(uid=%(name)s)", "write %"), ("USER_FILTER", "(uid=%s)", "must be like"),
    ("USER_FILTER", "(uid=100%)", "write %"), ("GROUP_TYPE", "nis", "must be one of"),
])  # fmt: skip
def test_a_directory_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, ca_file: Path, name: str, value: str, words: str
) -> None:
    given(monkeypatch, LDAP, {"BARTIZAN_LDAP_CA_FILE": str(ca_file)}, {f"BARTIZAN_LDAP_{name}": value})
    with pytest.raises(SettingsError, match=f"BARTIZAN_LDAP_{name}") as told:
        read_ldap()
    assert words in str(told.value)


def test_a_directory_is_told_as_outside_of_the_provider() -> None:
    """On the page Cryptographic modules, where there is one."""
    usual, with_directory = (
        {one.name: one for one in crypto_modules.boundaries(database="", broker="", directory=words)}
        for words in ("", "ldaps://ldap.example.org")
    )
    assert with_directory.keys() - usual.keys() == {"LDAP client"}
    assert not with_directory["LDAP client"].is_tested and "GnuTLS" in with_directory["LDAP client"].note
