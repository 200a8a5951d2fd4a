"""Routes of the appliance: the syslog targets."""

from datetime import datetime
from typing import Annotated, Literal, Self, cast
from uuid import UUID

from django.http import HttpRequest
from ninja import Router, Schema
from pydantic import Field

from console.appliance.services import syslog_targets
from console.appliance.services.syslog_targets import TargetStatus
from encryption.api.schemas import CertificateOut, ClientIdentityIn
from encryption.services.certificates import MAX_PEM_CHARACTERS
from inventory.api.frame import Input, actor_of
from inventory.api.schemas import JobOut

router = Router(tags=["Appliance"])

SyslogState = Literal["unknown", "up", "down"]


class SyslogTargetOut(Schema):
    """A log collector that gets every event. `backlog`: events that were not written to it yet.

    `state` is unknown before the first connection, for UDP as long as nothing was heard against it, and while the
    forwarder does not run (`is_followed`). `test_result` is what became of the last test message.
    """

    id: UUID
    host: str
    port: int
    protocol: str
    includes_logs: bool
    state: SyslogState
    state_since: datetime
    state_code: str
    state_reason: str
    is_followed: bool
    backlog: int
    last_sent_at: datetime | None
    tested_at: datetime | None
    test_succeeded: bool | None
    test_result: str
    trusted: list[CertificateOut]
    client_certificate: list[CertificateOut]

    @classmethod
    def of(cls, found: TargetStatus) -> Self:
        row = found.row
        return cls(
            id=row.pk,
            host=row.host,
            port=row.port,
            protocol=row.protocol,
            includes_logs=row.includes_logs,
            state=cast(SyslogState, found.state.value),
            state_since=row.state_since,
            state_code=row.state_code,
            state_reason=row.state_reason,
            is_followed=found.is_followed,
            backlog=found.backlog,
            last_sent_at=row.last_sent_at,
            tested_at=row.tested_at,
            test_succeeded=row.test_succeeded,
            test_result=row.test_result,
            trusted=[CertificateOut.of(one) for one in found.trusted],
            client_certificate=[CertificateOut.of(one) for one in found.client],
        )


class SyslogTargetIn(Input):
    """`protocol`: udp, tcp or tls. `trusted_pem`: for TLS, the CA or the collector's own certificate; left out:
    whom the system trusts."""

    host: Annotated[str, Field(max_length=253)]
    port: int = 6514
    protocol: Annotated[str, Field(max_length=20)] = "tls"
    includes_logs: bool = False
    trusted_pem: Annotated[str, Field(max_length=MAX_PEM_CHARACTERS)] = ""


@router.get("/syslog-targets", response=list[SyslogTargetOut])
def list_syslog_targets(request: HttpRequest) -> list[SyslogTargetOut]:
    """Three at most."""
    return [SyslogTargetOut.of(one) for one in syslog_targets.targets(actor=actor_of(request))]


@router.post("/syslog-targets", response={201: SyslogTargetOut})
def add_syslog_target(request: HttpRequest, wanted: SyslogTargetIn) -> SyslogTargetOut:
    """It gets every event from now on. A fourth is refused (`syslog_targets_full`)."""
    actor = actor_of(request)
    added = syslog_targets.add_target(actor=actor, **wanted.dict())
    return SyslogTargetOut.of(syslog_targets.status(added.pk, actor=actor))


@router.get("/syslog-targets/{uuid:syslog_target_id}", response=SyslogTargetOut)
def get_syslog_target(request: HttpRequest, syslog_target_id: UUID) -> SyslogTargetOut:
    return SyslogTargetOut.of(syslog_targets.status(syslog_target_id, actor=actor_of(request)))


@router.put("/syslog-targets/{uuid:syslog_target_id}", response=SyslogTargetOut)
def edit_syslog_target(request: HttpRequest, syslog_target_id: UUID, wanted: SyslogTargetIn) -> SyslogTargetOut:
    """It goes on with the event where it stood."""
    actor = actor_of(request)
    syslog_targets.edit_target(target_id=syslog_target_id, actor=actor, **wanted.dict())
    return SyslogTargetOut.of(syslog_targets.status(syslog_target_id, actor=actor))


@router.delete("/syslog-targets/{uuid:syslog_target_id}", response={204: None})
def remove_syslog_target(request: HttpRequest, syslog_target_id: UUID) -> None:
    """It gets nothing more, and what waits for it is not sent."""
    syslog_targets.remove_target(target_id=syslog_target_id, actor=actor_of(request))


@router.post("/syslog-targets/{uuid:syslog_target_id}/test", response={202: JobOut})
def send_syslog_test(request: HttpRequest, syslog_target_id: UUID) -> JobOut:
    """A worker connects and sends one message; `test_result` of the target then tells what became of it."""
    return JobOut.of(syslog_targets.send_test(target_id=syslog_target_id, actor=actor_of(request)))


@router.put("/syslog-targets/{uuid:syslog_target_id}/client-certificate", response={202: JobOut})
def upload_syslog_client_certificate(request: HttpRequest, syslog_target_id: UUID, given: ClientIdentityIn) -> JobOut:
    """By which the console shows itself to the collector. A worker puts it into use; the key is not given out again."""
    job = syslog_targets.upload_client_key(
        target_id=syslog_target_id,
        certificate_pem=given.certificate_pem,
        private_key_pem=given.private_key_pem.get_secret_value(),
        actor=actor_of(request),
    )
    return JobOut.of(job)


@router.delete("/syslog-targets/{uuid:syslog_target_id}/client-certificate", response={204: None})
def remove_syslog_client_certificate(request: HttpRequest, syslog_target_id: UUID) -> None:
    syslog_targets.remove_client_key(target_id=syslog_target_id, actor=actor_of(request))
