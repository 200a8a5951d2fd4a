"""The one history: what happened, to what, by whom. Never any key material."""

from uuid import UUID

from django.db.models import Model

from inventory.authorize import Actor
from inventory.models import (
    Cluster,
    Datacenter,
    Datastore,
    Event,
    Host,
    Job,
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


def record(
    kind: str,
    message: str,
    *,
    target: Model | None,
    actor: Actor | str,
    severity: Severity = Severity.INFO,
    job: Job | None = None,
    **data: str | int | bool | list[str] | None,
) -> Event:
    """Writes one event.

    `kind` is dotted ("vm.powered_on"); `message` is a sentence for people that names the object; `data` are small
    facts for programs. `target` None: the console itself.
    """
    return record_about(
        kind_of(target) if target is not None else TargetKind.CONSOLE,
        target.pk if target is not None else None,
        str(target) if target is not None else "Bartizan",
        kind,
        message,
        actor=actor,
        severity=severity,
        job=job,
        **data,
    )


def record_once(
    kind: str,
    message: str,
    *,
    target: Model,
    job: Job,
    severity: Severity = Severity.INFO,
    **data: str | int | bool | list[str] | None,
) -> None:
    """The one event of this kind that a job writes, for its actor, however often its work is run again after a kill."""
    if not Event.objects.filter(job=job, kind=kind).exists():
        record(kind, message, target=target, actor=job.actor, severity=severity, job=job, **data)


def record_about(
    target_kind: str,
    target_id: UUID | None,
    target_name: str,
    kind: str,
    message: str,
    *,
    actor: Actor | str,
    severity: Severity = Severity.INFO,
    job: Job | None = None,
    **data: str | int | bool | list[str] | None,
) -> Event:
    """As `record`, about an object of which only kind, id and name are at hand (an alarm's, a job's)."""
    return Event.objects.create(
        kind=kind,
        severity=severity,
        target_kind=target_kind,
        target_id=target_id,
        target_name=target_name,
        actor=actor if isinstance(actor, str) else actor.username,
        message=message[:1000],
        data=data,
        job=job,
    )
