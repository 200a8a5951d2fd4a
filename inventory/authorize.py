"""May this actor do that? Every service asks here, and nowhere else is decided.

Today: an administrator (Django's `is_superuser`) may do everything, every other active user may look. Roles with single
privileges come later behind the same question.
"""

from dataclasses import dataclass
from typing import Final

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Model

from inventory.errors import Refused


@dataclass(frozen=True, slots=True)
class System:
    """The product itself as an actor: the schedule, the event listener, the lab's registration."""

    username: str = "Bartizan"


SYSTEM: Final = System()
Actor = User | AnonymousUser | System

VIEW: Final = "view"


def may(actor: Actor, action: str, target: Model | None = None) -> bool:
    """Whether `actor` holds the right; `action` is VIEW or "<app>.<verb>_<noun>"."""
    if isinstance(actor, System):
        return True
    return actor.is_active and (actor.is_superuser or action == VIEW)


def authorize(actor: Actor, action: str, target: Model | None = None) -> None:
    """Refuses (`not_permitted`) where `may` says no."""
    if not may(actor, action, target):
        what = f" on {target}" if target is not None else ""
        raise Refused(
            "not_permitted",
            f"{actor.username or 'nobody'} may not {action}{what}",
            hint="ask an administrator of this console for the right",
        )
