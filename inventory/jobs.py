"""The life of a job: started by a service, claimed once by a worker, alive by its heartbeat, resumed after a crash.

    PENDING -> RUNNING -> SUCCEEDED | FAILED (expected, with a code) | ERRORED (a bug, with a reference) | CANCELLED

- One that needs a second person is WAITING until that person approves it (`release`).
- `start` writes the row; the message with its id goes to the broker when the transaction has committed.
- `run` claims by one conditional UPDATE, so a message that is delivered twice does the work once.
- While it works, a thread renews the heartbeat. `resume_interrupted` finds rows whose heartbeat is stale (a killed
  worker) or that nobody took (a lost message) and queues them again; the work goes on from `checkpoint`.
- Every write of a worker carries its claim. One that was only slow and has lost its claim to another stops at once.
"""

import logging
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from celery import current_app
from celery.exceptions import SoftTimeLimitExceeded
from django.db import IntegrityError, close_old_connections, connection, transaction
from django.db.models import F, Model, Q
from django.utils import timezone
from kombu.exceptions import OperationalError

from inventory import events
from inventory.authorize import Actor, System
from inventory.errors import Conflict, NotFound, ServiceError
from inventory.models import LIVE_STATUSES, Job, JobStatus, Outcome, Severity, TwoPersonRule

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 3
STALE_AFTER: Final = timedelta(seconds=20)
UNCLAIMED_AFTER: Final = timedelta(seconds=60)
MAX_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class JobKind:
    """A sort of job: its Celery task's name, what people call it, the queue it waits in."""

    name: str
    label: str
    queue: str = "control"


KINDS: Final[dict[str, JobKind]] = {}


def register(kind: JobKind) -> JobKind:
    KINDS[kind.name] = kind
    return kind


Obstacle = Callable[[], str]
_obstacles: list[Obstacle] = []


def register_obstacle(obstacle: Obstacle) -> None:
    """Lets an app above keep this process from taking jobs: `obstacle` says why, or nothing."""
    if obstacle not in _obstacles:
        _obstacles.append(obstacle)


class Cancelled(Exception):
    """The user asked for the end of this job; raised from `Progress` inside the worker."""


class ClaimLost(Exception):
    """Another worker holds this job now; nothing more may be written for it."""


def needs_second_person(rule: str) -> bool:
    """Whether two-person approval is switched on for such operations."""
    return TwoPersonRule.objects.filter(action=rule, is_on=True).exists()


def start(
    kind: JobKind, *, target: Model, actor: Actor, params: dict[str, Any] | None = None, rule: str = "", right: str = ""
) -> Job:
    """Writes a PENDING job and queues it on commit. `params` hold ids and choices, never secrets.

    `rule`: where two-person approval is on for it, the job waits instead until somebody else, who holds `right` on the
    target, approves it; what this product asks of itself does not wait. Raises Conflict `target_busy` while another
    job of the same target is live, `approval_pending` while the same is waiting already.
    """
    target_kind = events.kind_of(target)
    waits = bool(rule) and not isinstance(actor, System) and needs_second_person(rule)
    if waits:
        same = Job.objects.filter(target_kind=target_kind, target_id=target.pk, status=JobStatus.WAITING)
        if same.filter(kind=kind.name).exists():
            raise Conflict(
                "approval_pending", f"{kind.label} of {target} waits for approval already",
                hint="have it approved, or cancel it in Recent Tasks",
            )  # fmt: skip
    try:
        with transaction.atomic():
            job = Job.objects.create(
                kind=kind.name,
                target_kind=target_kind,
                target_id=target.pk,
                target_name=str(target),
                actor=actor.username,
                source_address=events.source_address(),
                params=params or {},
                status=JobStatus.WAITING if waits else JobStatus.PENDING,
                approval_right=right if waits else "",
            )
    except IntegrityError as exc:
        live = Job.objects.filter(target_kind=target_kind, target_id=target.pk, status__in=LIVE_STATUSES).first()
        doing = label(live) if live else "another job"
        raise Conflict(
            "target_busy",
            f"{target} is busy: {doing}",
            hint="wait for it in Recent Tasks, or cancel it there",
        ) from exc
    if waits:
        text = f"{kind.label} of {target} waits for the approval of a second person"
        events.record("job.approval_requested", text, target=target, actor=actor, severity=Severity.WARNING, job=job)
    else:
        transaction.on_commit(partial(_queue, job.id, kind))
    return job


def release(job: Job, *, actor: Actor) -> Job:
    """Queues a job that waited, in the name of who approved it. The caller has checked the right, and that it is not
    the one who asked for it. Raises Conflict `target_busy`, `job_not_waiting`."""
    kind = KINDS[job.kind]
    try:
        with transaction.atomic():
            released = Job.objects.filter(pk=job.pk, status=JobStatus.WAITING).update(
                status=JobStatus.PENDING, approved_by=actor.username, changed_at=timezone.now()
            )
    except IntegrityError as exc:
        raise Conflict(
            "target_busy", f"{job.target_name} is busy", hint="approve it when the other task has ended"
        ) from exc
    if not released:
        raise Conflict("job_not_waiting", f"{label(job)} of {job.target_name} does not wait for approval")
    job.refresh_from_db()
    _record_end(
        job, "job.approved", f"{actor.username} approved {label(job)} of {job.target_name}, asked for by {job.actor}",
        Severity.WARNING, actor=actor.username,
    )  # fmt: skip
    transaction.on_commit(partial(_queue, job.id, kind))
    return job


def label(job: Job) -> str:
    kind = KINDS.get(job.kind)
    return kind.label if kind else job.kind


def _queue(job_id: uuid.UUID, kind: JobKind) -> None:
    """A broker that is down does not undo the job: `resume_interrupted` queues it again."""
    try:
        current_app.send_task(kind.name, args=[str(job_id)], queue=kind.queue, retry=False)
    except (OSError, OperationalError) as exc:
        log.warning("job %s waits: the broker did not take it (%s)", job_id, type(exc).__name__)


class Progress:
    """How running work tells what it does. Writes at most once a second; raises Cancelled when asked to end."""

    def __init__(self, job: Job, claim: uuid.UUID) -> None:
        self.job = job
        self._claim = claim
        self._saved_at = 0.0

    def step(self, text: str, *, total: int = 0) -> None:
        """A new step with `total` units of work (bytes, VMs); 0: not known."""
        self.job.step, self.job.done, self.job.total = text[:200], 0, total
        self._save()

    def step_total(self, total: int) -> None:
        """The step's total, where it is learnt on the way."""
        self.job.total = total

    def advance(self, done: int) -> None:
        """`done` units of the step's total so far."""
        self.job.done = done
        if time.monotonic() - self._saved_at >= 1.0:
            self._save()

    def checkpoint(self, **values: Any) -> None:
        """Merges values into the checkpoint and writes it now: the work can go on from here after a crash."""
        self.job.checkpoint = {**self.job.checkpoint, **values}
        self._write(checkpoint=self.job.checkpoint)

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        self._write(step=self.job.step, done=self.job.done, total=self.job.total)
        if Job.objects.filter(pk=self.job.pk, cancel_requested=True).exists():
            raise Cancelled

    def _write(self, **values: Any) -> None:
        now = timezone.now()
        if not _mine(self.job.pk, self._claim).update(heartbeat_at=now, changed_at=now, **values):
            raise ClaimLost


_RUNNING: Final[ContextVar[Job | None]] = ContextVar("running job", default=None)


def running() -> Job | None:
    """The job whose work this thread does, for notes of who did a thing and what for; None outside of any."""
    return _RUNNING.get()


def _mine(job_id: uuid.UUID, claim: uuid.UUID) -> Any:
    return Job.objects.filter(pk=job_id, claim=claim, status=JobStatus.RUNNING)


def run(job_id: str, work: Callable[[Job, Progress], None]) -> None:
    """Runs a job's work in this worker. Does nothing where the job is claimed, ended or gone, and where this process
    may take none (`register_obstacle`)."""
    if reason := next(filter(None, (obstacle() for obstacle in _obstacles)), ""):
        log.critical("job %s is not taken, and waits for another worker: %s", job_id, reason)
        return
    claim = uuid.uuid4()
    now = timezone.now()
    claimed = Job.objects.filter(pk=job_id, status=JobStatus.PENDING).update(
        status=JobStatus.RUNNING,
        claim=claim,
        started_at=now,
        heartbeat_at=now,
        changed_at=now,
        attempts=F("attempts") + 1,
    )
    if not claimed:
        log.info("job %s: claimed already or ended, nothing done", job_id)
        return
    job = Job.objects.get(pk=job_id)
    progress = Progress(job, claim)
    with _Heartbeat(job.pk, claim), events.acting_from(job.source_address):
        token = _RUNNING.set(job)
        try:
            if job.cancel_requested:
                raise Cancelled
            work(job, progress)
        except ClaimLost:
            log.warning("job %s: lost its claim to another worker, stopped", job_id)
            return
        except Cancelled:
            outcome = (JobStatus.CANCELLED, "cancelled", "cancelled on request")
        except SoftTimeLimitExceeded:
            outcome = (
                JobStatus.FAILED,
                "time_limit",
                "took longer than a job may; see BARTIZAN_JOB_TIME_LIMIT",
            )
        except ServiceError as exc:
            outcome = (JobStatus.FAILED, exc.code, str(exc))
        except Exception as exc:  # the one place: whatever a bug raises must end the job, not the worker
            reference = uuid.uuid4().hex[:8]
            # The traceback holds code lines, not values; the exception's own text could quote data, so it stays out.
            log.error("job %s (%s): internal error %s\n%s", job_id, job.kind, reference, _where(exc))
            outcome = (
                JobStatus.ERRORED,
                "internal_error",
                f"internal error, reference {reference} in the worker's log",
            )
        else:
            outcome = (JobStatus.SUCCEEDED, "", "")
        finally:
            _RUNNING.reset(token)
    _end(job, claim, *outcome)


def _where(exc: BaseException) -> str:
    """Types and code lines of an exception and its causes, innermost last, without any exception's text."""
    parts: list[str] = []
    seen: BaseException | None = exc
    while seen is not None:
        parts.append(type(seen).__name__ + "\n" + "".join(traceback.format_tb(seen.__traceback__)))
        seen = seen.__cause__ or seen.__context__
    return "\n".join(reversed(parts))


def _end(job: Job, claim: uuid.UUID, status: JobStatus, code: str, message: str) -> None:
    now = timezone.now()
    with transaction.atomic():
        ended = _mine(job.pk, claim).update(
            status=status, error_code=code, message=message[:1000], ended_at=now, changed_at=now, claim=None
        )
        if ended and status != JobStatus.SUCCEEDED:
            severity = Severity.INFO if status == JobStatus.CANCELLED else Severity.ERROR
            _record_end(
                job,
                f"job.{status}",
                f"{label(job)} of {job.target_name} {status.label.lower()}: {message}",
                severity,
                outcome=Outcome.FAILURE,
                code=code,
            )


def _record_end(
    job: Job,
    kind: str,
    message: str,
    severity: Severity,
    *,
    actor: str = "",
    outcome: Outcome = Outcome.SUCCESS,
    code: str = "",
) -> None:
    """`actor` empty: whoever started the job. `code`: why it ended so."""
    data = {"job": str(job.pk), "kind": job.kind} | ({"code": code} if code else {})
    events.draft(
        kind, message, target=events.Subject(job.target_kind, job.target_id, job.target_name),
        actor=actor or job.actor, severity=severity, outcome=outcome, job=job, data=data,
    ).save(force_insert=True)  # fmt: skip


def request_cancel(job_id: uuid.UUID, *, actor: Actor) -> Job:
    """A waiting job ends at once, a running one at its next safe point. The caller has checked the right."""
    now = timezone.now()
    if Job.objects.filter(pk=job_id, status__in=(JobStatus.WAITING, JobStatus.PENDING)).update(
        status=JobStatus.CANCELLED, ended_at=now, changed_at=now, message="cancelled before it began"
    ) or Job.objects.filter(pk=job_id, status=JobStatus.RUNNING).update(cancel_requested=True, changed_at=now):
        job = Job.objects.get(pk=job_id)
    else:
        found = Job.objects.filter(pk=job_id).first()
        if found is None:
            raise NotFound("job_not_found", f"there is no job {job_id}")
        raise Conflict("job_ended", f"{label(found)} of {found.target_name} has ended already")
    _record_end(
        job,
        "job.cancel_requested",
        f"{actor.username} cancelled {label(job)} of {job.target_name}",
        Severity.INFO,
        actor=actor.username,
    )
    return job


def resume_interrupted(now: datetime | None = None) -> int:
    """Queues again what a dead worker left or the broker lost; returns how many."""
    now = now or timezone.now()
    stale = Q(status=JobStatus.RUNNING, heartbeat_at__lt=now - STALE_AFTER)
    lost = Q(status=JobStatus.PENDING, changed_at__lt=now - UNCLAIMED_AFTER)
    count = 0
    for job in Job.objects.filter(stale | lost):
        kind = KINDS.get(job.kind)
        same = Job.objects.filter(pk=job.pk, status=job.status, claim=job.claim, changed_at=job.changed_at)
        if kind is None or job.attempts >= MAX_ATTEMPTS:
            if same.update(
                status=JobStatus.ERRORED,
                claim=None,
                ended_at=now,
                changed_at=now,
                error_code="worker_lost",
                message=f"its worker died {job.attempts} times",
            ):
                _record_end(
                    job,
                    "job.errored",
                    f"{label(job)} of {job.target_name}: its worker died",
                    Severity.ERROR,
                    outcome=Outcome.FAILURE,
                    code="worker_lost",
                )
        elif same.update(status=JobStatus.PENDING, claim=None, changed_at=now):
            if job.status == JobStatus.RUNNING:
                _record_end(
                    job,
                    "job.resumed",
                    f"{label(job)} of {job.target_name} goes on: its worker had stopped",
                    Severity.WARNING,
                )
            _queue(job.pk, kind)
            count += 1
    return count


class _Heartbeat:
    """Renews the heartbeat from a thread while the work may be busy in one long call."""

    def __init__(self, job_id: uuid.UUID, claim: uuid.UUID) -> None:
        self._job_id = job_id
        self._claim = claim
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{job_id}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                close_old_connections()
                _mine(self._job_id, self._claim).update(heartbeat_at=timezone.now())
            except Exception as exc:  # a missed beat is harmless, a dead thread is not: the database may be back
                log.warning("heartbeat of job %s failed: %s", self._job_id, type(exc).__name__)
        connection.close()
