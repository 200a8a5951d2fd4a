"""Monitor, Security of data centers and clusters: every host with its verdict; and the badges of hosts."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from attestation.models import VerdictStatus
from attestation.services import reports
from inventory.models import Host, TargetKind
from inventory.services.listings import Listing
from inventory.views import pages
from inventory.views.extensions import Badge
from inventory.views.paging import asked_page, pager

BADGES = {
    VerdictStatus.PASSED: ("label-success", "shield-check", "Attested"),
    VerdictStatus.WARNING: ("label-warning", "shield-check", "Attested with warnings"),
    VerdictStatus.FAILED: ("label-danger", "shield-x", "Attestation failed"),
    VerdictStatus.UNREACHABLE: ("label-warning", "unknown-status", "Attestation not reachable"),
    VerdictStatus.PENDING: ("label-info", "hourglass", "Attestation pending"),
}


def badges(target: Model) -> Sequence[Badge]:
    return list_badges([target.pk]).get(target.pk, []) if isinstance(target, Host) else []


def list_badges(ids: Sequence[UUID]) -> Mapping[UUID, Sequence[Badge]]:
    """Nothing for hosts without an enrolled TPM."""
    return {host_id: [BADGES[status]] for host_id, status in reports.statuses_of(ids).items() if status in BADGES}


@require_safe
def of_datacenter(request: HttpRequest, datacenter_id: UUID) -> HttpResponse:
    target = pages.load(TargetKind.DATACENTER, datacenter_id, request.user)
    rows = reports.hosts_of_datacenter(datacenter_id=datacenter_id, actor=request.user, paging=asked_page(request))
    return _page(request, target, rows, "attestation:datacenter-security")


@require_safe
def of_cluster(request: HttpRequest, cluster_id: UUID) -> HttpResponse:
    target = pages.load(TargetKind.CLUSTER, cluster_id, request.user)
    rows = reports.hosts_of_cluster(cluster_id=cluster_id, actor=request.user, paging=asked_page(request))
    return _page(request, target, rows, "attestation:cluster-security")


def _page(request: HttpRequest, target: pages.Place, rows: Listing[Host], section: str) -> HttpResponse:
    context = pages.context(target, request.user, tab="monitor", section=section) | {
        "rows": rows,
        "lines": [reports.line_of(host) for host in rows.items],
        "page": pager(rows),
    }
    return render(request, "attestation/security.html", context)
