"""A plan is carried out as it was approved, or not begun."""

import pytest

from encryption.models import StoragePolicy, VmMigration, VmSecurity
from encryption.services import options, vmotion
from encryption.services.options import Vmotion, Wish
from inventory.models import Event, JobStatus
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import World

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None) -> World:
    return make_world()


def test_a_definition_that_was_changed_meanwhile(world: World) -> None:
    job = world.ask(world.all_disks())
    before = {path: path.read_bytes() for path in world.folder.iterdir()}
    xml = world.hypervisor.definition(world.uuid)
    world.hypervisor.define(xml.replace("<memory unit='MiB'>64</memory>", "<memory unit='MiB'>96</memory>"))
    ended = world.run(job)
    assert (ended.status, ended.error_code) == (JobStatus.FAILED, "plan_outdated"), ended.message
    assert "definition was changed" in ended.message
    assert {path: path.read_bytes() for path in world.folder.iterdir()} == before
    assert not VmSecurity.objects.exists() and not world.secrets


def test_the_digest_is_in_the_event(world: World) -> None:
    job = world.succeed(world.all_disks())
    event = Event.objects.get(kind="vm.encrypted")
    assert event.data["plan_digest"] == job.params["plan"]["digest"]


def test_encrypted_vmotion_stays_required_after_decryption_until_it_is_changed(world: World) -> None:
    world.succeed(world.all_disks())
    assert VmMigration.objects.get(virtual_machine=world.vm).encrypted == "required"
    world.succeed(world.nothing())
    assert options.observe(world.vm).encrypted_vmotion is Vmotion.REQUIRED
    job = world.succeed(Wish(world.nothing().policy_id, {}, encrypted_vmotion=Vmotion.DISABLED))
    assert VmMigration.objects.get(virtual_machine=world.vm).encrypted == "disabled"
    assert Event.objects.filter(kind="vm.options_changed", job=job).count() == 1
    changed = Event.objects.get(kind="vm.encrypted_vmotion_changed", job=job)
    assert (changed.data["before"], changed.data["after"]) == ("required", "disabled")
    assert Event.objects.filter(kind="vm.decrypted").count() == 1


def test_a_disk_with_a_key_of_somebody_else_makes_a_vm_encrypted(world: World) -> None:
    """One rule for the panel and for migrations."""
    world.vm.disks.filter(target="vda").update(is_encrypted=True)
    current = options.observe(world.vm)
    assert current.is_encrypted and not current.has_key
    assert current.encrypted_vmotion is Vmotion.REQUIRED
    assert vmotion.effective_mode(world.vm) == "required"
    found = options.vm_options(vm_id=world.vm.pk, actor=world.actor)
    assert [one.code for one in found.obstacles["encrypted_vmotion"]] == ["vmotion_fixed"]


def test_a_home_for_its_vtpm_leaves_disks_plain(world: World) -> None:
    policy = StoragePolicy.every.get(is_for_vtpm=True)
    world.succeed(Wish(policy.pk, {}))
    world.check_encrypted()
    assert VmSecurity.objects.get().policy == policy
    world.succeed(Wish(world.nothing().policy_id, {}))
    assert not VmSecurity.objects.exists()
