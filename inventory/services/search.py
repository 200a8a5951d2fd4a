"""Finding virtual machines by filters, and any object by name. A constant number of queries, whatever the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db.models import Exists, OuterRef, Q, QuerySet

from inventory.authorize import VIEW, Actor, authorize, visible
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

PAGE_SIZE: Final = 50
MOST_PAGE_SIZE: Final = 500
MOST_TEXT: Final = 200
EACH_KIND: Final = 12

SORTS: Final = {
    "name": "name",
    "power": "power_state",
    "host": "host__name",
    "firmware": "firmware",
    "vcpus": "vcpus",
    "memory": "memory_bytes",
}


@dataclass(frozen=True, slots=True)
class VmFilter:
    """What to look for. `text`: part of the name in any case, or a whole UUID. None and empty: any."""

    text: str = ""
    power: PowerState | None = None
    firmware: Firmware | None = None
    is_encrypted: bool | None = None
    is_present: bool | None = None
    host_id: UUID | None = None
    cluster_id: UUID | None = None
    datacenter_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class FoundVm:
    """A row with its host loaded, and whether any disk, the NVRAM or the vTPM state is encrypted."""

    vm: VirtualMachine
    is_encrypted: bool


@dataclass(frozen=True, slots=True)
class Page:
    """`number` counts from 1; `pages` is at least 1."""

    items: Sequence[FoundVm]
    total: int
    number: int
    pages: int


@dataclass(frozen=True, slots=True)
class Hit:
    """An object that the search box found; `detail` tells where it is."""

    kind: TargetKind
    id: UUID
    name: str
    detail: str


def virtual_machines(
    *, actor: Actor, wanted: VmFilter, sort: str = "name", page: int = 1, page_size: int = PAGE_SIZE
) -> Page:
    """One page of the virtual machines that fit; two queries. `sort`: a key of SORTS, with "-" before it downwards.

    A page beyond the last gives the last. NOT checked: sort and page size; what is offered, page and API see to.
    """
    authorize(actor, VIEW)
    column = SORTS[sort.removeprefix("-")]
    rows = visible(_filtered(wanted), actor)
    total = rows.count()
    pages = max(1, -(-total // page_size))
    number = min(max(1, page), pages)
    ordered = with_encryption(rows).select_related("host__cluster__datacenter")
    ordered = ordered.order_by(f"-{column}" if sort.startswith("-") else column, "name", "pk")
    first = (number - 1) * page_size
    items = tuple(FoundVm(vm, is_encrypted(vm)) for vm in ordered[first : first + page_size])
    return Page(items, total, number, pages)


def search(*, actor: Actor, text: str, limit: int = EACH_KIND) -> tuple[Hit, ...]:
    """Objects of any kind by part of their name, virtual machines and hosts also by whole UUID; five queries.

    At most `limit` of each kind. An empty text finds nothing.
    """
    authorize(actor, VIEW)
    text = text.strip()[:MOST_TEXT]
    if not text:
        return ()
    limit = max(1, min(limit, 50))
    named = Q(name__icontains=text)
    uuid = _uuid(text)
    vms = VirtualMachine.objects.filter(named if uuid is None else named | Q(uuid=uuid) | Q(pk=uuid))
    vms = visible(vms, actor)
    hosts = Host.objects.filter(named | Q(hostname__icontains=text) if uuid is None else named | Q(host_uuid=uuid))
    hosts = visible(hosts, actor)
    clusters = visible(Cluster.objects.filter(named), actor)
    datastores = visible(Datastore.objects.filter(named), actor)
    hits = [
        Hit(TargetKind.VIRTUAL_MACHINE, pk, name, host)
        for pk, name, host in vms.values_list("pk", "name", "host__name")[:limit]
    ]
    hits += [
        Hit(TargetKind.HOST, pk, name, cluster)
        for pk, name, cluster in hosts.values_list("pk", "name", "cluster__name")[:limit]
    ]
    hits += [
        Hit(TargetKind.CLUSTER, pk, name, datacenter)
        for pk, name, datacenter in clusters.values_list("pk", "name", "datacenter__name")[:limit]
    ]
    hits += [
        Hit(TargetKind.DATASTORE, pk, name, host)
        for pk, name, host in datastores.values_list("pk", "name", "host__name")[:limit]
    ]
    datacenters = visible(Datacenter.objects.filter(named), actor).values_list("pk", "name")[:limit]
    hits += [Hit(TargetKind.DATACENTER, pk, name, "") for pk, name in datacenters]
    return tuple(hits)


def with_encryption(rows: QuerySet[VirtualMachine]) -> QuerySet[VirtualMachine]:
    """Adds what `is_encrypted` reads, in the same query."""
    return rows.annotate(has_encryption=_ENCRYPTED)


def is_encrypted(vm: VirtualMachine) -> bool:
    """Whether any disk, the NVRAM or the vTPM state is encrypted; `vm` comes from `with_encryption`."""
    return bool(vars(vm)["has_encryption"])


_ENCRYPTED: Final = (
    Q(is_nvram_encrypted=True)
    | Q(is_tpm_encrypted=True)
    | Exists(Disk.objects.filter(virtual_machine=OuterRef("pk"), is_encrypted=True))
)


def _filtered(wanted: VmFilter) -> QuerySet[VirtualMachine]:
    rows = VirtualMachine.objects.all()
    text = wanted.text.strip()[:MOST_TEXT]
    if text:
        uuid = _uuid(text)
        named = Q(name__icontains=text)
        rows = rows.filter(named if uuid is None else named | Q(uuid=uuid) | Q(pk=uuid))
    if wanted.power is not None:
        rows = rows.filter(power_state=wanted.power)
    if wanted.firmware is not None:
        rows = rows.filter(firmware=wanted.firmware)
    if wanted.is_present is not None:
        rows = rows.filter(is_present=wanted.is_present)
    if wanted.is_encrypted is not None:
        rows = rows.filter(_ENCRYPTED) if wanted.is_encrypted else rows.exclude(_ENCRYPTED)
    if wanted.host_id is not None:
        rows = rows.filter(host=wanted.host_id)
    if wanted.cluster_id is not None:
        rows = rows.filter(host__cluster=wanted.cluster_id)
    if wanted.datacenter_id is not None:
        rows = rows.filter(host__cluster__datacenter=wanted.datacenter_id)
    return rows


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
