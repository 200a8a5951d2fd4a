"""The way to a host for every service, and libvirt's refusals in the product's words. Worker side only."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from django.conf import settings

from inventory.adapters import libvirt_driver
from inventory.engine import uri
from inventory.engine.hypervisor import (
    BadUri,
    CopyProgress,
    DomainMissing,
    HostImage,
    HostUnreachable,
    Hypervisor,
    HypervisorError,
    ImageKey,
    LuksTarget,
    Migration,
    MigrationOutcome,
    OperationRefused,
    SecretMissing,
    VmFacts,
    WrongKey,
)
from inventory.errors import Conflict, Invalid, NotFound, ServiceError, Unavailable
from inventory.models import Host, VirtualMachine

__all__ = [
    "BadUri",
    "CopyProgress",
    "DomainMissing",
    "HostImage",
    "HostUnreachable",
    "Hypervisor",
    "HypervisorError",
    "ImageKey",
    "LuksTarget",
    "Migration",
    "MigrationOutcome",
    "OperationRefused",
    "SecretMissing",
    "VmFacts",
    "WrongKey",
    "check_uri",
    "migration_uri",
    "open_host",
    "reaches_files",
    "state_folder",
    "translate",
    "vtpm_state_path",
]

SYSTEM_STATE: Final = "/var/lib/libvirt/qemu"
SYSTEM_VTPM_STATE: Final = "/var/lib/libvirt/swtpm"

Opener = Callable[[str], AbstractContextManager[Hypervisor]]


def _open(text: str) -> AbstractContextManager[Hypervisor]:
    return libvirt_driver.connect(text, timeout_seconds=15, allow_test=settings.LIBVIRT_TEST_DRIVER)


# Tests put a fake here.
opener: Opener = _open


@contextmanager
def open_host(host: Host) -> Iterator[Hypervisor]:
    """A connection to the host. Errors of the host inside the block leave it as ServiceError, see `translate`."""
    try:
        with opener(host.uri) as hypervisor:
            yield hypervisor
    except HypervisorError as exc:
        raise translate(exc, host) from exc


def translate(error: HypervisorError, host: Host) -> ServiceError:
    """Who must act: Unavailable for a host that does not answer, Conflict for what it refuses, NotFound, Invalid."""
    code, message, hint = error.code, error.message, error.hint
    if isinstance(error, HostUnreachable):
        return Unavailable(code, f"{host.name} is not reachable: {message}", hint=hint)
    if isinstance(error, BadUri):
        return Invalid(code, f"{host.name}: {message}", hint=hint)
    if isinstance(error, DomainMissing):
        return NotFound(code, f"{host.name}: {message}", hint=hint)
    return Conflict(code, f"{host.name}: {message}", hint=hint)


def check_uri(text: str) -> uri.HostUri:
    """The URI policy (engine/uri.py). Raises Invalid."""
    try:
        return uri.parse(text, allow_test=settings.LIBVIRT_TEST_DRIVER)
    except BadUri as exc:
        raise Invalid(exc.code, exc.message, hint=exc.hint) from exc


def check_migration_uri(text: str) -> uri.HostUri:
    """Raises Invalid unless it is an encrypted way with a host name."""
    try:
        return uri.parse_migration(text)
    except BadUri as exc:
        raise Invalid(exc.code, exc.message, hint=exc.hint) from exc


def migration_uri(host: Host) -> str:
    """How other hosts reach this one; "" where its own URI names no server and it has no other."""
    text = host.migration_uri or host.uri
    try:
        return uri.parse_migration(text).text
    except BadUri:
        return ""


def reaches_files(host: Host) -> bool:
    """Whether workers see the host's files as their own: libvirt's socket is on this machine.

    NOT checked: the rights on a single file, and that the worker runs on that machine and not in a container.
    """
    return check_uri(host.uri).transport is uri.Transport.UNIX


def state_folder(host: Host) -> str | None:
    """Where the host's libvirt keeps what belongs to QEMU guests: save/, dump/, nvram/, snapshot/. None where it is not
    known: a session daemon's home shows only in the vTPM state folder that was given for the host."""
    if host.uri.partition("?")[0].endswith("/system"):
        return SYSTEM_STATE
    folder, _, name = host.vtpm_state_path.rstrip("/").rpartition("/")
    return folder if name == "swtpm" and folder else None


def vtpm_states_folder(host: Host) -> str | None:
    """The folder of all VMs' swtpm state; None where it is not known (a session daemon's home)."""
    if host.vtpm_state_path:
        return host.vtpm_state_path.rstrip("/")
    return SYSTEM_VTPM_STATE if host.uri.partition("?")[0].endswith("/system") else None


def vtpm_state_path(vm: VirtualMachine) -> str | None:
    """The folder of the VM's swtpm state on its host; None where it is not known (a session daemon's home)."""
    base = vtpm_states_folder(vm.host)
    return None if base is None else f"{base}/{vm.uuid}/tpm{'1.2' if vm.tpm_version == '1.2' else '2'}"
