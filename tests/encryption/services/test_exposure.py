"""Guest memory in clear: an alarm on a protected VM while libvirt keeps a saved state or snapshots of it."""

from dataclasses import replace

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from encryption.services import exposure
from inventory.models import Alarm, Event, Severity
from inventory.services import sync
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import Disk, Shape, World
from tests.fakes import vm

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_tpm")]
SHAPE = Shape((Disk("vda", "raw", 64 * 1024),), nvram=False, tpm=False)


@pytest.fixture
def plain(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    return make_world(SHAPE)


@pytest.fixture
def world(plain: World) -> World:
    plain.succeed(plain.all_disks())
    return plain


def becomes(world: World, **changes: object) -> None:
    world.hypervisor.vms[world.uuid] = replace(world.hypervisor.vms[world.uuid], **changes)  # type: ignore[arg-type]
    sync.refresh_virtual_machine(world.vm, world.hypervisor)


def live() -> Alarm | None:
    return Alarm.objects.filter(kind=exposure.KIND, cleared_at=None).first()


def test_raised_brought_up_to_date_and_cleared(world: World) -> None:
    assert live() is None
    becomes(world, has_managed_save=True)
    alarm = live()
    assert alarm is not None and alarm.target_id == world.vm.pk and alarm.severity == Severity.ERROR
    assert "managed save" in alarm.evidence[0] and "Actions" in alarm.remedy
    becomes(world, snapshot_count=3, memory_snapshot_count=2)
    again = live()
    assert again is not None and again.pk == alarm.pk and len(again.evidence) == 3
    becomes(world, has_managed_save=False, snapshot_count=0, memory_snapshot_count=0)
    assert live() is None
    kinds = list(Event.objects.filter(kind__startswith="alarm.").order_by("id").values_list("kind", flat=True))
    assert kinds == ["alarm.raised", "alarm.cleared"]


def test_disk_snapshots_count_too(world: World) -> None:
    becomes(world, snapshot_count=1)
    alarm = live()
    assert alarm is not None and alarm.evidence == ["libvirt reports 1 snapshots of disks, made outside this console"]


def test_cleared_when_the_vm_is_gone(world: World) -> None:
    becomes(world, has_managed_save=True)
    del world.hypervisor.vms[world.uuid]
    sync.sync_host(world.host, world.hypervisor)
    assert live() is None


def test_a_plain_vm_may_be_saved(plain: World) -> None:
    becomes(plain, has_managed_save=True, snapshot_count=1)
    assert live() is None


def test_it_costs_the_same_for_many_vms(world: World) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            exposure.review_host(world.host)
        return len(queries)

    before = cost()
    world.hypervisor.live.clear()
    for number in range(40):
        world.hypervisor.add(made := vm(f"vm-{number}"))
        world.hypervisor.xml[made.uuid] = f"<domain><name>vm-{number}</name><uuid>{made.uuid}</uuid></domain>"
    sync.sync_host(world.host, world.hypervisor)
    assert cost() == before
