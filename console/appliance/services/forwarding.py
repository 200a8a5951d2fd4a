"""The forwarder: every event to every syslog target, one thread a target. See `manage forward_events`.

The event table is the queue and each target has its own place in it, so a collector that is down for a day loses
nothing and holds up nobody. Delivery is at least once: after a broken connection what may not have been read
is sent again (`engine/sent_window.py`). Run one forwarder for each console: two would send everything twice.
"""

import logging
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from django.db import DatabaseError, close_old_connections, connection, transaction
from django.utils import timezone
from typing_extensions import override

from console.appliance.adapters import log_files
from console.appliance.adapters.syslog_client import Link, SyslogFailure
from console.appliance.engine.log_line import log_entry
from console.appliance.engine.sent_window import SentWindow
from console.appliance.engine.syslog_message import written
from console.appliance.services.event_stream import EventStream, seal_new
from console.appliance.services.syslog_links import open_link
from console.appliance.services.syslog_targets import DOWN_ALARM
from console.models import SyslogTarget
from inventory import events
from inventory.alarms import clear_alarm, raise_alarm
from inventory.authorize import SYSTEM
from inventory.errors import ServiceError
from inventory.models import Severity

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS: Final = 0.5
NOTE_EVERY_SECONDS: Final = 1.0
CHECK_EVERY_SECONDS: Final = 2.0
SHORT_SECONDS: Final = 0.1
SAY_EVERY_SECONDS: Final = 20.0  # that it works, where nothing happens; see syslog_targets.FORWARDER_SILENT
FIRST_WAIT_SECONDS: Final = 1.0
LONGEST_WAIT_SECONDS: Final = 30.0
FINISH_SECONDS: Final = 2.0
CUT_AFTER_SECONDS: Final = 3.0
# A collector that hangs still takes what fits its receive buffer. Beyond that it must have read.
PROVEN_OCTETS: Final = 1024 * 1024
# A refusal (of a certificate, of a datagram) comes some time after what it refuses.
CALM_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """How far a target has got: the last event, and each log."""

    sequence: int
    logs: dict[str, Any] | None


class TargetForwarder(threading.Thread):
    """Sends to one target until `stop`. A target that is edited gets a new one."""

    def __init__(self, target_id: UUID, version: tuple[object, ...], stream: EventStream, log_folder: Path) -> None:
        super().__init__(name=f"syslog-{target_id}", daemon=True)
        self.version = version
        self._target_id = target_id
        self._stream = stream
        self._log_folder = log_folder
        self._stop_asked = threading.Event()
        self._wake = threading.Event()
        self._link: Link | None = None
        self._has_worked = False
        self._noted: dict[str, Any] = {}
        self._noted_at = 0.0
        self._stopped_at = 0.0

    def stop(self) -> None:
        """Soon, but in order: what was written is confirmed where the collector does that."""
        if not self._stop_asked.is_set():
            self._stopped_at = time.monotonic()
        self._stop_asked.set()
        self._wake.set()

    def cut(self) -> None:
        """What has not ended a while after `stop` waits for a collector that takes nothing: no longer."""
        if time.monotonic() - self._stopped_at >= CUT_AFTER_SECONDS and (link := self._link) is not None:
            link.interrupt()

    def wake(self) -> None:
        """There are new events."""
        self._wake.set()

    @override
    def run(self) -> None:
        wait = FIRST_WAIT_SECONDS
        try:
            while not self._stop_asked.is_set():
                self._has_worked = False
                close_old_connections()
                try:
                    self._serve()
                except DatabaseError as exc:
                    log.warning("syslog target %s: the database failed (%s)", self._target_id, type(exc).__name__)
                if self._has_worked:
                    wait = FIRST_WAIT_SECONDS
                self._stop_asked.wait(wait)
                wait = min(wait * 2, LONGEST_WAIT_SECONDS)
        finally:
            connection.close()

    def _serve(self) -> None:
        """One connection, from its beginning to its end. Whatever ends it, the place is kept."""
        row = SyslogTarget.objects.filter(pk=self._target_id).first()
        if row is None:
            self.stop()
            return
        place = Place(row.cursor, row.log_places)
        if row.includes_logs and place.logs is None:
            place = Place(place.sequence, dict(log_files.ends(self._log_folder)))
        window = SentWindow(place)
        self._noted = {}
        failure: SyslogFailure | ServiceError | None = None
        try:
            self._link = open_link(row)
            self._follow(row, self._link, window, place)
        except (SyslogFailure, ServiceError) as exc:
            failure = exc
        finally:
            if self._link is not None:
                self._link.close()
                self._link = None
        self._note(row, cursor=window.safe.sequence, sent=window.safe.sequence, log_places=window.safe.logs)
        if failure is None or self._stop_asked.is_set():
            return
        # A connection that worked and was closed is made anew first: a collector that is restarted is not down.
        if not self._has_worked or failure.code != "syslog_closed":
            self._tell_down(row, failure)

    def _follow(self, row: SyslogTarget, link: Link, window: SentWindow[Place], place: Place) -> None:
        written_octets, quiet_since = 0, time.monotonic()
        while not self._stop_asked.is_set():
            self._wake.clear()
            messages, after = self._next(row, place)
            if messages:
                octets = sum(map(len, messages))
                window.note(after, octets, time.monotonic())
                link.send(messages)
                place, quiet_since = after, time.monotonic()
                written_octets += octets
            link.check()
            unsent = link.unsent()
            is_calm = not unsent and time.monotonic() - quiet_since >= CALM_SECONDS
            if not self._has_worked and (is_calm or written_octets - unsent >= PROVEN_OCTETS):
                self._has_worked = True
                self._tell_up(row)
            window.settle(unread=link.unread(), now=time.monotonic())
            if messages:
                self._note_soon(row, window, sent=place.sequence, last_sent_at=timezone.now())
            else:
                self._note_soon(row, window, sent=place.sequence)
                self._wake.wait(CHECK_EVERY_SECONDS if self._has_worked and not unsent else SHORT_SECONDS)
        if link.finish(FINISH_SECONDS) or row.protocol == SyslogTarget.Protocol.UDP:
            window.settle_all()

    def _next(self, row: SyslogTarget, place: Place) -> tuple[list[bytes], Place]:
        """What comes next, and where the stream goes on after it: events first, then lines of logs."""
        page = self._stream.after(place.sequence)
        messages, logs = list(page.messages), place.logs
        if row.includes_logs and logs is not None:
            try:
                part = log_files.read(self._log_folder, logs)
            except OSError:  # rotated under our hands: the next look finds it in its place
                return messages, Place(page.last, logs)
            logs, now, host = dict(part.places), timezone.now(), socket.gethostname()
            messages += [text for line in part.lines for text in written(log_entry(line, now), host=host)]
        return messages, Place(page.last, logs)

    def _note_soon(self, row: SyslogTarget, window: SentWindow[Place], **values: Any) -> None:
        """At most once a second; and now and then where nothing changes, to say that this thread lives."""
        values |= {"cursor": window.safe.sequence, "log_places": window.safe.logs}
        is_news = any(self._noted.get(name, self) != value for name, value in values.items())
        if time.monotonic() - self._noted_at >= (NOTE_EVERY_SECONDS if is_news else SAY_EVERY_SECONDS):
            self._note(row, **values)

    def _note(self, row: SyslogTarget, **values: Any) -> None:
        if not row.includes_logs:
            values.pop("log_places", None)  # the row's own: an edit may have changed it
        SyslogTarget.objects.filter(pk=row.pk).update(**values, checked_at=timezone.now())
        self._noted |= values
        self._noted_at = time.monotonic()

    def _tell_up(self, row: SyslogTarget) -> None:
        """UDP never says that it is up: only that nothing has been heard against it."""
        is_udp = row.protocol == SyslogTarget.Protocol.UDP
        state = SyslogTarget.State.UNKNOWN if is_udp else SyslogTarget.State.UP
        with transaction.atomic():
            found = SyslogTarget.objects.select_for_update().filter(pk=row.pk).first()
            if found is None or found.state == state:
                return
            was_down = found.state == SyslogTarget.State.DOWN
            since = found.state_since
            found.state, found.state_since, found.state_code, found.state_reason = state, timezone.now(), "", ""
            found.save(update_fields=["state", "state_since", "state_code", "state_reason"])
            words = "is sent to again; UDP does not tell whether anything arrives" if is_udp else "is up"
            if was_down:
                words += f"; it was down since {since:%Y-%m-%d %H:%M:%S} UTC"
            events.record("syslog.target_up", f"Syslog target {row} {words}", target=row, actor=SYSTEM)
            clear_alarm(DOWN_ALARM, target=row, is_told=True)

    def _tell_down(self, row: SyslogTarget, failure: SyslogFailure | ServiceError) -> None:
        """An event and an alarm when it goes down; while it stays down, the row has the reason of the last try."""
        now = timezone.now()
        with transaction.atomic():
            found = SyslogTarget.objects.select_for_update().filter(pk=row.pk).first()
            if found is None:
                return
            is_news = found.state != SyslogTarget.State.DOWN
            if is_news:
                found.state, found.state_since = SyslogTarget.State.DOWN, now
            found.state_code, found.state_reason = failure.code, failure.message[:500]
            found.checked_at = now
            found.save(update_fields=["state", "state_since", "state_code", "state_reason", "checked_at"])
            if not is_news:
                return
            text = f"Syslog target {row} is down: {failure.message}; its events wait"
            events.record(
                "syslog.target_down", text, target=row, actor=SYSTEM, severity=Severity.ERROR, code=failure.code
            )
            raise_alarm(DOWN_ALARM, text, target=row, severity=Severity.ERROR, remedy=failure.hint, is_told=True)


def forward_all(stop: threading.Event, *, log_folder: Path) -> None:
    """Keeps a forwarder for every target until `stop` is set; none is left behind that still writes."""
    stream = EventStream(socket.gethostname())
    running: dict[UUID, TargetForwarder] = {}
    ending: dict[UUID, TargetForwarder] = {}
    head = -1
    try:
        while not stop.is_set():
            close_old_connections()
            try:
                _adjust(running, ending, stream, log_folder)
                if running and (now := seal_new()) != head:
                    head = now
                    for forwarder in running.values():
                        forwarder.wake()
            except DatabaseError as exc:
                log.warning("reading the syslog targets failed (%s)", type(exc).__name__)
            stop.wait(LOOK_EVERY_SECONDS)
    finally:
        left = [*running.values(), *ending.values()]
        for forwarder in left:
            forwarder.stop()
        _wait_for(left, CUT_AFTER_SECONDS)
        for forwarder in left:
            forwarder.cut()
        _wait_for(left, FINISH_SECONDS)
        connection.close()


def _wait_for(forwarders: list[TargetForwarder], seconds: float) -> None:
    end = time.monotonic() + seconds
    for forwarder in forwarders:
        forwarder.join(timeout=max(0.0, end - time.monotonic()))


def _adjust(
    running: dict[UUID, TargetForwarder],
    ending: dict[UUID, TargetForwarder],
    stream: EventStream,
    log_folder: Path,
) -> None:
    """Starts and ends forwarders so that they fit the table. One query.

    A target's next one begins when its last one has ended: two would write the same place.
    """
    for target_id, forwarder in list(ending.items()):
        forwarder.cut()
        if not forwarder.is_alive():
            del ending[target_id]
    wanted = {row[0]: row[1:] for row in SyslogTarget.objects.values_list("pk", *_VERSION)}
    for target_id, forwarder in list(running.items()):
        if wanted.get(target_id) != forwarder.version or not forwarder.is_alive():
            forwarder.stop()
            ending[target_id] = running.pop(target_id)
    for target_id, version in wanted.items():
        if target_id not in running and target_id not in ending:
            running[target_id] = TargetForwarder(target_id, version, stream, log_folder)
            running[target_id].start()


_VERSION: Final = (
    "host", "port", "protocol", "includes_logs", "trusted_pem", "client_certificate_pem", "client_key_sealed",
)  # fmt: skip
