"""What happens on a host, as a stream: libvirt's callbacks put it into a queue, the reader takes it out.

Callbacks run in libvirt's event thread and must not call libvirt, so they only note what to look at again.
"""

import logging
import queue
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final
from uuid import UUID

import libvirt

from inventory.adapters import libvirt_errors
from inventory.engine.hypervisor import Change, HostChange, HostUnreachable

log = logging.getLogger(__name__)

DOMAIN_EVENTS: Final = (
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    libvirt.VIR_DOMAIN_EVENT_ID_REBOOT,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
    libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
    libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
)
POOL_EVENTS: Final = (libvirt.VIR_STORAGE_POOL_EVENT_ID_LIFECYCLE, libvirt.VIR_STORAGE_POOL_EVENT_ID_REFRESH)


def changes(connection: libvirt.virConnect, label: str, *, idle_seconds: float) -> Generator[HostChange, None, None]:
    """IDLE once the callbacks stand, then what happens, HOST_LOST at the end. Raises HostUnreachable at the start."""
    seen: queue.SimpleQueue[HostChange] = queue.SimpleQueue()

    def on_domain(conn: libvirt.virConnect, domain: libvirt.virDomain, *rest: Any) -> None:
        seen.put(HostChange(Change.VM, UUID(bytes=domain.UUID())))

    def on_pool(conn: libvirt.virConnect, pool: libvirt.virStoragePool, *rest: Any) -> None:
        seen.put(HostChange(Change.DATASTORES))

    def on_close(conn: libvirt.virConnect, reason: int, opaque: object) -> None:
        seen.put(HostChange(Change.HOST_LOST))

    with ExitStack() as callbacks:
        for event in DOMAIN_EVENTS:
            _register(
                callbacks,
                label,
                partial(connection.domainEventRegisterAny, None, event, on_domain, None),
                connection.domainEventDeregisterAny,
            )
        for event in POOL_EVENTS:
            _register(
                callbacks,
                label,
                partial(connection.storagePoolEventRegisterAny, None, event, on_pool, None),
                connection.storagePoolEventDeregisterAny,
            )
        _register(
            callbacks,
            label,
            lambda: connection.registerCloseCallback(on_close, None),
            lambda number: connection.unregisterCloseCallback(),
        )
        yield HostChange(Change.IDLE)
        while True:
            try:
                change = seen.get(timeout=idle_seconds)
            except queue.Empty:
                change = HostChange(Change.IDLE if _is_alive(connection) else Change.HOST_LOST)
            yield change
            if change.change is Change.HOST_LOST:
                return


def _is_alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _register(
    callbacks: ExitStack, label: str, register: Callable[[], int], deregister: Callable[[int], object]
) -> None:
    try:
        number = register()
    except libvirt.libvirtError as exc:
        if libvirt_errors.is_lost(exc):
            raise HostUnreachable("host_lost", f"the connection to host {label} broke") from exc
        log.info("host %s does not report one sort of event: %s", label, libvirt_errors.text_of(exc))
        return

    def undo() -> None:
        with suppress(libvirt.libvirtError):  # the connection is lost: there is nothing left to undo
            deregister(number)

    callbacks.callback(undo)
