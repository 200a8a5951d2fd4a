"""The one history: what happened, to what, by whom. Never any key material."""

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
    return Event.objects.create(
        kind=kind,
        severity=severity,
        target_kind=TargetKind.CONSOLE if target is None else kind_of(target),
        target_id=None if target is None else target.pk,
        target_name="Bartizan" if target is None else str(target),
        actor=actor if isinstance(actor, str) else actor.username,
        message=message[:1000],
        data=data,
        job=job,
    )
