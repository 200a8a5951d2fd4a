"""Routes of hosts' attestation: where they stand, verdicts, evidence, enrolment."""

from typing import Annotated, Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from ninja import Query, Router
from pydantic import Field

from attestation.api.schemas import (
    AcceptIn,
    BootEventOut,
    BootEventPage,
    EnrolIn,
    HostReportOut,
    HostSecurityOut,
    HostSecurityPage,
    ReasonIn,
    ReferenceOut,
    TpmOut,
    TrustBootIn,
    VerdictOut,
    VerdictPage,
)
from attestation.services import enrolment, evidence, hosts, references, reports
from inventory.api.frame import PageQuery, actor_of, page_of
from inventory.api.schemas import JobOut

router = Router(tags=["Attestation"])
PcrNumber = Annotated[int, Field(ge=0, le=23)]


@router.get("/attestation/hosts", response=HostSecurityPage)
def list_host_security(
    request: HttpRequest, page: Query[PageQuery], cluster_id: UUID | None = None, datacenter_id: UUID | None = None
) -> dict[str, Any]:
    """Every host with its verdict, by name."""
    actor, paging = actor_of(request), page.paging()
    if cluster_id is not None:
        found = reports.hosts_of_cluster(cluster_id=cluster_id, actor=actor, paging=paging)
    elif datacenter_id is not None:
        found = reports.hosts_of_datacenter(datacenter_id=datacenter_id, actor=actor, paging=paging)
    else:
        found = reports.all_hosts(actor=actor, paging=paging)
    return page_of(found, lambda host: HostSecurityOut.of(reports.line_of(host)))


@router.get("/hosts/{uuid:host_id}/attestation", response=HostReportOut)
def get_attestation(request: HttpRequest, host_id: UUID) -> HostReportOut:
    """The host's report: present state, last verdict on evidence, registers."""
    return HostReportOut.of(reports.report(host_id=host_id, actor=actor_of(request)))


@router.post("/hosts/{uuid:host_id}/attest", response={202: JobOut})
def attest_host(request: HttpRequest, host_id: UUID) -> JobOut:
    """A worker asks the host's agent for a fresh quote. The job fails where the host does."""
    return JobOut.of(hosts.attest_host(host_id=host_id, actor=actor_of(request)))


@router.get("/hosts/{uuid:host_id}/verdicts", response=VerdictPage)
def list_verdicts(request: HttpRequest, host_id: UUID, page: Query[PageQuery]) -> dict[str, Any]:
    """Newest first."""
    found = reports.verdicts(host_id=host_id, actor=actor_of(request), paging=page.paging())
    return page_of(found, VerdictOut.of)


@router.get("/verdicts/{int:verdict_id}/boot-log", response=BootEventPage)
def get_boot_log(
    request: HttpRequest, verdict_id: int, page: Query[PageQuery], pcr: PcrNumber | None = None
) -> dict[str, Any]:
    """The boot log's events, decoded, in their order."""
    found, _ = reports.boot_events(verdict_id=verdict_id, actor=actor_of(request), pcr=pcr, paging=page.paging())
    return page_of(found, BootEventOut.of)


@router.get("/verdicts/{int:verdict_id}/evidence")
def download_evidence(request: HttpRequest, verdict_id: int) -> HttpResponse:
    """A ZIP archive with what the host sent, to be checked by anybody. The download is recorded."""
    archive = evidence.download(verdict_id=verdict_id, actor=actor_of(request))
    headers = {"Content-Disposition": f'attachment; filename="{archive.name}"', "Cache-Control": "no-store, private"}
    return HttpResponse(archive.content, content_type="application/zip", headers=headers)


@router.post("/verdicts/{int:verdict_id}/trust", response={201: ReferenceOut})
def trust_boot(request: HttpRequest, verdict_id: int, wanted: TrustBootIn) -> ReferenceOut:
    """Makes reference values for the host's cluster from the boot that this verdict's evidence proves."""
    made = references.trust_boot(
        verdict_id=verdict_id, reason=wanted.reason, actor=actor_of(request), keeps_others=wanted.keeps_others,
        with_files=wanted.with_files,
    )  # fmt: skip
    return ReferenceOut.of(made)


@router.post("/verdicts/{int:verdict_id}/accept", response={201: ReferenceOut})
def accept_changes(request: HttpRequest, verdict_id: int, wanted: AcceptIn) -> ReferenceOut:
    """Accepts changes that this verdict's findings name, after an update of packages for example."""
    made = references.accept_changes(
        verdict_id=verdict_id, events_accepted=wanted.events, reason=wanted.reason, actor=actor_of(request)
    )
    return ReferenceOut.of(made)


@router.post("/hosts/{uuid:host_id}/tpm", response={201: TpmOut})
def enrol_tpm(request: HttpRequest, host_id: UUID, wanted: EnrolIn) -> TpmOut:
    """Ties a TPM that has answered its challenge to the host, and has it attested."""
    made = enrolment.enrol_host(
        host_id=host_id, registration_id=wanted.registration_id, actor=actor_of(request), reason=wanted.reason,
        contact_host=wanted.contact_host,
    )  # fmt: skip
    return TpmOut.of(made)


@router.put("/hosts/{uuid:host_id}/tpm", response=TpmOut)
def accept_new_tpm(request: HttpRequest, host_id: UUID, wanted: EnrolIn) -> TpmOut:
    """The host has another TPM, and somebody knows why. The reason is needed."""
    made = enrolment.accept_new_tpm(
        host_id=host_id, registration_id=wanted.registration_id, reason=wanted.reason, actor=actor_of(request),
        contact_host=wanted.contact_host,
    )  # fmt: skip
    return TpmOut.of(made)


@router.post("/hosts/{uuid:host_id}/tpm/remove", response={204: None})
def remove_tpm(request: HttpRequest, host_id: UUID, wanted: ReasonIn) -> None:
    """The host is attested no longer."""
    enrolment.remove_identity(host_id=host_id, reason=wanted.reason, actor=actor_of(request))
