"""Shallow recrypt: a new KEK, the same data keys, the same data; at any point of a crash the VM still opens."""

import pytest
from django.contrib.auth.models import AnonymousUser, User

from encryption.engine import metadata as engine_metadata
from encryption.engine.metadata import from_xml
from encryption.models import Key, KmsCluster, KmsServer, Stage
from encryption.services import recrypt, recrypt_many, vm_metadata
from inventory import jobs
from inventory.engine.hypervisor import Power
from inventory.errors import Conflict, NotFound, Refused
from inventory.models import Event, Job, JobStatus
from inventory.services import definitions, power
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_tpm")]


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    made = make_world(Shape((Disk("vda", "raw"),)))
    made.succeed(made.all_disks())
    return made


def run(job: Job) -> Job:
    work = recrypt_many.run_recrypt_vms if job.kind == recrypt.RECRYPT_ALL.name else recrypt.run_recrypt_vm
    jobs.run(str(job.pk), work)
    job.refresh_from_db()
    return job


def carried(world: World) -> engine_metadata.ProtectedVm:
    found = definitions.metadata(world.hypervisor.definition(world.uuid), vm_metadata.NAMESPACE)
    assert found is not None
    return from_xml(found)


def check(world: World, *, key_is_not: Key) -> None:
    world.check_encrypted("vda")
    rows = world.secrets
    (key,) = {row.key for row in rows.values()}
    assert key != key_is_not and key.state == Key.State.ACTIVE
    assert carried(world).kek_id == key.key_id
    assert {one.secret_uuid: one.wrapped for one in carried(world).secrets} == {
        row.secret_uuid: bytes(row.wrapped) for row in rows.values()
    }


def test_a_new_key_wraps_the_same_secrets(world: World, alice: User) -> None:
    old = world.secrets["vda"].key
    before, wrapped = world.passphrases(), {part: bytes(row.wrapped) for part, row in world.secrets.items()}
    job = run(recrypt.recrypt_vm(vm_id=world.vm.pk, actor=alice))
    assert job.status == JobStatus.SUCCEEDED, job.message
    check(world, key_is_not=old)
    assert world.passphrases() == before
    assert all(bytes(row.wrapped) != wrapped[part] for part, row in world.secrets.items())
    event = Event.objects.get(kind="vm.recrypted")
    assert (event.actor, event.data["old_key_id"]) == ("alice", old.key_id)


def test_a_running_vm_is_recrypted(world: World, alice: User) -> None:
    start = power.power_on(vm_id=world.vm.pk, actor=alice)
    jobs.run(str(start.pk), power.run_power_on)
    assert world.hypervisor.vms[world.uuid].power is Power.ON
    old = world.secrets["vda"].key
    assert run(recrypt.recrypt_vm(vm_id=world.vm.pk, actor=alice)).status == JobStatus.SUCCEEDED
    check(world, key_is_not=old)


def test_killed_before_the_metadata_it_goes_on_with_the_same_new_key(
    world: World, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    old = world.secrets["vda"].key
    job = recrypt.recrypt_vm(vm_id=world.vm.pk, actor=alice)
    with monkeypatch.context() as patch:
        patch.setattr(world.hypervisor, "redefine", kill)
        with pytest.raises(Killed):
            jobs.run(str(job.pk), recrypt.run_recrypt_vm)
    world.check_encrypted("vda")
    assert carried(world).kek_id == old.key_id
    keys = Key.objects.count()
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    assert run(job).status == JobStatus.SUCCEEDED
    assert Key.objects.count() == keys
    check(world, key_is_not=old)


def test_another_provider_can_be_chosen(world: World, alice: User, keys: MemoryKeyServer) -> None:
    other = KmsCluster.objects.create(name="Other")
    KmsServer.objects.create(cluster=other, position=0, host="kms.other.example")
    job = run(recrypt.recrypt_vm(vm_id=world.vm.pk, actor=alice, kms_cluster_id=other.pk))
    assert job.status == JobStatus.SUCCEEDED, job.message
    assert carried(world).kms_cluster == other.pk


def test_all_vms_of_a_provider_and_one_that_fails(
    world: World, make_world: MakeWorld, alice: User, keys: MemoryKeyServer
) -> None:
    second = make_world(Shape((Disk("vda", "raw"),), nvram=False, tpm=False))
    second.succeed(second.all_disks())
    row = second.secrets["vda"]
    row.stage = Stage.SWITCHED
    row.save()
    first_key, second_key = world.secrets["vda"].key, row.key
    job = run(recrypt.recrypt_provider(cluster_id=first_key.cluster_id, actor=alice))
    assert (job.status, job.error_code) == (JobStatus.FAILED, "some_failed")
    assert "1 of 2 VMs keep their keys (change_unfinished)" in job.message
    check(world, key_is_not=first_key)
    assert second.secrets["vda"].key == second_key
    assert Event.objects.get(kind="key.recrypt_failed").target_id == second.vm.pk


def test_refusals(world: World, make_world: MakeWorld, alice: User, charlie: User) -> None:
    plain = make_world(Shape((Disk("vda", "raw"),)))
    with pytest.raises(Conflict, match="is not encrypted"):
        recrypt.recrypt_vm(vm_id=plain.vm.pk, actor=alice)
    for nobody in (charlie, AnonymousUser()):
        with pytest.raises(Refused):
            recrypt.recrypt_vm(vm_id=world.vm.pk, actor=nobody)
    with pytest.raises(NotFound):
        recrypt.recrypt_vm(vm_id=world.vm.pk, actor=alice, kms_cluster_id=world.vm.pk)
    recrypt.recrypt_vm(vm_id=world.vm.pk, actor=alice)
    with pytest.raises(Conflict) as busy:
        recrypt.recrypt_vm(vm_id=world.vm.pk, actor=alice)
    assert busy.value.code == "target_busy"
