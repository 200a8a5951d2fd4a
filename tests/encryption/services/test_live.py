"""Disks of a running VM: block copy and pivot, and what comes between."""

import pytest

from encryption.models import Stage
from encryption.services import live
from inventory.engine.hypervisor import CopyProgress, LuksTarget
from inventory.models import Job, JobStatus
from tests.encryption.file_host import FileHost, MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.effects import Killed
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
DISKS = Shape((Disk("vda", "raw"), Disk("vdb", "qcow2")), nvram=False, tpm=False)


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    """Running, its home as wanted, its disks plain."""
    made = make_world(DISKS)
    made.succeed(made.wish())
    made.hypervisor.power_on(made.uuid)
    return made


def test_encrypted_and_decrypted_while_it_runs(world: World) -> None:
    world.succeed(world.all_disks())
    world.check_encrypted("vda", "vdb")
    assert {one.usage for one in world.hypervisor.put} == {row.path for row in world.secrets.values()}
    assert not world.hypervisor.secrets, "QEMU has them, the host's libvirt keeps none"
    world.succeed(world.wish())
    world.check_encrypted()
    assert world.files() == set(world.plain)


def test_home_of_a_running_vm_is_refused(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    made = make_world()
    job = made.ask(made.all_disks())
    made.hypervisor.power_on(made.uuid)
    made.run(job)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "home_in_use")
    made.check_plain()


def test_copy_that_ends_by_itself(world: World) -> None:
    world.hypervisor.copies_vanish = True
    world.refuse(world.all_disks(), "copy_failed")
    world.check_encrypted()
    world.hypervisor.copies_vanish = False
    world.succeed(world.all_disks())
    world.check_encrypted("vda", "vdb")


def while_copying(world: World, monkeypatch: pytest.MonkeyPatch, act: object) -> None:
    """`act` happens while the first copy runs, which is not ready by itself."""
    world.hypervisor.copies_are_ready = False
    monkeypatch.setattr("time.sleep", lambda seconds: act())  # type: ignore[operator]


def test_cancelled_while_it_copies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel() -> None:
        Job.objects.filter(pk=job.pk).update(cancel_requested=True)
        world.hypervisor.copies_are_ready = True

    monkeypatch.setattr("inventory.jobs.Progress.advance", lambda progress, done: progress._save())
    while_copying(world, monkeypatch, cancel)
    job = world.ask(world.all_disks())
    world.run(job)
    assert job.status == JobStatus.CANCELLED
    assert not world.hypervisor.copies and not world.hypervisor.secrets
    world.check_encrypted()
    world.succeed(world.all_disks())
    world.check_encrypted("vda", "vdb")


def test_guest_that_is_powered_off_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    while_copying(world, monkeypatch, lambda: world.hypervisor.power_off(world.uuid))
    world.refuse(world.all_disks(), "vm_stopped_meanwhile")
    world.check_encrypted()
    world.succeed(world.all_disks())
    world.check_encrypted("vda", "vdb")


def killed(world: World, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job whose worker dies while the first copy runs; as `resume_interrupted` leaves it."""

    def kill() -> None:
        raise Killed

    def dead(*args: object, **kwargs: object) -> None:
        raise Killed

    job = world.ask(world.all_disks())
    with monkeypatch.context() as patch:
        while_copying(world, patch, kill)
        patch.setattr(FileHost, "remove_secret", dead)  # the dead take nothing back
        with pytest.raises(Killed):
            world.run(job)
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    return job


def test_resumed_while_the_copy_still_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = killed(world, monkeypatch)
    begun = world.hypervisor.calls.count("start_block_copy")
    world.hypervisor.copies = {
        key: CopyProgress(100, 100, is_ready=True, is_gone=False) for key in world.hypervisor.copies
    }
    world.hypervisor.copies_are_ready = True
    world.run(job)
    assert job.status == JobStatus.SUCCEEDED, job.message
    assert world.hypervisor.calls.count("start_block_copy") == begun + 1, "only the second disk's copy is new"
    world.check_encrypted("vda", "vdb")


def test_resumed_after_the_guest_was_powered_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = killed(world, monkeypatch)
    world.hypervisor.power_off(world.uuid)
    world.run(job)
    assert job.status == JobStatus.SUCCEEDED, job.message
    world.check_encrypted("vda", "vdb")


def test_killed_after_the_pivot_before_the_row(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*args: object) -> bool:
        raise Killed

    job = world.ask(world.all_disks())
    with monkeypatch.context() as patch:
        patch.setattr(live, "settled", dead)
        with pytest.raises(Killed):
            world.run(job)
    assert world.secrets["vda"].stage == Stage.ENCRYPTING
    world.check_parts()
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    world.run(job)
    assert job.status == JobStatus.SUCCEEDED, job.message
    world.check_encrypted("vda", "vdb")


def test_copy_of_somebody_else_is_not_pivoted(world: World) -> None:
    hypervisor = world.hypervisor
    (world.folder / "theirs").write_bytes(b"")
    hypervisor.copies[world.uuid, "vda"] = CopyProgress(1, 1, is_ready=True, is_gone=False)
    hypervisor.targets[world.uuid, "vda"] = LuksTarget(str(world.folder / "theirs"), "raw", None)
    job = world.apply(world.all_disks())
    assert (job.status, job.error_code) == (JobStatus.FAILED, "block_job_active")
    assert "pivot" not in hypervisor.calls and (world.uuid, "vda") in hypervisor.copies
    world.check_parts()


def test_host_lost_while_it_copies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose() -> None:
        world.hypervisor.is_reachable = False

    with monkeypatch.context() as patch:
        while_copying(world, patch, lose)
        job = world.apply(world.all_disks())
    assert (job.status, job.error_code) == (JobStatus.FAILED, "host_lost")
    world.hypervisor.is_reachable = world.hypervisor.copies_are_ready = True
    world.check_parts()
    world.succeed(world.all_disks())
    world.check_encrypted("vda", "vdb")


def test_size_that_the_host_does_not_tell(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.encryption.file_host._with_size", lambda disk: disk)
    world.refuse(world.all_disks(), "size_unknown")
    world.check_encrypted()
