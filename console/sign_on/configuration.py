"""What the operator says of the OpenID provider and of the LDAP directory. A combination that is wrong, or that sends
passwords or tokens in clear, stops the start."""

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from console.env import SettingsError, env_path, env_secret, env_str

VARIABLES: Final = (
    "BARTIZAN_OIDC_ISSUER",
    "BARTIZAN_OIDC_CLIENT_ID",
    "BARTIZAN_OIDC_CLIENT_SECRET_FILE",
    "BARTIZAN_OIDC_NAME",
    "BARTIZAN_OIDC_SCOPES",
    "BARTIZAN_OIDC_USERNAME_CLAIM",
    "BARTIZAN_OIDC_GROUPS_CLAIM",
    "BARTIZAN_OIDC_CA_FILE",
    "BARTIZAN_LDAP_URL",
    "BARTIZAN_LDAP_CA_FILE",
    "BARTIZAN_LDAP_BIND_DN",
    "BARTIZAN_LDAP_BIND_PASSWORD_FILE",
    "BARTIZAN_LDAP_USER_BASE",
    "BARTIZAN_LDAP_USER_FILTER",
    "BARTIZAN_LDAP_USERNAME_ATTRIBUTE",
    "BARTIZAN_LDAP_ID_ATTRIBUTE",
    "BARTIZAN_LDAP_GROUP_BASE",
    "BARTIZAN_LDAP_GROUP_TYPE",
)
"""What the launcher passes on to the web process, and to no other. Secrets go by their files."""


class GroupType(StrEnum):
    """How the directory says who is in a group."""

    MEMBER = "member"  # groupOfNames: DNs in `member`; Active Directory too
    UNIQUE_MEMBER = "uniqueMember"  # groupOfUniqueNames
    POSIX = "posix"  # posixGroup: names in `memberUid`
    NESTED = "nested"  # groupOfNames, groups within groups followed by one search a level
    ACTIVE_DIRECTORY = "ad-nested"  # the same, followed by the server (LDAP_MATCHING_RULE_IN_CHAIN)


@dataclass(frozen=True, slots=True)
class Oidc:
    """One OpenID provider. `name` stands on the button of the login page."""

    name: str
    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    scopes: str
    username_claim: str
    groups_claim: str
    ca_file: Path | None


@dataclass(frozen=True, slots=True)
class Ldap:
    """One directory. `user_filter` holds %(user)s; without `group_base` nobody is in a group."""

    url: str
    ca_file: Path
    bind_dn: str
    bind_password: str = field(repr=False)
    user_base: str
    user_filter: str
    username_attribute: str
    id_attribute: str
    group_base: str
    group_type: GroupType

    @property
    def starts_tls(self) -> bool:
        return self.url.startswith("ldap:")


def read_oidc() -> Oidc | None:
    """None where BARTIZAN_OIDC_ISSUER is unset. Raises SettingsError."""
    issuer = env_str("BARTIZAN_OIDC_ISSUER", "")
    if not issuer:
        _refuse_orphans("BARTIZAN_OIDC_", "BARTIZAN_OIDC_ISSUER")
        return None
    if not is_protected(issuer) or urlsplit(issuer).query or urlsplit(issuer).fragment:
        raise SettingsError(
            f"BARTIZAN_OIDC_ISSUER must be https://... as the provider's discovery document has it, not {issuer!r}; "
            "http:// is taken for a provider on 127.0.0.1, ::1 or localhost only"
        )
    secret = env_secret("BARTIZAN_OIDC_CLIENT_SECRET")
    if not (secret.isascii() and secret.isprintable()):
        raise SettingsError("BARTIZAN_OIDC_CLIENT_SECRET holds characters that HTTP cannot carry: take ASCII")
    scopes = env_str("BARTIZAN_OIDC_SCOPES", "openid profile")
    if "openid" not in scopes.split():
        raise SettingsError("BARTIZAN_OIDC_SCOPES must hold openid, words separated by blanks")
    return Oidc(
        name=env_str("BARTIZAN_OIDC_NAME", "single sign-on"),
        issuer=issuer,
        client_id=env_str("BARTIZAN_OIDC_CLIENT_ID"),
        client_secret=secret,
        scopes=scopes,
        username_claim=env_str("BARTIZAN_OIDC_USERNAME_CLAIM", "preferred_username"),
        groups_claim=env_str("BARTIZAN_OIDC_GROUPS_CLAIM", "groups"),
        ca_file=_certificates("BARTIZAN_OIDC_CA_FILE") if env_str("BARTIZAN_OIDC_CA_FILE", "") else None,
    )


def read_ldap() -> Ldap | None:
    """None where BARTIZAN_LDAP_URL is unset. Raises SettingsError."""
    url = env_str("BARTIZAN_LDAP_URL", "")
    if not url:
        _refuse_orphans("BARTIZAN_LDAP_", "BARTIZAN_LDAP_URL")
        return None
    parts = _split(url)
    if parts is None or parts.scheme not in ("ldaps", "ldap") or not parts.hostname or parts.path.strip("/"):
        raise SettingsError(
            f"BARTIZAN_LDAP_URL must be ldaps://HOST or ldap://HOST (which then begins with StartTLS), not {url!r}"
        )
    bind_dn, password = env_str("BARTIZAN_LDAP_BIND_DN", ""), env_secret("BARTIZAN_LDAP_BIND_PASSWORD", required=False)
    if bool(bind_dn) != bool(password):
        raise SettingsError(
            "set BARTIZAN_LDAP_BIND_DN and BARTIZAN_LDAP_BIND_PASSWORD_FILE, or neither (an anonymous search)"
        )
    user_filter = env_str("BARTIZAN_LDAP_USER_FILTER", "(uid=%(user)s)")
    try:
        filled = user_filter % {"user": "x"}
    except (ValueError, KeyError, TypeError) as exc:
        raise SettingsError("BARTIZAN_LDAP_USER_FILTER: write % as %%, but for %(user)s") from exc
    if "%(user)s" not in user_filter or not (filled.startswith("(") and filled.endswith(")")):
        raise SettingsError(f"BARTIZAN_LDAP_USER_FILTER must be like (uid=%(user)s), not {user_filter!r}")
    group_type = env_str("BARTIZAN_LDAP_GROUP_TYPE", GroupType.MEMBER)
    if group_type not in set(GroupType):
        raise SettingsError(f"BARTIZAN_LDAP_GROUP_TYPE must be one of {', '.join(GroupType)}, not {group_type!r}")
    return Ldap(
        url=url,
        ca_file=_certificates("BARTIZAN_LDAP_CA_FILE"),
        bind_dn=bind_dn,
        bind_password=password,
        user_base=env_str("BARTIZAN_LDAP_USER_BASE"),
        user_filter=user_filter,
        username_attribute=env_str("BARTIZAN_LDAP_USERNAME_ATTRIBUTE", "uid"),
        id_attribute=env_str("BARTIZAN_LDAP_ID_ATTRIBUTE", "entryUUID"),
        group_base=env_str("BARTIZAN_LDAP_GROUP_BASE", ""),
        group_type=GroupType(group_type),
    )


def is_protected(url: str, *, loopback: bool = True) -> bool:
    """Whether what goes to this address stays on this machine (where `loopback` is good enough) or goes by HTTPS."""
    parts = _split(url)
    if parts is None or not parts.hostname or parts.username is not None:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and loopback and _is_loopback(parts.hostname))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # read: only this checks it
    except ValueError:
        return None
    return parts


def _certificates(name: str) -> Path:
    """A file of CA certificates, in PEM."""
    path = env_path(name)
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as exc:
        raise SettingsError(f"{name}: cannot read {path}: {type(exc).__name__}") from exc
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise SettingsError(f"{name}: {path} holds no certificate in PEM")
    return path


def _refuse_orphans(prefix: str, main: str) -> None:
    """Without its main variable all is off: somebody who set another one meant it to be on."""
    for name in VARIABLES:
        if name.startswith(prefix) and env_str(name, ""):
            raise SettingsError(f"{name} is set, and {main} is not: set both, or neither")
