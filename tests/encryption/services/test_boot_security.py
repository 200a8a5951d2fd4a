"""Secure Boot and VBS carried out by the job: the one switch of the definition, variables, events, a kill between."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from encryption.engine import luks, variable_store
from encryption.engine.xts import Xts
from encryption.services import boot_security, conversion
from encryption.services import change as changes
from encryption.services.options import Wish
from inventory import jobs
from inventory.engine.abilities import HostAbilities
from inventory.errors import Conflict
from inventory.models import Event, Job, JobStatus
from inventory.services import sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.stores import BOOT_ORDER, ENROLLED, KEYLESS, OFF, store
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.usefixtures("keys", "quick_tpm")]
ENTRIES = {"BootOrder"}  # what a guest has written, and must stay
KEYS = {"PK", "KEK", "db", "dbx", "SecureBootEnable"}


class Firmware:
    """The host's firmware files, and the abilities that name them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.plain_template, self.secure_template = folder / "VARS.fd", folder / "VARS.ms.fd"
        self.plain_template.write_bytes(store())
        self.secure_template.write_bytes(ENROLLED)
        self.can = HostAbilities(
            virtualization="qemu", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True, viommu=True,
            nested="svm", hyperv=("spinlocks",), secure_loader=str(folder / "CODE.ms.fd"),
            plain_loader=str(folder / "CODE.fd"),
        )  # fmt: skip


@pytest.fixture
def firmware(tmp_path: Path) -> Firmware:
    return Firmware(tmp_path / "firmware")


def prepared(
    make_world: MakeWorld, firmware: Firmware, shape: Shape | None = None, variables: bytes | None = KEYLESS
) -> World:
    """`variables`: those of the VM, None: not made yet."""
    world = make_world(shape)
    world.host.abilities = firmware.can.as_row()
    world.host.save()
    nvram = world.folder / "vm_VARS.fd"
    if world.shape.nvram and variables is not None:
        nvram.write_bytes(variables)
        world.plain[str(nvram)] = variables
    elif world.shape.nvram:
        nvram.unlink()
        xml = world.hypervisor.xml[world.uuid].replace("<nvram>", f"<nvram template='{firmware.plain_template}'>")
        world.hypervisor.xml[world.uuid] = xml
    sync.sync_host(world.host, world.hypervisor)
    world.vm.refresh_from_db()
    return world


def variables_of(world: World) -> bytes:
    """As the firmware will see them."""
    facts = world.hypervisor._facts(world.uuid)
    content = Path(facts.nvram_path).read_bytes()
    if facts.nvram_secret_uuid is not None:
        prefix = content[: luks.parse(content).payload_offset]
        volume_key = luks.unlock(prefix, world.passphrases()[facts.nvram_secret_uuid])
        content = Xts(volume_key).decrypt(content[len(prefix) :], 0)
    return content


def check_variables(world: World, *, is_on: bool, names: set[str]) -> None:
    """Whether firmware would enforce Secure Boot, and which variables there are."""
    found = variable_store.parse(variables_of(world))
    assert (found.enforces_secure_boot, {one.name for one in found.variables}) == (is_on, names)
    world.plain[str(world.folder / "vm_VARS.fd")] = variables_of(world)


def wish(world: World, **hardware: bool) -> Wish:
    return replace(world.nothing(), **hardware)  # type: ignore[arg-type]


def kinds() -> list[str]:
    return list(
        Event.objects.filter(kind__regex="^vm.(vbs|secure_boot|encrypted|decrypted)").values_list("kind", flat=True)
    )


def test_vbs_is_set_and_unset(make_world: MakeWorld, firmware: Firmware) -> None:
    world = prepared(make_world, firmware)
    world.succeed(wish(world, vbs=True))
    assert (world.vm.has_vbs, world.vm.has_secure_boot) == (True, True)
    assert kinds() == ["vm.vbs_set", "vm.secure_boot_on"]
    assert Event.objects.filter(kind="vm.changed", data__drift=True).count() == 0
    secure = world.hypervisor.xml[world.uuid]
    check_variables(world, is_on=True, names=ENTRIES | KEYS)
    world.check_plain()
    world.succeed(wish(world, vbs=False))
    assert (world.vm.has_vbs, world.vm.has_secure_boot) == (False, True)
    assert kinds()[0] == "vm.vbs_unset" and len(kinds()) == 3
    assert "iommu" not in world.hypervisor.xml[world.uuid] and "svm" in secure
    check_variables(world, is_on=True, names=ENTRIES | KEYS)
    world.succeed(wish(world, secure_boot=False))
    assert not world.vm.has_secure_boot
    assert firmware.can.plain_loader in world.hypervisor.xml[world.uuid]
    check_variables(world, is_on=False, names=ENTRIES | KEYS)
    world.check_plain()


def test_twice_is_nothing_to_do(make_world: MakeWorld, firmware: Firmware) -> None:
    world = prepared(make_world, firmware)
    world.succeed(wish(world, vbs=True))
    with pytest.raises(Conflict, match="is as wanted already") as caught:
        world.ask(wish(world, vbs=True))
    assert caught.value.code == "nothing_to_do"


def test_with_the_encryption_in_one_switch(make_world: MakeWorld, firmware: Firmware) -> None:
    world = prepared(make_world, firmware)
    world.succeed(replace(world.all_disks(), vbs=True))
    check_variables(world, is_on=True, names=ENTRIES | KEYS)
    world.check_encrypted("vda", "vdb")
    assert (world.vm.has_vbs, world.vm.is_nvram_encrypted) == (True, True)
    assert world.hypervisor.calls.count("redefine") == 1
    xml = world.hypervisor.xml[world.uuid]
    assert firmware.can.secure_loader in xml and "firmware=" not in xml
    assert set(kinds()) == {"vm.vbs_set", "vm.secure_boot_on", "vm.encrypted"}
    # An encrypted VM keeps its policy while only its hardware changes.
    job = world.succeed(replace(world.all_disks(), vbs=False))
    world.check_encrypted("vda", "vdb")
    assert (world.vm.has_vbs, world.vm.is_nvram_encrypted) == (False, True)
    told = Event.objects.filter(job=job).values_list("kind", flat=True)
    assert {"vm.vbs_unset", "vm.options_changed"} <= set(told) and "vm.encrypted" not in told


FAR = Shape(tpm=False, disks=(Disk("vda", "raw"),), remote=True)


@pytest.mark.parametrize("shape", [Shape(tpm=False), FAR], ids=["worker", "host"])
def test_encrypted_variables(make_world: MakeWorld, firmware: Firmware, shape: Shape) -> None:
    """Switched inside their LUKS image, by a worker that reaches it and through the host."""
    world = prepared(make_world, firmware, shape)
    world.succeed(world.wish())
    image = Path(world.hypervisor._facts(world.uuid).nvram_path)
    for is_on in (True, False, True):
        world.succeed(replace(world.wish(), secure_boot=is_on))
        assert Path(world.hypervisor._facts(world.uuid).nvram_path) == image and world.vm.is_nvram_encrypted
        check_variables(world, is_on=is_on, names=ENTRIES | KEYS)
    world.succeed(world.nothing())
    check_variables(world, is_on=True, names=ENTRIES | KEYS)


def test_variables_of_a_far_host(make_world: MakeWorld, firmware: Firmware) -> None:
    world = prepared(make_world, firmware, FAR, ENROLLED)
    world.succeed(wish(world, secure_boot=True))
    assert variables_of(world) == ENROLLED and "overwrite_file" not in world.hypervisor.calls
    world.succeed(wish(world, secure_boot=False))
    check_variables(world, is_on=False, names=ENTRIES | KEYS)
    assert Event.objects.get(kind="vm.secure_boot_off").data["keys_enrolled"] is False


def test_variables_not_made_yet(make_world: MakeWorld, firmware: Firmware) -> None:
    world = prepared(make_world, firmware, Shape(tpm=False), None)
    world.succeed(wish(world, secure_boot=True))
    assert variables_of(world) == ENROLLED
    (world.folder / "vm_VARS.fd").unlink()
    world.succeed(wish(world, secure_boot=False))  # libvirt makes them, without keys, at the next start
    assert not (world.folder / "vm_VARS.fd").exists()


@pytest.mark.parametrize("content", [store(), KEYLESS, store(BOOT_ORDER, OFF)])
def test_keys_are_enrolled_where_none_are(make_world: MakeWorld, firmware: Firmware, content: bytes) -> None:
    world = prepared(make_world, firmware, Shape(tpm=False), content)
    world.succeed(wish(world, secure_boot=True))
    before = {one.name for one in variable_store.parse(content).variables}
    check_variables(world, is_on=True, names=before | KEYS)
    assert Event.objects.get(kind="vm.secure_boot_on").data["keys_enrolled"] is True


def test_a_template_that_is_none_is_refused_and_nothing_switched(make_world: MakeWorld, firmware: Firmware) -> None:
    world = prepared(make_world, firmware)
    before = world.hypervisor.xml[world.uuid]
    for content in (b"not firmware", store()):
        firmware.secure_template.write_bytes(content)
        job = world.refuse(wish(world, secure_boot=True), "variables_not_made")
        assert "VARS.ms.fd" in job.message
    assert world.hypervisor.xml[world.uuid] == before
    assert variables_of(world) == KEYLESS
    assert kinds() == []


@pytest.mark.parametrize(
    ("variables", "code"),
    [(b"no store" * 512, "variables_unreadable"), (store(BOOT_ORDER, size=300), "variables_full")],
)
def test_variables_that_cannot_be_switched(
    make_world: MakeWorld, firmware: Firmware, variables: bytes, code: str
) -> None:
    world = prepared(make_world, firmware, variables=variables)
    before = world.hypervisor.xml[world.uuid]
    job = world.refuse(wish(world, vbs=True), code)
    assert "vm_VARS.fd" in job.message
    assert (variables_of(world), world.hypervisor.xml[world.uuid], kinds()) == (variables, before, [])


@contextmanager
def no_switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever comes between the variables and the definition."""

    def refuse(change: object) -> None:
        raise Conflict("switch_refused", "the definition is not switched")

    with monkeypatch.context() as patch:
        patch.setattr(changes, "switch_definition", refuse)
        yield


@pytest.mark.parametrize("policy", ["plain", "encrypted"])
def test_what_is_given_up_is_put_back(
    make_world: MakeWorld, firmware: Firmware, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    world = prepared(make_world, firmware)
    as_it_is = world.nothing() if policy == "plain" else world.wish()
    world.succeed(replace(as_it_is, secure_boot=True))
    with no_switch(monkeypatch):
        world.refuse(replace(as_it_is, secure_boot=False), "switch_refused")
    check_variables(world, is_on=True, names=ENTRIES | KEYS)
    world.succeed(replace(as_it_is, secure_boot=False))
    with no_switch(monkeypatch):
        world.refuse(replace(as_it_is, secure_boot=True), "switch_refused")
    check_variables(world, is_on=False, names=ENTRIES | KEYS)


def test_keys_of_what_is_given_up_are_not_asked(
    make_world: MakeWorld, firmware: Firmware, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = prepared(make_world, firmware)
    with no_switch(monkeypatch):
        world.refuse(wish(world, secure_boot=True), "switch_refused")
    check_variables(world, is_on=False, names=ENTRIES | KEYS)


def test_killed_after_the_switch(make_world: MakeWorld, firmware: Firmware, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker dies before it can say what it did; the next run says it, and does nothing twice."""
    world = prepared(make_world, firmware)

    def die(change: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(boot_security, "record", die)
        job = world.ask(wish(world, vbs=True))
        with pytest.raises(KeyboardInterrupt):
            world.run(job)
    after = world.hypervisor.xml[world.uuid]
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    jobs.run(str(job.pk), conversion.apply_options)
    job.refresh_from_db()
    assert job.status == JobStatus.SUCCEEDED, job.message
    assert world.hypervisor.xml[world.uuid] == after
    assert kinds() == ["vm.vbs_set", "vm.secure_boot_on"]


def test_a_blank_vm_with_bios_gets_uefi(make_world: MakeWorld, firmware: Firmware) -> None:
    world = prepared(make_world, firmware, Shape(disks=(Disk("vda", "raw"),), nvram=False, tpm=False))
    path = world.folder / "vda.raw"
    with pytest.raises(Conflict, match="would not boot with UEFI"):
        world.ask(wish(world, vbs=True))
    size = path.stat().st_size
    path.unlink()
    with path.open("wb") as file:
        file.truncate(size)
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    job = world.ask(wish(world, vbs=True))
    path.write_bytes(b"data" * (size // 4))  # somebody installs a guest meanwhile
    world.run(job)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "vbs_needs_uefi")
    path.unlink()
    with path.open("wb") as file:
        file.truncate(size)
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    world.succeed(wish(world, vbs=True))
    assert (world.vm.firmware, world.vm.has_vbs) == ("uefi", True)


def test_a_host_that_nobody_has_asked(make_world: MakeWorld) -> None:
    world = make_world()
    with pytest.raises(Conflict, match="not known yet") as caught:
        world.ask(wish(world, vbs=True))
    assert caught.value.code == "host_not_asked"


def test_a_host_that_keeps_the_old_definition_is_not_believed(
    make_world: MakeWorld, firmware: Firmware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it has defined what it was given, and does not report it."""
    world = prepared(make_world, firmware)
    monkeypatch.setattr(world.hypervisor, "redefine", lambda uuid, edit: None)
    job = world.refuse(wish(world, secure_boot=True), "not_carried_out")
    assert "Switch Secure Boot on" in job.message
    assert not Event.objects.filter(kind="vm.options_changed").exists()
