"""One's own password, where it is one of this console. Whoever logs in at a provider elsewhere has none here."""

from datetime import timedelta
from typing import Final

from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from inventory import events
from inventory.authorize import OWN, authorize
from inventory.errors import Conflict, Invalid, Refused
from inventory.models import Event, Outcome, Severity
from inventory.services import access

N_TRIES: Final = 5
WITHIN: Final = timedelta(minutes=15)


def has_password(*, actor: User) -> bool:
    """Whether the actor has one here."""
    authorize(actor, OWN)
    return actor.has_usable_password()


def change_password(*, current: str, new: str, actor: User) -> User:
    """Ends the actor's other sessions; the caller keeps its own by `update_session_auth_hash`. API tokens stay.

    `current` because an open window is not enough to take an account over; wrong ones are counted, from whatever
    address. Raises Conflict `password_of_provider`, Refused (`password_wrong`, `password_locked`), Invalid
    `password_weak`.
    """
    if not has_password(actor=actor):
        raise Conflict(
            "password_of_provider", f"{actor} has no password here",
            hint="change it at the provider or directory that you log in at",
        )  # fmt: skip
    with transaction.atomic():  # the row stays locked, so that guesses at once are no more guesses
        user = User.objects.select_for_update().get(pk=actor.pk)
        since = timezone.now() - WITHIN
        refused = Event.objects.filter(kind="user.password_refused", actor=user.username, time__gt=since)
        if refused.count() >= N_TRIES:
            raise Refused(
                "password_locked", f"there were too many wrong passwords of {user}", hint="try again in 15 minutes"
            )
        if is_right := user.check_password(current):
            _set(user, new)
        else:
            events.record(
                "user.password_refused", f"{user} gave a wrong password when changing it", target=None, actor=user,
                severity=Severity.WARNING, outcome=Outcome.DENIED, code="password_wrong",
            )  # fmt: skip
    if not is_right:
        raise Refused("password_wrong", "the present password is wrong", hint="type the one that you logged in with")
    return user


def _set(user: User, new: str) -> None:
    try:
        validate_password(new, user)
    except ValidationError as exc:
        raise Invalid("password_weak", " ".join(exc.messages), hint="choose another one") from exc
    user.set_password(new)
    user.save(update_fields=["password"])
    access.record_account(user, access.AccountChange.CHANGED, actor=user.username, fields=["password"])
