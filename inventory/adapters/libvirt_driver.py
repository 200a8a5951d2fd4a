"""The port to a hypervisor host, over libvirt: `connect` gives a `LibvirtHost`, which implements `Hypervisor`."""

import logging
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import libvirt
from lxml import etree

from inventory.adapters import (
    libvirt_aside,
    libvirt_connections,
    libvirt_copies,
    libvirt_errors,
    libvirt_events,
    libvirt_files,
    libvirt_folders,
)
from inventory.adapters.libvirt_aside import Aside
from inventory.engine import console_text, domain_edit, domain_xml
from inventory.engine.hypervisor import (
    CopyProgress,
    DatastoreFacts,
    DiskFacts,
    FileFacts,
    HostChange,
    HostFacts,
    HostImage,
    ListedFile,
    LuksTarget,
    OperationRefused,
    Power,
    VmFacts,
)
from inventory.engine.uri import HostUri, Transport
from inventory.engine.uri import parse as parse_uri

log = logging.getLogger(__name__)

_POWER: Final = {
    libvirt.VIR_DOMAIN_RUNNING: Power.ON,
    libvirt.VIR_DOMAIN_BLOCKED: Power.ON,
    libvirt.VIR_DOMAIN_SHUTDOWN: Power.ON,  # shutting down, still there
    libvirt.VIR_DOMAIN_PAUSED: Power.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: Power.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: Power.OFF,
    libvirt.VIR_DOMAIN_CRASHED: Power.CRASHED,
}
# Measured: after a reboot libvirt's autostart fails without the secrets (FAILED); where the daemon died with QEMU and
# comes up again in the same boot it starts nothing, and finds the VM CRASHED.
_FAILURES: Final = frozenset({libvirt.VIR_DOMAIN_SHUTOFF_FAILED, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED})
_ACTIVE: Final = frozenset({Power.ON, Power.PAUSED})


@contextmanager
def connect(uri: str, *, timeout_seconds: int = 15, allow_test: bool = False) -> Iterator["LibvirtHost"]:
    """Opens a host, or takes a connection that is open already. Raises BadUri and HostUnreachable.

    `allow_test` admits libvirt's simulated hosts (test:///...).
    """
    checked = parse_uri(uri, allow_test=allow_test)
    with libvirt_connections.checked_out(checked, timeout_seconds=timeout_seconds) as connection:
        yield LibvirtHost(connection, checked)


class LibvirtHost:
    """One open connection. Implements `inventory.engine.hypervisor.Hypervisor`."""

    def __init__(self, connection: libvirt.virConnect, uri: HostUri) -> None:
        self._connection = connection
        self._uri = uri

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except libvirt.libvirtError as exc:
            raise libvirt_errors.operating(exc, self._uri.label, what) from exc

    def _domain(self, uuid: UUID) -> libvirt.virDomain:
        return self._connection.lookupByUUIDString(str(uuid))

    # What there is

    def facts(self) -> HostFacts:
        with self._asking("host facts"):
            connection = self._connection
            model, memory_mib, cpus = connection.getInfo()[:3]
            uuid, cpu = _capabilities(connection.getCapabilities())
            free = 0
            if self._uri.transport is not Transport.TEST:
                free = connection.getFreeMemory()
            return HostFacts(
                host_uuid=uuid,
                hostname=connection.getHostname()[:253],
                hypervisor=connection.getType()[:40],
                hypervisor_version=_version(connection.getVersion()),
                libvirt_version=_version(connection.getLibVersion()),
                cpu_model=(cpu or str(model))[:120],
                cpu_count=cpus,
                memory_bytes=memory_mib * 2**20,
                memory_free_bytes=free,
                is_encrypted_connection=self._uri.is_encrypted or connection.isEncrypted() == 1,
            )

    def datastores(self) -> tuple[DatastoreFacts, ...]:
        found = []
        with self._asking("datastores"):
            for pool in self._connection.listAllStoragePools(0):
                if pool.name().startswith(libvirt_files.POOL_PREFIX):
                    continue
                try:
                    state, capacity, _, available = pool.info()
                    kind, path = _pool(pool.XMLDesc(0))
                except libvirt.libvirtError as exc:
                    if exc.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                        continue  # gone between the two calls
                    raise
                found.append(
                    DatastoreFacts(
                        name=pool.name()[:255],
                        kind=kind[:40],
                        path=path[:1000],
                        is_active=state == libvirt.VIR_STORAGE_POOL_RUNNING,
                        capacity_bytes=capacity,
                        available_bytes=available,
                    )
                )
        return tuple(found)

    def virtual_machines(self, known_definitions: Container[str] = ()) -> Iterator[VmFacts]:
        with self._asking("virtual machines"):
            listed = libvirt_aside.Listed.read(self._connection)
            # One call for all states and the sizes of running disks. NOWAIT: a VM busy with a long job must not hold
            # up all others; it is reported without sizes. The test driver knows neither flag nor sizes.
            nowait = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
            stats = self._connection.getAllDomainStats(
                libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_BLOCK,
                0 if self._uri.transport is Transport.TEST else nowait,
            )
            for domain, values in stats:
                try:
                    facts = self._read(domain, values, listed.of(domain), known_definitions)
                except libvirt.libvirtError as exc:
                    if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                        continue
                    raise
                yield facts

    def virtual_machine(self, uuid: UUID) -> VmFacts:
        with self._asking(f"VM {uuid}"):
            domain = self._domain(uuid)
            aside = libvirt_aside.asked(domain)
            if self._uri.transport is Transport.TEST:
                values: dict[str, Any] = dict(zip(("state.state", "state.reason"), domain.state(), strict=True))
            else:
                kinds = libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_BLOCK
                nowait = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
                values = self._connection.domainListGetStats([domain], kinds, nowait)[0][1]
            return self._read(domain, values, aside, ())

    def _read(self, domain: libvirt.virDomain, stats: dict[str, Any], aside: Aside, known: Container[str]) -> VmFacts:
        power = _POWER.get(stats.get("state.state"), Power.UNKNOWN)
        is_active = power in _ACTIVE
        inactive = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        live = domain.XMLDesc(0) if is_active else None
        try:
            facts = domain_xml.read_facts(inactive, live=live, power=power, is_persistent=aside.is_persistent)
        except domain_xml.BadDefinition as exc:
            log.warning("host %s, domain %s: %s", self._uri.label, domain.UUIDString(), exc.message)
            return domain_xml.unreadable(UUID(bytes=domain.UUID()), domain.name(), power)
        facts = replace(
            facts,
            is_autostarted=aside.is_autostarted,
            has_managed_save=aside.has_managed_save,
            snapshot_count=aside.snapshots,
            memory_snapshot_count=aside.memory_snapshots,
            is_down_by_failure=power is Power.OFF and stats.get("state.reason") in _FAILURES,
        )
        if is_active:
            return replace(facts, disks=_with_stats(facts.disks, stats))
        if facts.definition_sha256 in known:
            return facts
        return replace(facts, disks=tuple(_with_size(domain, disk) for disk in facts.disks))

    def definition(self, uuid: UUID) -> str:
        with self._asking(f"VM {uuid}"):
            xml: str = self._domain(uuid).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            return xml

    def live_definition(self, uuid: UUID) -> str | None:
        with self._asking(f"VM {uuid}"):
            domain = self._domain(uuid)
            return domain.XMLDesc(0) if domain.isActive() else None

    def define(self, xml: str) -> None:
        with self._asking("the VM's new definition"):
            self._connection.defineXML(xml)

    def redefine(self, uuid: UUID, edit: Callable[[str], str]) -> None:
        with self._asking(f"VM {uuid}"):
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
            before = self._domain(uuid).XMLDesc(flags)
            after = edit(before)
            if after != before:
                self._connection.defineXML(after)

    # Power

    def power_on(self, uuid: UUID) -> None:
        with self._asking(f"VM {uuid}"):
            self._domain(uuid).create()

    def shut_down(self, uuid: UUID) -> None:
        with self._asking(f"VM {uuid}"):
            self._domain(uuid).shutdown()

    def power_off(self, uuid: UUID) -> None:
        with self._asking(f"VM {uuid}"):
            self._domain(uuid).destroy()

    def reboot(self, uuid: UUID) -> None:
        with self._asking(f"VM {uuid}"):
            self._domain(uuid).reboot(0)

    def discard_managed_save(self, uuid: UUID, *, path: str) -> None:
        with self._asking(f"the saved state of VM {uuid}"):
            domain = self._domain(uuid)
            if not domain.hasManagedSaveImage(0):
                return
            if path:
                libvirt_files.wipe(self._connection, path)
            domain.managedSaveRemove(0)

    def console_text(self, uuid: UUID, max_bytes: int) -> str:
        with self._asking(f"VM {uuid}"):
            domain = self._domain(uuid)
            flags = 0 if domain.isActive() else libvirt.VIR_DOMAIN_XML_INACTIVE
            path = domain_xml.console_file(domain.XMLDesc(flags))
            if path is None:
                raise OperationRefused(
                    "console_not_kept",
                    f"VM {domain.name()} does not keep what its serial port prints",
                    hint="add a serial port with <log file='...'/> to its definition",
                )
            raw = libvirt_files.read(self._connection, path, offset=-max_bytes, length=max_bytes)
        return console_text.clean(raw, is_tail=len(raw) == max_bytes)

    # Keys

    def put_secret(self, secret_uuid: UUID, *, usage: str, vtpm: bool, value: bytes) -> None:
        with self._asking(f"secret {secret_uuid}"):
            secret = self._private_secret(secret_uuid)
            if secret is None:
                secret = self._connection.secretDefineXML(_secret_xml(secret_uuid, usage, vtpm), 0)
            secret.setValue(value, 0)

    def _private_secret(self, secret_uuid: UUID) -> libvirt.virSecret | None:
        """The secret that is there; one that is kept on disk or can be read back is undefined, never filled."""
        secret = self._find_secret(secret_uuid)
        if secret is None:
            return None
        root = etree.fromstring(secret.XMLDesc(0).encode())
        if root.get("ephemeral") == "yes" and root.get("private") == "yes":
            return secret
        secret.undefine()
        return None

    def _find_secret(self, secret_uuid: UUID) -> libvirt.virSecret | None:
        try:
            return self._connection.secretLookupByUUIDString(str(secret_uuid))
        except libvirt.libvirtError as exc:
            if exc.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
                return None
            raise

    def remove_secret(self, secret_uuid: UUID) -> None:
        with self._asking(f"secret {secret_uuid}"):
            secret = self._find_secret(secret_uuid)
            if secret is not None:
                secret.undefine()

    def has_secret(self, secret_uuid: UUID) -> bool:
        """Whether it is defined. NOT checked: its value, which nobody can read back."""
        with self._asking(f"secret {secret_uuid}"):
            return self._find_secret(secret_uuid) is not None

    # Block copies (measured: live encryption, decryption and re-keying all go this way)

    def start_block_copy(self, uuid: UUID, disk: str, target: LuksTarget, *, bytes_per_second: int = 0) -> None:
        with self._asking(f"disk {disk} of VM {uuid}"):
            domain = self._domain(uuid)
            destination = domain_edit.copy_destination(
                domain.XMLDesc(0),
                disk,
                path=target.path,
                format=target.format,
                secret_uuid=target.secret_uuid,
            )
            # REUSE_EXT: with a file that QEMU had to format, the guest freezes while it calibrates PBKDF2.
            flags = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
            if domain.isPersistent():
                flags |= libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
            parameters: dict[str, int] = {}
            if bytes_per_second > 0:
                parameters[libvirt.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH] = bytes_per_second
            domain.blockCopy(disk, destination, parameters, flags)

    def block_copy(self, uuid: UUID, disk: str) -> CopyProgress:
        with self._asking(f"disk {disk} of VM {uuid}"):
            domain = self._domain(uuid)
            state = domain.blockJobInfo(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
            if not state:
                return CopyProgress(done=0, total=0, is_ready=False, is_gone=True)
            done, total = int(state["cur"]), int(state["end"])
            is_ready = done == total and domain_xml.is_mirror_ready(domain.XMLDesc(0), disk)
            return CopyProgress(done=done, total=total, is_ready=is_ready, is_gone=False)

    def pivot(self, uuid: UUID, disk: str) -> None:
        with self._asking(f"disk {disk} of VM {uuid}"):
            self._domain(uuid).blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

    def abort_block_copy(self, uuid: UUID, disk: str) -> None:
        with self._asking(f"disk {disk} of VM {uuid}"):
            domain = self._domain(uuid)
            if domain.isActive() and domain.blockJobInfo(disk, 0):
                domain.blockJobAbort(disk, 0)

    # Files

    def read_file(self, path: str, *, offset: int, length: int) -> bytes:
        with self._asking(path):
            return libvirt_files.read(self._connection, path, offset=offset, length=length)

    def list_files(self, folder: str) -> tuple[ListedFile, ...]:
        with self._asking(folder):
            return libvirt_folders.list_files(self._connection, folder)

    def create_file(self, path: str, *, size: int, head: bytes = b"", like: str = "") -> None:
        with self._asking(path):
            libvirt_files.create(self._connection, path, size=size, head=head, like=like)

    def overwrite_file(self, path: str, content: bytes) -> None:
        with self._asking(path):
            libvirt_files.overwrite(self._connection, path, content)

    def file_facts(self, path: str) -> FileFacts | None:
        with self._asking(path):
            return libvirt_files.facts(self._connection, path)

    def copy_image(self, source: HostImage, target: HostImage, *, size: int, advance: Callable[[int], None]) -> None:
        with self._asking(target.path):
            libvirt_copies.copy(self._uri, source, target, size=size, advance=advance)

    def delete_file(self, path: str, *, wipe: bool) -> None:
        with self._asking(path):
            libvirt_files.delete(self._connection, path, wipe=wipe)

    def file_size(self, path: str) -> int | None:
        with self._asking(path):
            return libvirt_files.size_of(self._connection, path)

    def download(self, path: str) -> Iterator[bytes]:
        with self._asking(path):
            yield from libvirt_files.download(self._connection, path)

    def upload(self, path: str, *, size: int, blocks: Iterable[tuple[int, bytes]]) -> None:
        with self._asking(path):
            libvirt_files.upload(self._connection, path, size=size, blocks=blocks)

    def make_folder(self, path: str) -> None:
        with self._asking(path):
            libvirt_files.make_folder(self._connection, path)

    def remove_folder(self, path: str) -> None:
        with self._asking(path):
            libvirt_files.remove_folder(self._connection, path)

    def free_bytes(self, folder: str) -> int:
        with self._asking(folder):
            return libvirt_files.free_bytes(self._connection, folder)

    def changes(self, *, idle_seconds: float = 0.5) -> Generator[HostChange, None, None]:
        return libvirt_events.changes(self._connection, self._uri.label, idle_seconds=idle_seconds)


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _capabilities(xml: str) -> tuple[UUID | None, str]:
    root = etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False, no_network=True))
    text, vendor, model = (
        root.findtext("host/uuid"),
        root.findtext("host/cpu/vendor"),
        root.findtext("host/cpu/model"),
    )
    try:
        uuid = None if text is None else UUID(text)
    except ValueError:
        uuid = None
    return uuid, " ".join(part for part in (vendor, model) if part)


def _pool(xml: str) -> tuple[str, str]:
    root = etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False, no_network=True))
    return root.get("type", ""), root.findtext("target/path") or ""


def _with_stats(disks: tuple[DiskFacts, ...], stats: dict[str, Any]) -> tuple[DiskFacts, ...]:
    sizes = {
        stats.get(f"block.{number}.name"): (
            stats.get(f"block.{number}.capacity", 0),
            stats.get(f"block.{number}.allocation", 0),
        )
        for number in range(stats.get("block.count", 0))
    }
    return tuple(
        replace(disk, capacity_bytes=sizes[disk.target][0], allocation_bytes=sizes[disk.target][1])
        if disk.target in sizes
        else disk
        for disk in disks
    )


def _with_size(domain: libvirt.virDomain, disk: DiskFacts) -> DiskFacts:
    """A disk that is missing or unreadable keeps 0: the VM is still there."""
    if not disk.source or disk.device not in {"disk", "lun"}:
        return disk
    try:
        capacity, allocation, _ = domain.blockInfo(disk.target, 0)
    except libvirt.libvirtError as exc:
        log.debug("size of %s of domain %s: %s", disk.target, domain.name(), libvirt_errors.text_of(exc))
        return disk
    return replace(disk, capacity_bytes=capacity, allocation_bytes=allocation)


def _secret_xml(secret_uuid: UUID, usage: str, vtpm: bool) -> str:
    root = etree.Element("secret", {"ephemeral": "yes", "private": "yes"})
    etree.SubElement(root, "uuid").text = str(secret_uuid)
    holder = etree.SubElement(root, "usage", {"type": "vtpm" if vtpm else "volume"})
    etree.SubElement(holder, "name" if vtpm else "volume").text = usage
    return etree.tostring(root, encoding="unicode")
