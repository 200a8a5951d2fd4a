"""Alarms: states that need somebody. Raised and cleared by what observes them, acknowledged by people.

An alarm says "it is so now", an event "it happened then": raising and clearing write one event each, a repeated
sighting writes none.

In a transaction alarms come last, after the rows that they tell of: in different orders two that change the same would
wait for each other, and the database would end one of them.
"""

from collections.abc import Iterable, Sequence
from uuid import UUID

from django.db import transaction
from django.db.models import Model
from django.utils import timezone

from inventory import events
from inventory.authorize import SYSTEM, VIEW, Actor, authorize, visible_targets
from inventory.errors import Conflict, NotFound
from inventory.models import Alarm, Job, Severity, TargetKind

ACKNOWLEDGE = "inventory.acknowledge_alarm"


@transaction.atomic
def raise_alarm(
    kind: str,
    message: str,
    *,
    target: Model,
    severity: Severity = Severity.WARNING,
    remedy: str = "",
    evidence: Sequence[str] = (),
    job: Job | None = None,
    is_told: bool = False,
) -> Alarm:
    """Raises it, or brings the live one up to date. `evidence`: lines that show what was seen; never key material.

    `is_told`: the caller's own event says it already, so that none is written here.
    """
    told = {
        "severity": severity,
        "target_name": str(target)[:255],
        "message": message[:1000],
        "remedy": remedy[:500],
        "evidence": list(evidence),
    }
    alarm, is_new = Alarm.objects.update_or_create(
        kind=kind, target_kind=events.kind_of(target), target_id=target.pk, cleared_at=None, defaults=told
    )
    if is_new and not is_told:
        events.record(
            "alarm.raised", message, target=target, actor=SYSTEM, severity=severity, job=job, alarm=kind,
            evidence=list(evidence),
        )  # fmt: skip
    return alarm


@transaction.atomic
def clear_alarm(kind: str, *, target: Model, job: Job | None = None, is_told: bool = False) -> bool:
    """Ends the live alarm of that kind, where there is one: what it told of is over. Whether there was one.

    `is_told`: as in `raise_alarm`.
    """
    live = Alarm.objects.filter(
        kind=kind, target_kind=events.kind_of(target), target_id=target.pk, cleared_at=None
    ).first()
    if live is None:
        return False
    live.cleared_at = timezone.now()
    live.save(update_fields=["cleared_at"])
    if not is_told:
        text = f"No longer so: {live.message}"
        events.record("alarm.cleared", text, target=target, actor=SYSTEM, job=job, alarm=kind)
    return True


def live_kinds(*, target: Model) -> frozenset[str]:
    """Which alarms an object has now. For those who would clear several at each sighting: one query, and no writes."""
    live = Alarm.objects.filter(target_kind=events.kind_of(target), target_id=target.pk, cleared_at=None)
    return frozenset(live.values_list("kind", flat=True))


def drop_alarms(kind: TargetKind, ids: Iterable[UUID]) -> None:
    """Ends the alarms of objects that leave the inventory. No event: that of their removal says enough."""
    Alarm.objects.filter(target_kind=kind, target_id__in=ids, cleared_at=None).update(cleared_at=timezone.now())


@transaction.atomic
def acknowledge_alarm(*, alarm_id: UUID, actor: Actor) -> Alarm:
    """Somebody has seen it; it stays until it is over. Raises NotFound, Conflict `alarm_over`."""
    authorize(actor, VIEW)
    alarm = visible_targets(Alarm.objects.all(), actor).filter(pk=alarm_id).first()
    if alarm is None:
        raise NotFound("alarm_not_found", f"there is no alarm {alarm_id}")
    authorize(actor, ACKNOWLEDGE, events.target_of(alarm.target_kind, alarm.target_id))
    if alarm.cleared_at is not None:
        raise Conflict("alarm_over", f"it is over already: {alarm.message}")
    if alarm.acknowledged_at is None:
        alarm.acknowledged_at, alarm.acknowledged_by = timezone.now(), actor.username
        alarm.save(update_fields=["acknowledged_at", "acknowledged_by"])
        subject = events.Subject(alarm.target_kind, alarm.target_id, alarm.target_name)
        events.record(
            "alarm.acknowledged", f"Acknowledged: {alarm.message}", target=subject, actor=actor, alarm=alarm.kind
        )  # fmt: skip
    return alarm
