"""Second factors of local users: set up, asked for at a login, given up, taken away.

A local user is one with a password of this console's own. Whoever logs in at a provider elsewhere has none here, and
what that provider asks for is its own matter. Wrong codes and passwords are counted with the user: each in a row
doubles the time until the next one is looked at, from a second to an hour, from whatever address it comes.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.core import signing
from django.db import IntegrityError, transaction
from django.utils import timezone

from console import totp_key
from console.models import SecondFactor
from encryption.engine import drbg
from encryption.engine.secret import Secret
from inventory import events
from inventory.authorize import OWN, SYSTEM, Actor, System, authorize
from inventory.errors import Conflict, Invalid, NotFound, Refused
from inventory.models import Outcome, Severity

REMOVE: Final = "console.remove_second_factor"
N_RECOVERY_CODES: Final = 10
RECOVERY_BITS: Final = 100  # 20 characters of Base32
LONGEST_WAIT: Final = 3600  # seconds
TICKET_SECONDS: Final = 15 * 60
_TICKET_SALT: Final = "console.second_factor.ticket"


class Factor(StrEnum):
    """What a login was completed with."""

    TOTP = "totp"
    RECOVERY_CODE = "recovery_code"


@dataclass(frozen=True, slots=True)
class State:
    """Of one's own account. `enrolled_at` None: there is no second factor."""

    is_local: bool
    is_required: bool
    enrolled_at: datetime | None
    recovery_codes_left: int


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A key that is kept nowhere yet. `key` is Base32, `uri` what the QR code says; `ticket` is the key once more,
    sealed, and brings it back with the code that confirms it."""

    key: str = field(repr=False)
    uri: str = field(repr=False)
    ticket: str = field(repr=False)


def state_of(*, actor: User) -> State:
    authorize(actor, OWN)
    row = SecondFactor.objects.filter(user=actor).first()
    return State(
        is_local=actor.has_usable_password(),
        is_required=settings.SECOND_FACTOR == "required",
        enrolled_at=row.enrolled_at if row else None,
        recovery_codes_left=len(row.recovery_digests) if row else 0,
    )


def begin_enrolment(*, place: str, actor: User, ticket: str = "") -> Enrolment:
    """A fresh key, or the one of a ticket that still holds. Nothing is kept. `place`: the console's name for people.

    Raises Conflict (`second_factor_of_provider`, `second_factor_enrolled`).
    """
    authorize(actor, OWN)
    _check_may_enrol(actor)
    key = _key_in(ticket, actor) or totp_key.generate()
    return Enrolment(
        totp_key.text_of(key), totp_key.uri_of(key, username=actor.username, place=place), _ticket_of(key, actor)
    )


def enrol(*, ticket: str, code: str, actor: User, now: datetime | None = None) -> tuple[str, ...]:
    """From now on the actor's logins ask for a code. Returns the recovery codes, which are shown this once.

    `code` proves that the authenticator has the ticket's key. Raises Invalid (`enrolment_ended`, `code_wrong`),
    Conflict as `begin_enrolment`.
    """
    authorize(actor, OWN)
    now = now or timezone.now()
    _check_may_enrol(actor)
    key = _key_in(ticket, actor)
    if key is None:
        raise Invalid("enrolment_ended", "this key was shown too long ago", hint="begin anew with a fresh key")
    step = totp_key.matching_step(key, _compact(code), now=now, after=-1)
    if step is None:
        raise Invalid(
            "code_wrong", "the code does not belong to this key", hint="look at the clock of your authenticator"
        )
    codes = _new_codes()
    try:
        with transaction.atomic():
            SecondFactor.objects.create(
                user=actor,
                key_sealed=totp_key.seal(key, secret_key=settings.SECRET_KEY, context=_context(actor)),
                last_step=step,
                recovery_digests=[_digest(one) for one in codes],
                enrolled_at=now,
            )
            _record("second_factor.enrolled", f"{actor} set up a second factor", actor, actor)
    except IntegrityError as exc:  # in another window at the same time
        raise _enrolled(actor) from exc
    return codes


def renew_recovery_codes(*, password: str, code: str, actor: User, now: datetime | None = None) -> tuple[str, ...]:
    """Ten new ones; those of before end. Raises Refused (`code_refused`, `second_factor_locked`), Conflict
    (`second_factor_missing`, `second_factor_unreadable`)."""
    authorize(actor, OWN)
    _check_again(actor, password, code, now or timezone.now())
    codes = _new_codes()
    with transaction.atomic():
        SecondFactor.objects.filter(user=actor).update(recovery_digests=[_digest(one) for one in codes])
        _record("second_factor.recovery_codes_made", f"{actor} made new recovery codes", actor, actor)
    return codes


def remove_own(*, password: str, code: str, actor: User, now: datetime | None = None) -> None:
    """Raises as `renew_recovery_codes`."""
    authorize(actor, OWN)
    _check_again(actor, password, code, now or timezone.now())
    _remove(actor, actor)


def remove(*, username: str, actor: Actor) -> None:
    """Takes it from somebody who has lost it. Raises NotFound (`user_not_found`), Conflict (`second_factor_missing`),
    Refused (`not_permitted`, `own_second_factor`)."""
    authorize(actor, REMOVE)
    user = User.objects.filter(username=username).first()
    if user is None:
        raise NotFound("user_not_found", f"there is no user {username[:80]}")
    if user == actor:
        raise Refused(
            "own_second_factor", "your own second factor is not removed in this way",
            hint="use Second Factor in the user menu, which asks for password and code, or ask another administrator",
        )  # fmt: skip
    _remove(user, actor)


def remove_for_command(*, username: str) -> None:
    """For the command line: where the last administrator has lost it."""
    remove(username=username, actor=SYSTEM)


def is_enrolled(user: User) -> bool:
    return SecondFactor.objects.filter(user=user).exists()


def must_enrol(user: User | AnonymousUser) -> bool:
    """Whether the operator asks for what this user does not have. One query, and none where nothing is asked for."""
    if settings.SECOND_FACTOR != "required" or isinstance(user, AnonymousUser):
        return False
    return user.has_usable_password() and not is_enrolled(user)


def check_login(*, user: User, code: str, now: datetime | None = None) -> Factor:
    """What follows the right password. A code that was right is used up.

    Raises Refused (`code_refused`, `second_factor_locked`), Conflict (`second_factor_missing`,
    `second_factor_unreadable`).
    """
    return _check(user, code, now or timezone.now(), is_password_right=True)


def _check_again(user: User, password: str, code: str, now: datetime) -> None:
    """Of somebody who is logged in already: an open window is not enough for what weakens the account."""
    try:
        _check(user, code, now, is_password_right=user.check_password(password))
    except Refused as exc:
        events.record(
            "second_factor.check_failed", f"{user}: password or code was wrong", target=None, actor=user,
            severity=Severity.WARNING, outcome=Outcome.DENIED, code=exc.code,
        )  # fmt: skip
        raise


def _check(user: User, code: str, now: datetime, *, is_password_right: bool) -> Factor:
    """The row stays locked from the look at its counter to the new one, so that guesses at once are no more guesses."""
    with transaction.atomic():
        row = SecondFactor.objects.select_for_update().filter(user=user).first()
        if row is None:
            raise _missing(user)
        wait = _wait(row, now)
        found = None
        if wait == timedelta():
            found = _taken(row, user, _compact(code), now) if is_password_right else None
            row.failures, row.failed_at = (0, None) if found else (row.failures + 1, now)
            row.save()
        if found is Factor.RECOVERY_CODE:
            left = len(row.recovery_digests)
            events.record(
                "second_factor.recovery_code_used", f"{user} used a recovery code, {left} are left", target=None,
                actor=user, severity=Severity.WARNING, left=left,
            )  # fmt: skip
    if wait > timedelta():
        seconds = int(wait.total_seconds()) + 1
        raise Refused(
            "second_factor_locked", f"there were too many wrong codes of {user}",
            hint=f"wait {f'{seconds} seconds' if seconds < 120 else f'{seconds // 60 + 1} minutes'} and try again",
        )  # fmt: skip
    if found is None:
        what = "the code is wrong, or was used before" if is_password_right else "the password or the code is wrong"
        raise Refused("code_refused", what, hint="take the next code that your authenticator shows")
    return found


def _taken(row: SecondFactor, user: User, code: str, now: datetime) -> Factor | None:
    """Uses the code up in the row, which the caller saves."""
    digest = _digest(code)
    if digest in row.recovery_digests:
        row.recovery_digests.remove(digest)
        return Factor.RECOVERY_CODE
    if len(code) != totp_key.DIGITS:
        return None
    try:
        key = totp_key.unseal(bytes(row.key_sealed), secret_key=settings.SECRET_KEY, context=_context(user))
    except totp_key.DoesNotOpen as exc:
        raise Conflict(
            "second_factor_unreadable", f"the second factor of {user} was sealed under another secret key",
            hint="log in with a recovery code, or have an administrator remove the second factor",
        ) from exc  # fmt: skip
    step = totp_key.matching_step(key, code, now=now, after=row.last_step)
    if step is None:
        return None
    row.last_step = step
    return Factor.TOTP


def _wait(row: SecondFactor, now: datetime) -> timedelta:
    if row.failed_at is None:
        return timedelta()
    seconds = min(2 ** min(row.failures - 1, 20), LONGEST_WAIT)
    return max(row.failed_at + timedelta(seconds=seconds) - now, timedelta())


@transaction.atomic
def _remove(user: User, by: User | AnonymousUser | System) -> None:
    n_removed, _ = SecondFactor.objects.filter(user=user).delete()
    if not n_removed:
        raise _missing(user)
    _record("second_factor.removed", f"The second factor of {user} was removed", user, by, Severity.WARNING)


def _record(kind: str, text: str, user: User, by: Actor, severity: Severity = Severity.INFO) -> None:
    events.record(kind, text, target=None, actor=by, severity=severity, user=user.username)


def _check_may_enrol(user: User) -> None:
    if not user.has_usable_password():
        raise Conflict(
            "second_factor_of_provider", f"{user} has no password here",
            hint="the provider that you log in at asks for a second factor, or does not",
        )  # fmt: skip
    if is_enrolled(user):
        raise _enrolled(user)


def _enrolled(user: User) -> Conflict:
    return Conflict(
        "second_factor_enrolled", f"{user} has a second factor already", hint="remove it before you set up another"
    )


def _missing(user: User) -> Conflict:
    return Conflict("second_factor_missing", f"there is no second factor of {user}")


def _ticket_of(key: Secret, user: User) -> str:
    sealed = totp_key.seal(key, secret_key=settings.SECRET_KEY, context=_context(user, "ticket"))
    return signing.dumps(base64.b64encode(sealed).decode("ascii"), salt=_TICKET_SALT)


def _key_in(ticket: str, user: User) -> Secret | None:
    """None for one that is too old, somebody else's, or none at all."""
    try:
        sealed = base64.b64decode(signing.loads(ticket, salt=_TICKET_SALT, max_age=TICKET_SECONDS))
        return totp_key.unseal(sealed, secret_key=settings.SECRET_KEY, context=_context(user, "ticket"))
    except (signing.BadSignature, totp_key.DoesNotOpen):
        return None


def _context(user: User, purpose: str = "key") -> bytes:
    return f"{purpose} of user {user.pk}".encode()


def _new_codes() -> tuple[str, ...]:
    """Five characters, four times: abcde-fghij-klmno-pqrst."""
    return tuple(_grouped(drbg.draw(RECOVERY_BITS // 8 + 1)) for _ in range(N_RECOVERY_CODES))


def _grouped(drawn: bytes) -> str:
    text = base64.b32encode(drawn).decode("ascii").lower()[: RECOVERY_BITS // 5]
    return "-".join(text[start : start + 5] for start in range(0, len(text), 5))


def _compact(code: str) -> str:
    """As people write it: blanks, hyphens and capitals do not count."""
    return "".join(code.replace("-", "").split()).lower()


def _digest(code: str) -> str:
    return hashlib.sha256(_compact(code).encode()).hexdigest()
