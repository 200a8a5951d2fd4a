"""Refusals that only a worker finds out: asked for on a page, done by the task, told by the API's job with their code.

What each leaves behind is tested beside its service; this shows that it comes back to who asked.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from encryption import tasks as encryption_tasks
from encryption.adapters import image_files, qemu_img
from encryption.engine import bundle, luks, metadata
from encryption.engine.secret import Secret
from encryption.models import StoragePolicy, WrappedSecret
from encryption.services import boot_variables
from encryption.services import change as changes
from inventory import tasks as inventory_tasks
from inventory.engine.abilities import HostAbilities
from inventory.engine.hypervisor import OperationRefused, Power
from inventory.errors import Conflict
from inventory.models import Job
from inventory.services import sync
from tests.api_client import caller
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services import test_offline as images
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.test_boot_security import Firmware, prepared
from tests.encryption.services.test_migration_run import Pair
from tests.encryption.stores import ENROLLED, store
from tests.encryption.world import KIB, Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.usefixtures("quick_tpm")]
RAW = Shape((Disk("vda", "raw", 64 * KIB),), nvram=False, tpm=False)
QCOW2 = Shape((Disk("vda", "qcow2", 64 * KIB),), nvram=False, tpm=False)
HOME = Shape((), nvram=True, tpm=False)
WHOLE = Shape((Disk("vda", "raw", 64 * KIB),))


@dataclass(slots=True)
class Scene:
    """A VM over real files, and what a case spoils it with."""

    world: World
    keys: MemoryKeyServer
    monkeypatch: pytest.MonkeyPatch
    settings: Settings

    @property
    def disk(self) -> Path:
        return Path(self.world.hypervisor._facts(self.world.uuid).disks[0].source)

    def edit(self, old: str, new: str) -> None:
        xml = self.world.hypervisor.xml[self.world.uuid]
        assert old in xml
        self.world.hypervisor.xml[self.world.uuid] = xml.replace(old, new)

    def fail(self, module: object, name: str, error: Exception) -> None:
        def failing(*args: object, **kwargs: object) -> None:
            raise error

        self.monkeypatch.setattr(module, name, failing)


Spoil = Callable[[Scene], None]


def refused(admin: Client, world: World | Pair, url: str, form: dict[str, Any]) -> str:
    """The code that a job from that page ended with, as the API tells it."""
    Job.objects.all().delete()
    answer = admin.post(url, form)
    assert answer.status_code in {204, 302}, answer.content.decode()[-3000:]
    job = Job.objects.get()
    app, _, task = job.kind.partition(".")
    getattr({"encryption": encryption_tasks, "inventory": inventory_tasks}[app], task)(str(job.pk))
    told = caller(world.actor).get(f"/jobs/{job.pk}").body
    assert told["status"] == "failed" and told["message"], told
    return str(told["error_code"])


def on_file(spoil: Callable[[Path], None]) -> Spoil:
    return lambda scene: spoil(scene.disk)


def snapshot(path: Path) -> None:
    subprocess.run(["qemu-img", "snapshot", "-c", "before", str(path)], check=True)


def encrypted_qcow2(path: Path) -> None:
    path.unlink()
    made = ["qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc"]
    options = "encrypt.format=aes,encrypt.key-secret=s"  # deprecated, and made without a calibration
    subprocess.run([*made, "-o", options, str(path), "64K"], check=True)


def no_space(scene: Scene) -> None:
    scene.monkeypatch.setattr(image_files, "free_bytes", lambda path: 1024)


def full_datastore(scene: Scene) -> None:
    scene.fail(image_files, "create", OSError(28, "No space left on device"))


def broken_copy(scene: Scene) -> None:
    scene.fail(qemu_img, "copy_into_luks", qemu_img.QemuImgFailed("error while reading sector 7"))


def other_copy(scene: Scene) -> None:
    scene.monkeypatch.setattr(qemu_img, "equal", lambda *_: False)


def original_held(scene: Scene) -> None:
    scene.fail(image_files, "destroy", image_files.InUse("vda.raw is in use"))


def written_meanwhile(scene: Scene) -> None:
    path = scene.disk
    images.during_conversion(scene.monkeypatch, lambda: path.write_bytes(path.read_bytes()))


def started_meanwhile(scene: Scene) -> None:
    world = scene.world
    images.during_conversion(scene.monkeypatch, lambda: world.hypervisor.power_on(world.uuid))


def crashed(scene: Scene) -> None:
    scene.world.hypervisor.change(scene.world.uuid, power=Power.CRASHED)


def without_nvram(scene: Scene) -> None:
    (scene.world.folder / "vm_VARS.fd").unlink()


def nvram_not_named(scene: Scene) -> None:
    scene.edit(f"<nvram>{scene.world.folder / 'vm_VARS.fd'}</nvram>", "")
    sync.refresh_virtual_machine(scene.world.vm, scene.world.hypervisor)


def too_many_keys(scene: Scene) -> None:
    """SIMULATED: as 65 parts would be."""
    scene.monkeypatch.setattr(metadata, "MAX_WRAPPED_KEYS", 0)


def definition_stays(scene: Scene) -> None:
    scene.monkeypatch.setattr(scene.world.hypervisor, "redefine", lambda *_: None)


def definition_refused(scene: Scene) -> None:
    scene.world.hypervisor.failures["redefine"] = OperationRefused("refused", "unsupported configuration")


def host_away(scene: Scene) -> None:
    scene.world.hypervisor.is_reachable = False


@pytest.mark.parametrize(
    ("shape", "spoil", "code"),
    [
        pytest.param(RAW, on_file(Path.unlink), "image_missing"),
        pytest.param(RAW, on_file(images._empty), "image_empty"),
        pytest.param(RAW, on_file(images._fifo), "image_not_regular"),
        pytest.param(QCOW2, on_file(images._empty), "image_unreadable"),
        pytest.param(QCOW2, on_file(images._absurd), "image_too_large"),
        pytest.param(QCOW2, on_file(images._backing), "disk_has_backing"),
        pytest.param(QCOW2, on_file(images._data_file), "disk_has_data_file"),
        pytest.param(QCOW2, on_file(snapshot), "snapshots_present"),
        pytest.param(QCOW2, on_file(encrypted_qcow2), "disk_encrypted_otherwise"),
        pytest.param(RAW, no_space, "space_missing"),
        pytest.param(RAW, full_datastore, "datastore_error"),
        pytest.param(QCOW2, broken_copy, "conversion_failed"),
        pytest.param(QCOW2, other_copy, "verification_failed"),
        pytest.param(RAW, original_held, "file_not_destroyed"),
        pytest.param(RAW, written_meanwhile, "source_changed"),
        pytest.param(RAW, started_meanwhile, "vm_started_meanwhile"),
        pytest.param(RAW, crashed, "vm_crashed"),
        pytest.param(HOME, without_nvram, "nvram_missing"),
        pytest.param(HOME, nvram_not_named, "nvram_unknown"),
        pytest.param(RAW, too_many_keys, "metadata_unfit"),
        pytest.param(RAW, definition_stays, "switch_failed"),
        pytest.param(RAW, definition_refused, "refused"),
        pytest.param(RAW, host_away, "connection_refused"),
    ],
)
def test_encryption(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch,
    settings: Settings, shape: Shape, spoil: Spoil, code: str,
) -> None:  # fmt: skip
    world = make_world(shape)
    spoil(Scene(world, keys, monkeypatch, settings))
    policy = str(StoragePolicy.objects.get(name="VM Encryption Policy").pk)
    form = {"policy": policy} | {f"disk-{disk.target}": policy for disk in shape.disks}
    assert refused(admin, world, reverse("encryption:vm-options", args=[world.vm.pk]), form) == code


def test_hardware_that_the_host_does_not_report(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    world = make_world(HOME)
    can = HostAbilities(virtualization="qemu", q35=True, uefi=True, secure_boot=True, smm=True, secure_loader="/f/CODE")
    monkeypatch.setattr(boot_variables, "switch", lambda *_, **__: None)
    world.host.abilities = can.as_row()
    world.host.save()
    definition_stays(Scene(world, keys, monkeypatch, settings))
    policy = str(StoragePolicy.objects.get(is_builtin=True, encrypts=False).pk)
    url = reverse("encryption:vm-options", args=[world.vm.pk])
    assert refused(admin, world, url, {"policy": policy, "secure_boot": "on"}) == "not_carried_out"


@pytest.mark.parametrize(
    ("variables", "template", "code"),
    [
        (b"no store" * 512, ENROLLED, "variables_unreadable"),
        (store(size=300), ENROLLED, "variables_full"),
        (store(), store(), "variables_not_made"),
    ],
)
def test_secure_boot(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, tmp_path: Path, variables: bytes, template: bytes,
    code: str,
) -> None:  # fmt: skip
    firmware = Firmware(tmp_path / "firmware")
    firmware.secure_template.write_bytes(template)
    world = prepared(make_world, firmware, HOME, variables)
    plain = str(StoragePolicy.objects.get(is_builtin=True, encrypts=False).pk)
    url = reverse("encryption:vm-options", args=[world.vm.pk])
    assert refused(admin, world, url, {"policy": plain, "secure_boot": "on"}) == code


def test_variables_that_are_gone_when_they_shall_be_put_back(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = prepared(make_world, Firmware(tmp_path / "firmware"), HOME, ENROLLED)

    def refuse(change: object) -> None:
        (world.folder / "vm_VARS.fd").unlink()
        raise Conflict("switch_refused", "the definition is not switched")

    world.succeed(replace(world.nothing(), secure_boot=True))
    monkeypatch.setattr(changes, "switch_definition", refuse)
    plain = str(StoragePolicy.objects.get(is_builtin=True, encrypts=False).pk)
    url = reverse("encryption:vm-options", args=[world.vm.pk])
    assert refused(admin, world, url, {"policy": plain, "secure_boot": "off"}) == "variables_not_put_back"


# Of an encrypted VM


def damaged(scene: Scene) -> None:
    WrappedSecret.objects.update(wrapped=bytes(40))


def key_gone(scene: Scene) -> None:
    scene.keys.keys.clear()


def another_secret(scene: Scene) -> None:
    secret = str(WrappedSecret.objects.get(target="vda").secret_uuid)
    scene.edit(secret, str(uuid4()))
    sync.refresh_virtual_machine(scene.world.vm, scene.world.hypervisor)


def row_of_another(scene: Scene) -> None:
    WrappedSecret.objects.filter(target="vda").update(secret_uuid=uuid4())


def full_keyslots(scene: Scene) -> None:
    row = scene.world.secrets["vda"]
    content, known = Path(row.path).read_bytes(), scene.world.passphrases()[row.secret_uuid]
    for letter in b"abcdefg":
        prefix = luks.add_passphrase(content[: luks.PREFIX_BYTES], known, Secret(bytes([letter]) * 64))
        content = prefix + content[luks.PREFIX_BYTES :]
    Path(row.path).write_bytes(content)


def disk_away(scene: Scene) -> None:
    scene.disk.unlink()


def exchange_is_a_file(scene: Scene) -> None:
    path = scene.world.folder.parent / "exchange-file"
    path.write_text("no folder")
    scene.settings.EXCHANGE_DIR = path


def too_many_files(scene: Scene) -> None:
    """SIMULATED: as a VM with 512 disks would be."""
    scene.monkeypatch.setattr(bundle, "MAX_FILES", 1)


def plain_under_luks(scene: Scene) -> None:
    scene.disk.write_bytes(bytes(4096))


def huge_tpm_state(scene: Scene) -> None:
    state = scene.world.tpm_folder / "tpm2-00.permall"
    with state.open("r+b") as file:
        file.truncate(64 * 2**20)


def block_device(scene: Scene) -> None:
    scene.edit('type="file" device="disk"', 'type="block" device="disk"')


def vm_page(view: str, /, **form: Any) -> Callable[[World], tuple[str, dict[str, Any]]]:
    return lambda world: (reverse(f"encryption:{view}", args=[world.vm.pk]), form)


def power_page(world: World) -> tuple[str, dict[str, Any]]:
    return reverse("inventory:power", args=[world.vm.pk, "on"]), {}


@pytest.mark.parametrize(
    ("page", "spoil", "code"),
    [
        pytest.param(power_page, damaged, "wrapped_secret_damaged"),
        pytest.param(power_page, key_gone, "kms_key_not_found"),
        pytest.param(power_page, another_secret, "key_missing_on_host"),
        pytest.param(vm_page("vm-unlock"), damaged, "wrapped_secret_damaged"),
        pytest.param(vm_page("vm-unlock"), key_gone, "kms_key_not_found"),
        pytest.param(vm_page("vm-recrypt", way="key"), key_gone, "kms_key_not_found"),
        pytest.param(vm_page("vm-recrypt", way="volume_keys", parts=["vda"]), row_of_another, "part_replaced"),
        pytest.param(vm_page("vm-recrypt", way="volume_keys", parts=["vda"]), disk_away, "image_missing"),
        pytest.param(vm_page("vm-recrypt", way="passphrases"), full_keyslots, "no_free_keyslot"),
        pytest.param(vm_page("vm-export"), exchange_is_a_file, "exchange_error"),
        pytest.param(vm_page("vm-export"), disk_away, "file_missing"),
        pytest.param(vm_page("vm-export"), too_many_files, "vm_not_exportable"),
        pytest.param(vm_page("vm-export"), plain_under_luks, "not_ciphertext"),
        pytest.param(vm_page("vm-export"), huge_tpm_state, "vtpm_state_damaged"),
        pytest.param(vm_page("vm-clone", name="copy", key="new", vtpm="copy"), disk_away, "file_missing"),
        pytest.param(vm_page("vm-clone", name="copy", key="new", vtpm="copy"), block_device, "disk_not_copyable"),
    ],
)
def test_encrypted_vm(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    settings: Settings, page: Callable[[World], tuple[str, dict[str, Any]]], spoil: Spoil, code: str,
) -> None:  # fmt: skip
    settings.EXCHANGE_DIR = tmp_path / "exchange"
    world = make_world(WHOLE)
    world.succeed(world.all_disks())
    spoil(Scene(world, keys, monkeypatch, settings))
    url, form = page(world)
    assert refused(admin, world, url, form) == code


def test_a_disk_that_cannot_be_made(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(RAW)
    world.hypervisor.pools = [replace(world.hypervisor.pools[0], path=str(world.folder))]
    sync.sync_host(world.host, world.hypervisor)
    monkeypatch.setattr(qemu_img, "create_qcow2", _unwritable)
    form = {
        "size_gib": "0.001", "image_format": "qcow2", "datastore": str(world.host.datastores.get().pk),
        "policy": str(StoragePolicy.objects.get(is_builtin=True, encrypts=False).pk),
    }  # fmt: skip
    before = sorted(world.folder.iterdir())
    assert refused(admin, world, reverse("encryption:add-disk", args=[world.vm.pk]), form) == "disk_not_made"
    assert sorted(world.folder.iterdir()) == before


def _unwritable(*_: object) -> None:
    raise qemu_img.QemuImgFailed("could not create: Input/output error")
