"""Watching hosts: one thread a host keeps a connection, syncs, and follows what the host reports. See `watch_hosts`.

A change of a VM is read a moment later (DEBOUNCE), because libvirt reports one action as several events. Everything is
read anew every minute, so an event that never came costs a minute and not the truth.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from django.db import DatabaseError, close_old_connections, connection
from typing_extensions import override

from inventory.engine.hypervisor import Change, HostChange, Hypervisor
from inventory.errors import NotFound, ServiceError
from inventory.models import LIVE_STATUSES, Host, Job, TargetKind
from inventory.services import connections, hosts, sync

log = logging.getLogger(__name__)

DEBOUNCE_SECONDS: Final = 0.3
SYNC_EVERY_SECONDS: Final = 60.0
LOOK_EVERY_SECONDS: Final = 1.0
FIRST_WAIT_SECONDS: Final = 1.0
LONGEST_WAIT_SECONDS: Final = 30.0
# More changes than this at once are read as a whole.
MANY: Final = 50

ReconnectedHook = Callable[[Host, Hypervisor], None]
_RECONNECTED: Final[list[ReconnectedHook]] = []


def register_reconnected(hook: ReconnectedHook) -> None:
    """`hook` runs each time a host answers again and has been synced: libvirt has forgotten ephemeral secrets by then.

    A ServiceError or HypervisorError of the hook ends the connection, and it is tried again.
    """
    _RECONNECTED.append(hook)


@dataclass(slots=True)
class _Pending:
    """What has been reported and not been read yet."""

    vms: set[UUID] = field(default_factory=set)
    datastores: bool = False
    since: float = 0.0

    def note(self, now: float) -> None:
        if not self.vms and not self.datastores:
            self.since = now


class HostWatch(threading.Thread):
    """Keeps one host's rows current until `stop`. A host that is edited gets a new watch."""

    def __init__(self, host_id: UUID, uri: str) -> None:
        super().__init__(name=f"watch-{host_id}", daemon=True)
        self.host_id = host_id
        self.uri = uri
        self.is_connected = False
        self._stop_asked = threading.Event()
        self._wake = threading.Event()

    def stop(self) -> None:
        self._stop_asked.set()
        self._wake.set()

    def wake(self) -> None:
        """Ends a wait between two tries: somebody else has just reached the host."""
        self._wake.set()

    @override
    def run(self) -> None:
        wait = FIRST_WAIT_SECONDS
        try:
            while not self._stop_asked.is_set():
                began = time.monotonic()
                close_old_connections()
                try:
                    self._watch_once()
                except DatabaseError as exc:
                    log.warning("watching host %s: the database failed (%s)", self.host_id, type(exc).__name__)
                if time.monotonic() - began > LONGEST_WAIT_SECONDS:
                    wait = FIRST_WAIT_SECONDS
                self._wake.wait(wait)
                self._wake.clear()
                wait = min(wait * 2, LONGEST_WAIT_SECONDS)
        finally:
            connection.close()

    def _watch_once(self) -> None:
        host = Host.objects.filter(pk=self.host_id, uri=self.uri).first()
        if host is None:
            self.stop()
            return
        try:
            with connections.open_host(host) as hypervisor:
                self._follow(host, hypervisor)
        except NotFound as exc:
            log.info("%s", exc.message)
        except ServiceError as exc:
            hosts.disconnected(host, exc)
        finally:
            self.is_connected = False

    def _follow(self, host: Host, hypervisor: Hypervisor) -> None:
        # Closed here and not some day: the connection goes on living, and its callbacks must not.
        with closing(hypervisor.changes(idle_seconds=DEBOUNCE_SECONDS)) as changes:
            self._read(host, hypervisor, changes)

    def _read(self, host: Host, hypervisor: Hypervisor, changes: Iterator[HostChange]) -> None:
        next(changes)  # from here on nothing is missed, so the sync that follows is complete
        self.is_connected = True
        hosts.connected(host, hypervisor)
        for hook in _RECONNECTED:
            hook(host, hypervisor)
        pending, synced_at = _Pending(), time.monotonic()
        for change in changes:
            if self._stop_asked.is_set():
                return
            now = time.monotonic()
            if change.change is Change.HOST_LOST:
                raise connections.translate(
                    connections.HostUnreachable("host_lost", "the connection broke", hint="it is tried again"), host
                )
            if change.change is not Change.IDLE:
                pending.note(now)
            if change.vm_uuid is not None:
                pending.vms.add(change.vm_uuid)
            elif change.change is Change.DATASTORES:
                pending.datastores = True
            if now - synced_at >= SYNC_EVERY_SECONDS or len(pending.vms) > MANY:
                hosts.refresh_facts(host, hypervisor)
                sync.sync_host(host, hypervisor)
                pending, synced_at = _Pending(), time.monotonic()
            elif (pending.vms or pending.datastores) and now - pending.since >= DEBOUNCE_SECONDS:
                if pending.vms:
                    sync.refresh_uuids(host, hypervisor, pending.vms)
                if pending.datastores:
                    sync.sync_datastores(host, hypervisor)
                pending = _Pending()


def watch_all(stop: threading.Event) -> None:
    """Keeps a watch for every host until `stop` is set, and leaves no thread behind that still writes."""
    watches: dict[UUID, HostWatch] = {}
    ending: list[HostWatch] = []
    try:
        while not stop.is_set():
            close_old_connections()
            try:
                _adjust(watches, ending)
            except DatabaseError as exc:
                log.warning("reading the list of hosts failed (%s)", type(exc).__name__)
            stop.wait(LOOK_EVERY_SECONDS)
    finally:
        for watch in watches.values():
            watch.stop()
        for watch in [*watches.values(), *ending]:
            watch.join(timeout=10)
        connection.close()


def _adjust(watches: dict[UUID, HostWatch], ending: list[HostWatch]) -> None:
    """Starts and ends watches so that they fit the table of hosts. Two queries.

    A host that a job is connecting just now is left to the job. `ending` keeps those that were told to stop.
    """
    ending[:] = [watch for watch in ending if watch.is_alive()]
    jobs = Job.objects.filter(target_kind=TargetKind.HOST, status__in=LIVE_STATUSES)
    in_hand = set(jobs.values_list("target_id", flat=True))
    wanted = {
        pk: (uri, state)
        for pk, uri, state in Host.objects.values_list("pk", "uri", "state")
        if not (state == Host.State.CONNECTING and pk in in_hand)
    }
    for host_id, watch in list(watches.items()):
        uri, state = wanted.get(host_id, ("", ""))
        if uri != watch.uri or not watch.is_alive():
            watch.stop()
            ending.append(watches.pop(host_id))
        elif state == Host.State.CONNECTED and not watch.is_connected:
            watch.wake()
    for host_id, (uri, _) in wanted.items():
        if host_id not in watches:
            watches[host_id] = HostWatch(host_id, uri)
            watches[host_id].start()
