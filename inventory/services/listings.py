"""Lists of places, hosts and datastores, and single objects by id. A constant number of queries each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from uuid import UUID

from django.db.models import Count, Model, Q, QuerySet

from inventory.authorize import VIEW, VIEW_ALL, Actor, authorize, may, visible
from inventory.errors import NotFound
from inventory.models import Cluster, Datacenter, Datastore, Host, VirtualMachine
from inventory.services.search import PAGE_SIZE, is_encrypted, with_encryption

Row = TypeVar("Row", bound=Model)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Paging:
    """Which page, counted from 1, and how many rows a page has, 1 to 500."""

    number: int = 1
    size: int = PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Listing(Generic[Item]):
    """One page of rows. `number` is the page that was given: the last one where a later one was asked for."""

    items: Sequence[Item]
    total: int
    number: int
    pages: int


FIRST: Final = Paging()


def listed(rows: QuerySet[Row], paging: Paging) -> Listing[Row]:
    """Two queries."""
    total = rows.order_by().count()
    number, pages, part = _part(total, paging)
    return Listing(list(rows[part]), total, number, pages)


def cut(items: Sequence[Item], paging: Paging) -> Listing[Item]:
    """A page of what is at hand already."""
    number, pages, part = _part(len(items), paging)
    return Listing(items[part], len(items), number, pages)


def _part(total: int, paging: Paging) -> tuple[int, int, slice]:
    pages = max(1, -(-total // paging.size))
    number = min(max(1, paging.number), pages)
    return number, pages, slice((number - 1) * paging.size, number * paging.size)


def datacenters(*, actor: Actor, paging: Paging = FIRST) -> Listing[Datacenter]:
    """By name, with `cluster_count` and `host_count`."""
    authorize(actor, VIEW)
    return listed(_datacenters(actor), paging)


def datacenter(*, datacenter_id: UUID, actor: Actor) -> Datacenter:
    """Also as the way to a cluster that the actor may look at, as `datacenters` lists it."""
    authorize(actor, VIEW)
    return _found(_datacenters(actor).filter(pk=datacenter_id).first(), "datacenter", "data center", datacenter_id)


def clusters(*, actor: Actor, datacenter_id: UUID | None = None, paging: Paging = FIRST) -> Listing[Cluster]:
    """By name, with `host_count`."""
    authorize(actor, VIEW)
    rows = visible(_clusters(), actor)
    return listed(rows if datacenter_id is None else rows.filter(datacenter=datacenter_id), paging)


def cluster(*, cluster_id: UUID, actor: Actor) -> Cluster:
    found = _found(_clusters().filter(pk=cluster_id).first(), "cluster", "cluster", cluster_id)
    authorize(actor, VIEW, found)
    return found


def hosts(
    *,
    actor: Actor,
    datacenter_id: UUID | None = None,
    cluster_id: UUID | None = None,
    state: str = "",
    paging: Paging = FIRST,
) -> Listing[Host]:
    """By name, with the places above."""
    authorize(actor, VIEW)
    rows = visible(Host.objects.select_related("cluster__datacenter"), actor)
    if datacenter_id is not None:
        rows = rows.filter(cluster__datacenter=datacenter_id)
    if cluster_id is not None:
        rows = rows.filter(cluster=cluster_id)
    return listed(rows.filter(state=state) if state else rows, paging)


def host(*, host_id: UUID, actor: Actor) -> Host:
    found = _found(
        Host.objects.select_related("cluster__datacenter").filter(pk=host_id).first(), "host", "host", host_id
    )
    authorize(actor, VIEW, found)
    return found


def datastores(*, actor: Actor, host_id: UUID | None = None, paging: Paging = FIRST) -> Listing[Datastore]:
    """By name, with the host."""
    authorize(actor, VIEW)
    rows = visible(Datastore.objects.select_related("host").order_by("name", "id"), actor)
    return listed(rows if host_id is None else rows.filter(host=host_id), paging)


def datastore(*, datastore_id: UUID, actor: Actor) -> Datastore:
    rows = Datastore.objects.select_related("host__cluster")
    found = _found(rows.filter(pk=datastore_id).first(), "datastore", "datastore", datastore_id)
    authorize(actor, VIEW, found)
    return found


@dataclass(frozen=True, slots=True)
class VmDetails:
    """A VM with the places above and its disks, and whether any part of it is encrypted."""

    vm: VirtualMachine
    is_encrypted: bool


def virtual_machine(*, vm_id: UUID, actor: Actor) -> VmDetails:
    """Two queries."""
    rows = with_encryption(VirtualMachine.objects.filter(pk=vm_id))
    rows = rows.select_related("host__cluster__datacenter").prefetch_related("disks")
    found = _found(rows.first(), "vm", "virtual machine", vm_id)
    authorize(actor, VIEW, found)
    return VmDetails(found, is_encrypted(found))


def _datacenters(actor: Actor) -> QuerySet[Datacenter]:
    """Ordered by name in so many words: a query that groups leaves the model's own ordering out.

    What the actor may not see is not counted.
    """
    seen = None if may(actor, VIEW_ALL) else Q(clusters__in=visible(Cluster.objects.all(), actor).values("pk"))
    return visible(Datacenter.objects.all(), actor).annotate(
        cluster_count=Count("clusters", distinct=True, filter=seen),
        host_count=Count("clusters__hosts", distinct=True, filter=seen),
    ).order_by("name")  # fmt: skip


def _clusters() -> QuerySet[Cluster]:
    return Cluster.objects.select_related("datacenter").annotate(host_count=Count("hosts")).order_by("name", "id")


def _found(row: Row | None, code: str, what: str, row_id: UUID) -> Row:
    if row is None:
        raise NotFound(f"{code}_not_found", f"there is no {what} {row_id}", hint="it may have been removed")
    return row
