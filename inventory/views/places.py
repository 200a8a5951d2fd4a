"""Data centers, clusters and hosts: add, rename, edit, remove."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_POST

from inventory import forms
from inventory.authorize import authorize
from inventory.models import Host, TargetKind
from inventory.services import hosts, places
from inventory.views import pages
from inventory.views.dialogs import dialog, done

_DATACENTER, _CLUSTER, _HOST = TargetKind.DATACENTER, TargetKind.CLUSTER, TargetKind.HOST


def _page(kind: TargetKind, target_id: UUID) -> str:
    return reverse("inventory:summary", args=[kind, target_id])


def add_datacenter(request: HttpRequest) -> HttpResponse:
    authorize(request.user, places.ADD_DATACENTER)

    def submit(data: dict[str, Any]) -> str:
        return _page(_DATACENTER, places.add_datacenter(name=data["name"], actor=request.user).pk)

    return dialog(
        request,
        template="dialog.html",
        form=forms.DatacenterForm,
        submit=submit,
        context={"title": "New data center", "button": "Create", "back": reverse("inventory:root")},
    )


def add_cluster(request: HttpRequest, datacenter_id: UUID) -> HttpResponse:
    datacenter = pages.load(_DATACENTER, datacenter_id, request.user)
    authorize(request.user, places.ADD_CLUSTER, datacenter)

    def submit(data: dict[str, Any]) -> str:
        cluster = places.add_cluster(datacenter_id=datacenter_id, name=data["name"], actor=request.user)
        return _page(_CLUSTER, cluster.pk)

    return dialog(
        request,
        template="dialog.html",
        form=forms.ClusterForm,
        submit=submit,
        context={
            "title": f"New cluster in {datacenter.name}",
            "button": "Create",
            "back": _page(_DATACENTER, datacenter_id),
        },
    )


def rename(request: HttpRequest, kind: str, target_id: UUID) -> HttpResponse:
    place_kind = TargetKind(kind)
    place = pages.load(place_kind, target_id, request.user)
    authorize(request.user, places.EDIT, place)

    def submit(data: dict[str, Any]) -> str:
        if place_kind == _DATACENTER:
            places.rename_datacenter(datacenter_id=target_id, name=data["name"], actor=request.user)
        else:
            places.rename_cluster(cluster_id=target_id, name=data["name"], actor=request.user)
        return _page(place_kind, target_id)

    return dialog(
        request,
        template="dialog.html",
        form=forms.DatacenterForm if place_kind == _DATACENTER else forms.ClusterForm,
        submit=submit,
        initial={"name": place.name},
        context={"title": f"Rename {place.name}", "button": "Rename", "back": _page(place_kind, target_id)},
    )


def remove(request: HttpRequest, kind: str, target_id: UUID) -> HttpResponse:
    """Asks, then removes a data center, a cluster or a host from the inventory; nothing on a host changes."""
    place_kind = TargetKind(kind)
    place = pages.load(place_kind, target_id, request.user)
    authorize(request.user, hosts.REMOVE if place_kind == _HOST else places.REMOVE, place)
    steps = pages.path_of(place)
    above = steps[-2].url if len(steps) > 1 else reverse("inventory:root")

    def submit(data: dict[str, Any]) -> str:
        if place_kind == _DATACENTER:
            places.remove_datacenter(datacenter_id=target_id, actor=request.user)
        elif place_kind == _CLUSTER:
            places.remove_cluster(cluster_id=target_id, actor=request.user)
        else:
            hosts.remove_host(host_id=target_id, actor=request.user)
        return above

    return dialog(
        request,
        template="inventory/place_remove.html",
        form=forms.ConfirmForm,
        submit=submit,
        context={
            "title": f"Remove {place.name}",
            "kind": place_kind,
            "place": place,
            "back": _page(place_kind, target_id),
        },
    )


def add_host(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    cluster = pages.load(_CLUSTER, cluster_id, request.user)
    authorize(request.user, hosts.ADD, cluster)

    def submit(data: dict[str, Any]) -> str:
        job = hosts.add_host(cluster_id=cluster_id, actor=request.user, **data)
        return _page(_HOST, job.target_id)

    return dialog(
        request,
        template="inventory/host_form.html",
        form=forms.HostForm,
        submit=submit,
        context={
            "title": f"Add host to {cluster.name}",
            "button": "Add host",
            "back": _page(_CLUSTER, cluster_id),
        },
    )


def edit_host(request: HttpRequest, host_id: UUID) -> HttpResponse:
    host = pages.load(_HOST, host_id, request.user)
    authorize(request.user, hosts.EDIT, host)
    if not isinstance(host, Host):
        raise TypeError(type(host).__name__)

    def submit(data: dict[str, Any]) -> str:
        hosts.edit_host(host_id=host_id, actor=request.user, **data)
        return _page(_HOST, host_id)

    return dialog(
        request,
        template="inventory/host_form.html",
        form=forms.HostForm,
        submit=submit,
        initial={
            "name": host.name,
            "uri": host.uri,
            "migration_uri": host.migration_uri,
            "vtpm_state_path": host.vtpm_state_path,
        },
        context={
            "title": f"Edit connection of {host.name}",
            "button": "Save and connect",
            "back": _page(_HOST, host_id),
        },
    )


@require_POST
def refresh_host(request: HttpRequest, host_id: UUID) -> HttpResponse:
    hosts.refresh_host(host_id=host_id, actor=request.user)
    return done(request, _page(_HOST, host_id))
