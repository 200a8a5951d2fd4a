"""A powered-off VM on a host whose files no worker reaches: the host copies (simulated), the worker checks, switches.

`hands_off` (conftest) fails a test in which the worker touches a file itself.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from encryption.adapters import swtpm
from encryption.engine import luks, metadata
from encryption.models import Stage, WrappedSecret
from encryption.services import host_storage, options
from inventory.engine import domain_edit
from inventory.engine.hypervisor import HostImage, HostUnreachable, OperationRefused, Power
from inventory.models import Job, JobStatus
from inventory.services import sync
from tests.encryption.file_host import FileHost, MemoryKeyServer
from tests.encryption.services import test_offline
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.effects import Killed
from tests.encryption.world import KIB, Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

FAR = Shape((Disk("vda", "raw"), Disk("vdb", "qcow2")), remote=True)
ONE_RAW = Shape((Disk("vda", "raw"),), nvram=False, tpm=False, remote=True)
ONE_QCOW2 = Shape((Disk("vda", "qcow2"),), nvram=False, tpm=False, remote=True)


@pytest.fixture
def all_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts too go by the host's copy."""
    monkeypatch.setattr(host_storage, "IN_MEMORY_BYTES", 0)


def test_whole_way_with_a_real_tpm(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(FAR)
    shutil.rmtree(world.tpm_folder)
    world.tpm_folder.mkdir()
    made = ["swtpm_setup", "--tpm2", "--tpmstate", str(world.tpm_folder), "--logfile", "/dev/null"]
    subprocess.run(made, check=True, capture_output=True)
    (world.tpm_folder / ".lock").unlink(missing_ok=True)
    state = swtpm.state_file(world.tpm_folder)
    world.succeed(world.all_disks())
    world.check_encrypted("vda", "vdb")
    assert state.read_bytes()[4:6] == b"\0\x09"
    world.succeed(world.nothing())
    world.check_plain()
    assert state.read_bytes()[4:6] == b"\0\0"


def test_originals_stay_until_the_host_has_written_the_copies(
    make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """libvirt offers no sync. Each job waits once, also where an earlier one was killed in the midst of it."""
    world = make_world(FAR)
    settings.HOST_WRITE_BACK_SECONDS = 40
    waited: list[tuple[float, bool]] = []

    def wait(seconds: float) -> None:
        waited.append((seconds, set(world.plain) <= world.files()))
        if len(waited) == 1:
            raise Killed("in its sleep")

    monkeypatch.setattr(time, "sleep", wait)
    job = world.ask(world.all_disks())
    with contextlib.suppress(Killed):
        world.run(job)
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    assert world.run(job).status == JobStatus.SUCCEEDED, job.message
    assert waited == [(40, True), (40, True)]
    world.check_encrypted("vda", "vdb")
    world.succeed(world.nothing())
    assert len(waited) == 3
    world.check_plain()


def test_copies_by_the_host_get_the_engines_header(
    make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None, all_copied: None
) -> None:
    world = make_world(FAR)
    world.succeed(world.all_disks())
    world.check_encrypted("vda", "vdb")
    calls = [call for call in world.hypervisor.calls if call.startswith("copy_image")]
    assert calls.count("copy_image") == 3
    for row in world.secrets.values():
        if row.purpose != "vtpm":
            header = luks.parse(Path(row.path).read_bytes()[: luks.PREFIX_BYTES])
            assert (header.digest_iterations, header.keyslots[0].iterations) == (1000, 1000)
            opens = ["cryptsetup", "open", "--type", "luks1", "--test-passphrase", "--key-file", "-", row.path]
            passphrase = world.passphrases()[row.secret_uuid].reveal()
            subprocess.run(opens, input=passphrase, check=True, capture_output=True)
    assert world.hypervisor.secrets == {}
    world.succeed(world.nothing())
    world.check_plain()


def test_the_plan_says_who_copies(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(FAR)
    plan = options.plan_options(vm_id=world.vm.pk, wish=world.all_disks(), actor=world.actor)
    assert plan.refusals == ()
    assert {step.how for step in plan.steps if step.target} == {"host's storage"}
    (told,) = [finding for finding in plan.warnings if finding.code == "host_copies"]
    assert "begins anew" in told.text and "holds the keys" in told.text


def test_progress_is_told(
    make_world: MakeWorld, keys: MemoryKeyServer, all_copied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(ONE_RAW)
    told: list[tuple[str, int, int]] = []
    copy = FileHost.copy_image

    def slow(
        self: FileHost, source: HostImage, target: HostImage, *, size: int, advance: Callable[[int], None]
    ) -> None:
        def heard(done: int) -> None:
            advance(done)
            job = Job.objects.get(target_id=world.vm.pk)
            told.append((job.step, done, job.total))

        copy(self, source, target, size=size, advance=heard)

    monkeypatch.setattr(FileHost, "copy_image", slow)
    world.succeed(world.all_disks())
    step = f"encrypting vda on {world.host}"
    assert told == [(step, 192 * KIB, 384 * KIB), (step, 384 * KIB, 384 * KIB)]


def test_a_host_that_is_still_at_an_earlier_copy_is_waited_for(
    make_world: MakeWorld, keys: MemoryKeyServer, all_copied: None
) -> None:
    world = make_world(ONE_RAW)
    world.hypervisor.busy_copies = 3
    world.succeed(world.all_disks())
    world.check_encrypted("vda")
    assert world.hypervisor.calls.count("copy_image") == 4


@pytest.mark.parametrize("shape", [ONE_RAW, ONE_QCOW2], ids=["raw", "qcow2"])
def test_host_lost_in_the_middle(make_world: MakeWorld, keys: MemoryKeyServer, all_copied: None, shape: Shape) -> None:
    """The half-written copy is still there when the host is back; the next attempt drops it and begins anew."""
    world = make_world(shape)
    world.hypervisor.failures["copy_image half"] = HostUnreachable("host_silent", "nothing heard", hint="try again")
    world.hypervisor.failures["delete_file"] = HostUnreachable("host_lost", "gone", hint="try again")
    failed = world.apply(world.all_disks())
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "host_lost")
    assert Path(next(iter(world.plain))).exists()
    (row,) = world.secrets.values()
    assert row.stage == Stage.ENCRYPTING
    world.hypervisor.failures.clear()
    world.check_parts()
    world.succeed(world.all_disks())
    world.check_encrypted("vda")


def test_host_lost_is_unavailable(make_world: MakeWorld, keys: MemoryKeyServer, all_copied: None) -> None:
    world = make_world(ONE_RAW)
    world.hypervisor.failures["copy_image half"] = HostUnreachable("host_silent", "nothing heard", hint="try again")
    world.refuse(world.all_disks(), "host_silent")
    del world.hypervisor.failures["copy_image half"]
    world.check_plain()


def test_parts_that_are_done_are_not_copied_again(
    make_world: MakeWorld, keys: MemoryKeyServer, all_copied: None
) -> None:
    world = make_world(Shape((Disk("vda", "raw"), Disk("vdb", "raw")), nvram=False, tpm=False, remote=True))
    job = world.ask(world.all_disks())
    world.hypervisor.failures["redefine"] = KeyboardInterrupt()  # type: ignore[assignment]  # the worker is killed
    with pytest.raises(KeyboardInterrupt):
        world.run(job)
    del world.hypervisor.failures["redefine"]
    assert world.hypervisor.calls.count("copy_image") == 2
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    world.run(job)
    assert job.status == JobStatus.SUCCEEDED, job.message
    assert world.hypervisor.calls.count("copy_image") == 2
    world.check_encrypted("vda", "vdb")


@pytest.mark.parametrize("shape", [ONE_RAW, ONE_QCOW2], ids=["raw", "qcow2"])
@pytest.mark.parametrize("verb", ["encrypt", "decrypt"])
def test_copy_that_differs_is_found(
    make_world: MakeWorld, keys: MemoryKeyServer, all_copied: None, monkeypatch: pytest.MonkeyPatch, shape: Shape,
    verb: str,
) -> None:  # fmt: skip
    world = make_world(shape)
    if verb == "decrypt":
        world.succeed(world.all_disks())
    copy = FileHost._copy_image

    def spoilt(self: FileHost, source: HostImage, target: HostImage) -> None:
        copy(self, source, target)
        with Path(target.path).open("r+b") as file:
            file.seek(-5000, os.SEEK_END)
            file.write(b"x")

    with monkeypatch.context() as patch:
        patch.setattr(FileHost, "_copy_image", spoilt)
        world.refuse(world.all_disks() if verb == "encrypt" else world.nothing(), "verification_failed")
    if verb == "encrypt":
        world.check_plain()
    else:
        world.check_encrypted("vda")


def _sparse_absurd(path: Path) -> None:
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**62)


@pytest.mark.parametrize(
    ("shape", "spoil", "code"),
    [
        pytest.param(ONE_QCOW2, test_offline._snapshot, "snapshots_present", id="snapshot"),
        pytest.param(ONE_QCOW2, test_offline._backing, "disk_has_backing", id="backing"),
        pytest.param(ONE_QCOW2, test_offline._data_file, "disk_has_data_file", id="data file"),
        pytest.param(ONE_RAW, test_offline._fifo, "image_missing", id="fifo"),
        pytest.param(ONE_RAW, Path.unlink, "image_missing", id="missing"),
        pytest.param(ONE_QCOW2, Path.unlink, "image_missing", id="missing qcow2"),
        pytest.param(ONE_RAW, test_offline._empty, "image_empty", id="empty"),
        pytest.param(ONE_QCOW2, lambda path: path.write_bytes(b"no qcow2" * 100), "image_unreadable", id="no qcow2"),
        pytest.param(ONE_QCOW2, test_offline._absurd, "image_too_large", id="absurd size"),
    ],
)
def test_image_that_cannot_be_converted(
    make_world: MakeWorld, keys: MemoryKeyServer, shape: Shape, spoil: Callable[[Path], None], code: str
) -> None:
    world = make_world(shape)
    spoil(world.folder / f"vda.{shape.disks[0].format}")
    before = world.files()
    world.refuse(world.all_disks(), code)
    assert world.files() == before
    assert not WrappedSecret.objects.exists()


def test_disk_of_half_a_kib(make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(replace(ONE_RAW, disks=(Disk("vda", "raw", 384 * KIB + 512),)))
    with monkeypatch.context() as patch:
        patch.setattr(host_storage, "IN_MEMORY_BYTES", 0)
        world.refuse(world.all_disks(), "disk_size_odd")
    world.check_plain()
    world.succeed(world.all_disks())  # small enough for the worker's memory, where any size goes
    world.check_encrypted("vda")


def test_image_that_a_qemu_has_open(make_world: MakeWorld, keys: MemoryKeyServer, all_copied: None) -> None:
    world = make_world(ONE_QCOW2)
    with test_offline.held_by_qemu(f"{world.folder}/vda.qcow2", "qcow2"):
        world.refuse(world.all_disks(), "image_in_use")
    world.check_plain()


def test_too_little_space(make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(ONE_RAW)
    monkeypatch.setattr(FileHost, "free_bytes", lambda self, folder: 2**20)
    world.refuse(world.all_disks(), "space_missing")
    world.check_plain()


def during_conversion(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """`act` happens right after each part was converted."""
    verify = host_storage._verify

    def verified(*args: object) -> None:
        verify(*args)  # type: ignore[arg-type]
        act()

    monkeypatch.setattr(host_storage, "_verify", verified)


def test_source_written_to_meanwhile(
    make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(ONE_RAW)
    path = world.folder / "vda.raw"
    during_conversion(monkeypatch, lambda: path.write_bytes(path.read_bytes()))
    world.refuse(world.all_disks(), "source_changed")
    world.check_plain()


def test_vm_started_meanwhile(make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(ONE_RAW)
    during_conversion(monkeypatch, lambda: world.hypervisor.power_on(world.uuid))
    world.refuse(world.all_disks(), "vm_started_meanwhile")
    world.check_plain()


def test_vm_started_right_before_the_switch(
    make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on from its original, and its definition says so again."""
    world = make_world(ONE_RAW)
    before = domain_edit.metadata(world.hypervisor.xml[world.uuid], metadata.NAMESPACE)
    redefine = FileHost.redefine

    def started(self: FileHost, *args: object) -> None:
        if self.vms[world.uuid].power is Power.OFF:
            self.power_on(world.uuid)
        redefine(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(FileHost, "redefine", started)
        job = world.apply(world.all_disks())
    assert (job.status, job.error_code) == (JobStatus.FAILED, "vm_started_meanwhile")
    assert before is None is domain_edit.metadata(world.hypervisor.xml[world.uuid], metadata.NAMESPACE)
    world.hypervisor.power_off(world.uuid)
    world.check_plain()
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    world.succeed(world.all_disks())
    world.check_encrypted("vda")


def test_original_that_a_running_vm_uses_is_not_destroyed(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    """The definition of the next start has the copy, the guest that runs has the original."""
    world = make_world(ONE_RAW)
    original = Path(next(iter(world.plain)))
    running = f"<domain><devices><disk><source file='{original}'/></disk></devices></domain>"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileHost, "live_definition", lambda self, uuid: running)
        world.refuse(world.all_disks(), "image_in_use")
    assert world.secrets["vda"].stage == Stage.SWITCHED
    assert original.exists()
    world.succeed(world.all_disks())
    world.check_encrypted("vda")


def test_new_nvram_comes_from_the_template(make_world: MakeWorld, keys: MemoryKeyServer, tmp_path: Path) -> None:
    world = make_world(Shape((), nvram=True, tpm=False, remote=True))
    path = world.folder / "vm_VARS.fd"
    path.unlink()
    template = tmp_path / "template.fd"
    store = bytes(40) + b"_FVH" + bytes(4052)
    world.plain[str(path)] = store
    world.hypervisor.xml[world.uuid] = world.hypervisor.xml[world.uuid].replace(
        "<nvram>", f"<nvram template='{template}'>"
    )
    for bad in (None, b"root:x:0:0:"):
        if bad is not None:
            template.write_bytes(bad)
        world.refuse(world.wish(), "nvram_missing")
        assert not path.exists()
    template.write_bytes(store)
    world.succeed(world.wish())
    world.check_encrypted()


def test_vm_that_never_ran_has_no_vtpm_state(
    make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(Shape((), nvram=False, tpm=True, remote=True))
    shutil.rmtree(world.tpm_folder.parent)
    world.succeed(world.wish())
    assert world.secrets["vtpm"].stage == Stage.IN_USE
    world.succeed(world.nothing())
    assert not world.tpm_folder.exists()


def test_vtpm_state_that_comes_back_otherwise(
    make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(Shape((), nvram=False, tpm=True, remote=True))
    create = FileHost.create_file

    def torn(self: FileHost, path: str, *, size: int, head: bytes = b"", like: str = "") -> None:
        create(self, path, size=size, head=head[:-1], like=like)

    with monkeypatch.context() as patch:
        patch.setattr(FileHost, "create_file", torn)
        world.refuse(world.wish(), "verification_failed")
    world.check_plain()
    assert [path.name for path in world.tpm_folder.iterdir()] == ["tpm2-00.permall"]


def test_running_vm_is_converted_as_everywhere(
    make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(Shape((Disk("vda", "raw"), Disk("vdb", "qcow2")), nvram=False, tpm=False, remote=True))
    world.hypervisor.power_on(world.uuid)
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    world.succeed(world.all_disks())
    world.check_encrypted("vda", "vdb")
    with monkeypatch.context() as patch:
        patch.setattr(FileHost, "free_bytes", lambda self, folder: 2**20)
        world.refuse(world.nothing(), "space_missing")
    world.succeed(world.nothing())
    assert world.secrets == {}
    facts = world.hypervisor._facts(world.uuid)
    assert not any(disk.is_encrypted for disk in facts.disks)


def test_refused_copy(make_world: MakeWorld, keys: MemoryKeyServer, all_copied: None) -> None:
    world: World = make_world(ONE_RAW)
    world.hypervisor.failures["copy_image"] = OperationRefused("file_name_unusable", "1.luks: bad name", hint="rename")
    world.refuse(world.all_disks(), "file_name_unusable")
    del world.hypervisor.failures["copy_image"]
    world.check_plain()
