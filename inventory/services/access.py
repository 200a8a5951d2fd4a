"""Who came in, and who asked for what they may not have, as events."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Final

from django.contrib.auth.models import Group, User
from django.utils import timezone

from inventory import events
from inventory.authorize import Refusal
from inventory.errors import ServiceError, Unavailable
from inventory.models import Event, Outcome, Severity

AGAIN_AFTER: Final = timedelta(minutes=1)
"""The same refusal is not recorded again so soon: nobody is to fill the history by asking."""
NOBODY: Final = "nobody"


class AccountChange(StrEnum):
    ADDED = "added"
    CHANGED = "changed"
    DELETED = "deleted"


def record_refusals(refusals: Iterable[Refusal], *, method: str, path: str) -> None:
    """One event for each different right that `authorize` refused to a request."""
    different = {(events.about(one.target), one.actor or NOBODY, one.action): one for one in refusals}
    for (subject, actor, action), refusal in different.items():
        if _is_told("access.denied", actor, target_id=subject.id, target_name=subject.name, reason=action):
            continue
        what = "" if refusal.target is None else f" on {subject.name}"
        events.record(
            "access.denied", f"{actor} may not {action}{what}", target=subject, actor=actor,
            severity=Severity.WARNING, outcome=Outcome.DENIED, reason=action, method=method[:10], path=path[:200],
        )  # fmt: skip


def record_login(user: User, *, way: str, second_factor: str | None = None) -> None:
    """`second_factor`: what came after the password, if something did."""
    events.record("user.logged_in", f"{user} logged in", target=None, actor=user, way=way, second_factor=second_factor)


def record_logout(user: User) -> None:
    events.record("user.logged_out", f"{user} logged out", target=None, actor=user)


def record_login_failed(username: str, *, way: str, is_locked: bool = False) -> None:
    """`username` as it was typed. One that is not a user's is not kept: it may be a password in the wrong field."""
    is_known = "\0" not in username and User.objects.filter(username=username[:150]).exists()
    actor = username if is_known else NOBODY
    who = actor if is_known else "somebody unknown"
    _record_login_failed(actor, who, way=way, code="locked" if is_locked else "wrong_credentials", is_locked=is_locked)


def record_code_refused(user: User, *, way: str, code: str, is_locked: bool = False) -> None:
    """The password was right, the second factor was not, for the reason `code`."""
    _record_login_failed(user.username, user.username, way=way, code=code, is_locked=is_locked)


def _record_login_failed(actor: str, who: str, *, way: str, code: str, is_locked: bool) -> None:
    kind = "user.login_failed"
    if is_locked and _is_told(kind, actor, reason=code, source_address=events.source_address()):
        return
    words = "is locked out after too many attempts" if is_locked else "failed to log in"
    events.record(
        kind, f"{who} {words}", target=None, actor=actor, severity=Severity.WARNING, outcome=Outcome.DENIED, way=way,
        code=code,
    )  # fmt: skip


def record_login_refused(error: ServiceError, *, way: str) -> None:
    """Somebody who is known elsewhere did not get in. What is said of them there is no user's name here, so nobody is
    the actor: not he whose name they bear."""
    kind, failed = "user.login_failed", isinstance(error, Unavailable)
    if not _is_told(kind, NOBODY, reason=error.code, message=error.message, source_address=events.source_address()):
        events.record(
            kind, error.message, target=None, actor=NOBODY, severity=Severity.WARNING,
            outcome=Outcome.FAILURE if failed else Outcome.DENIED, way=way, code=error.code,
        )  # fmt: skip


def record_account(account: User | Group, change: AccountChange, *, actor: str, fields: Sequence[str] = ()) -> None:
    """Somebody added, changed or deleted a user or a group. `fields`: what was changed, by name; never what to."""
    noun = "user" if isinstance(account, User) else "group"
    words = f"{noun} {account} was {change}" + (f": {', '.join(fields)}" if fields else "")
    events.record(
        f"{noun}.{change}", words[0].upper() + words[1:], target=None, actor=actor,
        severity=Severity.INFO if change is AccountChange.ADDED else Severity.WARNING, account=str(account),
        fields=list(fields), is_superuser=isinstance(account, User) and account.is_superuser,
    )  # fmt: skip


def record_token_refused() -> None:
    """An API token that is none, or is over. The token itself is not kept, not even in part."""
    address = events.source_address()
    if not _is_told("api_token.refused", NOBODY, source_address=address):
        events.record(
            "api_token.refused", "An API token was refused: it is not valid, has ended or was revoked", target=None,
            actor=NOBODY, severity=Severity.WARNING, outcome=Outcome.DENIED, code="not_authenticated",
        )  # fmt: skip


def _is_told(kind: str, actor: str, **values: object) -> bool:
    since = timezone.now() - AGAIN_AFTER
    return Event.objects.filter(time__gt=since, kind=kind, actor=actor, **values).exists()
