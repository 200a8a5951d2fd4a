"""Clones over real files: content, keys, TPM, refusals, and what is left when it does not come to an end."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import User

from encryption.models import Key, VmSecurity, WrappedSecret
from encryption.services import adoption, clone, unlock
from encryption.services.clone import KeyChoice, TpmChoice
from encryption.services.release import open_secrets
from inventory import jobs
from inventory.engine.hypervisor import HostUnreachable, OperationRefused, Power
from inventory.errors import Conflict, Invalid, NotFound, Refused
from inventory.jobs import Cancelled
from inventory.models import Event, Job, JobStatus, VirtualMachine
from inventory.services import power, sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.real_kms import run
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow]


@pytest.fixture
def plain(make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None) -> World:
    return make_world(Shape((Disk("vda", "raw"), Disk("vdb", "qcow2"))))


@pytest.fixture
def world(plain: World) -> World:
    plain.succeed(plain.all_disks())
    return plain


def ask(world: World, name: str = "copy", **choices: object) -> Job:
    return clone.clone_vm(vm_id=world.vm.pk, name=name, actor=world.actor, **choices)  # type: ignore[arg-type]


def make(world: World, name: str = "copy", **choices: object) -> VirtualMachine:
    job = run(ask(world, name, **choices), clone.run_clone_vm)
    assert job.status == JobStatus.SUCCEEDED, (job.error_code, job.message)
    return VirtualMachine.objects.get(name=name)


def everything(world: World) -> set[str]:
    return {str(path) for path in world.folder.parent.rglob("*") if path.is_file()}


def tpm_state(world: World, uuid: UUID) -> Path:
    return world.tpm_base / str(uuid) / "tpm2" / "tpm2-00.permall"


def passphrases(vm: VirtualMachine) -> dict[str, bytes]:
    rows = vm.wrapped_secrets.select_related("key__cluster", "virtual_machine")
    return {one.row.target or one.row.purpose: one.passphrase.reveal() for one in open_secrets(rows)}


def check(world: World, made: VirtualMachine) -> None:
    """The clone's files equal the original's, none is shared, and every secret of the one differs from the other's."""
    ours, theirs = world.hypervisor._facts(world.uuid), world.hypervisor._facts(made.uuid)
    assert theirs.name == made.name and made.uuid != world.uuid
    for one, other in zip(ours.disks, theirs.disks, strict=True):
        assert one.source != other.source
        assert Path(one.source).read_bytes() == Path(other.source).read_bytes()
        assert (one.format, one.is_encrypted) == (other.format, other.is_encrypted)
        assert one.secret_uuid != other.secret_uuid or one.secret_uuid is None
    assert ours.nvram_path != theirs.nvram_path
    assert Path(ours.nvram_path).read_bytes() == Path(theirs.nvram_path).read_bytes()


@pytest.mark.parametrize("choice", list(KeyChoice))
def test_an_encrypted_vm(world: World, choice: KeyChoice) -> None:
    before = everything(world)
    made = make(world, key=choice, vtpm=TpmChoice.COPY)
    check(world, made)
    assert tpm_state(world, made.uuid).read_bytes() == tpm_state(world, world.uuid).read_bytes()
    assert len(everything(world)) == len(before) + 4
    mine, its = VmSecurity.objects.get(virtual_machine=world.vm), VmSecurity.objects.get(virtual_machine=made)
    assert (mine.key_id == its.key_id) is (choice is KeyChoice.SAME)
    assert its.policy == mine.policy and its.locked_at is None
    assert passphrases(made) == passphrases(world.vm), "the files are copied as they are"
    assert not set(made.wrapped_secrets.values_list("pk")) & set(world.vm.wrapped_secrets.values_list("pk"))
    if choice is KeyChoice.NEW:
        assert its.key is not None and its.key.name.startswith(f"bartizan/{made.uuid}/")
    event = Event.objects.get(kind="vm.cloned")
    assert (event.target_id, event.data["name"], event.data["key"]) == (world.vm.pk, "copy", choice.value)
    assert adoption.adopt_found() == 0
    job = run(power.power_on(vm_id=made.pk, actor=world.actor), power.run_power_on)
    assert job.status == JobStatus.SUCCEEDED, job.message


def test_a_replaced_tpm_has_no_state_and_a_key_of_its_own(world: World) -> None:
    made = make(world, vtpm=TpmChoice.REPLACE, key=KeyChoice.SAME)
    check(world, made)
    assert not tpm_state(world, made.uuid).parent.exists()
    old, new = passphrases(world.vm), passphrases(made)
    assert new["vtpm"] != old.pop("vtpm")
    assert {part: new[part] for part in old} == old


def test_a_plain_vm(plain: World) -> None:
    made = make(plain)
    check(plain, made)
    assert tpm_state(plain, made.uuid).read_bytes() == tpm_state(plain, plain.uuid).read_bytes()
    assert not VmSecurity.objects.exists() and not Key.objects.exists()


def test_the_clone_of_a_clone_and_both_are_decrypted_apart(world: World) -> None:
    first = make(world)
    job = run(clone.clone_vm(vm_id=first.pk, name="second", actor=world.actor), clone.run_clone_vm)
    assert job.status == JobStatus.SUCCEEDED, job.message
    world.succeed(world.nothing())
    assert passphrases(first)
    assert all(Path(disk.source).exists() for disk in world.hypervisor._facts(first.uuid).disks)


def test_files_in_a_folder_named_after_the_vm_go_into_one_named_after_the_clone(plain: World) -> None:
    xml = plain.hypervisor.xml[plain.uuid]
    own = plain.folder / "vm"
    own.mkdir()
    for path in list(plain.folder.iterdir()):
        if path.is_file():
            path.rename(own / path.name)
    plain.hypervisor.xml[plain.uuid] = xml.replace(f"{plain.folder}/", f"{own}/")
    made = make(plain, "app-02")
    assert {Path(disk.source).parent.name for disk in plain.hypervisor._facts(made.uuid).disks} == {"app-02"}


def test_a_vm_that_never_ran(plain: World) -> None:
    Path(plain.hypervisor._facts(plain.uuid).nvram_path).unlink()
    tpm_state(plain, plain.uuid).unlink()
    made = make(plain)
    assert not Path(plain.hypervisor._facts(made.uuid).nvram_path).exists()


@pytest.mark.parametrize("call", ["upload", "define", "make_folder", "download"])
def test_nothing_is_left_when_the_host_refuses(world: World, call: str) -> None:
    before, definitions = everything(world), set(world.hypervisor.xml)
    world.hypervisor.failures[call] = OperationRefused("host_refused", "no")
    job = run(ask(world), clone.run_clone_vm)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "host_refused")
    assert everything(world) == before and set(world.hypervisor.xml) == definitions
    assert VirtualMachine.objects.count() == 1 and WrappedSecret.objects.count() == 4
    world.hypervisor.failures.clear()
    make(world)


def test_a_host_that_goes_away(world: World) -> None:
    world.hypervisor.failures["download"] = HostUnreachable("host_lost", "gone")
    job = run(ask(world), clone.run_clone_vm)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "host_lost")


def test_cancelled_in_the_middle(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(world)

    def cancelled(self: object, done: int) -> None:
        raise Cancelled

    monkeypatch.setattr(jobs.Progress, "advance", cancelled)
    job = run(ask(world), clone.run_clone_vm)
    assert job.status == JobStatus.CANCELLED
    assert everything(world) == before


class Killed(BaseException):
    """The worker's end: nothing is caught and nothing undone."""


@pytest.mark.slow
@pytest.mark.parametrize("call", ["upload", "define", "after"])
def test_killed_and_run_again(world: World, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    job = ask(world)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if call == "after":
            patch.setattr(adoption, "adopt", die)
        else:
            patch.setattr(world.hypervisor, call, die)
        patch.setattr(ExitStack, "__exit__", lambda *_: None)
        with pytest.raises(Killed):
            jobs.run(str(job.pk), clone.run_clone_vm)
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    if call == "after":
        sync.sync_host(world.host, world.hypervisor)
        assert adoption.adopt_found() == 0, "the job has it in hand"
    job = run(job, clone.run_clone_vm)
    assert job.status == JobStatus.SUCCEEDED, job.message
    made = VirtualMachine.objects.get(name="copy")
    check(world, made)
    assert passphrases(made) == passphrases(world.vm)
    assert len(world.hypervisor.xml) == 2


class TestRefused:
    def code(self, world: World, **choices: Any) -> str:
        with pytest.raises(Conflict) as refused:
            ask(world, **choices)
        return refused.value.code

    @pytest.mark.parametrize(
        ("values", "code"),
        [
            ({"power_state": "on"}, "vm_running"),
            ({"is_present": False}, "vm_not_present"),
            ({"has_managed_save": True}, "vm_suspended"),
            ({"snapshot_count": 1}, "vm_has_snapshots"),
        ],
    )
    def test_by_the_state_of_the_vm(self, plain: World, values: dict[str, object], code: str) -> None:
        VirtualMachine.objects.update(**values)
        assert self.code(plain) == code

    def test_by_an_unfinished_change(self, world: World) -> None:
        WrappedSecret.objects.update(stage="switched")
        assert self.code(world) == "change_unfinished"

    def test_by_the_name(self, plain: World) -> None:
        assert self.code(plain, name="vm") == "name_taken"
        for name in ("", " x", "a/b", "..", "a\nb", "x" * 201, "-rf", "<a>"):
            with pytest.raises(Invalid) as refused:
                ask(plain, name)
            assert refused.value.code == "name_invalid"

    def test_twice(self, plain: World) -> None:
        ask(plain)
        assert self.code(plain) == "target_busy"

    def test_the_wrong_person(self, plain: World, charlie: User) -> None:
        with pytest.raises(Refused):
            clone.clone_vm(vm_id=plain.vm.pk, name="copy", actor=charlie)
        with pytest.raises(NotFound):
            clone.clone_vm(vm_id=plain.uuid, name="copy", actor=plain.actor)

    def test_started_meanwhile(self, plain: World) -> None:
        job = ask(plain)
        plain.hypervisor.change(plain.uuid, power=Power.ON)
        assert run(job, clone.run_clone_vm).error_code == "vm_running"

    def test_no_space(self, plain: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plain.hypervisor, "free_bytes", lambda folder: 1 << 20)
        assert run(ask(plain), clone.run_clone_vm).error_code == "space_missing"

    @pytest.mark.parametrize(
        ("old", "new", "code"),
        [
            ("type='file' device='disk'", "type='block' device='disk'", "disk_not_copyable"),
            ("<target dev='vda'", "<shareable/><target dev='vda'", "disk_not_copyable"),
            ("type='raw'", "type='vmdk'", "disk_not_copyable"),
            ("vda.raw", "gone.raw", "file_missing"),
            ("</devices>", "<serial type='unix'><source mode='bind' path='/run/x'/></serial></devices>",
             "port_not_copyable"),
        ],
    )  # fmt: skip
    def test_by_what_it_is_made_of(self, plain: World, old: str, new: str, code: str) -> None:
        xml = plain.hypervisor.xml[plain.uuid]
        plain.hypervisor.xml[plain.uuid] = xml.replace(old, new, 1)
        before = everything(plain)
        assert run(ask(plain), clone.run_clone_vm).error_code == code
        assert everything(plain) == before

    def test_an_image_on_another_image(self, plain: World) -> None:
        path = Path(plain.hypervisor._facts(plain.uuid).disks[1].source)
        data = bytearray(path.read_bytes())
        data[8:16] = (512).to_bytes(8, "big")
        path.write_bytes(data)
        assert run(ask(plain), clone.run_clone_vm).error_code == "disk_has_backing_file"

    def test_a_key_that_is_gone(self, world: World, keys: MemoryKeyServer) -> None:
        keys.keys.clear()
        before = everything(world)
        assert run(ask(world), clone.run_clone_vm).error_code == "kms_key_not_found"
        assert everything(world) == before
        made = run(ask(world, key=KeyChoice.SAME), clone.run_clone_vm)
        assert made.status == JobStatus.SUCCEEDED, "needs no key"
        vm = VirtualMachine.objects.get(name="copy")
        assert VmSecurity.objects.get(virtual_machine=vm).locked_at is not None
        job = run(unlock.unlock_vm(vm_id=vm.pk, actor=world.actor), unlock.run_unlock_vm)
        assert job.error_code == "kms_key_not_found"
