"""Jobs for reading, and the end of a job on request. Events: services/event_history.py."""

from typing import Final
from uuid import UUID

from inventory import events, jobs
from inventory.authorize import VIEW, Actor, authorize, visible_targets
from inventory.errors import NotFound
from inventory.models import OPEN_STATUSES, Job, JobStatus, TargetKind
from inventory.services.listings import FIRST, Listing, Paging, listed

CANCEL: Final = "inventory.cancel_job"


def job_list(
    *,
    actor: Actor,
    status: JobStatus | None = None,
    is_live: bool | None = None,
    kind: str = "",
    target_kind: TargetKind | None = None,
    target_id: UUID | None = None,
    paging: Paging = FIRST,
) -> Listing[Job]:
    """The newest first; without their parameters and checkpoints, which are the worker's own."""
    authorize(actor, VIEW)
    rows = visible_targets(Job.objects.defer("params", "checkpoint"), actor)
    if status is not None:
        rows = rows.filter(status=status)
    if is_live is not None:
        rows = rows.filter(status__in=OPEN_STATUSES) if is_live else rows.exclude(status__in=OPEN_STATUSES)
    if kind:
        rows = rows.filter(kind=kind)
    if target_kind is not None:
        rows = rows.filter(target_kind=target_kind)
    if target_id is not None:
        rows = rows.filter(target_id=target_id)
    return listed(rows, paging)


def job(*, job_id: UUID, actor: Actor) -> Job:
    authorize(actor, VIEW)
    found = visible_targets(Job.objects.defer("params", "checkpoint"), actor).filter(pk=job_id).first()
    if found is None:
        raise NotFound(
            "job_not_found", f"there is no job {job_id}", hint="jobs are kept for 90 days, their events for good"
        )
    return found


def cancel_job(*, job_id: UUID, actor: Actor) -> Job:
    """A waiting job ends at once, a running one at its next safe point. Raises NotFound, Conflict `job_ended`."""
    found = job(job_id=job_id, actor=actor)
    authorize(actor, CANCEL, events.target_of(found.target_kind, found.target_id))
    return jobs.request_cancel(job_id, actor=actor)
