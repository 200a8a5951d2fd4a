"""Policies of single disks: written when a change is carried out, forgotten with the disk, kept by the rest."""

import pytest
from django.contrib.auth.models import User

from encryption.models import StoragePolicy, VmSecurity
from encryption.services import options
from encryption.services.options import Wish
from inventory.engine.domain_xml import parse_document, serialize
from inventory.errors import Conflict
from inventory.services import sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("keys", "quick_tpm")]


def recorded(world: World) -> dict[str, str]:
    return dict(world.vm.disk_policies.values_list("target", "policy__name"))


def test_written_when_applied_and_gone_when_decrypted(make_world: MakeWorld) -> None:
    world = make_world()
    world.succeed(world.wish("vda"))
    assert recorded(world) == {"vda": "VM Encryption Policy", "vdb": "No encryption"}
    world.succeed(world.nothing())
    assert recorded(world) == {}
    world.check_plain()


def test_not_written_by_a_change_that_fails(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world()
    world.hypervisor.failures["redefine"] = Conflict("boom", "boom")  # type: ignore[assignment]
    assert world.apply(world.all_disks()).status == "failed"
    assert recorded(world) == {}


@pytest.mark.parametrize("is_running", [False, True])
def test_another_encrypting_policy_is_recorded_and_nothing_is_converted(
    make_world: MakeWorld, alice: User, is_running: bool
) -> None:
    world = make_world()
    world.succeed(world.all_disks())
    files, secrets = world.files(), {row.secret_uuid for row in world.secrets.values()}
    if is_running:
        world.hypervisor.secrets |= dict.fromkeys(secrets, b"")
        world.hypervisor.power_on(world.uuid)
        sync.refresh_virtual_machine(world.vm, world.hypervisor)
    gold = StoragePolicy.objects.create(name="Gold")
    wish = Wish(gold.pk, {"vda": gold.pk, "vdb": StoragePolicy.objects.get(is_builtin=True, encrypts=True).pk})
    steps = options.plan_options(vm_id=world.vm.pk, wish=wish, actor=alice).steps
    assert [(step.kind.value, step.target) for step in steps] == [("assign_policy", ""), ("assign_policy", "vda")]
    world.succeed(wish)
    assert recorded(world) == {"vda": "Gold", "vdb": "VM Encryption Policy"}
    assert VmSecurity.objects.get(virtual_machine=world.vm).policy == gold
    assert (world.files(), {row.secret_uuid for row in world.secrets.values()}) == (files, secrets)
    assert 'policy="Gold"' in world.hypervisor.xml[world.uuid]
    with pytest.raises(Conflict, match="as wanted already"):
        world.ask(wish)


def test_a_detached_disk_loses_its_policy(make_world: MakeWorld) -> None:
    world = make_world()
    world.succeed(world.wish("vda"))
    root = parse_document(world.hypervisor.xml[world.uuid])
    devices = root.find("devices")
    assert devices is not None
    (vdb,) = (one for one in devices.iterfind("disk") if one.find("target").get("dev") == "vdb")  # type: ignore[union-attr]
    devices.remove(vdb)
    world.hypervisor.xml[world.uuid] = serialize(root)
    world.hypervisor.change(world.uuid, memory_bytes=1)
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    assert recorded(world) == {"vda": "VM Encryption Policy"}


def test_the_plan_of_a_policy_that_is_gone_meanwhile(make_world: MakeWorld) -> None:
    """Its deletion is refused while the change lives; a row deleted past the product ends the job by name."""
    world = make_world()
    gold = StoragePolicy.objects.create(name="Gold")
    job = world.ask(Wish(gold.pk, {"vda": gold.pk}))
    gold.delete()
    world.run(job)
    assert (job.status, job.error_code) == ("failed", "policy_not_found")
    world.check_plain()
