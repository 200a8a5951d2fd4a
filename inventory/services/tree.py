"""The inventory as trees, read a level at a time, by a constant number of queries however many nodes there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from django.db.models import Exists, OuterRef, QuerySet

from inventory.authorize import VIEW, Actor, authorize, visible
from inventory.models import (
    Alarm,
    Cluster,
    Datacenter,
    Datastore,
    Host,
    PowerState,
    Severity,
    TargetKind,
    VirtualMachine,
)
from inventory.services.search import is_encrypted, with_encryption

LIMIT: Final = 200
MOST: Final = 5000


class View(StrEnum):
    """Hosts: data center, cluster, host, VM. VMs: data center, VM. Storage: data center, cluster, host, datastore."""

    HOSTS = "hosts"
    VMS = "vms"
    STORAGE = "storage"


@dataclass(frozen=True, slots=True)
class Node:
    """One line of a tree. `words` say in text what icon and marks show."""

    kind: TargetKind
    id: UUID
    name: str
    icon: str
    has_children: bool
    words: str = ""
    is_encrypted: bool = False
    warns: bool = False


@dataclass(frozen=True, slots=True)
class Children:
    """At most `limit` of `total` nodes, by name."""

    nodes: Sequence[Node]
    total: int


def roots(*, actor: Actor) -> Children:
    """The data centers. One query, and a count where there are more than 200."""
    authorize(actor, VIEW)
    below = Cluster.objects.filter(datacenter=OuterRef("pk"))
    seen = visible(Datacenter.objects.all(), actor)
    rows = seen.annotate(has_children=Exists(below)).values_list("pk", "name", "has_children")
    nodes = [Node(TargetKind.DATACENTER, pk, name, "building", has) for pk, name, has in rows[:LIMIT]]
    return Children(nodes, _total(nodes, LIMIT, seen))


def children(*, view: View, kind: TargetKind, target_id: UUID, actor: Actor, limit: int = LIMIT) -> Children:
    """What stands below a node in that view. One query, and a count where there are more than `limit`.

    A node that is not there, or has nothing below it in that view, has no children.
    """
    authorize(actor, VIEW)
    limit = max(1, min(limit, MOST))
    if kind == TargetKind.DATACENTER and view == View.VMS:
        return _vms(visible(VirtualMachine.objects.filter(host__cluster__datacenter=target_id), actor), limit)
    if kind == TargetKind.DATACENTER:
        return _clusters(visible(Cluster.objects.filter(datacenter=target_id), actor), limit)
    if kind == TargetKind.CLUSTER and view != View.VMS:
        return _hosts(view, visible(Host.objects.filter(cluster=target_id), actor), limit)
    if kind == TargetKind.HOST and view == View.HOSTS:
        return _vms(visible(VirtualMachine.objects.filter(host=target_id), actor), limit)
    if kind == TargetKind.HOST and view == View.STORAGE:
        return _datastores(visible(Datastore.objects.filter(host=target_id), actor), limit)
    return Children((), 0)


def vm_node(vm: VirtualMachine, has_encryption: bool) -> Node:
    words = vm.get_power_state_display().lower() if vm.is_present else "not on its host"
    return Node(
        kind=TargetKind.VIRTUAL_MACHINE,
        id=vm.pk,
        name=vm.name,
        icon="vm-on" if vm.power_state == PowerState.ON else "vm",
        has_children=False,
        words=f"{words}, encrypted" if has_encryption else words,
        is_encrypted=has_encryption,
        warns=not vm.is_present or vm.power_state == PowerState.CRASHED,
    )


def host_node(host: Host, has_children: bool, has_error: bool) -> Node:
    words = Host.State(host.state).label.lower()
    return Node(
        kind=TargetKind.HOST,
        id=host.pk,
        name=host.name,
        icon="host",
        has_children=has_children,
        words=f"{words}, has an alarm" if has_error else words,
        warns=host.state == Host.State.DISCONNECTED or has_error,
    )


def _clusters(rows: QuerySet[Cluster], limit: int) -> Children:
    listed = rows.annotate(has_children=Exists(Host.objects.filter(cluster=OuterRef("pk"))))
    nodes = [
        Node(TargetKind.CLUSTER, pk, name, "cluster", has)
        for pk, name, has in listed.values_list("pk", "name", "has_children")[:limit]
    ]
    return Children(nodes, _total(nodes, limit, rows))


def _hosts(view: View, rows: QuerySet[Host], limit: int) -> Children:
    below = Exists(
        Datastore.objects.filter(host=OuterRef("pk"))
        if view == View.STORAGE
        else VirtualMachine.objects.filter(host=OuterRef("pk"))
    )
    alarms = Alarm.objects.filter(
        target_kind=TargetKind.HOST, target_id=OuterRef("pk"), cleared_at=None, severity=Severity.ERROR
    )
    listed = rows.annotate(has_children=below, has_error=Exists(alarms))[:limit]
    nodes = [host_node(host, bool(vars(host)["has_children"]), bool(vars(host)["has_error"])) for host in listed]
    return Children(nodes, _total(nodes, limit, rows))


def _datastores(rows: QuerySet[Datastore], limit: int) -> Children:
    nodes = [
        Node(
            TargetKind.DATASTORE, row.pk, row.name, "storage", False,
            words="" if row.is_active else "inactive", warns=not row.is_active,
        )
        for row in rows[:limit]
    ]  # fmt: skip
    return Children(nodes, _total(nodes, limit, rows))


def _vms(rows: QuerySet[VirtualMachine], limit: int) -> Children:
    nodes = [vm_node(vm, is_encrypted(vm)) for vm in with_encryption(rows)[:limit]]
    return Children(nodes, _total(nodes, limit, rows))


def _total(
    nodes: Sequence[Node],
    limit: int,
    rows: QuerySet[Datacenter] | QuerySet[Cluster] | QuerySet[Host] | QuerySet[Datastore] | QuerySet[VirtualMachine],
) -> int:
    return len(nodes) if len(nodes) < limit else rows.count()
