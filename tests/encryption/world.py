"""One VM with real files on a fake host, and the job that changes its encryption, run as a worker runs it."""

import copy
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from django.contrib.auth.models import User

from encryption.adapters import qemu_img
from encryption.engine.secret import Secret
from encryption.models import KmsCluster, Purpose, StoragePolicy, WrappedSecret
from encryption.services import conversion, deep_recrypt, options, passphrases
from encryption.services.options import Wish
from encryption.services.release import open_secrets
from inventory import jobs
from inventory.jobs import Progress
from inventory.models import Cluster, Host, Job, JobStatus, VirtualMachine
from inventory.services import sync
from tests.encryption.file_host import FileHost, MemoryKeyServer
from tests.fakes import FakeSite

KIB = 1024
TPM_PLAIN = b"\x02\x01\x00\x0a\x00\x00\x00\x00\x00\x20" + b"plain vTPM state of vm"


def content(name: str, size: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(size)


@dataclass(frozen=True, slots=True)
class Disk:
    target: str
    format: str
    size: int = 384 * KIB


@dataclass(frozen=True, slots=True)
class Shape:
    disks: tuple[Disk, ...] = (Disk("vda", "raw"), Disk("vdb", "qcow2"))
    nvram: bool = True
    tpm: bool = True
    remote: bool = False  # on a host whose files no worker reaches, see conftest's `hands_off`


class World:
    """`folder` is the datastore; `plain` maps each file of the VM (as named at first) to its content."""

    def __init__(self, folder: Path, site: FakeSite, cluster: Cluster, actor: User, shape: Shape | None = None) -> None:
        shape = shape or Shape()
        self.shape, self.actor, self.folder = shape, actor, folder / "images"
        self.tpm_base = folder / "swtpm"
        self.folder.mkdir(parents=True)
        self.uuid = uuid4()
        uri = f"qemu:///session?socket={folder}/libvirt-sock"
        if shape.remote:
            uri = f"qemu+tls://{uuid4()}.example/system"
        self.hypervisor = FileHost()
        site.add(uri, self.hypervisor)
        self.host = Host.objects.create(
            cluster=cluster, name=f"host {uuid4()}", uri=uri, state=Host.State.CONNECTED,
            vtpm_state_path=str(self.tpm_base),
        )  # fmt: skip
        self.plain: dict[str, bytes] = {}
        self.hypervisor.add_xml(self._make(shape))
        sync.sync_host(self.host, self.hypervisor)
        self.vm = VirtualMachine.objects.get(host=self.host)

    @property
    def tpm_folder(self) -> Path:
        return self.tpm_base / str(self.uuid) / "tpm2"

    def _make(self, shape: Shape) -> str:
        disks = ""
        for disk in shape.disks:
            path = self.folder / f"{disk.target}.{disk.format}"
            made = content(disk.target, disk.size)
            raw = self.folder / "source"
            raw.write_bytes(made)
            if disk.format == "raw":
                raw.rename(path)
            else:
                subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
                raw.unlink()
            self.plain[str(path)] = made
            disks += (
                f"<disk type='file' device='disk'><driver name='qemu' type='{disk.format}'/><source file='{path}'/>"
                f"<target dev='{disk.target}' bus='virtio'/></disk>"
            )
        os = "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
        if shape.nvram:
            path = self.folder / "vm_VARS.fd"
            path.write_bytes(content("nvram", 528 * KIB))
            self.plain[str(path)] = path.read_bytes()
            os = (
                "<os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>"
                f"/usr/share/OVMF/CODE.fd</loader><nvram>{path}</nvram></os>"
            )
        tpm = ""
        if shape.tpm:
            self.tpm_folder.mkdir(parents=True)
            (self.tpm_folder / "tpm2-00.permall").write_bytes(TPM_PLAIN)
            tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
        return (
            f"<domain type='qemu'><name>vm</name><uuid>{self.uuid}</uuid><memory unit='MiB'>64</memory>{os}"
            f"<devices>{disks}{tpm}</devices></domain>"
        )

    def remembered(self, keys: MemoryKeyServer) -> Callable[[], None]:
        """What makes files, host and key server again what they are now. Rows are the caller's matter."""
        place = self.folder.parent
        copied = place.with_suffix(".remembered")
        shutil.copytree(place, copied)
        states = [(thing, _copied(vars(thing))) for thing in (self.hypervisor, keys)]

        def restore() -> None:
            shutil.rmtree(place)
            shutil.copytree(copied, place)
            for thing, state in states:
                vars(thing).update(_copied(state))
            self.vm = VirtualMachine.objects.get(pk=self.vm.pk)
            self.host = Host.objects.get(pk=self.host.pk)

        return restore

    # What a person does, and what a worker does then

    def wish(self, *disks: str, encrypt: bool = True) -> Wish:
        """The home by the built-in policy of that sort, those disks by the one that encrypts."""
        policies = {one.encrypts: one.pk for one in StoragePolicy.objects.filter(is_builtin=True)}
        return Wish(policies[encrypt], dict.fromkeys(disks, policies[True]))

    def all_disks(self) -> Wish:
        return self.wish(*(disk.target for disk in self.shape.disks))

    def nothing(self) -> Wish:
        return self.wish(encrypt=False)

    def ask(self, wish: Wish) -> Job:
        """With the facts as the watch of the host would have brought them."""
        if self.hypervisor.is_reachable:
            sync.refresh_virtual_machine(self.vm, self.hypervisor)
            self.vm.refresh_from_db()
        return options.apply_options(vm_id=self.vm.pk, wish=wish, actor=self.actor)

    def deepen(self, *parts: str) -> Job:
        """Asks for new volume keys; of all parts, where none is named."""
        return deep_recrypt.deep_recrypt_vm(
            vm_id=self.vm.pk, parts=frozenset(parts) if parts else None, actor=self.actor
        )

    def rotate(self) -> Job:
        return passphrases.rotate_passphrases(vm_id=self.vm.pk, actor=self.actor)

    def run(self, job: Job) -> Job:
        return self.run_by(job, _WORK[job.kind])

    def run_by(self, job: Job, work: Callable[[Job, Progress], None]) -> Job:
        jobs.run(str(job.pk), work)
        job.refresh_from_db()
        self.vm.refresh_from_db()
        return job

    def apply(self, wish: Wish) -> Job:
        return self.run(self.ask(wish))

    def refuse(self, wish: Wish, code: str) -> Job:
        """Runs a job that must end with that code; afterwards nothing is left of it."""
        job = self.apply(wish)
        assert (job.status, job.error_code) == (JobStatus.FAILED, code), job.message
        return job

    def succeed(self, wish: Wish) -> Job:
        job = self.apply(wish)
        assert job.status == JobStatus.SUCCEEDED, (job.status, job.error_code, job.message)
        return job

    # What is

    @property
    def secrets(self) -> dict[str, WrappedSecret]:
        rows = WrappedSecret.objects.filter(virtual_machine=self.vm).select_related("key__cluster", "virtual_machine")
        rows = rows.exclude(stage="detached")
        return {row.target or row.purpose: row for row in rows}

    def passphrases(self) -> dict[UUID, Secret]:
        rows = WrappedSecret.objects.filter(virtual_machine=self.vm).select_related("key__cluster", "virtual_machine")
        return {one.row.secret_uuid: one.passphrase for one in open_secrets(rows)}

    def files(self) -> set[str]:
        return {str(path) for path in self.folder.iterdir()}

    def check_parts(self) -> None:
        """Every part of the definition opens, with what the database holds, and is what it was in the beginning."""
        facts = self.hypervisor._facts(self.uuid)
        keys = self.passphrases()
        for disk in facts.disks:
            name = f"{self.folder}/{disk.target}.{self._format(disk.target)}"
            self._check(disk.source, disk.format, keys[disk.secret_uuid] if disk.secret_uuid else None, name)
        if self.shape.nvram:
            secret = facts.nvram_secret_uuid
            self._check(facts.nvram_path, "raw", keys[secret] if secret else None, f"{self.folder}/vm_VARS.fd")

    def _format(self, target: str) -> str:
        return next(disk.format for disk in self.shape.disks if disk.target == target)

    def _check(self, path: str, image_format: str, passphrase: Secret | None, name: str) -> None:
        wanted = self.plain[name]
        if passphrase is None and image_format == "raw":
            assert Path(path).read_bytes() == wanted, path
            return
        told = self.folder.parent / "told"
        told.write_bytes(wanted)
        if passphrase is not None:
            assert qemu_img.equal(str(told), "raw", path, passphrase), path
        else:
            subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", image_format, told, path], check=True)

    def check_encrypted(self, *disks: str) -> None:
        """Exactly the home and those disks are encrypted, under one KEK, and nothing else lies about."""
        self.check_parts()
        facts = self.hypervisor._facts(self.uuid)
        assert {disk.target for disk in facts.disks if disk.is_encrypted} == set(disks)
        wanted = set(disks) | ({"nvram"} if self.shape.nvram else set()) | ({"vtpm"} if self.shape.tpm else set())
        rows = self.secrets
        assert set(rows) == wanted
        assert {row.stage for row in rows.values()} <= {"in_use"}
        assert len({row.key_id for row in rows.values()}) <= 1
        expected = {disk.source for disk in facts.disks} | ({facts.nvram_path} if self.shape.nvram else set())
        assert self.files() == expected
        self.check_tpm_folder()
        assert {row.secret_uuid for row in rows.values()} == {
            one
            for one in [
                *(disk.secret_uuid for disk in facts.disks),
                facts.nvram_secret_uuid,
                facts.tpm.secret_uuid if facts.tpm else None,
            ]
            if one
        }

    def check_plain(self) -> None:
        """As it was in the beginning: names, content, no rows, nothing left over."""
        self.check_parts()
        assert self.secrets == {}
        assert self.files() == set(self.plain)
        facts = self.hypervisor._facts(self.uuid)
        assert {disk.source for disk in facts.disks} <= set(self.plain)
        assert not hasattr(VirtualMachine.objects.get(pk=self.vm.pk), "security")
        self.check_tpm_folder()

    def check_tpm_folder(self) -> None:
        if self.shape.tpm:
            assert [path.name for path in self.tpm_folder.parent.iterdir()] == ["tpm2"]
            assert {path.name for path in self.tpm_folder.iterdir()} <= {"tpm2-00.permall"}


def _copied(state: Mapping[str, object]) -> dict[str, object]:
    return {name: copy.copy(value) if isinstance(value, dict | list | set) else value for name, value in state.items()}


_WORK = {
    options.APPLY.name: conversion.apply_options,
    deep_recrypt.DEEP.name: deep_recrypt.run_deep_recrypt_vm,
    passphrases.ROTATE.name: passphrases.run_rotate_passphrases,
}


def provider(name: str = "KMS") -> KmsCluster:
    """A key provider with one server, which a test puts a key server behind."""
    made = KmsCluster.objects.create(name=name, is_default=not KmsCluster.objects.exists())
    made.servers.create(position=0, host="kms.example")
    return made


__all__ = ["KIB", "TPM_PLAIN", "Disk", "Purpose", "Shape", "World", "content", "provider"]
