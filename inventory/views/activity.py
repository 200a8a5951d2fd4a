"""Jobs and events as the shell and the Monitor tabs show them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.core.paginator import Page, Paginator
from django.db.models import F, QuerySet

from inventory.authorize import VIEW, Actor, may
from inventory.models import LIVE_STATUSES, Alarm, Event, Job, TargetKind
from inventory.services.activity import job_list
from inventory.services.listings import Paging

RECENT: Final = 20
PAGE_SIZE: Final = 50


@dataclass(frozen=True, slots=True)
class Version:
    """What the activity looks like now, in three indexed look-ups.

    `news` changes when an event is written or the number of live jobs changes: pages then read their object again.
    `token` changes with every step of a job besides.
    """

    token: str
    news: str
    live: int


def version() -> Version:
    changed = Job.objects.order_by("-changed_at").values_list("changed_at", flat=True).first()
    event = Event.objects.order_by("-id").values_list("id", flat=True).first()
    live = Job.objects.filter(status__in=LIVE_STATUSES).count()
    stamp = int(changed.timestamp() * 1_000_000) if changed else 0
    token = f"{stamp}-{event or 0}.{live}"
    return Version(token, news(token), live)


def news(token: str) -> str:
    return token.partition("-")[2]


def recent_tasks(actor: Actor) -> Sequence[Job]:
    """The last that the actor may see; none for somebody without any role."""
    if not may(actor, VIEW):
        return []
    return job_list(actor=actor, paging=Paging(1, RECENT)).items


def tasks_of(kind: TargetKind, target_id: UUID, page: str | int) -> Page[Job]:
    found = Job.objects.filter(target_kind=kind, target_id=target_id).defer("params", "checkpoint")
    return _page(found, page)


def events_of(kind: TargetKind, target_id: UUID, page: str | int) -> Page[Event]:
    return _page(Event.objects.filter(target_kind=kind, target_id=target_id), page)


def alarms_of(kind: TargetKind, target_id: UUID, page: str | int) -> Page[Alarm]:
    found = Alarm.objects.filter(target_kind=kind, target_id=target_id)
    return _page(found.order_by(F("cleared_at").desc(nulls_first=True), "-raised_at"), page)


def _page(rows: QuerySet[Any], page: str | int) -> Page[Any]:
    return Paginator(rows, PAGE_SIZE).get_page(page)


# What an object's Monitor tab can show.
LISTS: Final[Mapping[str, Callable[[TargetKind, UUID, str | int], Page[Any]]]] = {
    "tasks": tasks_of,
    "events": events_of,
    "alarms": alarms_of,
}
