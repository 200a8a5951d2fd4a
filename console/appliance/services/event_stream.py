"""The history as log collectors get it: sealed events in their order, written down once for all targets."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from console.appliance.engine.syslog_message import event_entry, written
from inventory.engine.event_chain import Recorded
from inventory.models import Event, EventChain
from inventory.services import event_chain

PAGE: Final = 500
_PAGES_KEPT: Final = 8  # targets that catch up together read the same ones
_COLUMNS: Final = (
    "id", "time", "kind", "severity", "outcome", "reason", "target_kind", "target_id", "target_name", "actor",
    "source_address", "message", "data", "job_id", "plan_digest", "sequence", "digest",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EventPage:
    """`last`: the sequence of its last event. A long event is several messages."""

    messages: tuple[bytes, ...]
    last: int


class EventStream:
    """For any number of threads. `host`: the sender's name in messages."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._pages: OrderedDict[int, EventPage] = OrderedDict()
        self._lock = threading.Lock()

    def after(self, sequence: int) -> EventPage:
        """The next events behind the `sequence`-th, at most PAGE of them; one query, or none. Raises DatabaseError."""
        with self._lock:
            if page := self._pages.get(sequence):
                self._pages.move_to_end(sequence)
                return page
            rows = list(Event.objects.filter(sequence__gt=sequence).order_by("sequence").values_list(*_COLUMNS)[:PAGE])
            events = [Recorded(*row) for row in rows]
            page = EventPage(
                tuple(message for event in events for message in written(event_entry(event), host=self._host)),
                events[-1].sequence if events else sequence,
            )
            if len(rows) == PAGE:  # complete: it will not change
                self._pages[sequence] = page
                if len(self._pages) > _PAGES_KEPT:
                    self._pages.popitem(last=False)
            return page


def seal_new() -> int:
    """Seals what was recorded meanwhile, and tells how far the history goes. Without news, two small queries."""
    if Event.objects.filter(sequence__isnull=True).exists():
        event_chain.seal()
    return EventChain.objects.values_list("sequence", flat=True).first() or 0
