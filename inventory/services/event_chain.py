"""Events get their number and their digest, in the order in which they became visible: the history's seal.

Whoever follows the history (the forwarder to log collectors, `verify`) reads by `sequence`, never by id: with several
writers an event with a smaller id can become visible after one with a greater id.
"""

from itertools import chain
from typing import Final

from django.db import connection, transaction
from django.db.models import F

from inventory.engine.event_chain import START, Recorded, sealed
from inventory.models import Event, EventChain

BATCH: Final = 1000
"""Events sealed in one transaction, so that the lock is never held for long."""
# Many rows, each with values of its own: bulk_update would write one CASE of a thousand branches. Both databases name
# the columns of VALUES so.
_SEAL: Final = (
    "UPDATE inventory_event SET sequence = seal.column1, digest = seal.column2 FROM (VALUES {}) AS seal"
    " WHERE inventory_event.id = seal.column3 AND sequence IS NULL"
)


def seal() -> int:
    """Numbers and chains all events that are not sealed, by id among them; returns how many. Any process may call it,
    any number at once."""
    total = 0
    while (count := _seal_batch()) == BATCH:
        total += count
    return total + count


@transaction.atomic
def _seal_batch() -> int:
    # The update takes the row (PostgreSQL) or the database (SQLite) for this transaction: one sealer at a time.
    if not EventChain.objects.filter(pk=1).update(sequence=F("sequence")):
        EventChain.objects.bulk_create([EventChain(pk=1)], ignore_conflicts=True)
        EventChain.objects.filter(pk=1).update(sequence=F("sequence"))
    head = EventChain.objects.get(pk=1)
    rows = map(recorded, Event.objects.filter(sequence__isnull=True).order_by("id")[:BATCH])
    seals = [
        (sequence, digest, event_id)
        for event_id, sequence, digest in sealed(rows, after=head.sequence, previous=head.digest or START)
    ]
    if not seals:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(_SEAL.format(", ".join(["(%s, %s, %s)"] * len(seals))), list(chain.from_iterable(seals)))
    sequence, digest, _ = seals[-1]
    EventChain.objects.filter(pk=1).update(sequence=sequence, digest=digest)
    return len(seals)


def recorded(row: Event) -> Recorded:
    """What the chain sees of an event."""
    return Recorded(
        id=row.id,
        time=row.time,
        kind=row.kind,
        severity=row.severity,
        outcome=row.outcome,
        reason=row.reason,
        target_kind=row.target_kind,
        target_id=row.target_id,
        target_name=row.target_name,
        actor=row.actor,
        source_address=row.source_address,
        message=row.message,
        data=row.data,
        job_id=row.job_id,
        plan_digest=row.plan_digest,
        sequence=row.sequence or 0,
        digest=row.digest,
    )
