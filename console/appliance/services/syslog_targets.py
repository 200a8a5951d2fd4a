"""Syslog targets: the log collectors that get every event. Web side: only rows are written here.

The forwarder (`forwarding.py`) looks at the rows every half second, so that what is changed here counts at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import IntegrityError, transaction
from django.utils import timezone

from console.models import SyslogTarget
from encryption.services import certificates
from encryption.services.certificates import CertificateFacts
from encryption.services.sealed_uploads import seal_client_identity
from inventory import events, jobs
from inventory.alarms import clear_alarm, drop_alarms
from inventory.authorize import VIEW_ALL, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Event, EventChain, Job, Severity, TargetKind
from inventory.services.addresses import checked_host

MANAGE: Final = "console.manage_syslog"
SEND_TEST: Final = jobs.register(jobs.JobKind("console.send_syslog_test", "Send test message"))
TAKE_CLIENT_KEY: Final = jobs.register(jobs.JobKind("console.take_syslog_client_key", "Take uploaded client key"))
DOWN_ALARM: Final = "syslog.target_down"
USUAL_PORTS: Final = {"udp": 514, "tcp": 601, "tls": 6514}
FORWARDER_SILENT: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """A target as pages and the API show it. `backlog`: events that were not written to it yet.

    `is_followed`: the forwarder has said within the last minute that it works on it. Where it has not, the state is
    an old one and stands as not known.
    """

    row: SyslogTarget
    backlog: int
    is_followed: bool
    trusted: Sequence[CertificateFacts]
    client: Sequence[CertificateFacts]

    @property
    def state(self) -> SyslogTarget.State:
        return SyslogTarget.State(self.row.state) if self.is_followed else SyslogTarget.State.UNKNOWN


def targets(*, actor: Actor, now: datetime | None = None) -> list[TargetStatus]:
    """All of them, in three queries."""
    authorize(actor, VIEW_ALL)
    now = now or timezone.now()
    rows = list(SyslogTarget.objects.all())
    unsealed = Event.objects.filter(sequence__isnull=True).count() if rows else 0
    sealed = EventChain.objects.values_list("sequence", flat=True).first() or 0
    return [
        TargetStatus(
            row,
            backlog=max(0, sealed - row.sent) + unsealed,
            is_followed=row.checked_at is not None and row.checked_at > now - FORWARDER_SILENT,
            trusted=certificates.describe(row.trusted_pem),
            client=certificates.describe(row.client_certificate_pem),
        )
        for row in rows
    ]


def target(target_id: UUID, *, actor: Actor) -> SyslogTarget:
    authorize(actor, VIEW_ALL)
    found = SyslogTarget.objects.filter(pk=target_id).first()
    if found is None:
        raise NotFound("syslog_target_not_found", f"there is no syslog target {target_id}")
    return found


def status(target_id: UUID, *, actor: Actor) -> TargetStatus:
    target(target_id, actor=actor)
    return next(one for one in targets(actor=actor) if one.row.pk == target_id)


def add_target(
    *, host: str, port: int, protocol: str, actor: Actor, includes_logs: bool = False, trusted_pem: str = ""
) -> SyslogTarget:
    """A collector that gets every event from now on: the first is that of its own addition, or a few before it.

    `trusted_pem`: for TLS; empty: whom the system trusts. Raises Invalid, Conflict `syslog_targets_full`,
    `syslog_target_taken`.
    """
    authorize(actor, MANAGE)
    host, protocol, trusted_pem = _checked(host, port, protocol, trusted_pem)
    try:
        with transaction.atomic():
            taken = set(SyslogTarget.objects.values_list("slot", flat=True))
            free = [slot for slot in range(1, SyslogTarget.MOST + 1) if slot not in taken]
            if not free:
                raise _full()
            _refuse_taken(host, port, protocol)
            head = EventChain.objects.values_list("sequence", flat=True).first() or 0
            added = SyslogTarget.objects.create(
                slot=free[0], host=host, port=port, protocol=protocol, includes_logs=includes_logs,
                trusted_pem=trusted_pem, cursor=head, sent=head,
            )  # fmt: skip
            events.record(
                "syslog.target_added", f"Syslog target {added} added", target=added, actor=actor, address=str(added),
                logs=includes_logs, trusted=_fingerprints(trusted_pem),
            )  # fmt: skip
    except IntegrityError as exc:  # somebody else was quicker
        raise _full() if SyslogTarget.objects.count() >= SyslogTarget.MOST else _taken(host, port, protocol) from exc
    return added


def edit_target(
    *, target_id: UUID, host: str, port: int, protocol: str, actor: Actor, includes_logs: bool, trusted_pem: str
) -> SyslogTarget:
    """Another address or way. It goes on with the event where it stood; what was known of its state is forgotten.

    A client certificate is for TLS: it is dropped with it.
    """
    authorize(actor, MANAGE)
    host, protocol, trusted_pem = _checked(host, port, protocol, trusted_pem)
    try:
        with transaction.atomic():
            edited = SyslogTarget.objects.select_for_update().filter(pk=target_id).first()
            if edited is None:
                raise NotFound("syslog_target_not_found", f"there is no syslog target {target_id}")
            wanted = (host, port, protocol, includes_logs, trusted_pem)
            if wanted == (edited.host, edited.port, edited.protocol, edited.includes_logs, edited.trusted_pem):
                return edited
            before = str(edited)
            _refuse_taken(host, port, protocol, but=edited)
            edited.host, edited.port, edited.protocol, edited.includes_logs, edited.trusted_pem = wanted
            if protocol != SyslogTarget.Protocol.TLS:
                edited.client_certificate_pem, edited.client_key_sealed = "", b""
                edited.uploaded_certificate_pem, edited.uploaded_key_sealed = "", b""
            if not includes_logs:
                edited.log_places = None
            edited.state, edited.state_code, edited.state_reason = SyslogTarget.State.UNKNOWN, "", ""
            edited.state_since = timezone.now()
            edited.tested_at, edited.test_succeeded, edited.test_result = None, None, ""
            # Not what the forwarder writes meanwhile: cursor, sent, last_sent_at.
            edited.save(
                update_fields=[
                    "host", "port", "protocol", "includes_logs", "trusted_pem", "client_certificate_pem",
                    "client_key_sealed", "uploaded_certificate_pem", "uploaded_key_sealed", "log_places", "state",
                    "state_code", "state_reason", "state_since", "tested_at", "test_succeeded", "test_result",
                ]
            )  # fmt: skip
            events.record(
                "syslog.target_edited", f"Syslog target {before} is {edited} now" if before != str(edited)
                else f"Syslog target {edited} edited", target=edited, actor=actor, address=str(edited), before=before,
                logs=includes_logs, trusted=_fingerprints(trusted_pem),
            )  # fmt: skip
            clear_alarm(DOWN_ALARM, target=edited, is_told=True)
    except IntegrityError as exc:
        raise _taken(host, port, protocol) from exc
    return edited


@transaction.atomic
def remove_target(*, target_id: UUID, actor: Actor) -> None:
    """It gets nothing more, not even the event that says so."""
    authorize(actor, MANAGE)
    gone = target(target_id, actor=actor)
    events.record(
        "syslog.target_removed", f"Syslog target {gone} removed", target=gone, actor=actor, severity=Severity.WARNING,
        address=str(gone),
    )  # fmt: skip
    gone.delete()
    drop_alarms(TargetKind.SYSLOG_TARGET, [target_id])


@transaction.atomic
def send_test(*, target_id: UUID, actor: Actor) -> Job:
    """A worker connects, sends one message, and notes what happened on the target's row."""
    authorize(actor, MANAGE)
    return jobs.start(SEND_TEST, target=target(target_id, actor=actor), actor=actor)


@transaction.atomic
def upload_client_key(*, target_id: UUID, certificate_pem: str, private_key_pem: str, actor: Actor) -> Job:
    """A client certificate and its key, for a TLS target. The key is sealed to the workers at once: one of them puts
    both into use."""
    authorize(actor, MANAGE)
    owner = target(target_id, actor=actor)
    if owner.protocol != SyslogTarget.Protocol.TLS:
        raise Conflict(
            "syslog_target_without_tls", f"{owner} has no use for a client certificate", hint="edit it to use TLS first"
        )
    chain, sealed = seal_client_identity(certificate_pem, private_key_pem, context=upload_context(owner))
    job = jobs.start(TAKE_CLIENT_KEY, target=owner, actor=actor)
    SyslogTarget.objects.filter(pk=owner.pk).update(
        uploaded_certificate_pem=certificates.text_of(chain), uploaded_key_sealed=sealed
    )
    return job


@transaction.atomic
def remove_client_key(*, target_id: UUID, actor: Actor) -> SyslogTarget:
    """Raises Conflict `no_client_certificate`."""
    authorize(actor, MANAGE)
    owner = target(target_id, actor=actor)
    if not owner.client_certificate_pem:
        raise Conflict("no_client_certificate", f"{owner} has no client certificate")
    owner.client_certificate_pem, owner.client_key_sealed = "", b""
    owner.save(update_fields=["client_certificate_pem", "client_key_sealed"])
    events.record(
        "syslog.client_certificate_removed", f"Client certificate for syslog target {owner} removed", target=owner,
        actor=actor, severity=Severity.WARNING,
    )  # fmt: skip
    return owner


def upload_context(owner: SyslogTarget) -> bytes:
    """What an uploaded key is sealed for: this target and nothing else."""
    return b"bartizan syslog client key " + owner.pk.bytes


def _checked(host: str, port: int, protocol: str, trusted_pem: str) -> tuple[str, str, str]:
    """Host, protocol and certificates as they are kept. Raises Invalid."""
    host = checked_host(host)
    if protocol not in SyslogTarget.Protocol.values:
        raise Invalid("protocol_invalid", f"{protocol[:20]!r} is no protocol", hint=f"one of {', '.join(USUAL_PORTS)}")
    if not 1 <= port <= 65535:
        raise Invalid(
            "port_invalid", f"{port} is no port",
            hint=f"collectors listen on {USUAL_PORTS[protocol]} for {protocol.upper()} as a rule",
        )  # fmt: skip
    if not trusted_pem.strip():
        return host, protocol, ""
    if protocol != SyslogTarget.Protocol.TLS:
        raise Invalid(
            "certificate_without_tls", f"{protocol.upper()} uses no certificates",
            hint="choose TLS, or leave the certificates out",
        )  # fmt: skip
    return host, protocol, certificates.text_of(certificates.given(trusted_pem))


def _refuse_taken(host: str, port: int, protocol: str, but: SyslogTarget | None = None) -> None:
    found = SyslogTarget.objects.filter(host__iexact=host, port=port, protocol=protocol)
    if (found.exclude(pk=but.pk) if but else found).exists():
        raise _taken(host, port, protocol)


def _full() -> Conflict:
    return Conflict(
        "syslog_targets_full", f"there are {SyslogTarget.MOST} syslog targets already", hint="remove one first"
    )


def _taken(host: str, port: int, protocol: str) -> Conflict:
    return Conflict("syslog_target_taken", f"there is a syslog target {protocol}://{host}:{port} already")


def _fingerprints(pem: str) -> list[str]:
    return [one.fingerprint for one in certificates.describe(pem)]
