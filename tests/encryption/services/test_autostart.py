"""A host that comes up again: what it was to start and could not, the console starts, and nothing else."""

from dataclasses import replace
from uuid import uuid4

import pytest

from encryption.models import KmsCluster, LockCause, VmSecurity, WrappedSecret
from encryption.services import autostart, locks, unlock
from inventory import jobs
from inventory.engine.hypervisor import Power
from inventory.models import Event, Job, JobStatus, PowerState, VirtualMachine
from inventory.services import power, sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import Disk, Shape, World
from tests.fakes import FakeSite

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_tpm")]
SHAPE = Shape((Disk("vda", "raw", 64 * 1024),), nvram=False, tpm=False)


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    made = make_world(SHAPE)
    made.succeed(made.all_disks())
    Job.objects.all().delete()
    return made


def unlock_it(world: World) -> Job:
    job = unlock.unlock_vm(vm_id=world.vm.pk, actor=world.actor)
    jobs.run(str(job.pk), unlock.run_unlock_vm)
    job.refresh_from_db()
    return job


def comes_up(world: World, **changes: object) -> Job | None:
    """The host answers again, with what its libvirt says of the VM; the job that this brought."""
    facts = replace(world.hypervisor.vms[world.uuid], is_autostarted=True, is_down_by_failure=True)
    world.hypervisor.vms[world.uuid] = replace(facts, **changes)  # type: ignore[arg-type]
    sync.sync_host(world.host, world.hypervisor)
    autostart.start_again(world.host, world.hypervisor)
    return Job.objects.first()


def test_started_with_its_keys_and_why(world: World) -> None:
    job = comes_up(world)
    assert job is not None and (job.kind, job.actor) == ("inventory.power_on", "Bartizan")
    jobs.run(str(job.pk), power.run_power_on)
    assert world.hypervisor.vms[world.uuid].power is Power.ON
    assert VirtualMachine.objects.get().power_state == PowerState.ON
    event = Event.objects.get(kind="vm.autostart_requested")
    assert "came up without its keys" in event.message and event.job == job
    assert Event.objects.filter(kind="key.released", job=job).exists()


@pytest.mark.parametrize(
    "changes", [{"is_autostarted": False}, {"is_down_by_failure": False}, {"power": Power.ON}], ids=str
)
def test_what_is_left_alone(world: World, changes: dict[str, object]) -> None:
    """Not marked; shut down by somebody; running."""
    assert comes_up(world, **changes) is None
    assert not Event.objects.filter(kind__startswith="vm.autostart").exists()


def test_plain_vms_are_the_hosts_own_business(make_world: MakeWorld) -> None:
    assert comes_up(make_world(SHAPE)) is None


def test_twice_starts_once(world: World) -> None:
    comes_up(world)
    comes_up(world)
    assert Job.objects.count() == 1
    event = Event.objects.get(kind="vm.autostart_refused")
    assert event.data["code"] == "target_busy"


def test_a_saved_state_is_told(world: World) -> None:
    assert comes_up(world, has_managed_save=True) is None
    assert Event.objects.get(kind="vm.autostart_refused").data["code"] == "managed_save_present"


def test_locked_with_its_cause_where_the_key_cannot_be_had(world: World, keys: MemoryKeyServer) -> None:
    keys.keys.clear()
    job = comes_up(world)
    assert job is not None
    jobs.run(str(job.pk), power.run_power_on)
    job.refresh_from_db()
    assert (job.status, job.error_code) == (JobStatus.FAILED, "kms_key_not_found")
    assert VmSecurity.objects.get().lock_cause == LockCause.KEY_MISSING


class TestSecretThatNobodyHas:
    def replaced(self, world: World) -> Job:
        """Somebody has put another disk into the definition, encrypted with a secret of their own."""
        secret = WrappedSecret.objects.get()
        foreign = uuid4()
        world.hypervisor.xml[world.uuid] = (
            world.hypervisor.xml[world.uuid]
            .replace(f"uuid='{secret.secret_uuid}'", f"uuid='{foreign}'")
            .replace(f'uuid="{secret.secret_uuid}"', f'uuid="{foreign}"')
        )
        sync.sync_host(world.host, world.hypervisor)
        self.foreign = foreign
        return self.start(world)

    def start(self, world: World) -> Job:
        job = power.power_on(vm_id=world.vm.pk, actor=world.actor)
        jobs.run(str(job.pk), power.run_power_on)
        job.refresh_from_db()
        return job

    def test_locked_and_free_again(self, world: World) -> None:
        job = self.replaced(world)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "key_missing_on_host")
        security = VmSecurity.objects.get()
        assert security.lock_cause == LockCause.KEY_MISSING_ON_HOST and security.lock_parts == ["vda"]
        event = Event.objects.get(kind="vm.locked")
        assert event.data["cause"] == "key_missing_on_host" and "vda opens with a key that neither" in event.message
        world.hypervisor.secrets[self.foreign] = b"put there by its owner"
        assert self.start(world).status == JobStatus.SUCCEEDED

    def test_unlock_looks_at_the_definition(self, world: World) -> None:
        self.replaced(world)
        job = unlock_it(world)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "key_missing_on_host")
        assert unlock.unlock_of_provider(str(KmsCluster.objects.get().pk)) == 0
        locks.release(world.vm, actor="alice")
        assert VmSecurity.objects.get().lock_cause == LockCause.KEY_MISSING_ON_HOST
        world.hypervisor.secrets[self.foreign] = b"put there by its owner"
        assert unlock_it(world).status == JobStatus.SUCCEEDED
        assert VmSecurity.objects.get().locked_at is None

    def test_stays_locked_while_its_host_is_away(self, world: World, site: FakeSite) -> None:
        self.replaced(world)
        site.hosts.clear()
        job = unlock_it(world)
        assert job.status == JobStatus.FAILED and VmSecurity.objects.get().locked_at is not None


class TestUnlocked:
    """Its host came up while the key provider was lost."""

    @pytest.fixture
    def waiting(self, world: World, keys: MemoryKeyServer) -> World:
        kept = dict(keys.keys)
        keys.keys.clear()
        job = comes_up(world)
        assert job is not None
        jobs.run(str(job.pk), power.run_power_on)
        assert VmSecurity.objects.get().locked_at is not None
        keys.keys.update(kept)
        Job.objects.all().delete()
        return world

    def started(self, world: World) -> bool:
        for job in Job.objects.filter(kind="inventory.power_on"):
            jobs.run(str(job.pk), power.run_power_on)
        return world.hypervisor.vms[world.uuid].power is Power.ON

    def test_started_when_the_provider_is_back(self, waiting: World) -> None:
        assert unlock.unlock_of_provider(str(KmsCluster.objects.get().pk)) == 1
        assert self.started(waiting)
        assert Event.objects.filter(kind="vm.autostart_requested").count() == 2

    def test_started_after_an_unlock(self, waiting: World) -> None:
        job = unlock_it(waiting)
        unlock.start_what_waited(str(job.pk))
        assert self.started(waiting)

    def test_not_after_one_that_failed(self, waiting: World, keys: MemoryKeyServer) -> None:
        keys.keys.clear()
        unlock.start_what_waited(str(unlock_it(waiting).pk))
        assert not self.started(waiting)

    def test_what_somebody_shut_down_stays_off(self, waiting: World) -> None:
        waiting.hypervisor.vms[waiting.uuid] = replace(waiting.hypervisor.vms[waiting.uuid], is_down_by_failure=False)
        unlock.start_what_waited(str(unlock_it(waiting).pk))
        assert not self.started(waiting)

    def test_a_host_that_is_away_is_left_to_its_return(self, waiting: World, site: FakeSite) -> None:
        site.hosts.clear()
        assert unlock.unlock_of_provider(str(KmsCluster.objects.get().pk)) == 1
        assert not Job.objects.exists()
