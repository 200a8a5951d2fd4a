"""Alarms, for reading: what is wrong now, and what was. Raised and cleared by `inventory/alarms.py`."""

from uuid import UUID

from django.db.models import F

from inventory.alarms import ACKNOWLEDGE, acknowledge_alarm
from inventory.authorize import VIEW, Actor, authorize, may, visible_targets
from inventory.errors import NotFound
from inventory.models import Alarm, Severity, TargetKind
from inventory.services.listings import FIRST, Listing, Paging, listed

__all__ = ["ACKNOWLEDGE", "acknowledge_alarm", "alarm", "alarm_list", "unseen_count"]


def alarm_list(
    *,
    actor: Actor,
    is_live: bool | None = None,
    kind: str = "",
    severity: Severity | None = None,
    target_kind: TargetKind | None = None,
    target_id: UUID | None = None,
    paging: Paging = FIRST,
) -> Listing[Alarm]:
    """Live ones first, then the newest first. Two queries."""
    authorize(actor, VIEW)
    rows = visible_targets(Alarm.objects.all(), actor)
    if is_live is not None:
        rows = rows.filter(cleared_at__isnull=is_live)
    if kind:
        rows = rows.filter(kind=kind)
    if severity is not None:
        rows = rows.filter(severity=severity)
    if target_kind is not None:
        rows = rows.filter(target_kind=target_kind)
    if target_id is not None:
        rows = rows.filter(target_id=target_id)
    return listed(rows.order_by(F("cleared_at").desc(nulls_first=True), "-raised_at", "id"), paging)


def alarm(*, alarm_id: UUID, actor: Actor) -> Alarm:
    authorize(actor, VIEW)
    found = visible_targets(Alarm.objects.all(), actor).filter(pk=alarm_id).first()
    if found is None:
        raise NotFound(
            "alarm_not_found", f"there is no alarm {alarm_id}", hint="alarms are kept for 90 days after their end"
        )
    return found


def unseen_count(*, actor: Actor) -> int:
    """Live alarms that nobody has acknowledged, of those that the actor may see; one indexed query."""
    if not may(actor, VIEW):
        return 0
    return visible_targets(Alarm.objects.filter(cleared_at=None, acknowledged_at=None), actor).count()
