"""Open connections to libvirt, kept and used again. With the other libvirt_* files the only `import libvirt`.

- libvirt's event loop must be registered before the first connection and runs in one thread of this process. A
  connection does not survive fork, so everything here belongs to the process that made it.
- A connection that is given back is used again while it is alive. Connections of libvirt's test driver hold the state
  of the simulated host and take seconds to open, so there is one a process for each URI, shared.
- `libvirt.open` has no timeout of its own; it runs in a thread that is left behind when it takes too long.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import libvirt

from inventory.adapters import libvirt_errors
from inventory.engine.hypervisor import HostUnreachable
from inventory.engine.uri import HostUri, Transport

log = logging.getLogger(__name__)

KEEPALIVE_SECONDS: Final = 5
KEEPALIVE_COUNT: Final = 3
IDLE_KEPT: Final = 2
IDLE_SECONDS: Final = 300

# Without this libvirt prints every error to stderr, whole.
libvirt.registerErrorHandler(lambda context, error: None, None)


@dataclass(slots=True)
class _Process:
    """What this process holds; another process id means that we were forked and hold nothing."""

    pid: int
    idle: dict[str, list[tuple[libvirt.virConnect, float]]] = field(default_factory=dict)
    shared: dict[str, libvirt.virConnect] = field(default_factory=dict)
    opening: dict[str, threading.Lock] = field(default_factory=dict)


_lock: Final = threading.Lock()
_process: _Process | None = None


def _current() -> _Process:
    """Call with `_lock` held."""
    global _process
    if _process is None or _process.pid != os.getpid():
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_loop, name="libvirt-events", daemon=True).start()
        _process = _Process(os.getpid())
    return _process


def _loop() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as exc:
            log.warning("libvirt's event loop: %s", libvirt_errors.text_of(exc))
            time.sleep(1)


@contextmanager
def checked_out(uri: HostUri, *, timeout_seconds: int) -> Iterator[libvirt.virConnect]:
    """A connection for the use of one thread. Raises HostUnreachable."""
    if uri.transport is Transport.TEST:
        yield _shared(uri, timeout_seconds)
        return
    connection = _take_idle(uri) or _open(uri, timeout_seconds)
    try:
        yield connection
    finally:
        _give_back(uri, connection)


def _shared(uri: HostUri, timeout_seconds: int) -> libvirt.virConnect:
    with _lock:
        process = _current()
        opening = process.opening.setdefault(uri.text, threading.Lock())
    with opening:
        found = process.shared.get(uri.text)
        if found is None:
            # A file of 10,000 domains takes 7 s to parse on a quiet machine.
            found = process.shared[uri.text] = _open(uri, max(timeout_seconds, 120))
        return found


def forget_shared() -> None:
    """Closes the test driver's connections, and with them the state of their simulated hosts."""
    with _lock:
        connections = list(_current().shared.values())
        _current().shared.clear()
    for connection in connections:
        _close(connection)


def _take_idle(uri: HostUri) -> libvirt.virConnect | None:
    while True:
        with _lock:
            idle = _current().idle.get(uri.text)
            if not idle:
                return None
            connection, since = idle.pop()
        if time.monotonic() - since < IDLE_SECONDS and _answers(connection):
            return connection
        _close(connection)


def _answers(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive()) and connection.getLibVersion() > 0
    except libvirt.libvirtError:
        return False


def _give_back(uri: HostUri, connection: libvirt.virConnect) -> None:
    try:
        alive = bool(connection.isAlive())
    except libvirt.libvirtError:
        alive = False
    if alive:
        with _lock:
            idle = _current().idle.setdefault(uri.text, [])
            if len(idle) < IDLE_KEPT:
                idle.append((connection, time.monotonic()))
                return
    _close(connection)


def _close(connection: libvirt.virConnect) -> None:
    try:
        connection.close()
    except libvirt.libvirtError as exc:
        log.debug("closing a connection: %s", libvirt_errors.text_of(exc))


def _open(uri: HostUri, timeout_seconds: int) -> libvirt.virConnect:
    with _lock:
        _current()
    # Without a terminal ssh cannot ask for anything; with one it would wait there for ever. This makes it fail instead.
    text = uri.text
    if uri.transport is Transport.SSH:
        text += ("&" if "?" in text else "?") + "no_tty=1"
    answer: queue.SimpleQueue[libvirt.virConnect | libvirt.libvirtError] = queue.SimpleQueue()
    abandoned = threading.Event()

    def work() -> None:
        try:
            opened = libvirt.open(text)
        except libvirt.libvirtError as exc:
            answer.put(exc)
            return
        answer.put(opened)
        if abandoned.is_set():
            _close(opened)

    threading.Thread(target=work, name="libvirt-open", daemon=True).start()
    try:
        result = answer.get(timeout=timeout_seconds)
    except queue.Empty:
        abandoned.set()
        raise HostUnreachable(
            "host_timeout",
            f"host {uri.label} did not answer within {timeout_seconds} s",
            hint="check the address, the network and the firewall",
        ) from None
    if isinstance(result, libvirt.libvirtError):
        raise libvirt_errors.connecting(result, uri.label) from result
    if uri.transport is not Transport.TEST:
        try:
            result.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
        except libvirt.libvirtError as exc:
            log.info("host %s has no keepalive: %s", uri.label, libvirt_errors.text_of(exc))
    return result
