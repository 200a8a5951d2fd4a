"""Disks added, attached, detached and destroyed: real files on a fake host, keys before files, and every job twice."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from encryption.models import DiskPolicy, Stage, StoragePolicy, WrappedSecret
from encryption.services import disk_jobs, disks
from inventory import jobs
from inventory.engine.hypervisor import OperationRefused, Power
from inventory.errors import Conflict, Invalid
from inventory.jobs import Progress
from inventory.models import Datastore, Event, Job, JobStatus, VirtualMachine
from inventory.services import power, sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.usefixtures("quick_tpm")]
MIB = 2**20
Work = Callable[[Job, Progress], None]


@pytest.fixture
def plain(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    made = make_world(Shape((Disk("vda", "raw", 64 * 1024),), nvram=False, tpm=False))
    made.hypervisor.pools = []
    sync.sync_host(made.host, made.hypervisor)
    Datastore.objects.create(
        host=made.host, name="images", kind="dir", path=str(made.folder), is_active=True, available_bytes=100 * MIB
    )
    return made


@pytest.fixture
def world(plain: World) -> World:
    """Encrypted."""
    plain.succeed(plain.all_disks())
    return plain


def policy(encrypts: bool) -> UUID:
    return StoragePolicy.objects.filter(encrypts=encrypts, is_builtin=True)[0].pk


def run(world: World, job: Job, work: Work) -> Job:
    jobs.run(str(job.pk), work)
    job.refresh_from_db()
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    return job


def again(world: World, job: Job, work: Work) -> Job:
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING)
    return run(world, job, work)


def add(world: World, *, encrypts: bool, image_format: str = "raw", size: int = MIB) -> Job:
    store = world.host.datastores.get()
    job = disks.add_disk(
        vm_id=world.vm.pk, size_bytes=size, datastore_id=store.pk, image_format=image_format,
        policy_id=policy(encrypts), actor=world.actor,
    )  # fmt: skip
    return run(world, job, disk_jobs.run_add_disk)


def attach(world: World, path: str, *, encrypts: bool) -> Job:
    job = disks.attach_disk(vm_id=world.vm.pk, path=path, policy_id=policy(encrypts), actor=world.actor)
    return run(world, job, disk_jobs.run_attach_disk)


def detach(world: World, target: str) -> Job:
    job = disks.detach_disk(vm_id=world.vm.pk, target=target, actor=world.actor)
    return run(world, job, disk_jobs.run_detach_disk)


def ok(job: Job) -> Job:
    assert job.status == JobStatus.SUCCEEDED, (job.error_code, job.message)
    return job


def starts(world: World) -> bool:
    job = power.power_on(vm_id=world.vm.pk, actor=world.actor)
    run(world, job, power.run_power_on)
    is_on = world.hypervisor.vms[world.uuid].power is Power.ON
    if is_on:
        world.hypervisor.power_off(world.uuid)
        sync.refresh_virtual_machine(world.vm, world.hypervisor)
    return is_on


def opens(path: str, row: WrappedSecret, world: World) -> bool:
    key = world.folder.parent / "key"
    key.write_bytes(world.passphrases()[row.secret_uuid].reveal())
    done = subprocess.run(["cryptsetup", "luksOpen", "--test-passphrase", "--key-file", key, path], check=False)
    return done.returncode == 0


class TestAdd:
    @pytest.mark.parametrize("image_format", ["raw", "qcow2"])
    def test_a_plain_disk(self, plain: World, image_format: str) -> None:
        ok(add(plain, encrypts=False, image_format=image_format))
        disk = plain.vm.disks.get(target="vdb")
        assert (disk.format, disk.bus, disk.is_encrypted, disk.capacity_bytes) == (image_format, "virtio", False, MIB)
        assert Path(disk.source).exists() and not WrappedSecret.objects.exists()
        assert Event.objects.get(kind="vm.disk_added").actor == "alice"

    def test_an_encrypted_one_is_born_so(self, world: World) -> None:
        ok(add(world, encrypts=True))
        disk, row = world.vm.disks.get(target="vdb"), world.secrets["vdb"]
        assert disk.is_encrypted and (row.stage, row.path, row.size_bytes) == (Stage.IN_USE, disk.source, MIB)
        assert opens(disk.source, row, world)
        assert DiskPolicy.objects.get(virtual_machine=world.vm, target="vdb").policy_id == policy(True)
        assert str(row.secret_uuid) in world.hypervisor.xml[world.uuid].split("</metadata>")[0], "key not in metadata"
        assert row.key == world.secrets["vda"].key
        assert starts(world)

    def test_a_plain_one_beside_encrypted_ones(self, world: World) -> None:
        ok(add(world, encrypts=False))
        assert not world.vm.disks.get(target="vdb").is_encrypted
        assert DiskPolicy.objects.get(virtual_machine=world.vm, target="vdb").policy_id == policy(False)

    @pytest.mark.parametrize("encrypts", [True, False])
    def test_the_job_twice_adds_one(self, world: World, encrypts: bool) -> None:
        job = add(world, encrypts=encrypts)
        ok(again(world, job, disk_jobs.run_add_disk))
        assert world.vm.disks.count() == 2
        assert Event.objects.filter(kind="vm.disk_added").count() == 1

    def test_killed_after_the_definition_the_row_follows(self, world: World) -> None:
        job = add(world, encrypts=True)
        WrappedSecret.objects.filter(target="vdb").update(stage=Stage.DETACHED)
        ok(again(world, job, disk_jobs.run_add_disk))
        assert world.secrets["vdb"].stage == Stage.IN_USE

    @pytest.mark.parametrize("call", ["create_file", "redefine"])
    def test_refused_by_the_host_leaves_neither_file_nor_key(self, world: World, call: str) -> None:
        before = world.files()
        world.hypervisor.failures[call] = OperationRefused("host_refused", "read-only file system")
        job = add(world, encrypts=True)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "host_refused")
        assert world.files() == before and set(world.secrets) == {"vda"}

    def test_no_key_server_no_disk(self, world: World, keys: MemoryKeyServer) -> None:
        before = world.files()
        keys.keys.clear()
        assert add(world, encrypts=True).error_code == "kms_key_not_found"
        assert world.files() == before and set(world.secrets) == {"vda"}

    def test_started_meanwhile(self, plain: World) -> None:
        job = disks.add_disk(
            vm_id=plain.vm.pk, size_bytes=MIB, datastore_id=plain.host.datastores.get().pk, image_format="raw",
            policy_id=policy(False), actor=plain.actor,
        )  # fmt: skip
        plain.hypervisor.power_on(plain.uuid)
        assert run(plain, job, disk_jobs.run_add_disk).error_code == "vm_running"
        assert plain.vm.disks.count() == 1


class TestDetachAndBack:
    def test_detached_keeps_its_key_and_comes_back(self, world: World) -> None:
        path = world.vm.disks.get(target="vda").source
        ok(detach(world, "vda"))
        row = WrappedSecret.objects.get()
        assert (row.stage, row.path) == (Stage.DETACHED, path) and Path(path).exists()
        assert not world.vm.disks.exists() and not DiskPolicy.objects.exists()
        assert str(row.secret_uuid) not in world.hypervisor.xml[world.uuid]
        ok(attach(world, path, encrypts=True))
        row.refresh_from_db()
        assert row.stage == Stage.IN_USE and world.vm.disks.get().is_encrypted
        world.check_parts()
        assert starts(world)

    def test_a_detached_one_does_not_stand_in_the_way_of_a_new_one(self, world: World) -> None:
        ok(detach(world, "vda"))
        ok(add(world, encrypts=True))
        assert {row.stage for row in WrappedSecret.objects.filter(target="vda")} == {Stage.DETACHED, Stage.IN_USE}
        assert starts(world)

    def test_under_another_name(self, world: World) -> None:
        path = world.vm.disks.get(target="vda").source
        ok(detach(world, "vda"))
        ok(add(world, encrypts=False))
        ok(attach(world, path, encrypts=True))
        row = WrappedSecret.objects.get()
        assert (row.target, row.stage) == ("vdb", Stage.IN_USE)
        assert starts(world)

    def test_a_plain_one(self, plain: World) -> None:
        path = plain.vm.disks.get().source
        ok(detach(plain, "vda"))
        assert Path(path).read_bytes() == plain.plain[path]
        ok(attach(plain, path, encrypts=False))
        assert plain.vm.disks.get().source == path

    def test_qcow2_is_known_by_its_first_bytes(self, plain: World) -> None:
        path = plain.folder / "other.img"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
        ok(attach(plain, str(path), encrypts=False))
        assert plain.vm.disks.get(target="vdb").format == "qcow2"

    def test_both_jobs_twice(self, world: World) -> None:
        path = world.vm.disks.get(target="vda").source
        job = detach(world, "vda")
        ok(again(world, job, disk_jobs.run_detach_disk))
        job = attach(world, path, encrypts=True)
        ok(again(world, job, disk_jobs.run_attach_disk))
        assert WrappedSecret.objects.get().stage == Stage.IN_USE and world.vm.disks.count() == 1


class TestAttachRefused:
    def refused(self, world: World, path: Path | str, code: str, *, encrypts: bool) -> None:
        """At once, or by the worker."""
        try:
            job = attach(world, str(path), encrypts=encrypts)
        except (Conflict, Invalid) as exc:
            assert exc.code == code and exc.hint
        else:
            assert (job.status, job.error_code) == (JobStatus.FAILED, code), job.message
        assert world.vm.disks.count() == 1

    def test_plain_under_an_encrypting_policy(self, world: World) -> None:
        path = world.folder / "plain.raw"
        path.write_bytes(b"plain")
        self.refused(world, path, "plain_disk_under_encrypting_policy", encrypts=True)

    def test_a_luks_image_without_our_key(self, world: World) -> None:
        path = world.folder / "foreign.luks"
        path.write_bytes(b"LUKS\xba\xbe\x00\x01".ljust(4096, b"\0"))
        self.refused(world, path, "encrypted_disk_under_plain_policy", encrypts=False)

    def test_a_luks_image_on_a_plain_vm(self, plain: World) -> None:
        path = plain.folder / "foreign.luks"
        path.write_bytes(b"LUKS\xba\xbe\x00\x01".ljust(4096, b"\0"))
        self.refused(plain, path, "encrypted_disk_on_plain_vm", encrypts=False)

    def test_nothing_there_empty_or_a_link(self, plain: World) -> None:
        self.refused(plain, plain.folder / "nothing", "image_missing", encrypts=False)
        (plain.folder / "empty").touch()
        self.refused(plain, plain.folder / "empty", "image_empty", encrypts=False)
        (plain.folder / "link").symlink_to("/etc/hostname")
        self.refused(plain, plain.folder / "link", "image_missing", encrypts=False)

    def test_used_by_a_definition_that_no_row_tells(self, plain: World) -> None:
        path = plain.folder / "other.raw"
        path.write_bytes(b"x")
        other = "<disk type='file'><source file='%s'/><target dev='vda'/></disk>"
        uuid = "11111111-2222-3333-4444-555555555555"
        plain.hypervisor.add_xml(
            f"<domain><name>new</name><uuid>{uuid}</uuid><devices>{other % path}</devices></domain>"
        )
        self.refused(plain, path, "disk_in_use", encrypts=False)


class TestDestroyDetached:
    def destroy(self, world: World) -> Job:
        row = WrappedSecret.objects.get(stage=Stage.DETACHED)
        job = disks.destroy_detached_disk(secret_uuid=row.pk, confirm=Path(row.path).name, actor=world.actor)
        return run(world, job, disk_jobs.run_destroy_disk)

    def test_image_and_key_are_gone(self, world: World) -> None:
        path = world.secrets["vda"].path
        ok(detach(world, "vda"))
        job = ok(self.destroy(world))
        assert not Path(path).exists() and not WrappedSecret.objects.exists()
        ok(again(world, job, disk_jobs.run_destroy_disk))
        assert Event.objects.filter(kind="vm.disk_destroyed").count() == 1

    def test_not_one_that_a_definition_has_again(self, world: World) -> None:
        before = world.hypervisor.xml[world.uuid]
        path = world.secrets["vda"].path
        ok(detach(world, "vda"))
        world.hypervisor.xml[world.uuid] = before
        assert self.destroy(world).error_code == "disk_in_use"
        assert Path(path).exists() and WrappedSecret.objects.exists()

    def test_not_one_that_is_attached_again_when_the_job_begins(self, world: World) -> None:
        """As it may be while a second person has not yet approved."""
        ok(detach(world, "vda"))
        row = WrappedSecret.objects.get(stage=Stage.DETACHED)
        job = disks.destroy_detached_disk(secret_uuid=row.pk, confirm=Path(row.path).name, actor=world.actor)
        WrappedSecret.objects.filter(pk=row.pk).update(stage=Stage.IN_USE)
        assert run(world, job, disk_jobs.run_destroy_disk).error_code == "disk_in_use"
        assert Path(row.path).exists()

    def test_its_vms_row_stays_while_its_key_does(self, world: World) -> None:
        ok(detach(world, "vda"))
        assert VirtualMachine.objects.get().wrapped_secrets.get().stage == Stage.DETACHED
        ok(self.destroy(world))
