"""A host in memory that implements the `Hypervisor` port, for what libvirt's test driver cannot do."""

import hashlib
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID, uuid4

from inventory.engine.abilities import HostAbilities
from inventory.engine.hypervisor import (
    Change,
    CopyProgress,
    DatastoreFacts,
    DiskFacts,
    DomainMissing,
    FileFacts,
    HostChange,
    HostFacts,
    HostImage,
    HostUnreachable,
    HypervisorError,
    ListedFile,
    LuksTarget,
    Migration,
    MigrationOutcome,
    MigrationProgress,
    OperationRefused,
    Power,
    TpmFacts,
    VmFacts,
)

GIB = 2**30


def disk(target: str = "vda", **changes: object) -> DiskFacts:
    facts = DiskFacts(
        target=target, device="disk", bus="virtio", format="raw", source=f"/images/{target}.img", is_read_only=False,
        is_encrypted=False, secret_uuid=None, capacity_bytes=10 * GIB, allocation_bytes=GIB,
    )  # fmt: skip
    return replace(facts, **changes)  # type: ignore[arg-type]


def vm(name: str = "vm", **changes: object) -> VmFacts:
    facts = VmFacts(
        uuid=uuid4(), name=name, power=Power.OFF, is_persistent=True, firmware="uefi", has_secure_boot=False,
        machine="q35", vcpus=2, memory_bytes=GIB, nvram_path=f"/images/{name}_VARS.fd", nvram_secret_uuid=None,
        tpm=TpmFacts("tpm-crb", "2.0", is_encrypted=False, secret_uuid=None), disks=(disk(),),
        definition_sha256=uuid4().hex * 2,
    )  # fmt: skip
    return replace(facts, **changes)  # type: ignore[arg-type]


class FakeHypervisor:
    """`vms`, `secrets` and the rest may be changed by a test at any time; `calls` tells what was asked."""

    def __init__(self, host_uuid: UUID | None = None) -> None:
        self.host_uuid = host_uuid or uuid4()
        self.vms: dict[UUID, VmFacts] = {}
        self.pools: list[DatastoreFacts] = [DatastoreFacts("default", "dir", "/images", True, 100 * GIB, 60 * GIB)]
        self.xml: dict[UUID, str] = {}
        self.secrets: dict[UUID, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.copies: dict[tuple[UUID, str], CopyProgress] = {}
        self.console: dict[UUID, str] = {}
        self.events: list[HostChange] = []
        self.calls: list[str] = []
        self.failures: dict[str, HypervisorError] = {}
        self.site: FakeSite | None = None
        self.tls_failure: HypervisorError | None = None  # of every migration from here under TLS
        self.migrations: list[Migration] = []
        self.probes: set[UUID] = set()
        self.unknown_machines: set[str] = set()
        self.is_reachable = True
        self.can = HostAbilities()

    def add(self, *machines: VmFacts) -> None:
        for facts in machines:
            self.vms[facts.uuid] = facts

    def change(self, uuid: UUID, **changes: object) -> None:
        if "definition_sha256" not in changes and set(changes) - {"power"}:
            changes["definition_sha256"] = uuid4().hex * 2
        self.vms[uuid] = replace(self.vms[uuid], **changes)  # type: ignore[arg-type]

    def _ask(self, call: str) -> None:
        self.calls.append(call)
        if not self.is_reachable:
            raise HostUnreachable("host_lost", "the connection broke")
        if call in self.failures:
            raise self.failures[call]

    def facts(self) -> HostFacts:
        self._ask("facts")
        return HostFacts(
            host_uuid=self.host_uuid, hostname="fake", hypervisor="FAKE", hypervisor_version="1.0.0",
            libvirt_version="9.0.0", cpu_model="Fake-1", cpu_count=4, memory_bytes=8 * GIB, memory_free_bytes=4 * GIB,
            is_encrypted_connection=True,
        )  # fmt: skip

    def abilities(self) -> HostAbilities:
        self._ask("abilities")
        return self.can

    def datastores(self) -> tuple[DatastoreFacts, ...]:
        self._ask("datastores")
        return tuple(self.pools)

    def virtual_machines(self, known_definitions: Container[str] = ()) -> Iterator[VmFacts]:
        self._ask("virtual_machines")
        yield from list(self.vms.values())

    def virtual_machine(self, uuid: UUID) -> VmFacts:
        self._ask("virtual_machine")
        if uuid not in self.vms:
            raise DomainMissing("vm_missing", f"VM {uuid} is not on host fake")
        return self.vms[uuid]

    def definition(self, uuid: UUID) -> str:
        self._ask("definition")
        return self.xml[uuid]

    def live_definition(self, uuid: UUID) -> str | None:
        return self.xml[uuid] if self.virtual_machine(uuid).power is Power.ON else None

    def define(self, xml: str) -> None:
        self._ask("define")

    def redefine(self, uuid: UUID, edit: Callable[[str], str]) -> None:
        self._ask("redefine")
        self.xml[uuid] = edit(self.xml[uuid])

    def _power(self, call: str, uuid: UUID, allowed: bool, after: Power) -> None:
        self._ask(call)
        if not allowed:
            raise OperationRefused("wrong_state", f"VM {uuid}: Requested operation is not valid")
        self.change(uuid, power=after)

    def power_on(self, uuid: UUID) -> None:
        self._power("power_on", uuid, self.virtual_machine(uuid).power is Power.OFF, Power.ON)

    def shut_down(self, uuid: UUID) -> None:
        self._power("shut_down", uuid, self.virtual_machine(uuid).power is Power.ON, Power.ON)

    def power_off(self, uuid: UUID) -> None:
        self._power("power_off", uuid, self.virtual_machine(uuid).power is not Power.OFF, Power.OFF)

    def reboot(self, uuid: UUID) -> None:
        self._power("reboot", uuid, self.virtual_machine(uuid).power is Power.ON, Power.ON)

    def discard_managed_save(self, uuid: UUID, *, path: str) -> None:
        self._ask("discard_managed_save")
        self.files.pop(path, None)
        self.vms[uuid] = replace(self.virtual_machine(uuid), has_managed_save=False)

    def console_text(self, uuid: UUID, max_bytes: int) -> str:
        self._ask("console_text")
        if uuid not in self.console:
            raise OperationRefused("console_not_kept", "VM does not keep its console", hint="add a log")
        return self.console[uuid][-max_bytes:]

    def put_secret(self, secret_uuid: UUID, *, usage: str, vtpm: bool, value: bytes) -> None:
        self._ask("put_secret")
        self.secrets[secret_uuid] = value

    def remove_secret(self, secret_uuid: UUID) -> None:
        self._ask("remove_secret")
        self.secrets.pop(secret_uuid, None)

    def has_secret(self, secret_uuid: UUID) -> bool:
        return secret_uuid in self.secrets

    def start_block_copy(self, uuid: UUID, disk: str, target: LuksTarget, *, bytes_per_second: int = 0) -> None:
        self._ask("start_block_copy")
        self.copies[uuid, disk] = CopyProgress(0, 100, is_ready=False, is_gone=False)

    def block_copy(self, uuid: UUID, disk: str) -> CopyProgress:
        self._ask("block_copy")
        return self.copies.get((uuid, disk), CopyProgress(0, 0, is_ready=False, is_gone=True))

    def pivot(self, uuid: UUID, disk: str) -> None:
        self._ask("pivot")
        del self.copies[uuid, disk]

    def abort_block_copy(self, uuid: UUID, disk: str) -> None:
        self._ask("abort_block_copy")
        self.copies.pop((uuid, disk), None)

    def migrate(self, uuid: UUID, migration: Migration) -> None:
        self._ask("migrate")
        assert self.site is not None
        target = self.site.hosts.get(migration.destination)
        if target is None or not target.is_reachable:
            raise OperationRefused("target_unreachable", f"VM {uuid}: Failed to connect to remote libvirt URI")
        if migration.uses_tls and self.tls_failure is not None:
            raise self.tls_failure
        self.migrations.append(migration)
        if uuid in self.probes:
            self.probes.discard(uuid)
            target.probes.add(uuid)
            return
        self._arrive(uuid, migration, target)

    def _arrive(self, uuid: UUID, migration: Migration, target: "FakeHypervisor") -> None:
        target.vms[uuid] = self.vms.pop(uuid)
        if uuid in self.xml:
            xml = self.xml.pop(uuid)
            target.xml[uuid] = xml if migration.edit is None else migration.edit(xml)

    def migration(self, uuid: UUID) -> MigrationProgress | None:
        self._ask("migration")
        return None

    def abort_migration(self, uuid: UUID) -> None:
        self._ask("abort_migration")

    def migration_outcome(self, uuid: UUID) -> MigrationOutcome | None:
        self._ask("migration_outcome")
        return MigrationOutcome(1500, 60, 2**20)

    def start_probe(self, uuid: UUID) -> None:
        self._ask("start_probe")
        self.probes.add(uuid)

    def end_probe(self, uuid: UUID) -> None:
        self._ask("end_probe")
        self.probes.discard(uuid)

    def machine_is_known(self, *, architecture: str, machine: str, domain_type: str) -> bool:
        self._ask("machine_is_known")
        return machine not in self.unknown_machines

    def set_autostart(self, uuid: UUID, *, is_on: bool) -> None:
        self._ask("set_autostart")
        self.vms[uuid] = replace(self.vms[uuid], is_autostarted=is_on)

    def undefine(self, uuid: UUID) -> None:
        self._ask("undefine")
        self.vms.pop(uuid, None)
        self.xml.pop(uuid, None)

    def read_file(self, path: str, *, offset: int, length: int) -> bytes:
        self._ask("read_file")
        data = self.files[path]
        begin = max(0, len(data) + offset) if offset < 0 else offset
        return data[begin : begin + length]

    def list_files(self, folder: str) -> tuple[ListedFile, ...]:
        self._ask("list_files")
        below = f"{folder.rstrip('/')}/"
        return tuple(
            ListedFile(path, len(data), len(data)) for path, data in self.files.items() if path.startswith(below)
        )

    def create_file(self, path: str, *, size: int, head: bytes = b"", like: str = "") -> None:
        self._ask("create_file")
        self.files[path] = head.ljust(size, b"\0")

    def overwrite_file(self, path: str, content: bytes, *, offset: int = 0) -> None:
        self._ask("overwrite_file")
        self.files[path] = content + self.files[path][len(content) :]

    def file_facts(self, path: str) -> FileFacts | None:
        self._ask("file_facts")
        data = self.files.get(path)
        return None if data is None else FileFacts(len(data), hashlib.sha256(data).hexdigest(), is_regular=True)

    def copy_image(self, source: HostImage, target: HostImage, *, size: int, advance: Callable[[int], None]) -> None:
        self._ask("copy_image")
        raise OperationRefused("not_supported", "this fake copies nothing")

    def delete_file(self, path: str, *, wipe: bool) -> None:
        self._ask("delete_file")
        self.files.pop(path, None)

    def file_size(self, path: str) -> int | None:
        self._ask("file_size")
        return len(self.files[path]) if path in self.files else None

    def download(self, path: str) -> Iterator[bytes]:
        self._ask("download")
        if path not in self.files:
            raise OperationRefused("storage_missing", f"{path}: no such file")
        yield from (self.files[path][at : at + 4 * 2**20] for at in range(0, len(self.files[path]), 4 * 2**20))

    def upload(self, path: str, *, size: int, blocks: Iterable[tuple[int, bytes]]) -> None:
        self._ask("upload")
        if path in self.files:
            raise OperationRefused("host_refused", f"{path} exists")
        made = bytearray(size)
        for offset, data in blocks:
            made[offset : offset + len(data)] = data
        self.files[path] = bytes(made)

    def make_folder(self, path: str) -> None:
        self._ask("make_folder")

    def remove_folder(self, path: str) -> None:
        self._ask("remove_folder")

    def free_bytes(self, folder: str) -> int:
        self._ask("free_bytes")
        return 60 * GIB

    def changes(self, *, idle_seconds: float = 0.5) -> Generator[HostChange, None, None]:
        """Yields what a test has put into `events`, IDLE when there is nothing, HOST_LOST once unreachable."""
        while True:
            if not self.is_reachable:
                yield HostChange(Change.HOST_LOST)
                return
            yield self.events.pop(0) if self.events else HostChange(Change.IDLE)


class FakeSite:
    """All hosts of a test by URI; stands in for `inventory.services.connections.opener`."""

    def __init__(self) -> None:
        self.hosts: dict[str, FakeHypervisor] = {}
        self.opened: list[str] = []

    def add(self, uri: str, host: FakeHypervisor | None = None) -> FakeHypervisor:
        self.hosts[uri] = host or FakeHypervisor()
        self.hosts[uri].site = self
        return self.hosts[uri]

    @contextmanager
    def open(self, uri: str) -> Iterator[FakeHypervisor]:
        self.opened.append(uri)
        host = self.hosts.get(uri)
        if host is None or not host.is_reachable:
            raise HostUnreachable("connection_refused", "host fake: Connection refused", hint="is libvirt running?")
        yield host
