"""The history for reading: filtered, paged, exported. Everybody sees the events of what they may look at."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from io import StringIO
from typing import Any, Final
from uuid import UUID

from django.db.models import Max, QuerySet
from django.utils import timezone

from inventory import events
from inventory.authorize import VIEW, Actor, authorize, visible_targets
from inventory.errors import NotFound
from inventory.models import Event, EventChain, Outcome, Severity, TargetKind
from inventory.services.event_chain import seal
from inventory.services.listings import FIRST, Listing, Paging, listed

BATCH: Final = 1000
"""Rows that an export reads at a time."""
COLUMNS: Final = (
    "sequence", "id", "time", "kind", "severity", "outcome", "reason", "target_kind", "target_id", "target_name",
    "actor", "source_address", "message", "data", "job_id", "plan_digest", "digest",
)  # fmt: skip
# What a spreadsheet takes for the beginning of a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


class Format(StrEnum):
    CSV = "csv"
    JSON_LINES = "jsonl"


_CONTENT_TYPES: Final = {Format.CSV: "text/csv; charset=utf-8", Format.JSON_LINES: "application/jsonl"}


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events; what is left out does not count. `since` is part of the range, `until` is not; `after` is an id.

    `kind` that ends with a dot stands for all that begin so (`vm.`). `target_name`: the whole name that the object had.
    """

    since: datetime | None = None
    until: datetime | None = None
    after: int | None = None
    kind: str = ""
    severity: Severity | None = None
    outcome: Outcome | None = None
    actor: str = ""
    source_address: str = ""
    target_kind: TargetKind | None = None
    target_id: UUID | None = None
    target_name: str = ""
    job_id: UUID | None = None

    @property
    def told(self) -> list[str]:
        """What was asked for, as `name=value`, for the event that an export is."""
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [f"{name}={value}" for name, value in values if value not in (None, "")]


ALL: Final = EventFilter()


@dataclass(frozen=True, slots=True)
class Export:
    """A file that is written while it is read."""

    name: str
    content_type: str
    chunks: Iterator[str]


def event_list(*, actor: Actor, wanted: EventFilter = ALL, paging: Paging = FIRST) -> Listing[Event]:
    """The newest first. Two queries."""
    authorize(actor, VIEW)
    return listed(_matching(wanted, actor), paging)


def event(*, event_id: int, actor: Actor) -> Event:
    authorize(actor, VIEW)
    found = visible_targets(Event.objects.all(), actor).filter(pk=event_id).first()
    if found is None:
        raise NotFound("event_not_found", f"there is no event {event_id}")
    return found


def export_events(*, actor: Actor, wanted: EventFilter = ALL, form: Format = Format.CSV) -> Export:
    """Exactly the events that `event_list` shows now, the oldest first, all of them sealed. It is an event itself."""
    authorize(actor, VIEW)
    seal()
    last = Event.objects.aggregate(last=Max("id"))["last"] or 0
    events.record(
        "audit.events_exported", f"{actor.username} exported events", target=None, actor=actor, format=form.value,
        filters=wanted.told,
    )  # fmt: skip
    rows = _matching(wanted, actor).filter(id__lte=last)
    chunks = _csv(rows) if form is Format.CSV else _json_lines(rows)
    return Export(f"bartizan-events-{timezone.now():%Y%m%dT%H%M%SZ}.{form.value}", _CONTENT_TYPES[form], chunks)


def seal_state(*, actor: Actor) -> EventChain:
    """How far the history is sealed and signed."""
    authorize(actor, VIEW)
    return EventChain.objects.filter(pk=1).first() or EventChain(pk=1)


def _matching(wanted: EventFilter, actor: Actor) -> QuerySet[Event]:
    conditions: dict[str, Any] = {
        "time__gte": wanted.since,
        "time__lt": wanted.until,
        "id__gt": wanted.after,
        "severity": wanted.severity if wanted.severity != Severity.INFO else None,
        "outcome": wanted.outcome if wanted.outcome != Outcome.SUCCESS else None,
        "actor": wanted.actor or None,
        "source_address": wanted.source_address or None,
        "target_id": wanted.target_id,
        "target_name": wanted.target_name or None,
        "job_id": wanted.job_id,
        # The index on objects begins with their kind.
        "target_kind__in": TargetKind.values if wanted.target_id is not None else None,
        "target_kind": wanted.target_kind,
        "kind__startswith" if wanted.kind.endswith(".") else "kind": wanted.kind or None,
    }
    rows = Event.objects.filter(**{name: value for name, value in conditions.items() if value is not None})
    # What nearly every event is, asked for so that SQLite, which has no statistics, leaves its index alone.
    if wanted.severity == Severity.INFO:
        rows = rows.exclude(severity__in=[Severity.WARNING, Severity.ERROR])
    if wanted.outcome == Outcome.SUCCESS:
        rows = rows.exclude(outcome__in=[Outcome.FAILURE, Outcome.DENIED])
    return visible_targets(rows, actor)


def _batches(rows: QuerySet[Event]) -> Iterator[list[Event]]:
    """By id rather than by a cursor: nothing is held open in the database while somebody's download is slow."""
    last = 0
    while batch := list(rows.filter(id__gt=last).order_by("id")[:BATCH]):
        yield batch
        last = batch[-1].id


def _values(row: Event) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in COLUMNS}
    for name in ("target_id", "job_id"):
        values[name] = None if values[name] is None else str(values[name])
    return values | {"time": row.time.isoformat()}


def _json_lines(rows: QuerySet[Event]) -> Iterator[str]:
    for batch in _batches(rows):
        yield "".join(json.dumps(_values(row)) + "\n" for row in batch)


def _csv(rows: QuerySet[Event]) -> Iterator[str]:
    """RFC 4180; `data` as JSON in its cell."""
    buffer = StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for batch in _batches(rows):
        for row in batch:
            values = _values(row) | {"data": json.dumps(row.data, sort_keys=True)}
            writer.writerow([_cell(values[name]) for name in COLUMNS])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    if buffer.getvalue():
        yield buffer.getvalue()


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
