"""Object pages: the root, and for each object its tabs Summary, Monitor and Configure, and its Actions menu."""

from typing import Final
from uuid import UUID

from django.db.models import Count, Q, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from inventory.authorize import VIEW, Actor, may, visible
from inventory.models import Cluster, Datacenter, Datastore, Host, PowerState, TargetKind, VirtualMachine
from inventory.services import listings
from inventory.services.alarms import ACKNOWLEDGE
from inventory.views import activity, extensions, pages

_ABOVE_VM: Final = {
    TargetKind.DATACENTER: "host__cluster__datacenter",
    TargetKind.CLUSTER: "host__cluster",
    TargetKind.HOST: "host",
}


@require_safe
def root(request: HttpRequest) -> HttpResponse:
    """All data centers, with what is in them; for somebody without any role, how to get one."""
    if not may(request.user, VIEW):
        return render(request, "inventory/root_summary.html", {"node": "", "has_no_role": True})
    context = {
        "datacenters": listings.datacenters(actor=request.user, paging=listings.Paging(1, 200)).items,
        "node": "",
        "totals": _totals(visible(VirtualMachine.objects.all(), request.user)),
    }
    return render(request, "inventory/root_summary.html", context)


@require_safe
def summary(request: HttpRequest, kind: str, target_id: UUID) -> HttpResponse:
    """Of a data center of which one may look at single clusters only: these, and what is in them."""
    target = pages.load(kind, target_id, request.user, as_way=True)
    context = pages.context(target, request.user, tab="summary")
    context["cards"] = extensions.card_urls(TargetKind(kind), target_id) if may(request.user, VIEW, target) else []
    if isinstance(target, VirtualMachine):
        context["disks"] = target.disks.all()[:64]
    elif isinstance(target, Datastore):
        context["used_bytes"] = target.capacity_bytes - target.available_bytes
    else:
        vms = VirtualMachine.objects.filter(**{_ABOVE_VM[TargetKind(kind)]: target})
        context["totals"] = _totals(visible(vms, request.user))
        context |= _below(target, request.user)
    return render(request, f"inventory/{kind}_summary.html", context)


def _totals(vms: QuerySet[VirtualMachine]) -> dict[str, object]:
    """Counts of the VMs in one query, and `counts` of the apps above."""
    totals: dict[str, object] = vms.aggregate(
        total=Count("pk"),
        running=Count("pk", filter=Q(power_state=PowerState.ON)),
        off=Count("pk", filter=Q(power_state=PowerState.OFF)),
        tpm=Count("pk", filter=~Q(tpm_model="")),
        uefi=Count("pk", filter=Q(firmware="uefi")),
    )
    return totals | {"counts": extensions.counts(vms)}


def _below(target: pages.Place, actor: Actor) -> dict[str, object]:
    if isinstance(target, Host):
        return {"datastores": target.datastores.all()[:50]}
    if isinstance(target, Cluster):
        hosts = Host.objects.filter(cluster=target)
    else:
        hosts = visible(Host.objects.filter(cluster__datacenter_id=target.pk), actor)
    sums = hosts.aggregate(
        cpus=Sum("cpu_count"), memory=Sum("memory_bytes"), free=Sum("memory_free_bytes"), count=Count("pk")
    )
    clusters = visible(target.clusters.all(), actor)[:50] if isinstance(target, Datacenter) else []
    return {"hosts": hosts[:50], "capacity": sums, "clusters": clusters}


@require_safe
def monitor(request: HttpRequest, kind: str, target_id: UUID) -> HttpResponse:
    """Jobs, events and alarms of the object, each paged; `show` chooses which."""
    target = pages.load(kind, target_id, request.user)
    show = request.GET.get("show", "")
    show = show if show in activity.LISTS else "tasks"
    rows = activity.LISTS[show](TargetKind(kind), target_id, request.GET.get("page", "1"))
    context = pages.context(target, request.user, tab="monitor") | {"show": show, "rows": rows}
    if show == "alarms":
        context["may_acknowledge"] = may(request.user, ACKNOWLEDGE, target)
    return render(request, "inventory/object_monitor.html", context)


@require_safe
def configure(request: HttpRequest, kind: str, target_id: UUID) -> HttpResponse:
    target = pages.load(kind, target_id, request.user)
    context = pages.context(target, request.user, tab="configure", section="inventory:configure")
    return render(request, "inventory/object_configure.html", context)


@require_safe
def menu(request: HttpRequest, kind: str, target_id: UUID) -> HttpResponse:
    """The Actions entries alone, for the tree's context menu; a page of them without scripts."""
    target = pages.load(kind, target_id, request.user, as_way=True)
    context = pages.context(target, request.user, tab="")
    fragment = request.headers.get("HX-Target") == "context-menu"
    return render(request, "inventory/_menu.html" if fragment else "inventory/object_actions.html", context)
