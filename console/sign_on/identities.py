"""From somebody whom a provider or directory has proved to a user here.

1. The row `ExternalIdentity` alone leads to a user: issuer and subject, never a name.
2. At the first login a user is made, without password, rights, staff or superuser flag. A name that somebody here has
   already, in any case of letters, is refused: a login elsewhere never opens another's account.
3. A user whom an administrator has disabled here stays disabled. Name and flags are never changed from outside.
4. Groups here whose names begin with "oidc:" or "ldap:" are brought up to date at every login. They are made by
   administrators, who give them roles; groups that nobody made here, and groups with other names, are left alone.
"""

import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from django.contrib.auth.models import Group, User
from django.contrib.auth.validators import UnicodeUsernameValidator
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from console.models import ExternalIdentity
from inventory import events
from inventory.authorize import SYSTEM
from inventory.errors import Conflict, Refused, Untrusted
from inventory.models import Severity
from inventory.services.access import NOBODY

# Who the history says has acted where nobody did.
RESERVED: Final = frozenset({SYSTEM.username.casefold(), NOBODY.casefold()})
LONGEST_NAME: Final = 150  # Django's column
LONGEST_SUBJECT: Final = 255  # OpenID Connect Core 1.0, 2


@dataclass(frozen=True, slots=True)
class Proven:
    """What the provider or directory says of somebody who has logged in there."""

    source: ExternalIdentity.Source
    issuer: str
    subject: str
    name: str
    groups: frozenset[str]


def user_of(proven: Proven) -> User:
    """The user of this identity, made where there is none, in the groups that it is in there.

    Raises Refused `account_disabled`, Conflict `user_name_taken`, Untrusted `identity_unusable`.
    """
    if not 0 < len(proven.subject) <= LONGEST_SUBJECT:
        raise Untrusted("identity_unusable", f"{_of(proven)} has no usable identifier there")
    user = _known(proven) or _made(proven)
    if not user.is_active:
        raise Refused(
            "account_disabled", f"{user.username} is disabled here", hint="an administrator of this console can undo it"
        )
    _bring_groups_up_to_date(user, proven)
    return user


def is_of_another_source(name: str, source: ExternalIdentity.Source) -> bool:
    """Whether a user here has this name who is not one of `source`: nobody there is asked about it, or gets a password
    that was typed for it."""
    if "\0" in name or len(name) > LONGEST_NAME:
        return False
    return User.objects.filter(username__iexact=name).exclude(external_identity__source=source).exists()


def _known(proven: Proven) -> User | None:
    return User.objects.filter(
        external_identity__source=proven.source,
        external_identity__issuer=proven.issuer,
        external_identity__subject=proven.subject,
    ).first()


def _made(proven: Proven) -> User:
    name = _checked_name(proven)
    with suppress(IntegrityError), transaction.atomic():
        if not User.objects.filter(username__iexact=name).exists():
            user = User(username=name)
            user.set_unusable_password()
            user.save()
            ExternalIdentity.objects.create(
                user=user, source=proven.source, issuer=proven.issuer, subject=proven.subject
            )
            events.record(
                "user.added", f"{name} was added at the first login by {_way(proven)}", target=None, actor=SYSTEM,
                way=proven.source, user=name, identity=proven.subject,
            )  # fmt: skip
            return user
    # Somebody has the name, since now perhaps: this very identity, by a request beside this one, or somebody else.
    found = _known(proven)
    if found is None:
        raise Conflict(
            "user_name_taken",
            f"{_of(proven)} cannot log in: another user of this console is called {name}",
            hint="an administrator of this console can rename or remove that user",
        )
    return found


def _checked_name(proven: Proven) -> str:
    name = unicodedata.normalize("NFKC", proven.name)
    try:
        UnicodeUsernameValidator()(name)
    except ValidationError as exc:
        raise _unusable(proven) from exc
    if not 0 < len(name) <= LONGEST_NAME or name.casefold() in RESERVED:
        raise _unusable(proven)
    return name


def _bring_groups_up_to_date(user: User, proven: Proven) -> None:
    prefix = f"{proven.source}:"
    wanted = {f"{prefix}{name}" for name in proven.groups}
    with transaction.atomic():
        ours = list(Group.objects.filter(name__startswith=prefix))
        before = set(user.groups.filter(name__startswith=prefix).values_list("name", flat=True))
        after = {group.name for group in ours} & wanted
        if before == after:
            return
        user.groups.remove(*(group for group in ours if group.name in before - after))
        user.groups.add(*(group for group in ours if group.name in after - before))
        events.record(
            "user.groups_changed", f"groups of {user} changed: {_way(proven)} says so", target=None, actor=SYSTEM,
            severity=Severity.WARNING, way=proven.source, user=user.username, added=sorted(after - before),
            removed=sorted(before - after),
        )  # fmt: skip


def _way(proven: Proven) -> str:
    return proven.source.label


def _of(proven: Proven) -> str:
    return f"{proven.name[:80]} of {_way(proven)}" if proven.name else f"somebody of {_way(proven)}"


def _unusable(proven: Proven) -> Untrusted:
    return Untrusted(
        "identity_unusable",
        f"{_of(proven)} has no name there that a user here can have",
        hint="1 to 150 letters, digits and @ . + - _; an administrator chooses where the name comes from",
    )
