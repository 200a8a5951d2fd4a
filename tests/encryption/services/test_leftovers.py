"""Leftovers on a host with real files: found by the job, destroyed after a second look, kept with a reason."""

import subprocess
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from django.contrib.auth.models import User

from encryption.models import Leftover, Stage, WrappedSecret
from encryption.services import exposure, leftover_files, leftovers
from inventory import jobs
from inventory.models import Alarm, Datastore, Event, Host, Job, JobStatus, VirtualMachine
from inventory.services import sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import TPM_PLAIN, Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.usefixtures("quick_tpm")]
MBR = b"\x33\xc0".ljust(510, b"\0") + b"\x55\xaa" + b"plain content"


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    """An encrypted VM with nothing left over."""
    made = make_world(Shape((Disk("vda", "raw", 64 * 1024),)))
    made.succeed(made.all_disks())
    made.hypervisor.pools = [replace(made.hypervisor.pools[0], path=str(made.folder))]
    sync.sync_host(made.host, made.hypervisor)
    Event.objects.all().delete()
    return made


def find(world: World) -> Job:
    job = leftovers.find_leftovers(host_id=world.host.pk, actor=world.actor)
    return run(job, "find")


def run(job: Job, what: str = "destroy") -> Job:
    jobs.run(str(job.pk), leftover_files.run_find_leftovers if what == "find" else leftover_files.run_destroy_leftover)
    job.refresh_from_db()
    return job


def plant(world: World, name: str = "vda.raw", content: bytes = MBR) -> Leftover:
    path = world.folder / name
    path.write_bytes(content)
    assert find(world).status == JobStatus.SUCCEEDED
    return Leftover.objects.get(path=str(path))


def destroy(world: World, row: Leftover) -> Job:
    return run(leftovers.destroy_leftover(leftover_id=row.pk, confirm=row.name, actor=world.actor))


def test_nothing_is_found_after_a_clean_encryption(world: World) -> None:
    assert find(world).status == JobStatus.SUCCEEDED
    assert not Leftover.objects.exists() and not Alarm.objects.exists()


def test_found_told_destroyed(world: World) -> None:
    row = plant(world)
    assert (row.kind, row.virtual_machine, row.size_bytes) == ("original", world.vm, len(MBR))
    assert "the encrypted part was made from this file" in row.evidence
    event = Event.objects.get(kind="host.leftovers_found")
    assert event.data["paths"] == [row.path] and event.severity == "warning"
    alarm = Alarm.objects.get(kind=leftovers.ALARM, cleared_at=None)
    assert row.path in alarm.evidence[0]
    assert destroy(world, row).status == JobStatus.SUCCEEDED
    assert not Path(row.path).exists() and not Leftover.objects.exists()
    assert Event.objects.get(kind="leftover.destroyed").data["path"] == row.path
    assert not Alarm.objects.filter(kind=leftovers.ALARM, cleared_at=None).exists()
    world.check_encrypted("vda")


def test_found_again_is_one_row_and_no_new_event(world: World) -> None:
    row = plant(world)
    find(world)
    assert Leftover.objects.get().pk == row.pk
    assert Event.objects.filter(kind="host.leftovers_found").count() == 1


def test_one_that_is_gone_leaves_the_list_and_the_alarm_ends(world: World) -> None:
    row = plant(world)
    Path(row.path).unlink()
    find(world)
    assert not Leftover.objects.exists()
    assert not Alarm.objects.filter(kind=leftovers.ALARM, cleared_at=None).exists()


def test_folders_of_vtpm_states_are_looked_through(world: World) -> None:
    old = world.tpm_folder.with_name("tpm2.old-1a2b3c4d")
    old.mkdir()
    (old / "tpm2-00.permall").write_bytes(TPM_PLAIN)
    find(world)
    row = Leftover.objects.get()
    assert (row.kind, row.virtual_machine) == ("vtpm_state", world.vm)
    assert destroy(world, row).status == JobStatus.SUCCEEDED
    assert not old.exists() and world.tpm_folder.exists()


def test_a_half_written_copy_of_a_dead_job_but_not_of_a_live_one(world: World) -> None:
    secret = WrappedSecret.objects.get(target="vda")
    half = world.folder / "vda-plain.raw"
    half.write_bytes(b"half of it")
    WrappedSecret.objects.filter(pk=secret.pk).update(stage=Stage.DECRYPTING, plain_path=str(half))
    live = Job.objects.create(
        kind="encryption.apply_options", target_kind="vm", target_id=world.vm.pk, target_name="vm", actor="x"
    )
    find(world)
    assert not Leftover.objects.exists()
    live.delete()
    find(world)
    assert Leftover.objects.get().kind == "half_written"


def test_memory_in_a_file_is_also_the_vms_alarm(world: World) -> None:
    row = plant(world, "vm.core", b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\x04\x00" + bytes(64))
    assert row.kind == "core_dump"
    alarm = Alarm.objects.get(kind=exposure.KIND, cleared_at=None)
    assert alarm.target_id == world.vm.pk and row.path in alarm.evidence[0]
    destroy(world, row)
    assert not Alarm.objects.filter(kind=exposure.KIND, cleared_at=None).exists()


class TestSecondLook:
    """What changed between the finding and the destruction keeps the file."""

    def refused(self, world: World, row: Leftover, code: str) -> None:
        before = Path(row.path).read_bytes()
        job = destroy(world, row)
        assert (job.status, job.error_code) == (JobStatus.FAILED, code), job.message
        assert Path(row.path).read_bytes() == before and Leftover.objects.filter(pk=row.pk).exists()
        assert not Event.objects.filter(kind="leftover.destroyed").exists()

    @pytest.mark.parametrize("content", [MBR + b"longer", MBR.replace(b"plain", b"other")])
    def test_another_file_now(self, world: World, content: bytes) -> None:
        row = plant(world)
        Path(row.path).write_bytes(content)
        self.refused(world, row, "leftover_changed")

    def attach(self, world: World, path: str) -> None:
        """Past the console, which does not know it yet."""
        disk = (
            f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>"
            "<target dev='vdz' bus='virtio'/></disk>"
        )
        world.hypervisor.xml[world.uuid] = world.hypervisor.xml[world.uuid].replace("<devices>", f"<devices>{disk}")

    def test_attached_meanwhile(self, world: World) -> None:
        row = plant(world)
        self.attach(world, row.path)
        self.refused(world, row, "leftover_in_use")

    def test_a_disk_of_another_host_that_shares_the_storage(self, world: World, host: Host) -> None:
        row = plant(world)
        other = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="elsewhere")
        other.disks.create(target="vda", source=row.path)
        self.refused(world, row, "leftover_in_use")

    def test_a_backing_file_of_what_is_used(self, world: World) -> None:
        row = plant(world, "vda-old.raw", MBR.ljust(4096, b"\0"))
        overlay = world.folder / "overlay.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", row.path, overlay], check=True)
        self.attach(world, str(overlay))
        sync.sync_host(world.host, world.hypervisor)
        self.refused(world, row, "leftover_in_use")

    def test_kept_by_somebody_meanwhile(self, world: World, alice: User) -> None:
        """As it may be while a second person has not yet approved."""
        row = plant(world)
        job = leftovers.destroy_leftover(leftover_id=row.pk, confirm=row.name, actor=world.actor)
        leftovers.keep_leftover(leftover_id=row.pk, reason="for the auditors", actor=alice)
        assert run(job).error_code == "leftover_kept"
        assert Path(row.path).read_bytes() == MBR

    def test_gone_already(self, world: World) -> None:
        row = plant(world)
        Path(row.path).unlink()
        assert destroy(world, row).status == JobStatus.SUCCEEDED
        assert "gone already" in Event.objects.get(kind="leftover.destroyed").message

    def test_a_job_that_runs_twice_destroys_once(self, world: World) -> None:
        row = plant(world)
        job = destroy(world, row)
        Path(row.path).write_bytes(b"a new file of that name")
        Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING)
        assert run(job).status == JobStatus.SUCCEEDED
        assert Path(row.path).exists()


def test_kept_is_listed_and_no_alarm_until_it_is_another_file(world: World, alice: User) -> None:
    row = plant(world)
    leftovers.keep_leftover(leftover_id=row.pk, reason=" for  the auditors ", actor=alice)
    assert not Alarm.objects.filter(kind=leftovers.ALARM, cleared_at=None).exists()
    find(world)
    row.refresh_from_db()
    assert (row.kept_by, row.kept_reason) == ("alice", "for the auditors")
    assert Event.objects.get(kind="leftover.kept").severity == "warning"
    Path(row.path).write_bytes(MBR + b"something new")
    find(world)
    row.refresh_from_db()
    assert row.kept_at is None
    assert Alarm.objects.filter(kind=leftovers.ALARM, cleared_at=None).exists()


def test_the_schedule_asks_hosts_with_encrypted_vms(world: World, host: Host) -> None:
    assert leftovers.find_all() == 1
    assert Job.objects.get(kind="encryption.find_leftovers").target_id == world.host.pk
    assert leftovers.find_all() == 0, "busy"


def test_a_host_without_a_worker_beside_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through libvirt alone."""
    row = plant(world)
    monkeypatch.setattr(leftover_files, "reaches_files", lambda host: False)
    assert destroy(world, row).status == JobStatus.SUCCEEDED
    assert "delete_file" in world.hypervisor.calls and not Path(row.path).exists()


def test_datastores_below_each_other_are_looked_through_once(world: World) -> None:
    Datastore.objects.create(host=world.host, name="sub", kind="dir", path=f"{world.folder}/sub", is_active=True)
    Datastore.objects.create(host=world.host, name="lvm", kind="logical", path="/dev/vg", is_active=True)
    found = leftover_files.folders_of(world.host)
    assert {str(world.folder), str(world.tpm_base)} <= set(found)
    assert f"{world.folder}/sub" not in found and "/dev/vg" not in found
    state = world.tpm_base.parent
    assert {f"{state}/{name}" for name in ("save", "dump", "nvram", "snapshot")} <= set(found)
