"""As test_job_refusals: of VMs that run, of hosts whose files no worker reaches, and of files that others have."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from django.test import Client
from django.urls import reverse

from encryption.adapters import image_files
from encryption.models import Stage, StoragePolicy, WrappedSecret
from encryption.services import host_storage
from inventory.engine.hypervisor import CopyProgress
from inventory.services import sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services import test_offline as images
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.test_job_refusals import QCOW2, RAW, refused
from tests.encryption.services.test_live import while_copying
from tests.encryption.world import KIB, Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_tpm")]
FAR = Shape((Disk("vda", "raw", 64 * KIB + 512),), nvram=False, tpm=False, remote=True)
Spoil = Callable[[World, pytest.MonkeyPatch], None]


def encrypt(world: World) -> tuple[str, dict[str, str]]:
    policy = str(StoragePolicy.objects.get(name="VM Encryption Policy").pk)
    return reverse("encryption:vm-options", args=[world.vm.pk]), {"policy": policy, "disk-vda": policy}


def copy_that_ends_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.hypervisor.copies_vanish = True


def copy_of_somebody_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.hypervisor.copies[world.uuid, "vda"] = CopyProgress(1, 1, is_ready=True, is_gone=False)


def powered_off_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    while_copying(world, monkeypatch, lambda: world.hypervisor.power_off(world.uuid))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (copy_that_ends_by_itself, "copy_failed"),
        (copy_of_somebody_else, "block_job_active"),
        (powered_off_meanwhile, "vm_stopped_meanwhile"),
    ],
)
def test_while_it_runs(
    admin: Client,
    make_world: MakeWorld,
    keys: MemoryKeyServer,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Spoil,
    code: str,
) -> None:
    world = make_world(RAW)
    world.hypervisor.power_on(world.uuid)
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    spoil(world, monkeypatch)
    assert refused(admin, world, *encrypt(world)) == code


def test_disk_that_the_host_cannot_copy(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_storage, "IN_MEMORY_BYTES", 0)
    world = make_world(FAR)
    assert refused(admin, world, *encrypt(world)) == "disk_size_odd"


def test_part_that_the_workers_memory_does_not_hold(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(name: str, flags: int) -> int:
        raise OSError(12, "Cannot allocate memory")

    world = make_world(FAR)
    before = world.files()
    monkeypatch.setattr(os, "memfd_create", full)
    assert refused(admin, world, *encrypt(world)) == "worker_memory_error"
    assert world.files() == before


def test_qcow2_that_no_worker_can_make(admin: Client, make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(FAR)
    world.hypervisor.pools = [replace(world.hypervisor.pools[0], path=str(world.folder))]
    sync.sync_host(world.host, world.hypervisor)
    form = {
        "size_gib": "0.001", "image_format": "qcow2", "datastore": str(world.host.datastores.get().pk),
        "policy": str(StoragePolicy.objects.get(is_builtin=True, encrypts=False).pk),
    }  # fmt: skip
    url = reverse("encryption:add-disk", args=[world.vm.pk])
    assert refused(admin, world, url, form) == "files_not_reachable"


def test_image_that_a_qemu_has_open(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(file: object) -> None:
        raise image_files.InUse("vda.raw is open for writing in QEMU")

    world = make_world(RAW)
    monkeypatch.setattr(image_files, "lock_against_writers", held)
    assert refused(admin, world, *encrypt(world)) == "image_in_use"


def test_original_that_somebody_put_back(admin: Client, make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(RAW)
    before, plain = world.hypervisor.xml[world.uuid], world.folder / "vda.raw"
    world.succeed(world.all_disks())
    plain.write_bytes(world.plain[str(plain)])
    WrappedSecret.objects.update(stage=Stage.SWITCHED)
    world.hypervisor.xml[world.uuid] = before
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    assert refused(admin, world, *encrypt(world)) == "definition_changed"
    assert plain.exists()


def test_disk_that_is_not_all_in_its_image(admin: Client, make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(QCOW2)
    images._backing(world.folder / "vda.qcow2")
    url = reverse("encryption:vm-clone", args=[world.vm.pk])
    assert refused(admin, world, url, {"name": "copy"}) == "disk_has_backing_file"


def test_disk_of_that_name_that_came_meanwhile(
    admin: Client, make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(RAW)
    world.hypervisor.pools = [replace(world.hypervisor.pools[0], path=str(world.folder))]
    sync.sync_host(world.host, world.hypervisor)
    create, other = (
        world.hypervisor.create_file,
        "<disk type='file' device='cdrom'><target dev='vdb' bus='virtio'/></disk>",
    )

    def adds(path: str, *, size: int, head: bytes = b"", like: str = "") -> None:
        create(path, size=size, head=head, like=like)
        xml = world.hypervisor.xml[world.uuid]
        world.hypervisor.xml[world.uuid] = xml.replace("</devices>", f"{other}</devices>")

    monkeypatch.setattr(world.hypervisor, "create_file", adds)
    form = {
        "size_gib": "0.001", "image_format": "raw", "datastore": str(world.host.datastores.get().pk),
        "policy": str(StoragePolicy.objects.get(is_builtin=True, encrypts=False).pk),
    }  # fmt: skip
    before = sorted(world.folder.iterdir())
    assert refused(admin, world, reverse("encryption:add-disk", args=[world.vm.pk]), form) == "disk_exists"
    assert sorted(world.folder.iterdir()) == before


def test_variables_that_are_in_no_file(admin: Client, make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(Shape((), tpm=False))
    xml = world.hypervisor.xml[world.uuid]
    begin, end = xml.index("<nvram>"), xml.index("</nvram>")
    device = "<nvram type='network'><source protocol='iscsi' name='iqn.2026-11.example:vars'/>"
    world.hypervisor.xml[world.uuid] = xml[:begin] + device + xml[end:]
    url = reverse("encryption:vm-clone", args=[world.vm.pk])
    assert refused(admin, world, url, {"name": "copy"}) == "nvram_not_copyable"
