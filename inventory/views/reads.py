"""Reads for the tree and the VM list: a constant number of queries, however many rows there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db.models import Exists, Model, OuterRef, Q, QuerySet
from django.urls import reverse

from inventory.models import (
    Cluster,
    Datacenter,
    Datastore,
    Disk,
    Firmware,
    Host,
    PowerState,
    TargetKind,
    VirtualMachine,
)

LIMIT: Final = 200


@dataclass(frozen=True, slots=True)
class Node:
    """One line of the tree. `words` say in text what the icon and the marks show."""

    kind: TargetKind
    id: UUID
    name: str
    icon: str
    has_children: bool
    words: str = ""
    is_encrypted: bool = False
    warns: bool = False

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.id}"

    @property
    def url(self) -> str:
        return reverse("inventory:summary", args=[self.kind, self.id])


@dataclass(frozen=True, slots=True)
class Children:
    nodes: Sequence[Node]
    total: int


def roots() -> Children:
    rows = Datacenter.objects.annotate(has_children=Exists(Cluster.objects.filter(datacenter=OuterRef("pk"))))
    nodes = [Node(TargetKind.DATACENTER, r.pk, r.name, "building", r.has_children) for r in rows[:LIMIT]]
    return Children(nodes, len(nodes))


def children(view: str, kind: TargetKind, target_id: UUID, limit: int = LIMIT) -> Children:
    """What stands below a node: `view` is "hosts", "vms" or "storage". At most `limit` nodes of `total`."""
    if view == "vms" and kind == TargetKind.DATACENTER:
        return _vms(VirtualMachine.objects.filter(host__cluster__datacenter=target_id), limit)
    if view == "hosts" and kind == TargetKind.HOST:
        return _vms(VirtualMachine.objects.filter(host=target_id), limit)
    if view == "storage" and kind == TargetKind.HOST:
        return _datastores(target_id, limit)
    if kind == TargetKind.DATACENTER:
        rows = Cluster.objects.filter(datacenter=target_id).annotate(
            has_children=Exists(Host.objects.filter(cluster=OuterRef("pk")))
        )
        nodes = [Node(TargetKind.CLUSTER, r.pk, r.name, "cluster", r.has_children) for r in rows[:limit]]
        return _counted(nodes, rows, limit)
    if kind == TargetKind.CLUSTER:
        return _hosts(view, target_id, limit)
    return Children([], 0)


def _hosts(view: str, cluster_id: UUID, limit: int) -> Children:
    below: QuerySet[VirtualMachine] | QuerySet[Datastore] = (
        Datastore.objects.filter(host=OuterRef("pk"))
        if view == "storage"
        else VirtualMachine.objects.filter(host=OuterRef("pk"))
    )
    rows = Host.objects.filter(cluster=cluster_id).annotate(has_children=Exists(below))
    nodes = [
        Node(
            TargetKind.HOST,
            row.pk,
            row.name,
            "host",
            row.has_children,
            words=row.get_state_display().lower(),
            warns=row.state == Host.State.DISCONNECTED,
        )
        for row in rows[:limit]
    ]
    return _counted(nodes, rows, limit)


def _datastores(host_id: UUID, limit: int) -> Children:
    rows = Datastore.objects.filter(host=host_id)
    nodes = [
        Node(TargetKind.DATASTORE, r.pk, r.name, "storage", False, "" if r.is_active else "inactive")
        for r in rows[:limit]
    ]
    return _counted(nodes, rows, limit)


def _vms(rows: QuerySet[VirtualMachine], limit: int) -> Children:
    nodes = [
        Node(
            TargetKind.VIRTUAL_MACHINE,
            row.pk,
            row.name,
            "vm-on" if row.power_state == PowerState.ON else "vm",
            has_children=False,
            words=row.get_power_state_display().lower() if row.is_present else "not on its host",
            is_encrypted=row.has_encryption,
            warns=not row.is_present or row.power_state == PowerState.CRASHED,
        )
        for row in with_encryption(rows)[:limit]
    ]
    return _counted(nodes, rows, limit)


def _counted(nodes: list[Node], rows: QuerySet[Model], limit: int) -> Children:
    return Children(nodes, len(nodes) if len(nodes) < limit else rows.count())


def with_encryption(rows: QuerySet[VirtualMachine]) -> QuerySet[VirtualMachine]:
    """Adds `has_encryption`: whether any disk, the NVRAM or the vTPM state is encrypted."""
    disks = Disk.objects.filter(virtual_machine=OuterRef("pk"), is_encrypted=True)
    return rows.annotate(has_encryption=Q(is_nvram_encrypted=True) | Q(is_tpm_encrypted=True) | Exists(disks))


SORTS: Final = {
    "name": "name",
    "state": "power_state",
    "host": "host__name",
    "firmware": "firmware",
    "cpus": "vcpus",
    "memory": "memory_bytes",
}


def virtual_machines(
    above: Model, *, text: str, power: str, firmware: str, encrypted: str, sort: str
) -> QuerySet[VirtualMachine]:
    """The VMs below a data center, cluster or host. Unknown sorts and filters count as none."""
    path = {Datacenter: "host__cluster__datacenter", Cluster: "host__cluster", Host: "host"}[type(above)]
    rows = with_encryption(VirtualMachine.objects.filter(**{path: above.pk})).select_related("host")
    if text:
        rows = rows.filter(name__icontains=text)
    if power in PowerState.values:
        rows = rows.filter(power_state=power)
    if firmware in Firmware.values:
        rows = rows.filter(firmware=firmware)
    if encrypted in ("yes", "no"):
        rows = rows.filter(has_encryption=encrypted == "yes")
    column = SORTS.get(sort.removeprefix("-"), "name")
    return rows.order_by(f"-{column}" if sort.startswith("-") else column, "name", "pk")


def search(text: str, limit: int = 12) -> list[Node]:
    """Objects of every kind whose name holds `text`, or whose UUID it is."""
    if not text:
        return []
    match = Q(name__icontains=text)
    vm_match = match
    try:
        vm_match |= Q(uuid=UUID(text))
    except ValueError:
        pass
    hosts = Host.objects.filter(match)[:limit]
    found = [*_vms(VirtualMachine.objects.filter(vm_match), limit).nodes]
    found += [Node(TargetKind.HOST, r.pk, r.name, "host", False, r.get_state_display().lower()) for r in hosts]
    plain: list[tuple[TargetKind, str, QuerySet[Cluster] | QuerySet[Datacenter] | QuerySet[Datastore]]] = [
        (TargetKind.CLUSTER, "cluster", Cluster.objects.filter(match)),
        (TargetKind.DATACENTER, "building", Datacenter.objects.filter(match)),
        (TargetKind.DATASTORE, "storage", Datastore.objects.filter(match)),
    ]
    for kind, icon, rows in plain:
        found += [Node(kind, row.pk, row.name, icon, False) for row in rows[:limit]]
    return found[:limit]
