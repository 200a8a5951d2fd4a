"""Secure Boot and VBS carried out by the job: the one switch of the definition, variables, events, a kill between."""

from dataclasses import replace
from pathlib import Path

import pytest

from encryption.services import boot_security, conversion
from encryption.services.options import Wish
from inventory import jobs
from inventory.engine.abilities import HostAbilities
from inventory.errors import Conflict
from inventory.models import Event, Job, JobStatus
from inventory.services import sync
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("keys", "quick_tpm")]
HEAD = bytes(40) + b"_FVH"
PLAIN_VARIABLES, SECURE_VARIABLES = (HEAD + name * 100_000 for name in (b"plain", b"keys!"))


class Firmware:
    """The host's firmware files, and the abilities that name them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.plain_template, self.secure_template = folder / "VARS.fd", folder / "VARS.ms.fd"
        self.plain_template.write_bytes(PLAIN_VARIABLES)
        self.secure_template.write_bytes(SECURE_VARIABLES)
        self.can = HostAbilities(
            virtualization="qemu", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True, viommu=True,
            nested="svm", hyperv=("spinlocks",), secure_loader=str(folder / "CODE.ms.fd"),
            plain_loader=str(folder / "CODE.fd"),
        )  # fmt: skip


@pytest.fixture
def firmware(tmp_path: Path) -> Firmware:
    return Firmware(tmp_path / "firmware")


def prepared(make_world: MakeWorld, firmware: Firmware, shape: Shape | None = None) -> World:
    world = make_world(shape)
    world.host.abilities = firmware.can.as_row()
    world.host.save()
    sync.sync_host(world.host, world.hypervisor)
    world.vm.refresh_from_db()
    return world


def with_template(world: World, firmware: Firmware, content: bytes | None) -> Path:
    """The definition names the template; its variables are `content`, or not there yet."""
    nvram = world.folder / "vm_VARS.fd"
    xml = world.hypervisor.xml[world.uuid].replace("<nvram>", f"<nvram template='{firmware.plain_template}'>")
    world.hypervisor.xml[world.uuid] = xml
    if content is None:
        nvram.unlink()
    else:
        nvram.write_bytes(content)
    return nvram


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
    world.check_plain()  # no part was touched, the variables neither: they are not their template
    world.succeed(wish(world, vbs=False))
    assert (world.vm.has_vbs, world.vm.has_secure_boot) == (False, True)
    assert kinds()[0] == "vm.vbs_unset" and len(kinds()) == 3
    assert "iommu" not in world.hypervisor.xml[world.uuid] and "svm" in secure
    world.succeed(wish(world, secure_boot=False))
    assert not world.vm.has_secure_boot
    assert firmware.can.plain_loader in world.hypervisor.xml[world.uuid]


def test_twice_is_nothing_to_do(make_world: MakeWorld, firmware: Firmware) -> None:
    world = prepared(make_world, firmware)
    world.succeed(wish(world, vbs=True))
    with pytest.raises(Conflict, match="is as wanted already") as caught:
        world.ask(wish(world, vbs=True))
    assert caught.value.code == "nothing_to_do"


def test_with_the_encryption_in_one_switch(make_world: MakeWorld, firmware: Firmware) -> None:
    world = prepared(make_world, firmware)
    world.succeed(replace(world.all_disks(), vbs=True))
    world.check_encrypted("vda", "vdb")
    assert (world.vm.has_vbs, world.vm.is_nvram_encrypted) == (True, True)
    assert world.hypervisor.calls.count("redefine") == 1
    xml = world.hypervisor.xml[world.uuid]
    assert firmware.can.secure_loader in xml and "firmware=" not in xml
    assert set(kinds()) == {"vm.vbs_set", "vm.secure_boot_on", "vm.encrypted"}
    # An encrypted VM keeps its policy while only its hardware changes; its variables stay where they are.
    world.succeed(replace(world.all_disks(), vbs=False))
    world.check_encrypted("vda", "vdb")
    assert (world.vm.has_vbs, world.vm.is_nvram_encrypted) == (False, True)


@pytest.mark.parametrize("content", [None, PLAIN_VARIABLES], ids=["not made yet", "as the template"])
def test_variables_that_nobody_has_written_get_keys(
    make_world: MakeWorld, firmware: Firmware, content: bytes | None
) -> None:
    world = prepared(make_world, firmware, Shape(tpm=False))
    nvram = with_template(world, firmware, content)
    world.succeed(wish(world, secure_boot=True))
    assert nvram.read_bytes() == SECURE_VARIABLES
    assert Event.objects.get(kind="vm.secure_boot_on").data["variables_renewed"] is (content is not None)


@pytest.mark.parametrize("content", [PLAIN_VARIABLES[:-1] + b"!", PLAIN_VARIABLES + b"more"])
def test_variables_that_a_guest_has_written_stay(make_world: MakeWorld, firmware: Firmware, content: bytes) -> None:
    world = prepared(make_world, firmware, Shape(tpm=False))
    nvram = with_template(world, firmware, content)
    world.succeed(wish(world, secure_boot=True))
    assert nvram.read_bytes() == content


def test_a_template_that_is_none_is_refused_and_nothing_switched(make_world: MakeWorld, firmware: Firmware) -> None:
    world = prepared(make_world, firmware)
    firmware.secure_template.write_bytes(b"not firmware")
    before = world.hypervisor.xml[world.uuid]
    job = world.refuse(wish(world, secure_boot=True), "variables_not_made")
    assert "VARS.ms.fd" in job.message
    assert world.hypervisor.xml[world.uuid] == before
    assert kinds() == []


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
