"""Rotation of LUKS passphrases: another keyslot, the same volume key, the same bytes behind the header."""

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User

from encryption.engine import luks
from encryption.engine.key_server import KmsUnreachable
from encryption.engine.secret import Secret
from encryption.models import Stage, VmSecurity
from encryption.services import keyslots, passphrases
from inventory import jobs
from inventory.errors import Conflict, Refused
from inventory.models import Event, Job, JobStatus
from inventory.services import power
from tests.encryption.file_host import FileHost, MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.effects import Killed
from tests.encryption.services.test_deep_recrypt import finished, start, volume_keys
from tests.encryption.services.test_offline import held_by_qemu
from tests.encryption.services.test_recrypt import carried
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow]


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None) -> World:
    made = make_world()
    made.succeed(made.all_disks())
    return made


def luks_parts(world: World) -> dict[str, bytes]:
    """Each image's bytes behind the header, and its path."""
    return {row.path: Path(row.path).read_bytes()[luks.PREFIX_BYTES :] for row in world.secrets.values() if row.target}


def opens(path: str, passphrase: Secret) -> bool:
    """As cryptsetup finds it."""
    done = subprocess.run(
        ["cryptsetup", "luksOpen", "--test-passphrase", "--key-file=-", path],
        input=passphrase.reveal(), check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode in (0, 2), done.stderr
    return done.returncode == 0


def test_old_passphrases_are_refused_new_ones_accepted_and_the_data_are_not_touched(world: World) -> None:
    before, old, old_keys = world.secrets, world.passphrases(), volume_keys(world)
    kept = luks_parts(world)
    key = VmSecurity.objects.get().key
    job = finished(world, world.rotate())
    world.check_encrypted("vda", "vdb")
    assert luks_parts(world) == kept and volume_keys(world) == old_keys
    new = world.passphrases()
    for part, row in world.secrets.items():
        if part == "vtpm":
            assert row.secret_uuid == before[part].secret_uuid
            continue
        assert opens(row.path, new[row.secret_uuid]) and not opens(row.path, old[before[part].secret_uuid])
        dump = subprocess.run(["cryptsetup", "luksDump", row.path], check=True, capture_output=True, text=True).stdout
        assert dump.count("ENABLED") == 1
    assert VmSecurity.objects.get().key == key
    assert {(one.secret_uuid, one.wrapped) for one in carried(world).secrets} == {
        (row.secret_uuid, bytes(row.wrapped)) for row in world.secrets.values()
    }
    event = Event.objects.get(kind="vm.passphrases_rotated")
    assert (event.job, event.data["parts"]) == (job, ["vda", "vdb", "NVRAM"])
    start(world)


def test_again_and_again_and_back_to_plain(world: World) -> None:
    for _ in range(3):
        finished(world, world.rotate())
    finished(world, world.deepen())
    finished(world, world.rotate())
    world.check_encrypted("vda", "vdb")
    world.succeed(world.nothing())
    world.check_plain()


def test_running_vm(world: World) -> None:
    start(world)
    with pytest.raises(Conflict, match="tainted") as told:
        world.rotate()
    assert told.value.code == "vm_running" and "shut it down" in told.value.hint


def refused(world: World, code: str) -> None:
    """A job that ends with that code; every image is as it was, to the byte."""
    before = {row.path: Path(row.path).read_bytes() for row in world.secrets.values() if row.target}
    secrets = {row.secret_uuid for row in world.secrets.values()}
    job = world.run(world.rotate())
    assert (job.status, job.error_code) == (JobStatus.FAILED, code), job.message
    assert {path: Path(path).read_bytes() for path in before} == before
    assert {row.secret_uuid for row in world.secrets.values()} == secrets
    assert {row.stage for row in world.secrets.values()} == {Stage.IN_USE}


def test_image_that_a_qemu_writes_to(world: World) -> None:
    with held_by_qemu(world.secrets["vdb"].path, "raw"):
        refused(world, "image_in_use")


def test_image_without_a_free_keyslot(world: World) -> None:
    row = world.secrets["vdb"]
    passphrase = world.passphrases()[row.secret_uuid]
    path = Path(row.path)
    content = path.read_bytes()
    for letter in b"abcdefg":
        prefix = luks.add_passphrase(content[: luks.PREFIX_BYTES], passphrase, Secret(bytes([letter]) * 64))
        content = prefix + content[luks.PREFIX_BYTES :]
    path.write_bytes(content)
    refused(world, "no_free_keyslot")


def test_a_passphrase_that_somebody_else_added_stays(world: World) -> None:
    row = world.secrets["vda"]
    path = Path(row.path)
    content = path.read_bytes()
    third = Secret(b"c" * 64)
    prefix = luks.add_passphrase(content[: luks.PREFIX_BYTES], world.passphrases()[row.secret_uuid], third)
    path.write_bytes(prefix + content[luks.PREFIX_BYTES :])
    finished(world, world.rotate())
    assert opens(row.path, third)


def test_missing_and_damaged_images(world: World) -> None:
    path = Path(world.secrets["vdb"].path)
    path.rename(path.with_name("away"))
    job = world.run(world.rotate())
    assert (job.status, job.error_code) == (JobStatus.FAILED, "image_missing")
    path.with_name("away").rename(path)
    world.check_encrypted("vda", "vdb")
    content = path.read_bytes()
    path.write_bytes(b"no luks" + content[7:])
    refused(world, "image_unreadable")


def test_key_server_that_is_lost_between(world: World, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new keyslots are made, and cannot be taken back without their key: the next rotation does that."""
    written = keyslots._write_added

    def lost(key_id: str) -> Secret:
        raise KmsUnreachable(keys.address, "no route to host")

    def write(*args: object) -> None:
        written(*args)  # type: ignore[arg-type]
        patch.setattr(keys, "get_key", lost)
        patch.setattr(world.hypervisor, "redefine", lambda *args: lost(""))

    with monkeypatch.context() as patch:
        patch.setattr(keyslots, "_write_added", write)
        patch.setattr(world.hypervisor, "redefine", lambda *args: lost(""))
        job = world.run(world.rotate())
    assert job.status != JobStatus.SUCCEEDED
    assert {row.stage for row in world.secrets.values()} > {Stage.IN_USE}
    world.check_parts()
    finished(world, world.rotate())
    world.check_encrypted("vda", "vdb")


def test_started_before_the_old_keyslots_are_gone(
    world: World, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker died after the switch: the VM starts with the new passphrases, the old ones go once it is off."""

    def dead(*args: object) -> None:
        raise Killed

    old = {row.path: world.passphrases()[row.secret_uuid] for row in world.secrets.values() if row.target}
    job = world.rotate()
    with monkeypatch.context() as patch:
        patch.setattr(keyslots, "remove_replaced", dead)
        with pytest.raises(Killed):
            world.run(job)
    assert all(opens(path, passphrase) for path, passphrase in old.items())
    Job.objects.filter(pk=job.pk).update(status=JobStatus.CANCELLED, claim=None)
    started = power.power_on(vm_id=world.vm.pk, actor=world.actor)
    jobs.run(str(started.pk), power.run_power_on)
    started.refresh_from_db()
    assert started.status == JobStatus.SUCCEEDED, started.message
    world.hypervisor.power_off(world.uuid)
    world.vm.refresh_from_db()
    world.apply(world.all_disks())  # nothing but what is left
    world.check_encrypted("vda", "vdb")
    assert not any(opens(path, passphrase) for path, passphrase in old.items())


FAR = Shape((Disk("vda", "raw"), Disk("vdb", "qcow2")), remote=True)


def test_through_the_host_where_no_worker_reaches_the_files(
    make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    world = make_world(FAR)
    world.succeed(world.all_disks())
    before, old, kept, put = world.secrets, world.passphrases(), luks_parts(world), list(world.hypervisor.put)
    waited: list[tuple[float, bool]] = []

    def wait(seconds: float) -> None:
        first = before["vda"]
        waited.append((seconds, opens(first.path, old[first.secret_uuid])))

    settings.HOST_WRITE_BACK_SECONDS = 40
    monkeypatch.setattr(time, "sleep", wait)
    finished(world, world.rotate())
    assert waited == [(40, True)], "once, while the old keyslots are still there"
    world.check_encrypted("vda", "vdb")
    assert luks_parts(world) == kept
    new = world.passphrases()
    for part in ("vda", "vdb", "nvram"):
        row = world.secrets[part]
        assert opens(row.path, new[row.secret_uuid]) and not opens(row.path, old[before[part].secret_uuid])
    assert world.hypervisor.put == put, "no key has gone to the host"


def test_host_that_does_not_keep_what_it_is_sent(
    make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(FAR)
    world.succeed(world.all_disks())
    with monkeypatch.context() as patch:
        patch.setattr(FileHost, "overwrite_file", lambda *args, **kwargs: None)
        refused(world, "image_unreadable")
    finished(world, world.rotate())


def test_vm_that_runs_again_on_such_a_host_keeps_its_old_keyslots_until_it_is_off(
    make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(FAR)
    world.succeed(world.all_disks())
    old = {row.path: world.passphrases()[row.secret_uuid] for row in world.secrets.values() if row.target}

    def killed(seconds: float) -> None:
        raise Killed

    job = world.rotate()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(time, "sleep", killed)
        world.run(job)
    Job.objects.filter(pk=job.pk).update(status=JobStatus.CANCELLED, claim=None)
    start(world)
    world.refuse(world.all_disks(), "image_in_use")
    assert all(opens(path, passphrase) for path, passphrase in old.items())
    world.hypervisor.power_off(world.uuid)
    world.apply(world.all_disks())  # nothing but what is left
    world.check_encrypted("vda", "vdb")
    assert not any(opens(path, passphrase) for path, passphrase in old.items())


def test_refused_before_a_job_begins(world: World, make_world: MakeWorld, charlie: User) -> None:
    plain, tpm_only = make_world(), make_world(Shape((Disk("vda", "raw"),), nvram=False))
    tpm_only.succeed(tpm_only.wish())
    for vm, code in ((plain, "not_encrypted"), (tpm_only, "nothing_to_recrypt")):
        with pytest.raises(Conflict) as told:
            vm.rotate()
        assert told.value.code == code
    for nobody in (charlie, AnonymousUser()):
        with pytest.raises(Refused):
            passphrases.rotate_passphrases(vm_id=world.vm.pk, actor=nobody)
