"""Is the history what it was? Walks all sealed events and compares them with the signed checkpoints. Writes nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.db.models import Max
from django.utils import timezone

from inventory.authorize import VIEW_ALL, Actor, authorize
from inventory.engine.checkpoint import BadKey, Checkpoint, find_all, is_signed
from inventory.engine.event_chain import Damage, Verifier
from inventory.models import AuditKey, Event, EventChain
from inventory.services import audit_key
from inventory.services.checkpoints import CHUNK, KIND
from inventory.services.event_chain import recorded

UNSIGNED_FOR: Final = timedelta(hours=1)
"""Sealed events that no checkpoint vouches for after so long are told: workers stood still, or checkpoints are gone."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that `verify` found; `code` is stable. `first` and `last` number events, 0 where it is about none."""

    code: str
    text: str
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """`signed_to`: up to which event a checkpoint vouches whose signature holds. `keys`: fingerprints that were
    believed; `are_keys_proven`: by the console key or by the caller, who named them."""

    events: int
    last: int
    checkpoints: int
    signed_to: int
    keys: tuple[str, ...]
    are_keys_proven: bool
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A checkpoint, and where it was found."""

    place: str
    checkpoint: Checkpoint


def verify(
    *, actor: Actor, elsewhere: Iterable[Checkpoint] = (), trusted: Iterable[str] = (), now: datetime | None = None
) -> Report:
    """Any change, removal, insertion or other order of sealed events is a problem in the report.

    `elsewhere`: checkpoints that were kept outside of the database. `trusted`: fingerprints of keys known from outside;
    without them those are believed that the console key has sealed, or all where this process has no console key.
    NOT found: what was false before it was sealed; and, without `elsewhere`, a history that was rebuilt, its
    checkpoints removed and the rest signed anew by a worker that knew nothing.
    """
    authorize(actor, VIEW_ALL)
    last = Event.objects.aggregate(last=Max("sequence"))["last"] or 0
    head = EventChain.objects.filter(pk=1).first() or EventChain(pk=1)
    keys, problems = _believed(frozenset(trusted))
    placed, unreadable = _recorded_checkpoints()
    problems += unreadable
    placed += [_Placed("what was kept elsewhere", one) for one in elsewhere]
    good: list[_Placed] = []
    for one in placed:
        if _is_good(one.checkpoint, keys):
            good.append(one)
        else:
            text = f"the checkpoint of event {one.checkpoint.sequence} in {one.place} has no signature of this console"
            problems.append(Problem("checkpoint_forged", text))
    walk = Verifier(marks=[one.checkpoint.sequence for one in good])
    for row in Event.objects.filter(sequence__lte=last).order_by("sequence").iterator(CHUNK):
        walk.add(recorded(row))
    walk.end(max([head.sequence, *(one.checkpoint.sequence for one in good)]))
    problems += [Problem(one.damage.value, one.text, one.first, one.last) for one in walk.findings]
    if last > head.sequence:
        text = f"the chain ends at event {head.sequence}, and there are events up to {last}"
        problems.append(Problem(Damage.INSERTED.value, text, head.sequence + 1, last))
    problems += _rebuilt(good, walk.digest_at)
    signed_to = max(
        [
            0,
            *(
                one.checkpoint.sequence
                for one in good
                if walk.digest_at.get(one.checkpoint.sequence) == one.checkpoint.digest
            ),
        ]
    )
    problems += _unsigned(signed_to, last, now or timezone.now())
    proven = bool(trusted) or audit_key.has_console_key()
    return Report(walk.count, last, len(placed), signed_to, tuple(sorted(keys)), proven, tuple(dict.fromkeys(problems)))


def _believed(trusted: frozenset[str]) -> tuple[dict[str, str], list[Problem]]:
    """Public keys by fingerprint, and what is wrong with those that are not believed."""
    keys: dict[str, str] = {}
    problems = []
    for row in AuditKey.objects.all():
        if trusted:
            is_believed = row.fingerprint in trusted
        else:
            is_believed = not audit_key.has_console_key() or audit_key.is_own(row)
        if is_believed:
            keys[row.fingerprint] = row.public_pem
        else:
            problems.append(Problem("key_foreign", f"the key {row.fingerprint} is not one of this console"))
    return keys, problems


def _recorded_checkpoints() -> tuple[list[_Placed], list[Problem]]:
    placed, problems = [], []
    for row in Event.objects.filter(kind=KIND, sequence__isnull=False).order_by("sequence"):
        found, sequence = find_all(row.message), row.sequence or 0
        placed += [_Placed(f"event {sequence}", one) for one in found]
        if not found:
            problems.append(
                Problem(
                    "checkpoint_forged", f"event {sequence} holds no checkpoint that can be read", sequence, sequence
                )
            )
    return placed, problems


def _is_good(checkpoint: Checkpoint, keys: Mapping[str, str]) -> bool:
    try:
        return checkpoint.key in keys and is_signed(checkpoint, keys[checkpoint.key])
    except BadKey:
        return False


def _rebuilt(good: Iterable[_Placed], digest_at: Mapping[int, str]) -> list[Problem]:
    return [
        Problem(
            "rebuilt",
            f"the history up to event {one.checkpoint.sequence} is not the one that was signed at {one.checkpoint.at}"
            f" ({one.place})",
            1,
            one.checkpoint.sequence,
        )
        for one in good
        if digest_at.get(one.checkpoint.sequence, one.checkpoint.digest) != one.checkpoint.digest
    ]


def _unsigned(signed_to: int, last: int, now: datetime) -> list[Problem]:
    old = Event.objects.filter(sequence__gt=signed_to, sequence__lte=last, time__lt=now - UNSIGNED_FOR).exclude(
        kind=KIND
    )
    first = old.order_by("sequence").values_list("sequence", flat=True).first()
    if first is None:
        return []
    text = (
        f"no checkpoint vouches for event {first} and later ones, though they are older than an hour: workers stood"
        " still, or checkpoints were removed"
    )
    return [Problem("unsigned", text, first, last)]
