"""New VMs over real files: encrypted from the first byte, whole or not there at all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from encryption.adapters import qemu_img
from encryption.engine import luks
from encryption.models import Key, StoragePolicy, VmMigration, VmSecurity
from encryption.services import adoption, new_vm, new_vm_job
from encryption.services.new_vm import Guest, NewDisk, NewVm
from encryption.services.options import Vmotion
from encryption.services.release import open_secrets
from inventory import jobs
from inventory.engine.abilities import HostAbilities
from inventory.engine.hypervisor import DatastoreFacts, OperationRefused
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Datastore, Event, Job, JobStatus, VirtualMachine, VmDefinition
from inventory.services import power, sync
from inventory.services.definitions import difference
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.real_kms import run
from tests.encryption.services.test_definition_preview import UUID
from tests.encryption.world import Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_tpm")]
MIB = 2**20
VARIABLES = bytes(40) + b"_FVH" + b"keys of a vendor" * 1000


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer, tmp_path: Path) -> World:
    made = make_world(Shape(disks=(), nvram=False, tpm=False))
    firmware = tmp_path / "firmware"
    firmware.mkdir()
    for name in ("VARS.fd", "VARS.ms.fd"):
        (firmware / name).write_bytes(VARIABLES)
    made.host.abilities = HostAbilities(
        virtualization="kvm", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True, viommu=True, nested="vmx",
        nested_in_cpu="vmx", hyperv=("spinlocks",), secure_loader=str(firmware / "CODE.ms.fd"),
        plain_loader=str(firmware / "CODE.fd"),
    ).as_row()  # fmt: skip
    made.host.save()
    made.hypervisor.pools = [DatastoreFacts("images", "dir", str(made.folder), True, 2**40, 2**40)]
    sync.sync_datastores(made.host, made.hypervisor)
    return made


def policy(*, encrypts: bool) -> StoragePolicy:
    return StoragePolicy.objects.get(is_builtin=True, encrypts=encrypts)


def wanted(*, encrypts: bool = True, **more: Any) -> NewVm:
    one = policy(encrypts=encrypts)
    disks = (NewDisk(8 * MIB, one.pk), NewDisk(4 * MIB, policy(encrypts=False).pk))
    made = NewVm("win-01", Datastore.objects.get().pk, disks, one.pk, memory_bytes=256 * MIB)
    return replace(made, **more)


def make(world: World, new: NewVm) -> VirtualMachine:
    job = run(new_vm.create_vm(new=new, actor=world.actor), new_vm_job.run_create_vm)
    assert job.status == JobStatus.SUCCEEDED, (job.error_code, job.message)
    return VirtualMachine.objects.get(name=new.name)


def everything(world: World) -> set[str]:
    return {str(path.relative_to(world.folder)) for path in world.folder.rglob("*")}


def passphrases(vm: VirtualMachine) -> dict[str, Any]:
    rows = vm.wrapped_secrets.select_related("key__cluster", "virtual_machine")
    return {one.row.target or one.row.purpose: one.passphrase for one in open_secrets(rows)}


def test_whole_way(world: World, keys: MemoryKeyServer) -> None:
    new = wanted(guest=Guest.WINDOWS, vtpm=True, vbs=True, network="default", vcpus=4)
    shown = new_vm.plan_new_vm(new=new, actor=world.actor)
    vm = make(world, new)
    xml = world.hypervisor.xml[vm.uuid]
    # As it was planned
    assert shown.definition is not None and not shown.definition.note
    assert len(difference("", xml, {})) == len(shown.definition.lines)
    assert UUID.sub("", "".join(shown.definition.lines)).count("{new secret of") == 6  # parts and metadata
    # Disks: LUKS with our key, and plain where that was chosen
    opened = passphrases(vm)
    disks = {disk.target: disk for disk in vm.disks.all()}
    assert set(disks) == {"sda", "sdb"} and (disks["sda"].is_encrypted, disks["sdb"].is_encrypted) == (True, False)
    image = Path(disks["sda"].source).read_bytes()
    assert luks.unlock(image[: luks.PREFIX_BYTES], opened["sda"]) and not any(image[luks.PREFIX_BYTES :])
    assert len(image) == luks.PREFIX_BYTES + 8 * MIB
    assert Path(disks["sdb"].source).read_bytes() == bytes(4 * MIB)
    # The home
    assert set(opened) == {"sda", "nvram", "vtpm"} and vm.is_nvram_encrypted and vm.is_tpm_encrypted
    told = world.folder.parent / "told"
    told.write_bytes(VARIABLES)
    assert qemu_img.equal(str(told), "raw", vm.nvram_path, opened["nvram"])
    assert VARIABLES[44:100] not in Path(vm.nvram_path).read_bytes()
    # Rows
    security = VmSecurity.objects.get(virtual_machine=vm)
    assert security.policy == policy(encrypts=True) and security.key is not None and security.locked_at is None
    assert {one.target: one.policy.encrypts for one in vm.disk_policies.all()} == {"sda": True, "sdb": False}
    assert VmMigration.objects.get(virtual_machine=vm).encrypted == "required"
    assert (vm.has_vbs, vm.has_secure_boot, vm.vcpus, vm.memory_bytes) == (True, True, 4, 256 * MIB)
    assert not vm.dumps_core and VmDefinition.objects.get(virtual_machine=vm).xml == xml
    event = Event.objects.get(kind="vm.created")
    assert event.target_id == vm.pk and event.actor == "alice"
    # And it starts with its keys
    job = power.power_on(vm_id=vm.pk, actor=world.actor)
    assert run(job, power.run_power_on).status == JobStatus.SUCCEEDED
    for planted in opened.values():
        assert planted.reveal().decode() not in xml


def test_plain(world: World) -> None:
    vm = make(world, wanted(encrypts=False, encrypted_vmotion=Vmotion.DISABLED))
    assert (vm.firmware, vm.has_secure_boot, vm.tpm_model) == ("uefi", False, "")
    assert not VmSecurity.objects.exists() and not Key.objects.exists() and not vm.wrapped_secrets.exists()
    assert VmMigration.objects.get(virtual_machine=vm).encrypted == "disabled"
    assert [disk.source for disk in vm.disks.all()] == sorted(str(path) for path in world.folder.rglob("*.raw"))


def test_bios_with_an_encrypted_disk(world: World) -> None:
    vm = make(world, wanted(is_uefi=False))
    assert vm.firmware == "bios" and set(passphrases(vm)) == {"vda"}


def test_a_vtpm_alone_encrypts_the_home_and_no_disk(world: World) -> None:
    vm = make(world, wanted(encrypts=False, vtpm=True))
    assert set(passphrases(vm)) == {"nvram", "vtpm"}
    assert VmSecurity.objects.get().policy.is_for_vtpm
    assert {one.policy.encrypts for one in vm.disk_policies.all()} == {False}


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"vcpus": 0}, Invalid, "vcpus_invalid"),
        ({"memory_bytes": 1000}, Invalid, "memory_invalid"),
        ({"memory_bytes": 2**60}, Invalid, "memory_invalid"),
        ({"disks": ()}, Invalid, "no_disk"),
        ({"disks": (NewDisk(MIB, StoragePolicy().pk),) * 17}, Invalid, "too_many_disks"),
        ({"disks": (NewDisk(1000, StoragePolicy().pk),)}, Invalid, "size_invalid"),
        ({"disks": (NewDisk(MIB, StoragePolicy().pk),)}, Invalid, "policy_not_found"),
        ({"name": "a/b"}, Invalid, "name_invalid"),
        ({"name": "vm"}, Conflict, "name_taken"),
        ({"network": "a b"}, Invalid, "network_invalid"),
        ({"iso": "/etc/shadow"}, Invalid, "path_invalid"),
        ({"is_uefi": False, "secure_boot": True}, Conflict, "secure_boot_needs_uefi"),
        ({"is_uefi": False, "vtpm": True}, Conflict, "vtpm_needs_uefi"),
        ({"encrypted_vmotion": Vmotion.DISABLED}, Conflict, "vmotion_fixed"),
    ],
)
def test_refused(world: World, change: dict[str, Any], error: type[Conflict | Invalid], code: str) -> None:
    with pytest.raises(error) as caught:
        new_vm.create_vm(new=wanted(**change), actor=world.actor)
    assert caught.value.code == code and not Job.objects.exists()


def test_refused_by_what_is_there(world: World) -> None:
    new, store = wanted(), Datastore.objects.get()
    Datastore.objects.update(available_bytes=MIB)
    with pytest.raises(Conflict, match="are wanted"):
        new_vm.create_vm(new=new, actor=world.actor)
    Datastore.objects.update(is_active=False)
    with pytest.raises(Invalid, match="cannot take files"):
        new_vm.create_vm(new=new, actor=world.actor)
    Datastore.objects.update(is_active=True, available_bytes=2**40)
    world.host.state = "disconnected"
    world.host.save()
    with pytest.raises(Conflict, match="is not connected"):
        new_vm.create_vm(new=new, actor=world.actor)
    store.delete()
    with pytest.raises(NotFound):
        new_vm.create_vm(new=new, actor=world.actor)
    assert not Job.objects.exists()


def ended(world: World, new: NewVm, code: str) -> Job:
    """A job that fails with that code, and leaves nothing."""
    before = everything(world)
    job = run(new_vm.create_vm(new=new, actor=world.actor), new_vm_job.run_create_vm)
    assert (job.status, job.error_code) == (JobStatus.FAILED, code), job.message
    assert everything(world) == before and not VirtualMachine.objects.filter(name=new.name).exists()
    return job


def test_nothing_is_left_where_the_host_refuses(world: World) -> None:
    world.hypervisor.failures["define"] = OperationRefused("refused", "unsupported configuration")
    job = ended(world, wanted(vtpm=True), "refused")
    assert Event.objects.get(kind="key.unused", job=job).data["key_id"] == Key.objects.get().key_id


def test_cancelled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(world)
    job = new_vm.create_vm(new=wanted(), actor=world.actor)
    create = world.hypervisor.create_file

    def cancelling(*args: Any, **kwargs: Any) -> None:
        create(*args, **kwargs)
        Job.objects.update(cancel_requested=True)

    monkeypatch.setattr(world.hypervisor, "create_file", cancelling)
    assert run(job, new_vm_job.run_create_vm).status == JobStatus.CANCELLED
    assert everything(world) == before


def test_nothing_is_left_without_a_template(world: World) -> None:
    Path(world.host.known_abilities.plain_loader.replace("CODE", "VARS")).unlink()
    ended(world, wanted(), "variables_not_made")


def test_nothing_is_made_without_a_key(world: World, monkeypatch: pytest.MonkeyPatch, keys: MemoryKeyServer) -> None:
    def refusing(*args: object, **kwargs: object) -> None:
        raise OSError("no answer")

    monkeypatch.setattr("encryption.services.key_access.open_client", refusing)
    before = everything(world)
    job = run(new_vm.create_vm(new=wanted(), actor=world.actor), new_vm_job.run_create_vm)
    assert job.status != JobStatus.SUCCEEDED and everything(world) == before


def test_a_host_that_lost_its_firmware_meanwhile(world: World) -> None:
    job = new_vm.create_vm(new=wanted(secure_boot=True), actor=world.actor)
    world.host.abilities = HostAbilities(virtualization="kvm", q35=True, uefi=True, plain_loader="/f/CODE.fd").as_row()
    world.host.save()
    ended_job = run(job, new_vm_job.run_create_vm)
    assert (ended_job.status, ended_job.error_code) == (JobStatus.FAILED, "secure_boot_not_on_host")


class Killed(BaseException):
    """As by SIGKILL: nothing is undone."""


@pytest.mark.parametrize("place", ["create_file", "define", "adopt", "finish"])
def test_killed_and_run_again(world: World, monkeypatch: pytest.MonkeyPatch, place: str, keys: MemoryKeyServer) -> None:
    def kill(*args: object, **kwargs: object) -> None:
        raise Killed

    where: dict[str, tuple[object, str]] = {
        "create_file": (world.hypervisor, "create_file"),
        "define": (world.hypervisor, "define"),
        "adopt": (adoption, "adopt"),
        "finish": (new_vm_job, "_finish"),
    }
    job = new_vm.create_vm(new=wanted(vtpm=True), actor=world.actor)
    with monkeypatch.context() as patched:
        patched.setattr(*where[place], kill)
        patched.setattr("contextlib.ExitStack.__exit__", lambda *_: False)
        with pytest.raises(Killed):
            jobs.run(str(job.pk), new_vm_job.run_create_vm)
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    done = run(job, new_vm_job.run_create_vm)
    assert done.status == JobStatus.SUCCEEDED, (done.error_code, done.message)
    vm = VirtualMachine.objects.get(name="win-01")
    assert set(passphrases(vm)) == {"vda", "nvram", "vtpm"}
    kept = {"win-01", *(str(Path(one).relative_to(world.folder)) for one in vm.disks.values_list("source", flat=True))}
    assert everything(world) == kept | {str(Path(vm.nvram_path).relative_to(world.folder))}
    assert Event.objects.filter(kind="vm.created").count() == 1


def test_what_is_asked_for_is_kept_by_its_job(world: World) -> None:
    new = wanted(vtpm=True, iso="", network="default", encrypted_vmotion=Vmotion.REQUIRED, guest=Guest.OTHER)
    assert NewVm.from_params(new.as_params()) == new
