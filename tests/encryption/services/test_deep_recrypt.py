"""Deep recrypt: every part under a new volume key and a new data key, and what forbids it."""

import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from django.contrib.auth.models import AnonymousUser, User

from encryption.adapters import image_files, swtpm
from encryption.engine import convert, luks
from encryption.engine.image import ImageFile
from encryption.engine.key_server import KmsUnreachable
from encryption.engine.secret import Secret
from encryption.models import Key, Stage, WrappedSecret
from encryption.services import deep_recrypt, host_storage
from inventory import jobs
from inventory.engine import domain_edit
from inventory.engine.hypervisor import Power
from inventory.errors import Conflict, NotFound, Refused
from inventory.models import Event, Job, JobStatus
from inventory.services import power, sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.test_offline import held_by_qemu
from tests.encryption.services.test_recrypt import carried
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
DISKS = Shape((Disk("vda", "raw"), Disk("vdb", "qcow2")), nvram=False, tpm=False)


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None) -> World:
    made = make_world()
    made.succeed(made.all_disks())
    return made


@pytest.fixture
def running(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    made = make_world(DISKS)
    made.succeed(made.all_disks())
    start(made)
    return made


def start(world: World) -> None:
    job = power.power_on(vm_id=world.vm.pk, actor=world.actor)
    jobs.run(str(job.pk), power.run_power_on)
    assert world.hypervisor.vms[world.uuid].power is Power.ON
    world.vm.refresh_from_db()


def volume_key(path: str, passphrase: Secret) -> Secret:
    with Path(path).open("rb", buffering=0) as file:
        return luks.unlock(convert.read_prefix(ImageFile(file)), passphrase)


def volume_keys(world: World) -> dict[str, bytes]:
    keys = world.passphrases()
    return {
        part: volume_key(row.path, keys[row.secret_uuid]).reveal()
        for part, row in world.secrets.items()
        if row.purpose != "vtpm"
    }


def finished(world: World, job: Job) -> Job:
    world.run(job)
    assert job.status == JobStatus.SUCCEEDED, (job.error_code, job.message)
    return job


def check_new(world: World, before: dict[str, WrappedSecret], old_keys: dict[str, bytes], *parts: str) -> None:
    """Exactly these parts have new secrets and volume keys; all are under one new KEK, and the metadata say so."""
    after, new_keys = world.secrets, volume_keys(world)
    assert {part for part, row in after.items() if row.secret_uuid != before[part].secret_uuid} == set(parts)
    assert {part for part, key in new_keys.items() if key != old_keys[part]} == set(parts) - {"vtpm"}
    (key,) = {row.key for row in after.values()}
    assert key != next(iter(before.values())).key and world.vm.security.key == key
    assert carried(world).kek_id == key.key_id
    assert {(one.secret_uuid, one.wrapped) for one in carried(world).secrets} == {
        (row.secret_uuid, bytes(row.wrapped)) for row in after.values()
    }
    assert all(row.replaces_id is None for row in after.values())


def test_all_parts_of_a_powered_off_vm(world: World) -> None:
    before, old_keys, old = world.secrets, volume_keys(world), world.passphrases()
    job = finished(world, world.deepen())
    world.check_encrypted("vda", "vdb")
    check_new(world, before, old_keys, "vda", "vdb", "nvram", "vtpm")
    for row in world.secrets.values():
        if row.purpose != "vtpm":
            for passphrase in old.values():
                with pytest.raises(luks.KeyslotLocked):
                    volume_key(row.path, passphrase)
    event = Event.objects.get(kind="vm.recrypted_deep")
    assert (event.actor, event.job, event.data["parts"]) == ("alice", job, ["nvram", "vda", "vdb", "vtpm"])
    assert not world.hypervisor.secrets


def test_the_names_come_back_when_it_is_decrypted_and_do_not_grow(world: World) -> None:
    lengths = {part: len(row.path) for part, row in world.secrets.items()}
    for _ in range(2):
        finished(world, world.deepen())
    assert {part: len(row.path) for part, row in world.secrets.items()} == lengths
    world.succeed(world.nothing())
    world.check_plain()


def test_real_vtpm_state(make_world: MakeWorld, keys: MemoryKeyServer, tmp_path: Path) -> None:
    world = make_world(Shape((), nvram=False, tpm=True))
    state = swtpm.state_file(world.tpm_folder)
    state.unlink()
    subprocess.run(
        ["swtpm_setup", "--tpm2", "--tpmstate", str(world.tpm_folder), "--logfile", "/dev/null"],
        check=True,
        capture_output=True,
    )
    (world.tpm_folder / ".lock").unlink(missing_ok=True)
    world.succeed(world.wish())
    (old,) = world.passphrases().values()
    before = state.read_bytes()
    finished(world, world.deepen())
    world.check_encrypted()
    assert state.read_bytes()[4:6] == b"\0\x09" and state.read_bytes() != before
    (new,) = world.passphrases().values()
    swtpm.convert(world.tpm_folder, tmp_path / "opened", old=new, new=None)
    with pytest.raises(swtpm.SwtpmFailed):
        swtpm.convert(world.tpm_folder, tmp_path / "not opened", old=old, new=None)


def test_one_part_alone(world: World) -> None:
    before, old_keys = world.secrets, volume_keys(world)
    finished(world, world.deepen("vdb"))
    world.check_encrypted("vda", "vdb")
    check_new(world, before, old_keys, "vdb")


def test_disks_of_a_running_vm(running: World) -> None:
    before, old_keys = running.secrets, volume_keys(running)
    finished(running, running.deepen())
    running.check_encrypted("vda", "vdb")
    check_new(running, before, old_keys, "vda", "vdb")
    assert running.hypervisor.calls.count("pivot") == 2 and not running.hypervisor.secrets
    running.hypervisor.power_off(running.uuid)
    sync.refresh_virtual_machine(running.vm, running.hypervisor)
    start(running)


def test_the_home_of_a_running_vm_is_refused_and_its_disks_are_offered(world: World) -> None:
    start(world)
    for parts in ((), ("nvram",), ("vda", "vtpm")):
        with pytest.raises(Conflict, match="home files") as told:
            world.deepen(*parts)
        assert told.value.code == "home_in_use" and "choose its disks alone" in told.value.hint
    old_keys, before = volume_keys(world), world.secrets
    finished(world, world.deepen("vda", "vdb"))
    world.check_encrypted("vda", "vdb")
    check_new(world, before, old_keys, "vda", "vdb")


def test_a_vm_that_is_started_before_the_worker_comes(world: World) -> None:
    job = world.deepen()
    world.hypervisor.secrets = {row.secret_uuid: b"" for row in world.secrets.values()}
    world.hypervisor.power_on(world.uuid)
    world.run(job)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "home_in_use")
    world.check_encrypted("vda", "vdb")


def test_cancelled_while_it_copies(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before, old_keys = running.secrets, volume_keys(running)

    def cancel(seconds: float) -> None:
        Job.objects.filter(pk=job.pk).update(cancel_requested=True)
        running.hypervisor.copies_are_ready = True

    monkeypatch.setattr("inventory.jobs.Progress.advance", lambda progress, done: progress._save())
    monkeypatch.setattr("time.sleep", cancel)
    running.hypervisor.copies_are_ready = False
    job = running.deepen()
    running.run(job)
    assert job.status == JobStatus.CANCELLED
    assert not running.hypervisor.copies and not running.hypervisor.secrets
    running.check_encrypted("vda", "vdb")
    assert volume_keys(running) == old_keys
    assert {row.secret_uuid for row in running.secrets.values()} == {row.secret_uuid for row in before.values()}
    finished(running, running.deepen())
    running.check_encrypted("vda", "vdb")


def test_guest_that_is_powered_off_meanwhile(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    running.hypervisor.copies_are_ready = False
    monkeypatch.setattr("time.sleep", lambda seconds: running.hypervisor.power_off(running.uuid))
    job = running.run(running.deepen())
    assert (job.status, job.error_code) == (JobStatus.FAILED, "vm_stopped_meanwhile")
    running.check_encrypted("vda", "vdb")
    finished(running, running.deepen())
    running.check_encrypted("vda", "vdb")


def test_what_ends_between_two_disks_leaves_metadata_that_open_both(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = running.secrets
    pivot = running.hypervisor.pivot

    def pivot_and_cancel(uuid: UUID, disk: str) -> None:
        pivot(uuid, disk)
        Job.objects.filter(pk=job.pk).update(cancel_requested=True)

    monkeypatch.setattr(running.hypervisor, "pivot", pivot_and_cancel)
    job = running.deepen()
    running.run(job)
    assert job.status == JobStatus.CANCELLED
    running.check_parts()
    now = {
        row.target: row
        for row in WrappedSecret.objects.filter(virtual_machine=running.vm)
        if row.stage != Stage.REPLACED
    }
    assert now["vda"].secret_uuid != before["vda"].secret_uuid and now["vdb"].secret_uuid == before["vdb"].secret_uuid
    assert {(one.secret_uuid, one.wrapped) for one in carried(running).secrets} == {
        (row.secret_uuid, bytes(row.wrapped)) for row in now.values()
    }


def refused(world: World, code: str) -> None:
    """A job that ends with that code; the VM is as it was."""
    before, files = volume_keys(world), world.files()
    job = world.run(world.deepen())
    assert (job.status, job.error_code) == (JobStatus.FAILED, code), job.message
    assert volume_keys(world) == before and world.files() == files
    assert {row.stage for row in world.secrets.values()} == {Stage.IN_USE}
    assert carried(world).kek_id == world.secrets["vda"].key.key_id


def test_too_little_space(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "free_bytes", lambda path: 2**20)
    refused(world, "space_missing")


def test_image_that_a_qemu_writes_to(world: World) -> None:
    with held_by_qemu(world.secrets["vda"].path, "raw"):
        refused(world, "image_in_use")


def test_missing_image(world: World) -> None:
    path = Path(world.secrets["vda"].path)
    path.rename(path.with_name("away"))
    job = world.run(world.deepen())
    assert (job.status, job.error_code) == (JobStatus.FAILED, "image_missing")
    path.with_name("away").rename(path)
    world.check_encrypted("vda", "vdb")


def test_key_server_that_is_gone(world: World, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(key_id: str) -> Secret:
        raise KmsUnreachable(keys.address, "no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(keys, "get_key", lost)
        job = world.run(world.deepen())
    assert (job.status, job.error_code) == (JobStatus.FAILED, "kms_unreachable")
    world.check_encrypted("vda", "vdb")


def test_another_disk_in_the_place_of_an_encrypted_one(world: World) -> None:
    row = world.secrets["vda"]
    WrappedSecret.objects.filter(pk=row.pk).update(secret_uuid=world.vm.pk)  # its secret is not the definition's
    job = world.run(world.deepen("vda"))
    assert (job.status, job.error_code) == (JobStatus.FAILED, "part_replaced")


def test_snapshot_of_an_encrypted_disk(world: World) -> None:
    """An external snapshot puts a qcow2 image without encryption before the LUKS image: that is no encrypted disk."""
    world.hypervisor.xml[world.uuid] = domain_edit.set_disk(
        world.hypervisor.xml[world.uuid], "vda", path=f"{world.folder}/overlay", format="qcow2", secret_uuid=None
    )
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    with pytest.raises(Conflict) as told:
        world.deepen("vda")
    assert told.value.code == "part_unknown"


def test_refused_before_a_job_begins(
    world: World, make_world: MakeWorld, alice: User, charlie: User, keys: MemoryKeyServer
) -> None:
    plain = make_world(DISKS)
    home_only = make_world(DISKS)
    home_only.succeed(home_only.wish())
    for vm, parts, code in (
        (plain, (), "not_encrypted"),
        (home_only, (), "nothing_to_recrypt"),
        (world, ("vda", "vdz"), "part_unknown"),
    ):
        with pytest.raises(Conflict) as told:
            vm.deepen(*parts)
        assert told.value.code == code
    for nobody in (charlie, AnonymousUser()):
        with pytest.raises(Refused):
            deep_recrypt.deep_recrypt_vm(vm_id=world.vm.pk, actor=nobody)
    with pytest.raises(NotFound):
        deep_recrypt.deep_recrypt_vm(vm_id=world.vm.pk, actor=alice, kms_cluster_id=world.vm.pk)
    with pytest.raises(NotFound):
        deep_recrypt.deep_recrypt_vm(vm_id=world.host.pk, actor=alice)
    world.deepen()
    with pytest.raises(Conflict) as busy:
        world.deepen()
    assert busy.value.code == "target_busy"
    assert Key.objects.count() == 2


def test_half_applied_options_come_first(world: World) -> None:
    WrappedSecret.objects.filter(target="vda").update(stage=Stage.SWITCHED)
    with pytest.raises(Conflict) as told:
        world.deepen()
    assert told.value.code == "change_unfinished"


@pytest.mark.parametrize("in_memory", [True, False])
def test_on_a_host_whose_files_no_worker_reaches(
    make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    if not in_memory:
        monkeypatch.setattr(host_storage, "IN_MEMORY_BYTES", 0)
    world = make_world(Shape(remote=True))
    world.succeed(world.all_disks())
    before, old_keys = world.secrets, volume_keys(world)
    finished(world, world.deepen())
    check_new(world, before, old_keys, "vda", "vdb", "nvram", "vtpm")
    world.check_encrypted("vda", "vdb")
    assert world.hypervisor.secrets == {}
    world.succeed(world.nothing())
    world.check_plain()
