"""The one history: what happened, to what, by whom. Never any key material."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db.models import Model

from inventory.authorize import SYSTEM, Actor
from inventory.models import (
    Cluster,
    Datacenter,
    Datastore,
    Event,
    Host,
    Job,
    Outcome,
    Severity,
    TargetKind,
    VirtualMachine,
)

_KINDS: dict[type[Model], TargetKind] = {
    Datacenter: TargetKind.DATACENTER,
    Cluster: TargetKind.CLUSTER,
    Host: TargetKind.HOST,
    Datastore: TargetKind.DATASTORE,
    VirtualMachine: TargetKind.VIRTUAL_MACHINE,
}


def register_target(model: type[Model], kind: TargetKind) -> None:
    """Lets an app above inventory have jobs and events about its own objects."""
    _KINDS[model] = kind


def kind_of(target: Model) -> TargetKind:
    return _KINDS[type(target)]


@dataclass(frozen=True, slots=True)
class Subject:
    """What an event is about, where the object itself is not at hand: it is gone, or an alarm's or a job's."""

    kind: str
    id: UUID | None
    name: str


def about(target: Model | None) -> Subject:
    """The console where the object's own kind is not one that events know."""
    if target is not None and type(target) not in _KINDS:
        return Subject(TargetKind.CONSOLE, None, str(target)[:255])
    return _subject(target)


_ADDRESS: Final[ContextVar[str]] = ContextVar("source address", default="")


@contextmanager
def acting_from(address: str) -> Iterator[None]:
    """What is recorded within, was asked for from this address; empty: from inside."""
    token = _ADDRESS.set(address)
    try:
        yield
    finally:
        _ADDRESS.reset(token)


def source_address() -> str:
    return _ADDRESS.get()


def target_of(kind: str, target_id: UUID | None) -> Model | None:
    """The object that a job, an event or an alarm is about; None where it is gone, or the console itself."""
    if target_id is None:
        return None
    models = (model for model, one in _KINDS.items() if one == kind)
    rows = (model._default_manager.filter(pk=target_id).first() for model in models)
    return next((row for row in rows if row is not None), None)


def record(
    kind: str,
    message: str,
    *,
    target: Model | Subject | None,
    actor: Actor | str,
    severity: Severity = Severity.INFO,
    outcome: Outcome | None = None,
    job: Job | None = None,
    **data: str | int | bool | list[str] | None,
) -> Event:
    """Writes one event.

    `kind` is dotted ("vm.powered_on") and has its line in docs/events.md; `message` is a sentence for people that names
    the object; `data` are small facts for programs. Of those `code` (an error's) or `reason` become the event's reason,
    and `plan_digest` its plan. `target` None: the console itself. `outcome` left out: failure for what has a code or is
    an error.
    """
    event = draft(kind, message, target=target, actor=actor, data=data, severity=severity, outcome=outcome, job=job)
    event.save(force_insert=True)
    return event


def record_once(
    kind: str,
    message: str,
    *,
    target: Model,
    job: Job,
    severity: Severity = Severity.INFO,
    outcome: Outcome | None = None,
    **data: str | int | bool | list[str] | None,
) -> None:
    """The one event of this kind that a job writes, for its actor, however often its work is run again after a kill."""
    if not Event.objects.filter(job=job, kind=kind).exists():
        record(kind, message, target=target, actor=job.actor, severity=severity, outcome=outcome, job=job, **data)


def draft(
    kind: str,
    message: str,
    *,
    target: Model | Subject | None,
    actor: Actor | str,
    data: Mapping[str, Any],
    severity: Severity = Severity.INFO,
    outcome: Outcome | None = None,
    job: Job | None = None,
) -> Event:
    """What `record` would write, not written yet: for many in one INSERT."""
    subject = target if isinstance(target, Subject) else _subject(target)
    name = actor if isinstance(actor, str) else actor.username
    address = ""
    if name != SYSTEM.username:
        # Threads of a job's own know nothing of the request.
        address = source_address() or (job.source_address if job is not None and name == job.actor else "")
    return Event(
        kind=kind,
        severity=severity,
        outcome=outcome or _outcome(severity, data),
        reason=str(data.get("code") or data.get("reason") or "")[:200],
        target_kind=subject.kind,
        target_id=subject.id,
        target_name=subject.name,
        actor=name,
        source_address=address,
        message=message[:1000],
        data=dict(data),
        job=job,
        plan_digest=str(data.get("plan_digest") or _approved_plan(job)),
    )


def _subject(target: Model | None) -> Subject:
    if target is None:
        return Subject(TargetKind.CONSOLE, None, "Bartizan")
    return Subject(kind_of(target), target.pk, str(target)[:255])


def _outcome(severity: Severity, data: Mapping[str, Any]) -> Outcome:
    """Of an event that does not say: what has an error's code, or is an error, did not go well."""
    return Outcome.FAILURE if data.get("code") or severity == Severity.ERROR else Outcome.SUCCESS


def _approved_plan(job: Job | None) -> str:
    plan = job.params.get("plan") if job is not None else None
    return str(plan.get("digest", "")) if isinstance(plan, dict) else ""
