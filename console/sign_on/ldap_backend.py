"""The directory as one of Django's authentication backends, by django-auth-ldap: it finds the person by the filter,
binds as them with the password they typed, and reads their groups.

Always TLS (ldaps, or StartTLS before anything is said), 1.2 or newer with approved suites, certificate and host name
verified. Debian's libldap does it with GnuTLS, which is NOT one of the two OpenSSL libraries that the FIPS provider
protects. Referrals are not followed: the password goes to the one server that was named.

NOT checked: what the directory thinks of the account besides the password (expiry, locks): it refuses the bind, or not.
"""

import logging
from typing import Any, Final

import ldap
from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django_auth_ldap.backend import LDAPBackend, ldap_error
from django_auth_ldap.config import (
    GroupOfNamesType,
    GroupOfUniqueNamesType,
    LDAPSearch,
    LDAPSettings,
    NestedActiveDirectoryGroupType,
    NestedGroupOfNamesType,
    PosixGroupType,
)

from console.models import ExternalIdentity
from console.sign_on.configuration import GroupType, Ldap
from console.sign_on.identities import Proven, is_of_another_source, user_of
from inventory.errors import ServiceError, Unavailable, Untrusted
from inventory.services import access

# GnuTLS's words for inventory/engine/crypto_policy.py: ECDHE on P-256 or P-384, AES-GCM, no TLS before 1.2.
TLS_PRIORITY: Final = (
    "NONE:+VERS-TLS1.3:+VERS-TLS1.2:+ECDHE-ECDSA:+ECDHE-RSA:+AES-256-GCM:+AES-128-GCM:+AEAD:+COMP-NULL:+CTYPE-X509:"
    "+GROUP-SECP256R1:+GROUP-SECP384R1:+SIGN-ECDSA-SHA256:+SIGN-ECDSA-SHA384:+SIGN-ECDSA-SECP256R1-SHA256:"
    "+SIGN-ECDSA-SECP384R1-SHA384:+SIGN-RSA-PSS-RSAE-SHA256:+SIGN-RSA-PSS-RSAE-SHA384:+SIGN-RSA-PSS-RSAE-SHA512"
    ":+SIGN-RSA-SHA256:+SIGN-RSA-SHA384:+SIGN-RSA-SHA512"
)
TIMEOUT_SECONDS: Final = 5
GROUP_TYPES: Final = {
    GroupType.MEMBER: GroupOfNamesType,
    GroupType.UNIQUE_MEMBER: GroupOfUniqueNamesType,
    GroupType.POSIX: PosixGroupType,
    GroupType.NESTED: NestedGroupOfNamesType,
    GroupType.ACTIVE_DIRECTORY: NestedActiveDirectoryGroupType,
}
logger = logging.getLogger(__name__)
_AWAY: Final = (ldap.SERVER_DOWN, ldap.CONNECT_ERROR, ldap.TIMEOUT, ldap.BUSY, ldap.UNAVAILABLE)


class DirectoryBackend(LDAPBackend):  # type: ignore[misc]  # django-auth-ldap has no types
    """Asked after the local users. Raises Unavailable where the directory cannot be asked, and what `user_of` raises:
    who cannot get in for such a reason is told so, and has not failed to give the right password."""

    def __init__(self) -> None:
        self.directory = _configured()
        self.settings = settings_of(self.directory)

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> User | None:
        if not username or is_of_another_source(username, ExternalIdentity.Source.LDAP):
            return None
        try:
            return self._asked(request, username, password)
        except ServiceError as exc:
            access.record_login_refused(exc, way="ldap")
            raise

    def _asked(self, request: HttpRequest | None, username: str, password: str | None) -> User | None:
        try:
            found: User | None = super().authenticate(request, username=username, password=password)
        except ValueError as exc:  # python-ldap's word for an option that libldap does not take
            raise Unavailable(
                "directory_failed", "TLS to the directory of users cannot be set up", hint="look at its CA certificates"
            ) from exc
        return found

    def get_or_build_user(self, username: str, ldap_user: Any) -> tuple[User, bool]:
        """django-auth-ldap's hook, after the password was right. It finds users by name; this does not."""
        directory = self.directory
        groups = ldap_user.group_names if directory.group_base else ()
        return user_of(
            Proven(
                ExternalIdentity.Source.LDAP,
                "",  # identifiers are unique everywhere, and a directory may move to another server
                _identifier(ldap_user.attrs, directory.id_attribute),
                _first(ldap_user.attrs, directory.username_attribute),
                frozenset(name for name in groups if name),
            )
        ), False

    def get_user(self, user_id: int) -> User | None:
        """Unlike django-auth-ldap's, nobody who was disabled here."""
        return User.objects.filter(pk=user_id, is_active=True).first()


def _configured() -> Ldap:
    if settings.LDAP is None:
        raise ImproperlyConfigured("BARTIZAN_LDAP_URL is not set: this backend has no directory")
    found: Ldap = settings.LDAP
    return found


def settings_of(directory: Ldap) -> LDAPSettings:
    """For django-auth-ldap. Users are made and put into groups by `user_of`, not by it."""
    # What is read of a person; the last two are what PosixGroupType compares. entryUUID comes only when asked for.
    shown = [directory.username_attribute, directory.id_attribute, "uid", "gidNumber"]
    group_search = LDAPSearch(directory.group_base, ldap.SCOPE_SUBTREE, "(objectClass=*)", ["cn"])
    return LDAPSettings(
        defaults={
            "SERVER_URI": directory.url,
            "START_TLS": directory.starts_tls,
            "CONNECTION_OPTIONS": {
                ldap.OPT_X_TLS_CACERTFILE: str(directory.ca_file),
                ldap.OPT_X_TLS_REQUIRE_CERT: ldap.OPT_X_TLS_DEMAND,
                ldap.OPT_X_TLS_CIPHER_SUITE: TLS_PRIORITY,
                ldap.OPT_X_TLS_NEWCTX: 0,  # the last of these: it makes them count
                ldap.OPT_REFERRALS: 0,
                ldap.OPT_CONNECT_ASYNC: 1,  # without it libldap waits for a TLS handshake without end
                ldap.OPT_NETWORK_TIMEOUT: TIMEOUT_SECONDS,
                ldap.OPT_TIMEOUT: TIMEOUT_SECONDS,
            },
            "BIND_DN": directory.bind_dn,
            "BIND_PASSWORD": directory.bind_password,
            "USER_SEARCH": LDAPSearch(directory.user_base, ldap.SCOPE_SUBTREE, directory.user_filter, shown),
            "GROUP_SEARCH": group_search,
            "GROUP_TYPE": GROUP_TYPES[directory.group_type](),
            "ALWAYS_UPDATE_USER": False,
        }
    )


def _cannot_ask(exception: ldap.LDAPError, **_: Any) -> None:
    """django-auth-ldap would go on as if the password were wrong. libldap's errors hold neither name nor password."""
    if isinstance(exception, ldap.INAPPROPRIATE_AUTH):  # whom the directory gave no password
        return
    logger.warning("the directory of users cannot be asked: %s", exception)
    away = isinstance(exception, _AWAY)
    raise Unavailable(
        "directory_unreachable" if away else "directory_failed",
        "the directory of users does not answer" if away else "the directory of users refuses to be asked",
        hint="users of this console itself can still log in; the web process's log says more",
    ) from exception


ldap_error.connect(_cannot_ask, sender=DirectoryBackend, dispatch_uid="console.directory_error")


def _first(attributes: Any, name: str) -> str:
    """Empty where there is none, or it is no text."""
    values = (attributes or {}).get(name) or [""]
    return values[0] if isinstance(values[0], str) else ""


def _identifier(attributes: Any, name: str) -> str:
    """Active Directory's objectGUID is 16 bytes, which may or may not happen to be text."""
    values = (attributes or {}).get(name) or [b""]
    raw = values[0] if isinstance(values[0], bytes) else values[0].encode()
    found: str = raw.hex() if name.lower() == "objectguid" or isinstance(values[0], bytes) else values[0]
    if not found:
        raise Untrusted(
            "identity_unusable", f"the directory shows no {name} of this person",
            hint="BARTIZAN_LDAP_ID_ATTRIBUTE names the attribute that never changes",
        )  # fmt: skip
    return found
