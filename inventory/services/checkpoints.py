"""Signed checkpoints of the history: with each, the console vouches for all events before.

A checkpoint is an event itself, so it goes to the log collectors like any other. Somebody who can write the database
can rebuild the chain but not the signatures; somebody who removes the checkpoints too is found by one that was kept
elsewhere (services/verification.py).
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from celery import current_app
from django.db import transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from inventory import events
from inventory.authorize import SYSTEM, VIEW, Actor, authorize, visible_targets
from inventory.engine.checkpoint import Checkpoint, find_all
from inventory.engine.event_chain import START, Damage, Finding, Verifier
from inventory.errors import ServiceError, Unavailable
from inventory.models import Event, EventChain, Outcome, Severity
from inventory.services import audit_key
from inventory.services.event_chain import recorded, seal

log = logging.getLogger(__name__)

SIGN: Final = "inventory.sign_events"
TASK: Final = "inventory.sign_checkpoint_now"
KIND: Final = "audit.checkpoint"
EVERY_EVENTS: Final = 1000
EVERY: Final = timedelta(minutes=10)
CHUNK: Final = 2000
SHOWN: Final = 5
MOST_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint as the history has it. Whether its signature holds is not looked at; `verification.verify` does."""

    at: datetime
    checkpoint: Checkpoint


def latest(*, actor: Actor, limit: int = SHOWN) -> tuple[Signed, ...]:
    """The newest first, at most `limit` (1 to 100), for those who see the console's own events. What stands in an event
    of that kind and is none is left out."""
    authorize(actor, VIEW)
    rows = visible_targets(Event.objects.filter(kind=KIND), actor).order_by("-id")[: max(1, min(limit, MOST_SHOWN))]
    return tuple(Signed(row.time, one) for row in rows for one in find_all(row.message)[:1])


def request_checkpoint(*, actor: Actor) -> None:
    """Has a worker sign now; `audit.checkpoint` or `audit.checkpoint_failed` follows in the history.

    Raises Unavailable `broker_unreachable`.
    """
    authorize(actor, SIGN)
    events.record("audit.checkpoint_requested", "A checkpoint of the history was asked for", target=None, actor=actor)
    try:
        current_app.send_task(TASK, args=[], queue="control", retry=False)
    except (OSError, OperationalError) as exc:
        log.warning("the broker did not take the wish for a checkpoint (%s)", type(exc).__name__)
        raise Unavailable(
            "broker_unreachable", "no worker can be asked for a checkpoint: the broker does not answer",
            hint="see /readyz; when it is back, a worker signs by itself within ten minutes",
        ) from exc  # fmt: skip


def sign_asked() -> None:
    """Worker side of `request_checkpoint`: what keeps it from signing becomes an event."""
    try:
        sign(actor=SYSTEM)
    except ServiceError as exc:
        events.record(
            "audit.checkpoint_failed", f"No checkpoint of the history was signed: {exc}", target=None, actor=SYSTEM,
            severity=Severity.ERROR, code=exc.code,
        )  # fmt: skip


def sign_if_due(now: datetime | None = None) -> bool:
    """Worker side: a checkpoint after 1,000 new events, or for new ones after ten minutes. Whether one was made."""
    now = now or timezone.now()
    seal()
    head = EventChain.objects.get(pk=1)
    # The last checkpoint's own event is not news.
    news = head.sequence - head.signed_sequence - (1 if head.signed_sequence else 0)
    is_late = head.signed_at is None or now - head.signed_at >= EVERY
    if news < 1 or (news < EVERY_EVENTS and not is_late):
        return False
    return sign(actor=SYSTEM, now=now) is not None


def sign(*, actor: Actor, now: datetime | None = None) -> Checkpoint | None:
    """A checkpoint of the last sealed event; None where there is none, or another process has signed at the same time.

    The events since the last one are walked first: what does not fit is told at once (`audit.chain_broken`). It is
    signed all the same, because a checkpoint says what the chain is now, and damage stays visible to `verify`.
    Raises Unavailable `console_key_missing`, Conflict `audit_key_sealed_otherwise`.
    """
    authorize(actor, SIGN)
    now = now or timezone.now()
    key = audit_key.current()
    seal()
    head = EventChain.objects.get(pk=1)
    if head.sequence == 0:
        return None
    findings = _since_signed(head)
    unsigned = Checkpoint.unsigned(head.sequence, head.digest, now, key.fingerprint)
    signed = Checkpoint(
        unsigned.sequence, unsigned.digest, unsigned.at, unsigned.key, audit_key.sign(key, unsigned.signed_bytes)
    )
    with transaction.atomic():
        same = EventChain.objects.filter(pk=1, signed_sequence=head.signed_sequence)
        if not same.update(signed_sequence=head.sequence, signed_digest=head.digest, signed_at=now):
            return None
        if findings:
            words = "; ".join(finding.text for finding in findings[:5])
            events.record(
                "audit.chain_broken", f"The history does not fit its chain: {words}", target=None, actor=SYSTEM,
                severity=Severity.ERROR, outcome=Outcome.FAILURE, code=findings[0].damage.value,
                first=findings[0].first, last=findings[-1].last,
            )  # fmt: skip
        events.record(
            KIND, f"Checkpoint of the history: {signed.text}", target=None, actor=SYSTEM, events=signed.sequence,
            key=signed.key,
        )  # fmt: skip
    return signed


def _since_signed(head: EventChain) -> tuple[Finding, ...]:
    """What is wrong with the events behind the last checkpoint, and with the event that it vouches for."""
    after, previous = head.signed_sequence, head.signed_digest or START
    found: tuple[Finding, ...] = ()
    if after and not Event.objects.filter(sequence=after, digest=previous).exists():
        found = (Finding(Damage.ALTERED, after, after),)
    walk = Verifier(after=after, previous=previous)
    rows = Event.objects.filter(sequence__gt=after, sequence__lte=head.sequence).order_by("sequence")
    for row in rows.iterator(CHUNK):
        walk.add(recorded(row))
    walk.end(head.sequence)
    return found + walk.findings
