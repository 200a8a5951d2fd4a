"""Lists below a data center, cluster or host: virtual machines and hosts."""

from urllib.parse import urlencode
from uuid import UUID

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from inventory.authorize import visible
from inventory.forms import VmFilterForm
from inventory.models import Firmware, Host, PowerState, TargetKind
from inventory.services import search
from inventory.views import extensions, pages
from inventory.views.paging import asked_page


@require_safe
def vms(request: HttpRequest, kind: str, target_id: UUID) -> HttpResponse:
    """Sorted, filtered and paged by the query; every state of the list has its own address."""
    target = pages.load(kind, target_id, request.user)
    form = VmFilterForm(request.GET)
    chosen = form.values()
    sort = request.GET.get("sort", "")
    sort = sort if sort.removeprefix("-") in search.SORTS else "name"
    found = search.virtual_machines(
        actor=request.user,
        wanted=_filter(kind, target_id, chosen),
        sort=sort,
        page=asked_page(request).number,
    )
    filters = urlencode({name: value for name, value in chosen.items() if value})
    page = Paginator(range(found.total), search.PAGE_SIZE).page(found.number)
    context = pages.context(target, request.user, tab="vms")
    badges = extensions.list_badges(TargetKind.VIRTUAL_MACHINE, [row.vm.pk for row in found.items])
    rows = [(row, badges.get(row.vm.pk, ())) for row in found.items]
    context |= {"form": form, "rows": rows, "page": page, "sort": sort, "filters": filters}
    context["list_actions"] = extensions.list_actions(TargetKind.VIRTUAL_MACHINE, request.user)
    return render(request, "inventory/object_vms.html", context)


def _filter(kind: str, target_id: UUID, chosen: dict[str, str]) -> search.VmFilter:
    return search.VmFilter(
        text=chosen["q"],
        power=PowerState(chosen["power"]) if chosen["power"] else None,
        firmware=Firmware(chosen["firmware"]) if chosen["firmware"] else None,
        is_encrypted={"yes": True, "no": False}.get(chosen["encrypted"]),
        host_id=target_id if kind == "host" else None,
        cluster_id=target_id if kind == "cluster" else None,
        datacenter_id=target_id if kind == "datacenter" else None,
    )


@require_safe
def hosts(request: HttpRequest, kind: str, target_id: UUID) -> HttpResponse:
    target = pages.load(kind, target_id, request.user)
    above = "cluster" if kind == "cluster" else "cluster__datacenter"
    rows = visible(Host.objects.filter(**{above: target.pk}), request.user).select_related("cluster")
    page = Paginator(rows, search.PAGE_SIZE).get_page(request.GET.get("page", "1"))
    badges = extensions.list_badges(TargetKind.HOST, [row.pk for row in page])
    context = pages.context(target, request.user, tab="hosts") | {
        "page": page,
        "lines": [(row, badges.get(row.pk, [])) for row in page],
    }
    return render(request, "inventory/object_hosts.html", context)
