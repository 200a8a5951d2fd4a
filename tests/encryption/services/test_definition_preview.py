"""The difference that a plan shows is the one that its job makes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from encryption.models import KmsCluster, StoragePolicy
from encryption.services import boot_variables, options
from encryption.services.definition_preview import DefinitionChange
from encryption.services.options import Wish
from inventory.engine.abilities import HostAbilities
from inventory.models import VmDefinition
from inventory.services import sync
from inventory.services.definitions import difference
from tests.api_client import caller
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("keys", "quick_tpm")]
CAN = HostAbilities(
    virtualization="qemu", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True, viommu=True, nested="svm",
    hyperv=("spinlocks",), secure_loader="/f/CODE.ms.fd", plain_loader="/f/CODE.fd",
)  # fmt: skip
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def shown(world: World, wish: Wish) -> DefinitionChange:
    found = options.plan_options(vm_id=world.vm.pk, wish=wish, actor=world.actor).definition
    assert found is not None
    return found


def leveled(lines: tuple[str, ...]) -> list[str]:
    """Without what could not be known beforehand; wrapped keys stand in no order."""
    found = []
    for line in lines:
        line = re.sub(r"\{new secret of [^}]+\}", "{uuid}", line)
        line = re.sub(r"-(plain-)?(\{8 digits\}|[0-9a-f]{8})\.", r"-\1x.", UUID.sub("{uuid}", line))
        line = re.sub(r'kek-id="[^"]+"', 'kek-id="x"', line)
        found.append(re.sub(r' size="\d+"', "", line) if "wrapped-key" in line else line)
    return sorted(line for line in found if line[0] in "+-")


def check(world: World, wish: Wish) -> DefinitionChange:
    """What was shown before is what has been done."""
    before, told = world.hypervisor.xml[world.uuid], shown(world, wish)
    assert told.lines and not told.note, told
    world.succeed(wish)
    assert leveled(told.lines) == leveled(difference(before, world.hypervisor.xml[world.uuid], {}))
    return told


def test_of_encryption_and_back(make_world: MakeWorld) -> None:
    world = make_world()
    told = "\n".join(check(world, world.all_disks()).lines)
    assert "{new secret of vda}" in told and f"{world.folder}/vda-{{8 digits}}.luks" in told
    assert 'kek-id="{ID of the new key}"' in told and "...</bartizan:wrapped-key>" in told
    some = world.wish("vdb")
    check(world, some)
    gone = "\n".join(check(world, world.nothing()).lines)
    assert f'+      <source file="{world.folder}/vdb.qcow2"/>' in gone


def test_of_hardware(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_variables, "switch", lambda *_, **__: None)
    world = make_world(Shape(disks=(), tpm=False))
    world.host.abilities = CAN.as_row()
    world.host.save()
    told = "\n".join(shown(world, replace(world.nothing(), vbs=True, vtpm=True)).lines)
    for text in ("+    <iommu", '+    <tpm model="tpm-crb">', "/f/CODE.ms.fd", "{new secret of vTPM state}"):
        assert text in told, text
    check(world, replace(world.nothing(), vbs=True, vtpm=True))


def test_what_makes_none_and_what_is_not_known(make_world: MakeWorld) -> None:
    world = make_world()
    moves = replace(world.nothing(), encrypted_vmotion=options.Vmotion.REQUIRED)
    assert shown(world, moves) == DefinitionChange()
    VmDefinition.objects.update(sha256="of an older one")
    assert "refresh its host" in shown(world, world.all_disks()).note
    sync.sync_host(world.host, world.hypervisor)
    VmDefinition.objects.update(xml=world.hypervisor.xml[world.uuid].replace("/usr/share/OVMF/CODE.fd", ""))
    assert "the VM's UEFI firmware file is not known" in shown(world, world.all_disks()).note
    KmsCluster.objects.all().delete()  # then nothing may be done, and nothing is shown
    refused = options.plan_options(vm_id=world.vm.pk, wish=world.all_disks(), actor=world.actor)
    assert refused.refusals and refused.definition is None


def test_over_the_api(make_world: MakeWorld) -> None:
    world = make_world()
    policy = str(StoragePolicy.objects.get(name="VM Encryption Policy").pk)
    path = f"/virtual-machines/{world.vm.pk}/options/plan"
    told = caller(world.actor).post(path, {"policy_id": policy, "disks": {"vda": policy}}).body
    assert any("{new secret of vda}" in line for line in told["definition_difference"]) and not told["definition_note"]
    VmDefinition.objects.all().delete()
    told = caller(world.actor).post(path, {"policy_id": policy, "disks": {"vda": policy}}).body
    assert told["definition_difference"] is None and "refresh its host" in told["definition_note"]


def test_nothing_of_a_key_is_in_it(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world()
    world.succeed(world.all_disks())
    stored = VmDefinition.objects.get().xml
    assert stored == world.hypervisor.xml[world.uuid]
    for passphrase in world.passphrases().values():
        assert passphrase.reveal().decode() not in stored
