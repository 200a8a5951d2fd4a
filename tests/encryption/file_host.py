"""A fake host whose VMs are real domain XML over real files, and a key server in memory."""

import json
import os
import stat
import subprocess
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID

from typing_extensions import override

from encryption.adapters import qemu_img
from encryption.engine import luks
from encryption.engine.key_server import (
    KeyAttributes,
    KeyNotFound,
    KeyOrder,
    KeyState,
    KmsError,
    KmsUnreachable,
    RevocationReason,
    ServerAddress,
    ServerInfo,
    WrongState,
)
from encryption.engine.secret import Secret
from inventory.engine import domain_edit, domain_xml
from inventory.engine.hypervisor import (
    CopyProgress,
    DiskFacts,
    FileFacts,
    HostImage,
    ListedFile,
    LuksTarget,
    OperationRefused,
    Power,
    VmFacts,
)
from tests.fakes import FakeHypervisor

T = TypeVar("T")
W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class PutSecret:
    uuid: UUID
    usage: str
    vtpm: bool
    value: bytes


class FileHost(FakeHypervisor):
    """`xml` is the definition, `live` that of a running VM; files lie on the machine itself.

    A block copy is done at once and for real, by qemu-img; it then waits for `ready` (a test may turn it off). So is a
    copy by the host itself (simulated: what libvirt does is tests/inventory/adapters/test_libvirt_copies.py's matter).
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[UUID, str] = {}
        self.put: list[PutSecret] = []
        self.targets: dict[tuple[UUID, str], LuksTarget] = {}
        self.copies_are_ready = True
        self.copies_vanish = False
        self.busy_copies = 0

    def add_xml(self, xml: str) -> UUID:
        facts = domain_xml.read_facts(xml, live=None, power=Power.OFF, is_persistent=True)
        self.xml[facts.uuid] = xml
        self.add(facts)
        return facts.uuid

    def _facts(self, uuid: UUID) -> VmFacts:
        before = self.vms[uuid]
        found = domain_xml.read_facts(self.xml[uuid], live=self.live.get(uuid), power=before.power, is_persistent=True)
        return replace(
            found,
            disks=tuple(map(_with_size, found.disks)),
            is_autostarted=before.is_autostarted,
            has_managed_save=before.has_managed_save,
            snapshot_count=before.snapshot_count,
            memory_snapshot_count=before.memory_snapshot_count,
            is_down_by_failure=before.is_down_by_failure,
        )

    @override
    def virtual_machine(self, uuid: UUID) -> VmFacts:
        super().virtual_machine(uuid)
        return self._facts(uuid)

    @override
    def virtual_machines(self, known_definitions: Container[str] = ()) -> Iterator[VmFacts]:
        for facts in super().virtual_machines(known_definitions):
            yield self._facts(facts.uuid)

    @override
    def redefine(self, uuid: UUID, edit: Callable[[str], str]) -> None:
        self._ask("redefine")
        self.xml[uuid] = edit(self.xml[uuid])

    @override
    def power_on(self, uuid: UUID) -> None:
        facts = self._facts(uuid)
        needed = {disk.secret_uuid for disk in facts.disks} | {facts.nvram_secret_uuid}
        needed |= {facts.tpm.secret_uuid} if facts.tpm else set()
        if missing := needed - {None} - set(self.secrets):
            raise OperationRefused("secret_missing", f"no secret {sorted(map(str, missing))}")
        super().power_on(uuid)
        self.live[uuid] = self.xml[uuid]

    @override
    def power_off(self, uuid: UUID) -> None:
        super().power_off(uuid)
        self.live.pop(uuid, None)
        self.copies = {key: copy for key, copy in self.copies.items() if key[0] != uuid}

    @override
    def put_secret(self, secret_uuid: UUID, *, usage: str, vtpm: bool, value: bytes) -> None:
        super().put_secret(secret_uuid, usage=usage, vtpm=vtpm, value=value)
        self.put.append(PutSecret(secret_uuid, usage, vtpm, value))

    @override
    def start_block_copy(self, uuid: UUID, disk: str, target: LuksTarget, *, bytes_per_second: int = 0) -> None:
        self._ask("start_block_copy")
        if (uuid, disk) in self.copies:
            raise OperationRefused("block_job", f"disk {disk} is in an active block job")
        source = next(one for one in self._facts(uuid).disks if one.target == disk)
        if not self.copies_vanish:
            self._copy(source, target)
            self.copies[uuid, disk] = CopyProgress(100, 100, is_ready=self.copies_are_ready, is_gone=False)
            self.targets[uuid, disk] = target

    def _copy(self, source: DiskFacts, target: LuksTarget) -> None:
        if target.secret_uuid is not None and source.secret_uuid is not None:
            known = next(one.value for one in self.put if one.uuid == source.secret_uuid)  # QEMU has it since the start
            _recrypt(source.source, Secret(known), target.path, Secret(self.secrets[target.secret_uuid]))
        elif target.secret_uuid is not None:
            passphrase = Secret(self.secrets[target.secret_uuid])
            qemu_img.copy_into_luks(source.source, source.format, target.path, passphrase, lambda _: None)
        else:
            assert source.secret_uuid is not None
            passphrase = Secret(self.secrets[source.secret_uuid])
            qemu_img.copy_out_of_luks(source.source, target.path, target.format, passphrase, lambda _: None)

    @override
    def block_copy(self, uuid: UUID, disk: str) -> CopyProgress:
        if self.vms[uuid].power is Power.OFF:
            raise OperationRefused("not_running", "Requested operation is not valid: domain is not running")
        return super().block_copy(uuid, disk)

    @override
    def pivot(self, uuid: UUID, disk: str) -> None:
        super().pivot(uuid, disk)
        target = self.targets.pop((uuid, disk))
        for definitions in (self.xml, self.live):
            definitions[uuid] = domain_edit.set_disk(
                definitions[uuid], disk, path=target.path, format=target.format, secret_uuid=target.secret_uuid
            )

    @override
    def create_file(self, path: str, *, size: int, head: bytes = b"", like: str = "") -> None:
        self._ask("create_file")
        with Path(path).open("xb") as file:
            file.write(head)
            file.truncate(size)

    @override
    def overwrite_file(self, path: str, content: bytes, *, offset: int = 0) -> None:
        self._ask("overwrite_file")
        with Path(path).open("r+b") as file:
            file.seek(offset)
            file.write(content)

    @override
    def copy_image(self, source: HostImage, target: HostImage, *, size: int, advance: Callable[[int], None]) -> None:
        self._ask("copy_image")
        if self.busy_copies:
            self.busy_copies -= 1
            raise OperationRefused("copy_still_running", "the host is still at an earlier copy")
        if Path(target.path).exists():
            raise OperationRefused("host_refused", f"{target.path} exists already")
        half = b""
        if target.key is not None:
            half = luks.create(Secret(target.key.passphrase), iterations=2000).header_bytes
        self.create_file(target.path, size=len(half) + size, head=half)
        advance(size // 2)
        self._ask("copy_image half")
        self._copy_image(source, target)
        advance(size)

    def _copy_image(self, source: HostImage, target: HostImage) -> None:
        try:
            if source.key is None:
                assert target.key is not None
                key = Secret(target.key.passphrase)
                qemu_img.copy_into_luks(source.path, source.format, target.path, key, lambda _: None)
            elif target.key is not None:
                between = HostImage(f"{target.path}.clear", "raw", None)
                self._copy_image(source, between)
                self._copy_image(between, target)
                Path(between.path).unlink()
            else:
                key = Secret(source.key.passphrase)
                qemu_img.copy_out_of_luks(source.path, target.path, target.format, key, lambda _: None)
        except qemu_img.QemuImgFailed as exc:
            Path(target.path).unlink()
            raise OperationRefused("host_refused", f"{target.path}: {exc}") from exc

    @override
    def delete_file(self, path: str, *, wipe: bool) -> None:
        self._ask("delete_file")
        Path(path).unlink(missing_ok=True)

    @override
    def file_size(self, path: str) -> int | None:
        self._ask("file_size")
        return Path(path).stat().st_size if Path(path).is_file() else None

    @override
    def list_files(self, folder: str) -> tuple[ListedFile, ...]:
        self._ask("list_files")
        return tuple(_listed(path) for path in sorted(Path(folder).rglob("*")) if path.is_file())

    @override
    def read_file(self, path: str, *, offset: int, length: int) -> bytes:
        self._ask("read_file")
        if not Path(path).is_file():
            raise OperationRefused("storage_missing", f"{path}: no such file")
        data = Path(path).read_bytes()
        begin = max(0, len(data) + offset) if offset < 0 else offset
        return data[begin : begin + length]

    @override
    def file_facts(self, path: str) -> FileFacts | None:
        self._ask("file_facts")
        if not os.path.lexists(path):
            return None
        facts = os.lstat(path)
        if stat.S_ISFIFO(facts.st_mode):
            return None  # as libvirt
        return FileFacts(facts.st_size, f"{facts.st_size}.{facts.st_mtime_ns}", is_regular=stat.S_ISREG(facts.st_mode))

    @override
    def download(self, path: str) -> Iterator[bytes]:
        self._ask("download")
        try:
            with Path(path).open("rb") as file:
                while piece := file.read(64 * 1024):
                    yield piece
        except FileNotFoundError as exc:
            raise OperationRefused("storage_missing", f"{path}: no such file") from exc

    @override
    def upload(self, path: str, *, size: int, blocks: Iterable[tuple[int, bytes]]) -> None:
        self._ask("upload")
        if Path(path).exists():
            raise OperationRefused("host_refused", f"{path} exists")
        with ExitStack() as undo, Path(path).open("xb") as file:
            undo.callback(Path(path).unlink)
            file.truncate(size)
            for offset, data in blocks:
                file.seek(offset)
                file.write(data)
            undo.pop_all()

    @override
    def make_folder(self, path: str) -> None:
        self._ask("make_folder")
        Path(path).mkdir(parents=True, exist_ok=True)

    @override
    def remove_folder(self, path: str) -> None:
        self._ask("remove_folder")
        with suppress(OSError):
            Path(path).rmdir()

    @override
    def define(self, xml: str) -> None:
        self._ask("define")
        self.add_xml(xml)


def _recrypt(source: str, old: Secret, target: str, new: Secret) -> None:
    """By qemu-img, the target's header being there."""
    command = ["qemu-img", "convert", "-n", "--image-opts", "--target-image-opts"]
    command += ["--object", f"secret,id=old,data={old.reveal().decode()}"]
    command += ["--object", f"secret,id=new,data={new.reveal().decode()}"]
    command += [
        f"driver=luks,key-secret={name},file.filename={path}" for name, path in (("old", source), ("new", target))
    ]
    subprocess.run(command, check=True)


def _listed(path: Path) -> ListedFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        is_qcow2 = file.read(4) == b"QFI\xfb"
    if not is_qcow2:
        return ListedFile(str(path), size, size)
    told = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", "-f", "qcow2", str(path)], capture_output=True, check=True
    )
    facts = json.loads(told.stdout)
    return ListedFile(str(path), size, int(facts["virtual-size"]), facts.get("full-backing-filename", ""))


def _with_size(disk: DiskFacts) -> DiskFacts:
    path = Path(disk.source)
    if disk.device != "disk" or not path.is_file():
        return disk
    size, allocated = path.stat().st_size, path.stat().st_blocks * 512
    if disk.secret_uuid is not None:
        size -= luks.PREFIX_BYTES
    elif disk.format == "qcow2":
        told = subprocess.run(
            ["qemu-img", "info", "-U", "--output=json", "-f", "qcow2", str(path)], capture_output=True, check=False
        )
        size = int(json.loads(told.stdout)["virtual-size"]) if told.returncode == 0 else 0
    return replace(disk, capacity_bytes=-(-size // 512) * 512, allocation_bytes=allocated)


class MemoryKeyServer:
    """A key server without a network: keys by id, their names and states."""

    def __init__(self) -> None:
        self.keys: dict[str, Secret] = {}
        self.names: dict[str, str] = {}
        self.states: dict[str, KeyState] = {}

    @property
    def address(self) -> ServerAddress:
        return ServerAddress("memory")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def close(self) -> None:
        return None

    def create_key(self, *, name: str, labels: Mapping[str, str] | None = None) -> str:
        key_id = str(len(self.keys) + 1)
        self.keys[key_id], self.names[key_id] = Secret.generate(32), name
        self.states[key_id] = KeyState.PRE_ACTIVE
        return key_id

    def activate(self, key_id: str) -> None:
        if self.states[key_id] is not KeyState.PRE_ACTIVE:
            raise WrongState(self.address, "activate", key_id, self.states[key_id])
        self.states[key_id] = KeyState.ACTIVE

    def get_key(self, key_id: str) -> Secret:
        if key_id not in self.keys:
            raise KeyNotFound(self.address, key_id)
        return self.keys[key_id]

    def create_keys(self, orders: Sequence[KeyOrder]) -> tuple[str | KmsError, ...]:
        return self._each(orders, lambda order: self.create_key(name=order.name, labels=order.labels))

    def activate_keys(self, key_ids: Sequence[str]) -> tuple[KmsError | None, ...]:
        return self._each(key_ids, self.activate)

    def get_keys(self, key_ids: Sequence[str]) -> tuple[Secret | KmsError, ...]:
        return self._each(key_ids, self.get_key)

    def _each(self, wanted: Sequence[W], ask: Callable[[W], T]) -> tuple[T | KmsError, ...]:
        """One after the other, and none after one that found the server gone."""
        outcomes: list[T | KmsError] = []
        lost: KmsUnreachable | None = None
        for one in wanted:
            try:
                outcomes.append(lost or ask(one))
            except KmsUnreachable as exc:
                outcomes.append(exc)
                lost = KmsUnreachable(exc.server, exc.message)
            except KmsError as exc:
                outcomes.append(exc)
        return tuple(outcomes)

    def state(self, key_id: str) -> KeyState:
        return self.states[key_id]

    def attributes(self, key_id: str) -> KeyAttributes:
        if key_id not in self.keys:
            raise KeyNotFound(self.address, key_id)
        return KeyAttributes(
            key_id=key_id, names=(self.names[key_id],), state=self.states[key_id], algorithm="AES", length_bits=256,
            usages=frozenset(),
        )  # fmt: skip

    def revoke(self, key_id: str, reason: RevocationReason, message: str = "") -> None:
        self.states[key_id] = KeyState.DEACTIVATED

    def destroy(self, key_id: str) -> None:
        del self.keys[key_id]

    def locate(self, *, name: str | None = None, maximum: int | None = None) -> tuple[str, ...]:
        return tuple(key_id for key_id, known in self.names.items() if known == name)[:maximum]

    def rekey(self, key_id: str) -> str:
        raise NotImplementedError

    def query(self) -> ServerInfo:
        raise NotImplementedError
