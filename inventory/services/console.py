"""What a VM prints on its serial port: read by a worker, kept in the cache for half a minute, shown to whoever looks.

The text is the guest's. It may hold anything, so only those who may see consoles get it, and it goes into no log.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from celery import current_app
from django.core.cache import cache
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from inventory import events
from inventory.authorize import Actor, authorize
from inventory.errors import ServiceError, Unavailable
from inventory.models import VirtualMachine
from inventory.services import connections
from inventory.services.virtual_machines import vm_of

log = logging.getLogger(__name__)

TASK: Final = "inventory.read_console"
READ: Final = "inventory.read_console"
KEPT_SECONDS: Final = 30
ASK_EVERY_SECONDS: Final = 2
TOLD_SECONDS: Final = 3600
MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class ConsoleText:
    """`text` None: nothing read yet, or `problem` says why there is none. `age_seconds`: since it was read."""

    text: str | None
    age_seconds: float | None
    problem: str = ""


def console_text(*, vm_id: UUID, actor: Actor) -> ConsoleText:
    """What was last read, at once; asks a worker for a fresh reading, at most every two seconds for each VM.

    That somebody reads it is an event, once an hour.
    """
    vm = vm_of(vm_id)
    authorize(actor, READ, vm)
    try:
        if cache.add(f"console-told-{vm.pk}-{actor.username}", True, TOLD_SECONDS):
            events.record("vm.console_read", f"{actor.username} read the console of {vm}", target=vm, actor=actor)
        return _kept_text(vm)
    except RedisError as exc:
        raise Unavailable("cache_unreachable", "the console texts cannot be read: Redis does not answer") from exc


def _kept_text(vm: VirtualMachine) -> ConsoleText:
    if cache.add(f"console-asked-{vm.pk}", True, ASK_EVERY_SECONDS):
        try:
            current_app.send_task(
                TASK, args=[str(vm.pk)], queue="control", retry=False, expires=KEPT_SECONDS, ignore_result=True
            )
        except (OSError, OperationalError) as exc:
            log.warning("console of %s: the broker did not take the request (%s)", vm.pk, type(exc).__name__)
    kept: dict[str, Any] | None = cache.get(_key(vm.pk))
    if kept is None:
        return ConsoleText(None, None)
    return ConsoleText(kept["text"], max(0.0, time.time() - kept["at"]), kept["problem"])


def read_console(vm_id: str) -> None:
    """Worker side: reads the tail of the console into the cache, or why it cannot be read."""
    text, problem = None, ""
    vm = vm_of(UUID(vm_id))
    try:
        with connections.open_host(vm.host) as hypervisor:
            text = hypervisor.console_text(vm.uuid, MAX_BYTES)
    except ServiceError as exc:
        problem = str(exc)
    cache.set(_key(vm.pk), {"text": text, "problem": problem, "at": time.time()}, KEPT_SECONDS)


def _key(vm_id: UUID) -> str:
    return f"console-{vm_id}"
