"""API tokens: made for a user, shown once, found again by their digest, revoked.

A token has its user's rights at the time it is used, or those of them that were chosen for it, never more. It ends with
the user, on its day, or when it is revoked.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from console.models import ApiToken
from inventory import events
from inventory.authorize import OWN, ROLES, SYSTEM, Privilege, Role, System, authorize, limit
from inventory.errors import Conflict, Invalid, NotFound

MARK: Final = "bartizan_"  # lets secret scanners recognise a token that has got into a repository
SHOWN: Final = 6  # characters kept in clear; 36 of 256 bits
TOKEN_BYTES: Final = 32
MOST_TOKENS: Final = 50
MOST_DAYS: Final = 365
USED_EVERY: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token in clear, for the one answer that shows it."""

    row: ApiToken
    token: str = field(repr=False)


def create_token(
    *,
    user: User,
    name: str,
    days: int,
    actor: User | System,
    role: str = "",
    privileges: Sequence[str] = (),
    now: datetime | None = None,
) -> NewToken:
    """A token of `user` that ends after `days` (1 to 365). Users make their own; the command line makes anybody's.

    `role`, `privileges`: it has at most what the role holds and these; neither: all that its user holds.
    Raises Invalid (`name_invalid`, `days_invalid`, `role_unknown`, `privilege_unknown`), Conflict (`name_taken`,
    `too_many_tokens`), Refused.
    """
    authorize(actor, OWN if actor == user else "console.create_api_token", user)
    name = name.strip()
    if not name or len(name) > 80 or not name.isprintable():
        raise Invalid("name_invalid", "a name has 1 to 80 printable characters", hint="choose another name")
    if not 1 <= days <= MOST_DAYS:
        raise Invalid("days_invalid", f"a token lasts 1 to {MOST_DAYS} days", hint="make a new one when it has ended")
    if ApiToken.objects.filter(user=user).count() >= MOST_TOKENS:
        raise Conflict("too_many_tokens", f"{user} has {MOST_TOKENS} API tokens", hint="revoke those not in use")
    chosen = _chosen(role, privileges)
    token = MARK + secrets.token_urlsafe(TOKEN_BYTES)
    try:
        with transaction.atomic():
            row = ApiToken.objects.create(
                user=user,
                name=name,
                prefix=token[: len(MARK) + SHOWN],
                sha256=_digest(token),
                privileges=chosen,
                expires_at=(now or timezone.now()) + timedelta(days=days),
            )
            events.record(
                "api_token.created", f"API token {name} of {user} created", target=None, actor=actor,
                user=user.username, expires=row.expires_at.isoformat(), privileges=chosen,
            )  # fmt: skip
    except IntegrityError as exc:
        raise Conflict("name_taken", f"{user} has an API token {name} already", hint="choose another name") from exc
    return NewToken(row, token)


def tokens_of(*, actor: User) -> QuerySet[ApiToken]:
    """The actor's own tokens, the newest first. Nobody sees another's."""
    authorize(actor, OWN)
    return ApiToken.objects.filter(user=actor)


def token_of(*, token_id: UUID, actor: User) -> ApiToken:
    found = tokens_of(actor=actor).filter(pk=token_id).first()
    if found is None:
        raise NotFound("api_token_not_found", f"{actor} has no API token {token_id}")
    return found


def revoke_token(*, token_id: UUID, actor: User) -> None:
    """Ends one of the actor's own tokens at once. Raises NotFound."""
    row = token_of(token_id=token_id, actor=actor)
    with transaction.atomic():
        row.delete()
        events.record(
            "api_token.revoked", f"API token {row.name} of {actor} revoked", target=None, actor=actor,
            user=actor.username,
        )  # fmt: skip


def user_of(token: str, *, now: datetime | None = None) -> User | None:
    """Whose token it is; None where it is none, has ended, or its user may not log in. One or two queries.

    When it was last used is noted at most once a minute. The digest is looked up by equality: how long that takes
    tells nothing about a token of 256 random bits.
    """
    now = now or timezone.now()
    if not token.startswith(MARK) or len(token) > 100:
        return None
    rows = ApiToken.objects.filter(sha256=_digest(token), expires_at__gt=now, user__is_active=True)
    row = rows.select_related("user").first()
    if row is None:
        return None
    if row.last_used_at is None or row.last_used_at <= now - USED_EVERY:
        unused = Q(last_used_at=None) | Q(last_used_at__lte=now - USED_EVERY)
        ApiToken.objects.filter(unused, pk=row.pk).update(last_used_at=now)
    if row.privileges is not None:
        limit(row.user, frozenset(one for one in Privilege if one.value in row.privileges))
    return row.user


def _chosen(role: str, privileges: Sequence[str]) -> list[str] | None:
    """Sorted names; None where nothing was chosen."""
    if not role and not privileges:
        return None
    if role and role not in set(Role):
        raise Invalid("role_unknown", f"there is no role {role[:40]}", hint=f"one of {', '.join(Role)}")
    unknown = [one for one in privileges if one not in set(Privilege)]
    if unknown:
        raise Invalid("privilege_unknown", f"there is no privilege {unknown[0][:60]}", hint="see Roles for their names")
    held = ROLES[Role(role)] if role else frozenset()
    return sorted({*(one.value for one in held), *privileges})


def create_token_for(*, username: str, name: str, days: int, role: str = "") -> NewToken:
    """For the command line. Raises NotFound `user_not_found`, Conflict `user_inactive`."""
    user = User.objects.filter(username=username).first()
    if user is None:
        raise NotFound("user_not_found", f"there is no user {username}")
    if not user.is_active:
        raise Conflict("user_inactive", f"{username} may not log in", hint="activate the user first")
    return create_token(user=user, name=name, days=days, role=role, actor=SYSTEM)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
