"""A vTPM is added and removed by the job of VM Options, over real files, by a worker that may be killed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from django.utils import timezone

from encryption.models import Stage, StoragePolicy, VmSecurity, VtpmEndorsement, WrappedSecret
from encryption.services import change as changes
from encryption.services import options, vtpm, vtpm_device, vtpm_files
from encryption.services.part_files import PartFiles
from inventory.engine.hypervisor import Power
from inventory.errors import Conflict, Invalid
from inventory.models import Event, Job, JobStatus
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import TPM_PLAIN, Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.usefixtures("keys", "quick_tpm")]
WITHOUT = Shape(disks=(Disk("vda", "raw"),), tpm=False)
WITH = Shape(disks=(Disk("vda", "raw"),))


class Killed(BaseException):
    """The worker's end."""


def add(world: World) -> Job:
    return world.run(vtpm.add_vtpm(vm_id=world.vm.pk, actor=world.actor))


def remove(world: World) -> Job:
    return world.run(vtpm.remove_vtpm(vm_id=world.vm.pk, confirm="vm", actor=world.actor))


def succeeded(job: Job) -> None:
    assert job.status == JobStatus.SUCCEEDED, (job.error_code, job.message)


def tpm_of(world: World) -> object:
    return world.hypervisor.virtual_machine(world.uuid).tpm


@pytest.mark.parametrize("remote", [False, True])
def test_added_to_a_plain_vm_it_encrypts_the_home_and_no_disk(make_world: MakeWorld, remote: bool) -> None:
    world = make_world(Shape(disks=(Disk("vda", "raw"),), tpm=False, remote=remote))
    plan = vtpm.plan_vtpm(vm_id=world.vm.pk, present=True, actor=world.actor)
    assert [one.code for one in plan.warnings if one.code == "home_for_vtpm"] == ["home_for_vtpm"]
    succeeded(add(world))
    rows = world.secrets
    assert set(rows) == {"nvram", "vtpm"} and rows["vtpm"].stage == Stage.IN_USE
    facts = world.hypervisor.virtual_machine(world.uuid)
    assert facts.tpm is not None
    assert (facts.tpm.model, facts.tpm.version, facts.tpm.secret_uuid) == ("tpm-crb", "2.0", rows["vtpm"].secret_uuid)
    assert facts.nvram_secret_uuid == rows["nvram"].secret_uuid and not facts.disks[0].is_encrypted
    assert not world.tpm_folder.exists(), "swtpm makes the state, under that secret, at the first start"
    assert str(rows["vtpm"].secret_uuid) in world.hypervisor.xml[world.uuid].partition("</metadata>")[0]
    assert VmSecurity.objects.get().policy.is_for_vtpm
    world.check_parts()
    assert Event.objects.filter(kind="vm.vtpm_added").count() == 1


def test_the_key_is_there_before_the_device(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(WITHOUT)
    real = world.hypervisor.redefine
    seen: list[str] = []

    def redefine(uuid: object, edit: Callable[[str], str]) -> None:
        seen.extend(WrappedSecret.objects.values_list("purpose", flat=True))
        real(uuid, edit)  # type: ignore[arg-type]

    monkeypatch.setattr(world.hypervisor, "redefine", redefine)
    succeeded(add(world))
    assert sorted(seen[:2]) == ["nvram", "vtpm"]


def test_added_to_an_encrypted_vm_its_policy_stays(make_world: MakeWorld) -> None:
    world = make_world(WITHOUT)
    world.succeed(world.all_disks())
    key = VmSecurity.objects.get().key
    succeeded(add(world))
    assert set(world.secrets) == {"vda", "nvram", "vtpm"}
    found = VmSecurity.objects.get()
    assert found.key == key and found.policy == StoragePolicy.objects.get(is_builtin=True, encrypts=True)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("encrypted", [False, True])
def test_removed_with_its_state(make_world: MakeWorld, remote: bool, encrypted: bool) -> None:
    world = make_world(Shape(disks=(Disk("vda", "raw"),), remote=remote))
    if encrypted:
        world.succeed(world.wish())
    VtpmEndorsement.objects.create(virtual_machine=world.vm, nv_index=1, public_key=b"x", read_at=timezone.now())
    succeeded(remove(world))
    assert tpm_of(world) is None and not world.tpm_folder.exists()
    assert set(world.secrets) == ({"nvram"} if encrypted else set())
    assert not VtpmEndorsement.objects.exists()
    assert Event.objects.filter(kind="vm.vtpm_removed", severity="warning").count() == 1
    world.check_parts()


def test_a_home_that_only_its_vtpm_encrypted_is_plain_without_it(make_world: MakeWorld) -> None:
    world = make_world(WITHOUT)
    succeeded(add(world))
    succeeded(remove(world))
    world.check_plain()
    assert tpm_of(world) is None


def test_nothing_is_removed_without_the_vms_name(make_world: MakeWorld) -> None:
    world = make_world(WITH)
    wish = options.Wish(world.nothing().policy_id, {}, vtpm=False)
    with pytest.raises(Invalid) as caught:
        vtpm.remove_vtpm(vm_id=world.vm.pk, confirm="wm", actor=world.actor)
    assert caught.value.code == "confirmation_mismatch"
    with pytest.raises(Invalid) as caught:
        options.apply_options(vm_id=world.vm.pk, wish=wish, actor=world.actor)
    assert caught.value.code == "confirmation_mismatch"
    assert not Job.objects.exists() and tpm_of(world) is not None


def test_state_of_an_earlier_vtpm_is_nobodys_to_go_on_with(make_world: MakeWorld) -> None:
    world = make_world(WITHOUT)
    world.tpm_folder.mkdir(parents=True)
    (world.tpm_folder / "tpm2-00.permall").write_bytes(TPM_PLAIN)
    job = add(world)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "vtpm_state_left")
    assert (world.tpm_folder / "tpm2-00.permall").read_bytes() == TPM_PLAIN
    world.check_plain()
    assert tpm_of(world) is None


def test_a_running_vm(make_world: MakeWorld) -> None:
    for shape in (WITHOUT, WITH):
        world = make_world(shape)
        world.hypervisor.power_on(world.uuid)
        world.vm.power_state = Power.ON
        world.vm.save()
        with pytest.raises(Conflict) as caught:
            if shape.tpm:
                vtpm.remove_vtpm(vm_id=world.vm.pk, confirm="vm", actor=world.actor)
            else:
                vtpm.add_vtpm(vm_id=world.vm.pk, actor=world.actor)
        assert caught.value.code in {"vtpm_needs_power_off", "home_in_use"}


def killed_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, after: bool) -> None:
    real = getattr(owner, name)

    def killing(*args: object, **kwargs: object) -> object:
        monkeypatch.setattr(owner, name, real)
        if after:
            real(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(owner, name, killing)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("where", ["switch_definition", "destroy_tpm_state", "finish"])
@pytest.mark.parametrize("encrypted", [False, True])
def test_removal_killed_and_run_again(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, where: str, after: bool, encrypted: bool
) -> None:
    world = make_world(WITH)
    if encrypted:
        world.succeed(world.wish())
    owners = {"switch_definition": changes, "finish": vtpm_device, "destroy_tpm_state": PartFiles}
    killed_once(monkeypatch, owners[where], where, after=after)
    job = vtpm.remove_vtpm(vm_id=world.vm.pk, confirm="vm", actor=world.actor)
    with pytest.raises(Killed):
        world.run(job)
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING)
    succeeded(world.run(job))
    assert tpm_of(world) is None and not world.tpm_folder.exists()
    assert set(world.secrets) == ({"nvram"} if encrypted else set())
    assert Event.objects.filter(kind="vm.vtpm_removed").count() == 1


def test_removal_that_fails_takes_nothing(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(WITH)
    world.succeed(world.wish())
    state = (world.tpm_folder / "tpm2-00.permall").read_bytes()

    def refusing(*_: object) -> None:
        raise Conflict("switch_failed", "no")

    with monkeypatch.context() as patch:
        patch.setattr(changes, "switch_definition", refusing)
        job = remove(world)
    assert job.error_code == "switch_failed"
    assert world.secrets["vtpm"].stage == Stage.IN_USE and tpm_of(world) is not None
    assert (world.tpm_folder / "tpm2-00.permall").read_bytes() == state


def test_state_that_could_not_be_destroyed_is_destroyed_by_the_next_change(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(WITH)
    world.succeed(world.wish())

    def refusing(path: str) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(vtpm_files, "destroy", refusing)
        job = remove(world)
    assert job.error_code == "file_not_destroyed" and tpm_of(world) is None
    plan = options.plan_options(vm_id=world.vm.pk, wish=world.wish(), actor=world.actor)
    assert str(world.tpm_folder) in plan.steps[0].text
    world.succeed(world.wish())
    assert not world.tpm_folder.exists() and set(world.secrets) == {"nvram"}


def test_adding_killed_and_run_again(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for after in (False, True):
        world = make_world(WITHOUT)
        killed_once(monkeypatch, changes, "switch_definition", after=after)
        job = vtpm.add_vtpm(vm_id=world.vm.pk, actor=world.actor)
        with pytest.raises(Killed):
            world.run(job)
        Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING)
        succeeded(world.run(job))
        assert set(world.secrets) == {"nvram", "vtpm"}
        assert Event.objects.filter(kind="vm.vtpm_added", job=job).count() == 1
        world.check_parts()


def test_a_tpm_that_came_back_keeps_its_state(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(WITH)
    world.succeed(world.wish())
    before = world.hypervisor.xml[world.uuid]
    killed_once(monkeypatch, vtpm_device, "finish", after=False)
    job = vtpm.remove_vtpm(vm_id=world.vm.pk, confirm="vm", actor=world.actor)
    with pytest.raises(Killed):
        world.run(job)
    world.hypervisor.xml[world.uuid] = before
    Job.objects.filter(pk=job.pk).update(status=JobStatus.FAILED)
    world.succeed(world.wish("vda"))
    assert world.secrets["vtpm"].stage == Stage.IN_USE and Path(world.tpm_folder, "tpm2-00.permall").exists()
