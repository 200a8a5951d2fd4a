"""Lists below a data center, cluster or host: virtual machines and hosts."""

from urllib.parse import urlencode
from uuid import UUID

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from inventory.forms import VmFilterForm
from inventory.models import Host
from inventory.views import pages, reads

PAGE_SIZE = 50


@require_safe
def vms(request: HttpRequest, kind: str, target_id: UUID) -> HttpResponse:
    """Sorted, filtered and paged by the query; every state of the list has its own address."""
    target = pages.load(kind, target_id, request.user)
    form = VmFilterForm(request.GET)
    chosen = form.values()
    sort = request.GET.get("sort", "name")[:20]
    rows = reads.virtual_machines(target, text=chosen.pop("q"), sort=sort, **chosen)
    page = Paginator(rows, PAGE_SIZE).get_page(request.GET.get("page", "1"))
    filters = urlencode({name: value for name, value in form.values().items() if value})
    context = pages.context(target, request.user, tab="vms")
    context |= {"form": form, "page": page, "sort": sort, "filters": filters}
    return render(request, "inventory/object_vms.html", context)


@require_safe
def hosts(request: HttpRequest, kind: str, target_id: UUID) -> HttpResponse:
    target = pages.load(kind, target_id, request.user)
    above = "cluster" if kind == "cluster" else "cluster__datacenter"
    rows = Host.objects.filter(**{above: target.pk}).select_related("cluster")
    page = Paginator(rows, PAGE_SIZE).get_page(request.GET.get("page", "1"))
    return render(
        request, "inventory/object_hosts.html", pages.context(target, request.user, tab="hosts") | {"page": page}
    )
