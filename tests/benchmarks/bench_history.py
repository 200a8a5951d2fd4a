"""Filtered pages of a long history: the best of three for each filter, the count and fifty lines together.

    python -m tests.benchmarks.bench_history [--events 1000000] [--database postgresql://...]

The database is SQLite as in a new installation, or an empty one that is given. One event in a thousand is an error, one
in two thousand was denied, each object has a hundred.
"""

import argparse
import os
import time
from typing import Any, Final

from tests.benchmarks.own_console import own_console

FILTERS: Final[dict[str, dict[str, Any]]] = {
    "severity: error": {"severity": "error"},
    "severity: information": {"severity": "info"},
    "outcome: denied": {"outcome": "denied"},
    "object by name": {"target_name": "vm-77"},
    "type": {"kind": "vm.kind_7"},
    "initiator": {"actor": "user7"},
    "information of one initiator": {"severity": "info", "actor": "user7"},
    "errors of one initiator": {"severity": "error", "actor": "user7"},
    "all": {},
}
BATCH: Final = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--database", default="")
    given = parser.parse_args()
    if given.database:
        os.environ["DATABASE_URL"] = given.database  # noqa: TID251  before the settings are read
    with own_console():
        _run(given.events)


def _run(count: int) -> None:
    from django.core.management import call_command
    from django.db import connection

    from inventory.authorize import SYSTEM
    from inventory.models import Event
    from inventory.services.event_history import EventFilter, event_list
    from inventory.services.listings import Paging

    call_command("migrate", verbosity=0)
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        Event.objects.bulk_create([Event(**_values(number)) for number in numbers])
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE inventory_event")
    print(f"{count} events, {connection.vendor}")
    for name, wanted in FILTERS.items():
        best, total = float("inf"), 0
        for _ in range(3):
            began = time.perf_counter()
            total = event_list(actor=SYSTEM, wanted=EventFilter(**wanted), paging=Paging(1, 50)).total
            best = min(best, time.perf_counter() - began)
        print(f"{name:<30} {total:9d} events {best * 1000:8.1f} ms")


def _values(number: int) -> dict[str, Any]:
    severity = "error" if number % 1000 == 0 else "warning" if number % 50 == 0 else "info"
    outcome = "denied" if number % 2000 == 0 else "failure" if number % 500 == 0 else "success"
    return {
        "kind": f"vm.kind_{number % 60}", "severity": severity, "outcome": outcome, "target_kind": "vm",
        "target_name": f"vm-{number % 10_000}", "actor": f"user{number % 40}", "message": f"something {number}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
