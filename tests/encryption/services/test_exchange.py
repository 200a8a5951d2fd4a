"""Export and import over real files: what is in a bundle, what is refused, and a VM that goes to another console."""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User
from pytest_django import Settings

from encryption.models import Bundle, Key, KmsCluster, LockCause, VmSecurity, WrappedSecret
from encryption.services import adoption, bundles, export, import_vm, unlock
from encryption.services.import_vm import Identity
from encryption.services.release import open_secrets
from inventory import jobs
from inventory.engine.hypervisor import OperationRefused, Power
from inventory.errors import Conflict, NotFound, Refused
from inventory.jobs import Cancelled
from inventory.models import Datastore, Event, Job, JobStatus, VirtualMachine
from inventory.services import power, sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.real_kms import run
from tests.encryption.world import TPM_PLAIN, Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow]


@pytest.fixture(autouse=True)
def exchange(tmp_path: Path, settings: Settings) -> Path:
    settings.EXCHANGE_DIR = tmp_path / "exchange"
    return tmp_path / "exchange"


@pytest.fixture
def plain(make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None) -> World:
    return make_world(Shape((Disk("vda", "raw"), Disk("vdb", "qcow2"))))


@pytest.fixture
def world(plain: World) -> World:
    plain.succeed(plain.all_disks())
    return plain


@pytest.fixture
def target(make_world: MakeWorld) -> World:
    """Another host with a datastore; its own VM has nothing to do with it."""
    made = make_world(Shape((Disk("vda", "raw", 4096),), nvram=False, tpm=False))
    made.hypervisor.xml[made.uuid] = made.hypervisor.xml[made.uuid].replace("<name>vm<", "<name>other<")
    sync.sync_host(made.host, made.hypervisor)
    Datastore.objects.create(
        host=made.host,
        name="store",
        kind="dir",
        path=str(made.folder),
        is_active=True,
        capacity_bytes=1,
        available_bytes=1,
    )
    return made


def exported(world: World, *, in_clear: bool = False) -> Bundle:
    job = run(export.export_vm(vm_id=world.vm.pk, actor=world.actor, in_clear=in_clear), export.run_export_vm)
    assert job.status == JobStatus.SUCCEEDED, (job.error_code, job.message)
    return Bundle.objects.get()


def ask(target: World, bundle: Bundle, name: str = "app-01", identity: Identity = Identity.MOVE, **given: Any) -> Job:
    values: dict[str, Any] = {
        "bundle_id": bundle.pk, "host_id": target.host.pk, "actor": target.actor,
        "datastore_id": Datastore.objects.get(host=target.host, name="store").pk, "name": name, "identity": identity,
    }  # fmt: skip
    return import_vm.import_vm(**(values | given))


def imported(target: World, bundle: Bundle, **choices: Any) -> VirtualMachine:
    job = run(ask(target, bundle, **choices), import_vm.run_import_vm)
    assert job.status == JobStatus.SUCCEEDED, (job.error_code, job.message)
    return VirtualMachine.objects.get(host=target.host, name=choices.get("name", "app-01"))


def remove(world: World) -> None:
    """The VM is gone from its host, its files too."""
    for path in world.folder.iterdir():
        path.unlink()
    del world.hypervisor.xml[world.uuid], world.hypervisor.vms[world.uuid]
    sync.sync_host(world.host, world.hypervisor)


def other_console(*, with_provider: bool) -> UUID:
    """As if this database were another console's: nothing is known of the VM's keys. SIMULATED: one database."""
    identity = KmsCluster.objects.get().pk
    WrappedSecret.objects.all().delete()
    VmSecurity.objects.all().delete()
    Key.objects.all().delete()
    if not with_provider:
        KmsCluster.objects.all().delete()
    return identity


def contents(host: World, vm: VirtualMachine) -> dict[str, bytes]:
    facts = host.hypervisor._facts(vm.uuid)
    found = {disk.target: Path(disk.source).read_bytes() for disk in facts.disks}
    found["nvram"] = Path(facts.nvram_path).read_bytes()
    found["vtpm"] = (host.tpm_base / str(vm.uuid) / "tpm2" / "tpm2-00.permall").read_bytes()
    return found


def passphrases(vm: VirtualMachine) -> dict[str, bytes]:
    rows = vm.wrapped_secrets.select_related("key__cluster", "virtual_machine")
    return {one.row.target or one.row.purpose: one.passphrase.reveal() for one in open_secrets(rows)}


class TestExport:
    def test_only_ciphertext_leaves(self, world: World, exchange: Path) -> None:
        made = exported(world)
        assert (made.state, made.is_clear, made.vm_uuid) == (Bundle.State.COMPLETE, False, world.uuid)
        assert made.kms_cluster == KmsCluster.objects.get().pk and made.key_id == Key.objects.get().key_id
        folder = exchange / made.folder
        assert sorted(path.name for path in folder.iterdir()) == [
            "definition.xml", "manifest.json", "nvram.luks", "vda.luks", "vdb.luks", "vtpm.permall",
        ]  # fmt: skip
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
        facts = world.hypervisor._facts(world.uuid)
        assert (folder / "vda.luks").read_bytes() == Path(facts.disks[0].source).read_bytes()
        whole = b"".join(path.read_bytes() for path in folder.iterdir())
        for clear in (*world.plain.values(), TPM_PLAIN[10:]):
            assert clear[:64] not in whole
        for value in passphrases(world.vm).values():
            assert value not in whole
        definition = (folder / "definition.xml").read_text()
        assert str(world.folder) not in definition and "wrapped-key" in definition
        told = json.loads((folder / "manifest.json").read_text())
        for file in told["files"]:
            data = (folder / file["name"]).read_bytes()
            assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        event = Event.objects.get(kind="vm.exported")
        assert (event.target_id, event.data["in_clear"], event.severity) == (world.vm.pk, False, "info")
        assert bundles.look() == 1 and Bundle.objects.get().pk == made.pk

    def test_a_plain_vm_only_when_asked_and_it_is_flagged(self, plain: World, exchange: Path) -> None:
        with pytest.raises(Conflict) as refused:
            export.export_vm(vm_id=plain.vm.pk, actor=plain.actor)
        assert refused.value.code == "export_in_clear" and not Job.objects.filter(kind="encryption.export_vm").exists()
        made = exported(plain, in_clear=True)
        assert made.is_clear and made.kms_cluster is None
        assert Event.objects.get(kind="vm.exported").severity == "warning"
        assert (exchange / made.folder / "vdb.qcow2").exists()

    def test_an_encrypted_vm_with_a_plain_disk(self, plain: World) -> None:
        plain.succeed(plain.wish("vda"))
        for in_clear in (False, True):
            with pytest.raises(Conflict) as refused:
                export.export_vm(vm_id=plain.vm.pk, actor=plain.actor, in_clear=in_clear)
            assert refused.value.code == "parts_in_clear" and "vdb" in refused.value.message

    def test_keys_that_are_not_ours(self, world: World) -> None:
        other_console(with_provider=True)
        with pytest.raises(Conflict) as refused:
            export.export_vm(vm_id=world.vm.pk, actor=world.actor, in_clear=True)
        assert refused.value.code == "keys_not_ours"

    @pytest.mark.parametrize("part", ["vda", "vtpm"])
    def test_what_is_no_ciphertext_whatever_the_definition_says(self, world: World, exchange: Path, part: str) -> None:
        path = Path(world.secrets[part].path)
        path = path if part == "vda" else path / "tpm2-00.permall"
        path.write_bytes(TPM_PLAIN[:6] + (32).to_bytes(4, "big") + bytes(22) if part == "vtpm" else bytes(4096))
        job = run(export.export_vm(vm_id=world.vm.pk, actor=world.actor), export.run_export_vm)
        assert job.error_code == "not_ciphertext"
        assert not Bundle.objects.exists() and not any(exchange.glob("*"))

    @pytest.mark.parametrize("call", ["download", "file_size"])
    def test_nothing_is_left_of_a_failure(self, world: World, exchange: Path, call: str) -> None:
        world.hypervisor.failures[call] = OperationRefused("host_refused", "no")
        job = run(export.export_vm(vm_id=world.vm.pk, actor=world.actor), export.run_export_vm)
        assert job.error_code == "host_refused"
        assert not Bundle.objects.exists() and not any(exchange.glob("*"))

    def test_cancelled(self, world: World, exchange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def cancelled(self: object, done: int) -> None:
            raise Cancelled

        monkeypatch.setattr(jobs.Progress, "advance", cancelled)
        job = run(export.export_vm(vm_id=world.vm.pk, actor=world.actor), export.run_export_vm)
        assert job.status == JobStatus.CANCELLED
        assert not Bundle.objects.exists() and not any(exchange.glob("*"))

    def test_partial_until_complete_and_killed_ones_are_begun_anew(self, world: World, exchange: Path) -> None:
        job = export.export_vm(vm_id=world.vm.pk, actor=world.actor)
        partial = exchange / f"{export.folder_name(world.vm, job)}.partial"
        partial.mkdir(parents=True)
        (partial / "vda.luks").write_bytes(b"half")
        assert bundles.look() == 0
        assert run(job, export.run_export_vm).status == JobStatus.SUCCEEDED
        assert not partial.exists() and bundles.look() == 1
        Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
        assert run(job, export.run_export_vm).status == JobStatus.SUCCEEDED, "killed after the end"

    def test_started_meanwhile(self, world: World) -> None:
        job = export.export_vm(vm_id=world.vm.pk, actor=world.actor)
        world.hypervisor.change(world.uuid, power=Power.ON)
        assert run(job, export.run_export_vm).error_code == "vm_running"

    def test_no_space(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("encryption.adapters.bundle_files.free_bytes", lambda folder: 0)
        job = run(export.export_vm(vm_id=world.vm.pk, actor=world.actor), export.run_export_vm)
        assert job.error_code == "space_missing"

    def test_what_no_other_host_would_take(self, world: World) -> None:
        xml = world.hypervisor.xml[world.uuid]
        world.hypervisor.xml[world.uuid] = xml.replace("</devices>", "<hostdev mode='subsystem' type='pci'/></devices>")
        job = run(export.export_vm(vm_id=world.vm.pk, actor=world.actor), export.run_export_vm)
        assert job.error_code == "definition_refused" and "hostdev" in job.message

    def test_kernels_go_along_and_hosts_stay(self, world: World, exchange: Path) -> None:
        kernel = world.folder.parent / "vmlinuz"
        kernel.write_bytes(b"kernel")
        xml = world.hypervisor.xml[world.uuid].replace("</os>", f"<kernel>{kernel}</kernel></os>")
        xml = xml.replace("<devices>", "<seclabel type='none'/><devices><emulator>/usr/bin/qemu</emulator>")
        world.hypervisor.xml[world.uuid] = xml
        made = exported(world)
        assert (exchange / made.folder / "kernel").read_bytes() == b"kernel"
        assert "<emulator" not in (exchange / made.folder / "definition.xml").read_text()

    def test_refused(self, world: World, charlie: User) -> None:
        with pytest.raises(Refused):
            export.export_vm(vm_id=world.vm.pk, actor=charlie)
        with pytest.raises(NotFound):
            export.export_vm(vm_id=uuid4(), actor=world.actor)
        VirtualMachine.objects.filter(pk=world.vm.pk).update(power_state="on")
        with pytest.raises(Conflict) as refused:
            export.export_vm(vm_id=world.vm.pk, actor=world.actor)
        assert refused.value.code == "vm_running"


class TestImport:
    def test_moved_to_another_console_with_the_same_kms(self, world: World, target: World) -> None:
        before, keys = contents(world, world.vm), passphrases(world.vm)
        bundle = exported(world)
        remove(world)
        other_console(with_provider=True)
        VirtualMachine.objects.filter(host=world.host).delete()
        made = imported(target, bundle)
        assert made.uuid == world.uuid
        assert contents(target, made) == before and passphrases(made) == keys
        assert VmSecurity.objects.get(virtual_machine=made).locked_at is None
        (event,) = Event.objects.filter(kind="vm.imported")
        assert (event.target_id, event.severity, event.data["identity"]) == (made.pk, "info", "move")
        assert Path(target.hypervisor._facts(made.uuid).nvram_path).parent == target.folder / "app-01"
        job = run(power.power_on(vm_id=made.pk, actor=world.actor), power.run_power_on)
        assert job.status == JobStatus.SUCCEEDED, job.message

    def test_without_that_kms_it_stays_locked(self, world: World, target: World) -> None:
        bundle = exported(world)
        remove(world)
        identity = other_console(with_provider=False)
        VirtualMachine.objects.filter(host=world.host).delete()
        made = imported(target, bundle)
        found = VmSecurity.objects.get(virtual_machine=made)
        assert (found.lock_cause, found.foreign_kms) == (LockCause.PROVIDER_UNKNOWN, identity)
        assert Event.objects.get(kind="vm.imported").severity == "warning"
        job = run(power.power_on(vm_id=made.pk, actor=world.actor), power.run_power_on)
        assert job.error_code == "vm_locked" and "not known here" in job.message
        KmsCluster.objects.create(pk=identity, name="Again").servers.create(position=0, host="kms")
        job = run(unlock.unlock_vm(vm_id=made.pk, actor=world.actor), unlock.run_unlock_vm)
        assert job.status == JobStatus.SUCCEEDED, job.message

    def test_a_copy_beside_the_original(self, world: World, target: World) -> None:
        bundle = exported(world)
        with pytest.raises(Conflict) as refused:
            ask(target, bundle)
        assert refused.value.code == "vm_exists"
        made = imported(target, bundle, identity=Identity.COPY)
        assert made.uuid != world.uuid
        assert contents(target, made) == contents(world, world.vm) and passphrases(made) == passphrases(world.vm)
        assert not set(made.wrapped_secrets.values_list("pk")) & set(world.vm.wrapped_secrets.values_list("pk"))
        world.check_encrypted("vda", "vdb")

    def test_a_plain_one(self, plain: World, target: World) -> None:
        bundle = exported(plain, in_clear=True)
        made = imported(target, bundle, identity=Identity.COPY)
        assert contents(target, made) == contents(plain, plain.vm)
        assert not VmSecurity.objects.exists()

    def test_vtpm_state_of_an_earlier_stay_is_not_overwritten(self, world: World, target: World) -> None:
        bundle = exported(world)
        remove(world)
        state = target.tpm_base / str(world.uuid) / "tpm2" / "tpm2-00.permall"
        state.parent.mkdir(parents=True)
        state.write_bytes(b"earlier")
        job = run(ask(target, bundle), import_vm.run_import_vm)
        assert job.error_code == "vtpm_state_exists" and state.read_bytes() == b"earlier"
        assert not (target.folder / "app-01").exists()

    @pytest.mark.parametrize("call", ["upload", "define", "make_folder"])
    def test_nothing_is_left_when_the_host_refuses(self, world: World, target: World, call: str) -> None:
        bundle = exported(world)
        before = set(target.folder.parent.rglob("*"))
        target.hypervisor.failures[call] = OperationRefused("host_refused", "no")
        job = run(ask(target, bundle, identity=Identity.COPY), import_vm.run_import_vm)
        assert job.error_code == "host_refused"
        assert set(target.folder.parent.rglob("*")) - {target.tpm_base} == before
        target.hypervisor.failures.clear()
        imported(target, bundle, identity=Identity.COPY)

    @pytest.mark.slow
    @pytest.mark.parametrize("call", ["upload", "define", "adopt"])
    def test_killed_and_run_again(
        self, world: World, target: World, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        class Killed(BaseException):
            pass

        def die(*_: object, **__: object) -> None:
            raise Killed

        bundle = exported(world)
        remove(world)
        before = passphrases(world.vm)
        other_console(with_provider=True)
        VirtualMachine.objects.filter(host=world.host).delete()
        job = ask(target, bundle)
        with monkeypatch.context() as patch:
            if call == "adopt":
                patch.setattr(adoption, "adopt", die)
            else:
                patch.setattr(target.hypervisor, call, die)
            patch.setattr(ExitStack, "__exit__", lambda *_: None)
            with pytest.raises(Killed):
                jobs.run(str(job.pk), import_vm.run_import_vm)
        Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
        job = run(job, import_vm.run_import_vm)
        assert job.status == JobStatus.SUCCEEDED, (job.error_code, job.message)
        assert passphrases(VirtualMachine.objects.get(host=target.host, name="app-01")) == before


def test_deleted(world: World, exchange: Path, charlie: User) -> None:
    bundle = exported(world)
    with pytest.raises(Refused):
        bundles.delete_bundle(bundle_id=bundle.pk, actor=charlie)
    job = run(bundles.delete_bundle(bundle_id=bundle.pk, actor=world.actor), bundles.run_delete_bundle)
    assert job.status == JobStatus.SUCCEEDED
    assert not Bundle.objects.exists() and not any(exchange.iterdir())
    assert Event.objects.get(kind="bundle.deleted").target_name == bundle.folder


def test_rows_of_folders_that_are_gone_go_and_those_in_the_making_stay(world: World, exchange: Path) -> None:
    job = export.export_vm(vm_id=world.vm.pk, actor=world.actor)
    Job.objects.filter(pk=job.pk).update(checkpoint={"bundle": "vm-now"})
    Bundle.objects.create(folder="vm-now")
    Bundle.objects.create(folder="vm-lost")
    Bundle.objects.create(folder="vm-gone", state=Bundle.State.COMPLETE)
    bundles.look()
    assert [row.folder for row in Bundle.objects.all()] == ["vm-now"]
    with pytest.raises(Conflict):
        bundles.delete_bundle(bundle_id=Bundle.objects.get().pk, actor=world.actor)
