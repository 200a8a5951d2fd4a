"""Trees, lists and search: right answers, by a number of queries that does not grow."""

from collections.abc import Callable
from uuid import uuid4

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from inventory.errors import Refused
from inventory.models import Cluster, Datastore, Disk, Firmware, Host, PowerState, TargetKind, VirtualMachine
from inventory.services import search, tree
from inventory.services.search import VmFilter
from inventory.services.tree import View

pytestmark = pytest.mark.django_db


def fill(host: Host, count: int, start: int = 0) -> None:
    rows = VirtualMachine.objects.bulk_create(
        VirtualMachine(
            host=host, uuid=uuid4(), name=f"Web-{number:04d}", vcpus=number % 7, memory_bytes=number,
            power_state=PowerState.ON if number % 2 else PowerState.OFF,
            firmware=Firmware.UEFI if number % 3 else Firmware.BIOS,
        )
        for number in range(start, start + count)
    )  # fmt: skip
    Disk.objects.bulk_create(
        Disk(virtual_machine=vm, target="vda", is_encrypted=number % 5 == 0) for number, vm in enumerate(rows, start)
    )


def queries(work: Callable[[], object]) -> int:
    with CaptureQueriesContext(connection) as found:
        work()
    return len(found)


def reads(host: Host, actor: User) -> list[Callable[[], object]]:
    datacenter = host.cluster.datacenter_id
    lists = [
        VmFilter(), VmFilter(text="web-00"), VmFilter(is_encrypted=True),
        VmFilter(power=PowerState.ON, host_id=host.pk),
        VmFilter(cluster_id=host.cluster_id), VmFilter(datacenter_id=datacenter, firmware=Firmware.UEFI),
    ]  # fmt: skip
    nodes = [(View.HOSTS, TargetKind.HOST, host.pk), (View.VMS, TargetKind.DATACENTER, datacenter),
             (View.HOSTS, TargetKind.CLUSTER, host.cluster_id), (View.STORAGE, TargetKind.HOST, host.pk)]  # fmt: skip
    return [
        *(lambda w=wanted: search.virtual_machines(actor=actor, wanted=w) for wanted in lists),
        *(
            lambda v=view, k=kind, t=target: tree.children(view=v, kind=k, target_id=t, actor=actor)
            for view, kind, target in nodes
        ),
        lambda: tree.roots(actor=actor),
        lambda: search.search(actor=actor, text="web"),
    ]


def test_queries_are_the_same_for_300_and_5000(host: Host, alice: User) -> None:
    fill(host, 300)
    before = [queries(read) for read in reads(host, alice)]
    fill(host, 4700, start=300)
    assert [queries(read) for read in reads(host, alice)] == before
    assert max(before) == 5
    assert max(before[:10]) == 2


def test_list_filters_and_pages(host: Host, alice: User) -> None:
    fill(host, 60)
    page = search.virtual_machines(actor=alice, wanted=VmFilter(), page=2, page_size=50)
    assert (page.total, page.pages, page.number, len(page.items)) == (60, 2, 2, 10)
    assert page.items[0].vm.name == "Web-0050"
    assert page.items[0].is_encrypted
    assert search.virtual_machines(actor=alice, wanted=VmFilter(), page=99).number == 2
    downwards = search.virtual_machines(actor=alice, wanted=VmFilter(), sort="-memory")
    assert downwards.items[0].vm.memory_bytes == 59

    def total(wanted: VmFilter) -> int:
        return search.virtual_machines(actor=alice, wanted=wanted).total

    assert total(VmFilter(text="WEB-001")) == 10
    assert total(VmFilter(text="%")) == 0
    assert (total(VmFilter(is_encrypted=True)), total(VmFilter(is_encrypted=False))) == (12, 48)
    assert total(VmFilter(power=PowerState.ON, firmware=Firmware.BIOS)) == 10
    assert total(VmFilter(host_id=uuid4())) == 0
    one = VirtualMachine.objects.get(name="Web-0007")
    assert total(VmFilter(text=str(one.uuid))) == 1
    VirtualMachine.objects.filter(pk=one.pk).update(is_tpm_encrypted=True)
    assert total(VmFilter(is_encrypted=True)) == 13


def test_list_refuses(alice: User, charlie: User) -> None:
    assert search.virtual_machines(actor=charlie, wanted=VmFilter()).total == 0
    for read in (
        lambda: search.virtual_machines(actor=AnonymousUser(), wanted=VmFilter()),
        lambda: search.search(actor=AnonymousUser(), text="x"),
        lambda: tree.roots(actor=AnonymousUser()),
    ):
        with pytest.raises(Refused):
            read()


def test_search_box(host: Host, alice: User) -> None:
    fill(host, 30)
    Datastore.objects.create(host=host, name="web-images", kind="dir")
    found = search.search(actor=alice, text=" web ")
    assert [hit.kind for hit in found] == [TargetKind.VIRTUAL_MACHINE] * 12 + [TargetKind.DATASTORE]
    assert search.search(actor=alice, text="KVM-A")[0].id == host.pk
    assert search.search(actor=alice, text="cluster")[0].kind == TargetKind.CLUSTER
    assert search.search(actor=alice, text="lab")[0].kind == TargetKind.DATACENTER
    one = VirtualMachine.objects.get(name="Web-0007")
    assert [hit.id for hit in search.search(actor=alice, text=str(one.uuid))] == [one.pk]
    assert search.search(actor=alice, text="  ") == ()


def test_tree(host: Host, alice: User) -> None:
    fill(host, 230)
    Datastore.objects.create(host=host, name="default", kind="dir", is_active=False)
    empty = Cluster.objects.create(datacenter=host.cluster.datacenter, name="Empty")

    def below(view: View, kind: TargetKind, target: object) -> tree.Children:
        return tree.children(view=view, kind=kind, target_id=target, actor=alice)  # type: ignore[arg-type]

    (datacenter,) = tree.roots(actor=alice).nodes
    clusters = below(View.HOSTS, TargetKind.DATACENTER, datacenter.id).nodes
    assert [(node.name, node.has_children) for node in clusters] == [("Cluster 1", True), ("Empty", False)]
    (node,) = below(View.HOSTS, TargetKind.CLUSTER, host.cluster_id).nodes
    assert (node.name, node.words, node.has_children) == ("kvm-a", "connected", True)
    vms = below(View.HOSTS, TargetKind.HOST, host.pk)
    assert (len(vms.nodes), vms.total) == (200, 230)
    assert (vms.nodes[0].words, vms.nodes[0].is_encrypted) == ("powered off, encrypted", True)
    assert (vms.nodes[1].words, vms.nodes[1].icon) == ("powered on", "vm-on")
    assert below(View.VMS, TargetKind.DATACENTER, datacenter.id).total == 230
    stores = below(View.STORAGE, TargetKind.HOST, host.pk).nodes
    assert [(store.name, store.warns) for store in stores] == [("default", True)]
    for view, kind, target in (
        (View.HOSTS, TargetKind.CLUSTER, empty.pk),
        (View.VMS, TargetKind.HOST, host.pk),
        (View.HOSTS, TargetKind.VIRTUAL_MACHINE, vms.nodes[0].id),
        (View.HOSTS, TargetKind.HOST, uuid4()),
    ):
        assert below(view, kind, target).total == 0
