"""Somebody's phone: the key of a second factor, and its codes by a clock that the tests set."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django_otp.oath import TOTP

from console import second_factor, totp_key
from encryption.engine.secret import Secret

PASSWORD = "correct horse battery staple"


@dataclass(slots=True)
class Clock:
    """In the place of django.utils.timezone, for what looks at codes."""

    time: datetime = datetime(2026, 11, 23, 12, 0, 10, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@dataclass(slots=True)
class Phone:
    clock: Clock
    key: Secret = field(default_factory=lambda: Secret(b"12345678901234567890"))
    recovery_codes: tuple[str, ...] = ()

    def code(self) -> str:
        """What it shows now."""
        totp = TOTP(self.key.reveal())
        totp.time = self.clock.now().timestamp()
        return f"{totp.token():06}"

    def next_code(self) -> str:
        """What it shows when another half a minute has gone by."""
        self.clock.advance(totp_key.STEP_SECONDS)
        return self.code()

    def wrong_code(self) -> str:
        return f"{(int(self.code()) + 1) % 1000000:06}"


def clock_for(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(second_factor, "timezone", clock)
    return clock


def enrolled(user: User, clock: Clock) -> Phone:
    """The user's phone, set up; its present code is used up."""
    phone = Phone(clock)
    ticket = second_factor._ticket_of(phone.key, user)
    phone.recovery_codes = second_factor.enrol(ticket=ticket, code=phone.code(), actor=user)
    return phone
