"""Jobs, events, checkpoints and alarms; what the search and the trees find."""

from datetime import datetime
from typing import Any, Self
from uuid import UUID

from ninja import Schema

from inventory import jobs
from inventory.api.frame import PageOut
from inventory.api.schemas.common import Target
from inventory.models import Alarm, Event, Job, JobStatus, Outcome, Severity, TargetKind
from inventory.services.checkpoints import Signed


class JobOut(Schema):
    """One long operation: `done` of `total` units of the present `step`.

    `percent` is empty where the total is not known. Ask again until `is_live` is false.
    `approved_by`: the second person, of one that waited for approval.
    """

    id: UUID
    kind: str
    label: str
    target: Target
    actor: str
    status: JobStatus
    is_live: bool
    step: str
    done: int
    total: int
    percent: int | None
    error_code: str
    message: str
    approved_by: str
    cancel_requested: bool
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, row: Job) -> Self:
        return cls.model_validate(
            {name: getattr(row, name) for name in cls.model_fields if name not in {"label", "target"}}
            | {"label": jobs.label(row), "target": Target.of(row)}
        )


class EventOut(Schema):
    """One line of history. `sequence` and `digest` are its seal, given within seconds (docs/events.md)."""

    id: int
    sequence: int | None
    time: datetime
    kind: str
    severity: Severity
    outcome: Outcome
    reason: str
    target: Target
    actor: str
    source_address: str
    message: str
    data: dict[str, Any]
    job_id: UUID | None
    plan_digest: str
    digest: str

    @classmethod
    def of(cls, row: Event) -> Self:
        return cls.model_validate(
            {name: getattr(row, name) for name in cls.model_fields if name != "target"} | {"target": Target.of(row)}
        )


class CheckpointOut(Schema):
    """A signature over the history: `events` of them, of which the last has `digest`. `text` is what to keep elsewhere;
    `key` is the fingerprint of the key that signed."""

    at: datetime
    events: int
    digest: str
    key: str
    text: str

    @classmethod
    def of(cls, row: Signed) -> Self:
        one = row.checkpoint
        return cls(at=row.at, events=one.sequence, digest=one.digest, key=one.key, text=one.text)


class AlarmOut(Schema):
    """A state that needs somebody. `cleared_at` is null while it lasts; `evidence`: lines that show what was seen."""

    id: UUID
    kind: str
    severity: Severity
    target: Target
    message: str
    remedy: str
    evidence: list[str]
    raised_at: datetime
    seen_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str
    cleared_at: datetime | None

    @classmethod
    def of(cls, row: Alarm) -> Self:
        return cls.model_validate(
            {name: getattr(row, name) for name in cls.model_fields if name != "target"} | {"target": Target.of(row)}
        )


class JobPage(PageOut):
    items: list[JobOut]


class AlarmPage(PageOut):
    items: list[AlarmOut]


class EventPage(PageOut):
    items: list[EventOut]


class NodeOut(Schema):
    """A line of a tree; `words` tell its state."""

    kind: TargetKind
    id: UUID
    name: str
    has_children: bool
    words: str
    is_encrypted: bool
    warns: bool


class ChildrenOut(Schema):
    """At most as many `nodes` as were asked for, of `total`."""

    nodes: list[NodeOut]
    total: int


class HitOut(Schema):
    """An object that was found; `detail` tells where it is."""

    kind: TargetKind
    id: UUID
    name: str
    detail: str
