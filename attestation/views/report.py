"""Monitor, Attestation of a host: verdict, findings, registers, boot log, history, evidence."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from attestation import forms
from attestation.services import enrolment, evidence, hosts, references, reports
from inventory.authorize import authorize, may
from inventory.models import TargetKind
from inventory.views import pages
from inventory.views.dialogs import confirm, form
from inventory.views.paging import asked_page, pager


@require_safe
def show(request: HttpRequest, host_id: UUID) -> HttpResponse:
    target = pages.load(TargetKind.HOST, host_id, request.user)
    chosen = request.GET.get("verdict", "")
    verdict_id = int(chosen) if chosen.isascii() and chosen.isdigit() and len(chosen) < 18 else None
    found = reports.report(host_id=host_id, actor=request.user, verdict_id=verdict_id)
    context = pages.context(target, request.user, tab="monitor", section="attestation:report") | {
        "report": found,
        "may_attest": may(request.user, hosts.ATTEST.name, target),
        "may_enrol": may(request.user, enrolment.ENROL, target),
        "may_edit": may(request.user, references.EDIT, target),
        "may_download": may(request.user, evidence.DOWNLOAD, target),
    }
    return render(request, "attestation/report.html", context)


@require_safe
def boot_log(request: HttpRequest, verdict_id: int) -> HttpResponse:
    verdict = references.verdict_of(verdict_id, actor=request.user)
    chosen = request.GET.get("pcr", "")
    pcr = int(chosen) if chosen.isascii() and chosen.isdigit() and len(chosen) < 3 else None
    found, pcrs = reports.boot_events(verdict_id=verdict_id, actor=request.user, pcr=pcr, paging=asked_page(request))
    context = pages.context(verdict.host, request.user, tab="monitor", section="attestation:report") | {
        "verdict": verdict, "lines": found.items, "pcrs": pcrs, "pcr": pcr, "page": pager(found),
        "query": "" if pcr is None else f"pcr={pcr}",
    }  # fmt: skip
    return render(request, "attestation/boot_log.html", context)


@require_safe
def download(request: HttpRequest, verdict_id: int) -> HttpResponse:
    archive = evidence.download(verdict_id=verdict_id, actor=request.user)
    headers = {"Content-Disposition": f'attachment; filename="{archive.name}"', "Cache-Control": "no-store, private"}
    return HttpResponse(archive.content, content_type="application/zip", headers=headers)


def attest(request: HttpRequest, host_id: UUID) -> HttpResponse:
    host = pages.load(TargetKind.HOST, host_id, request.user)
    authorize(request.user, hosts.ATTEST.name, host)
    back = page_of(host_id)

    def submit(_: dict[str, Any]) -> str:
        hosts.attest_host(host_id=host_id, actor=request.user)
        return back

    text = f"Ask the agent of {host} for a fresh quote now? Nothing is changed on the host."
    return confirm(request, submit, text, title="Attest host", button="Attest", back=back)


def trust_boot(request: HttpRequest, verdict_id: int) -> HttpResponse:
    verdict = references.verdict_of(verdict_id, actor=request.user)
    authorize(request.user, references.EDIT, verdict.host.cluster)
    back = page_of(verdict.host_id)

    def submit(data: dict[str, Any]) -> str:
        references.trust_boot(
            verdict_id=verdict_id, reason=data["reason"], actor=request.user, keeps_others=data["keeps_others"],
            with_files=data["with_files"],
        )  # fmt: skip
        return back

    text = (
        f"What {verdict.host} booted becomes what hosts of {verdict.host.cluster} must boot: its signers, components,"
        " command line and revocations. All hosts of the cluster are then attested anew."
    )
    return form(request, forms.TrustBootForm, submit, title="Trust this boot", button="Trust", text=text, back=back)


def accept(request: HttpRequest, verdict_id: int) -> HttpResponse:
    verdict = references.verdict_of(verdict_id, actor=request.user)
    authorize(request.user, references.EDIT, verdict.host.cluster)
    back = page_of(verdict.host_id)

    def shape(*args: Any, **kwargs: Any) -> forms.AcceptChangesForm:
        return forms.AcceptChangesForm(references.acceptable(verdict), *args, **kwargs)

    def submit(data: dict[str, Any]) -> str:
        chosen = [int(each) for each in data["events"]]
        references.accept_changes(
            verdict_id=verdict_id, events_accepted=chosen, reason=data["reason"], actor=request.user
        )
        return back

    text = f"What {verdict.host} loaded and nobody approved yet. Accepted changes hold for {verdict.host.cluster}."
    return form(request, shape, submit, title="Accept changes", button="Accept", text=text, back=back)


def page_of(host_id: UUID) -> str:
    return reverse("attestation:report", args=[host_id])
