"""Routes of jobs, events, search and the trees."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from ninja import Query, Router, Schema
from pydantic import Field

from inventory.api.frame import PageQuery, Text, actor_of, page_of, streamed
from inventory.api.schemas import (
    AlarmOut,
    AlarmPage,
    CheckpointOut,
    ChildrenOut,
    EventOut,
    EventPage,
    HitOut,
    JobOut,
    JobPage,
)
from inventory.models import JobStatus, Outcome, Severity, TargetKind
from inventory.services import activity, alarms, approvals, audit_key, checkpoints, event_history, search, tree
from inventory.services.event_history import EventFilter, Format

router = Router()

MAX_ID = 2**63 - 1
Limit = Annotated[int, Field(ge=1, le=500)]


class JobQuery(PageQuery):
    """Which jobs."""

    status: JobStatus | None = None
    is_live: bool | None = Field(None, description="true: waiting, for its turn or for approval, or running")
    kind: Text = ""
    target_kind: TargetKind | None = None
    target_id: UUID | None = None


class EventFilterQuery(Schema):
    """Which events."""

    since: datetime | None = Field(None, description="of this time or later")
    until: datetime | None = Field(None, description="before this time")
    after: int | None = Field(None, ge=0, le=MAX_ID, description="only events with a greater id")
    kind: Text = Field("", description="vm.powered_on; or vm. for all that begin so")
    severity: Severity | None = None
    outcome: Outcome | None = None
    actor: Text = ""
    source_address: Text = ""
    target_kind: TargetKind | None = None
    target_id: UUID | None = None
    target_name: Text = Field("", description="the whole name that the object had")
    job_id: UUID | None = None

    def wanted(self) -> EventFilter:
        return EventFilter(**self.dict(include=set(EventFilterQuery.model_fields)))


class EventQuery(EventFilterQuery, PageQuery):
    """Which events, and which page of them."""


class ExportQuery(EventFilterQuery):
    """Which events, and in what form."""

    format: Format = Format.CSV


@router.get("/jobs", response=JobPage, tags=["Jobs"])
def list_jobs(request: HttpRequest, query: Query[JobQuery]) -> dict[str, Any]:
    """The newest first. Jobs are kept for 90 days."""
    values = query.dict(exclude={"page", "page_size"})
    return page_of(activity.job_list(actor=actor_of(request), paging=query.paging(), **values), JobOut.of)


@router.get("/jobs/{uuid:job_id}", response=JobOut, tags=["Jobs"])
def get_job(request: HttpRequest, job_id: UUID) -> JobOut:
    return JobOut.of(activity.job(job_id=job_id, actor=actor_of(request)))


@router.post("/jobs/{uuid:job_id}/cancel", response={202: JobOut}, tags=["Jobs"])
def cancel_job(request: HttpRequest, job_id: UUID) -> JobOut:
    """A waiting job ends at once, a running one at its next safe point."""
    return JobOut.of(activity.cancel_job(job_id=job_id, actor=actor_of(request)))


@router.post("/jobs/{uuid:job_id}/approve", response={202: JobOut}, tags=["Jobs"])
def approve_job(request: HttpRequest, job_id: UUID) -> JobOut:
    """Of a job that waits for a second person: not by who asked for it."""
    return JobOut.of(approvals.approve_job(job_id=job_id, actor=actor_of(request)))


@router.get("/events", response=EventPage, tags=["Events"])
def list_events(request: HttpRequest, query: Query[EventQuery]) -> dict[str, Any]:
    """The newest first."""
    found = event_history.event_list(actor=actor_of(request), wanted=query.wanted(), paging=query.paging())
    return page_of(found, EventOut.of)


@router.get("/events/export", response={200: str}, tags=["Events"])
def export_events(request: HttpRequest, query: Query[ExportQuery]) -> StreamingHttpResponse:
    """All that the filters show, the oldest first, as CSV or JSON lines. It is an event itself."""
    found = event_history.export_events(actor=actor_of(request), wanted=query.wanted(), form=query.format)
    return streamed(found)


@router.get("/events/{int:event_id}", response=EventOut, tags=["Events"])
def get_event(request: HttpRequest, event_id: Annotated[int, Field(le=MAX_ID)]) -> EventOut:
    return EventOut.of(event_history.event(event_id=event_id, actor=actor_of(request)))


@router.get("/checkpoints", response=list[CheckpointOut], tags=["Events"])
def list_checkpoints(
    request: HttpRequest, limit: Annotated[int, Field(ge=1, le=checkpoints.MOST_SHOWN)] = checkpoints.SHOWN
) -> list[CheckpointOut]:
    """The newest first. Keep them elsewhere: `./bartizan manage verify-events --checkpoint FILE`."""
    return [CheckpointOut.of(one) for one in checkpoints.latest(actor=actor_of(request), limit=limit)]


@router.post("/checkpoints", response={204: None}, tags=["Events"])
def sign_checkpoint(request: HttpRequest) -> None:
    """A worker signs the history now; the event `audit.checkpoint` follows, or `audit.checkpoint_failed`."""
    checkpoints.request_checkpoint(actor=actor_of(request))


@router.get("/audit-key", response={200: str}, tags=["Events"])
def get_audit_key(request: HttpRequest) -> HttpResponse:
    """The public key, in PEM, of this console's signatures: checkpoints of the history, crypto inventories."""
    return HttpResponse(audit_key.public_pem(actor=actor_of(request)), content_type="application/x-pem-file")


class AlarmQuery(PageQuery):
    """Which alarms."""

    is_live: bool | None = Field(None, description="true: not over")
    kind: Text = ""
    severity: Severity | None = None
    target_kind: TargetKind | None = None
    target_id: UUID | None = None


@router.get("/alarms", response=AlarmPage, tags=["Alarms"])
def list_alarms(request: HttpRequest, query: Query[AlarmQuery]) -> dict[str, Any]:
    """Live ones first, then the newest first. They are kept for 90 days after their end."""
    values = query.dict(exclude={"page", "page_size"})
    return page_of(alarms.alarm_list(actor=actor_of(request), paging=query.paging(), **values), AlarmOut.of)


@router.get("/alarms/{uuid:alarm_id}", response=AlarmOut, tags=["Alarms"])
def get_alarm(request: HttpRequest, alarm_id: UUID) -> AlarmOut:
    return AlarmOut.of(alarms.alarm(alarm_id=alarm_id, actor=actor_of(request)))


@router.post("/alarms/{uuid:alarm_id}/acknowledge", response=AlarmOut, tags=["Alarms"])
def acknowledge_alarm(request: HttpRequest, alarm_id: UUID) -> AlarmOut:
    """Somebody has seen it. It stays until what it tells of is over."""
    return AlarmOut.of(alarms.acknowledge_alarm(alarm_id=alarm_id, actor=actor_of(request)))


@router.get("/search", response=list[HitOut], tags=["Search and trees"])
def search_inventory(
    request: HttpRequest, text: Text, limit: Annotated[int, Field(ge=1, le=50)] = search.EACH_KIND
) -> list[HitOut]:
    """Objects of every kind by part of their name or by UUID; at most `limit` of each kind."""
    hits = search.search(actor=actor_of(request), text=text, limit=limit)
    return [HitOut(kind=hit.kind, id=hit.id, name=hit.name, detail=hit.detail) for hit in hits]


@router.get("/tree", response=ChildrenOut, tags=["Search and trees"])
def list_roots(request: HttpRequest) -> tree.Children:
    """The data centers."""
    return tree.roots(actor=actor_of(request))


@router.get("/tree/{view}/{kind}/{uuid:target_id}", response=ChildrenOut, tags=["Search and trees"])
def list_children(
    request: HttpRequest, view: tree.View, kind: TargetKind, target_id: UUID, limit: Limit = tree.LIMIT
) -> tree.Children:
    """What stands below an object in one of the trees. An object that is not there has nothing below it."""
    return tree.children(view=view, kind=kind, target_id=target_id, actor=actor_of(request), limit=limit)
