"""Worker side of a syslog target: its client key, its connection, the test message. Never in the web process."""

import socket
from typing import Final

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from console.appliance.adapters.syslog_client import Destination, Link, SyslogFailure, SyslogUntrusted, connect
from console.appliance.engine.syslog_message import APP_NAME, Entry, Facility, Level, written
from console.appliance.services.syslog_targets import upload_context
from console.models import SyslogTarget
from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.services import certificates
from encryption.services.key_access import console_key
from encryption.services.sealed_uploads import open_client_identity
from inventory import events
from inventory.errors import Conflict, NotFound, ServiceError, Unavailable, Untrusted
from inventory.jobs import Progress
from inventory.models import Job

CONFIRM_SECONDS: Final = 5.0


def open_link(row: SyslogTarget) -> Link:
    """Raises SyslogFailure, and Untrusted or Unavailable where the client key cannot be had."""
    key: Secret | None = None
    if row.client_certificate_pem:
        try:
            key = keywrap.unwrap(console_key(), bytes(row.client_key_sealed))
        except keywrap.UnwrapFailed as exc:
            raise Untrusted(
                "client_key_sealed_otherwise",
                f"the client key for {row} was sealed under another console key",
                hint="restore that console key, or upload the client certificate again",
            ) from exc
    return connect(Destination(row.host, row.port, row.protocol, row.trusted_pem, row.client_certificate_pem, key))


def service_error(failure: SyslogFailure) -> ServiceError:
    kind = Untrusted if isinstance(failure, SyslogUntrusted) else Unavailable
    return kind(failure.code, failure.message, hint=failure.hint)


def send_test(job: Job, progress: Progress) -> None:
    """One message over a connection of its own, and what became of it."""
    row = _target_of(job)
    progress.step(f"connecting to {row}")
    try:
        result = _send_one(row, job, progress)
    except (SyslogFailure, ServiceError) as exc:
        error = service_error(exc) if isinstance(exc, SyslogFailure) else exc
        _note_test(row, succeeded=False, result=str(error))
        raise error from exc
    with transaction.atomic():
        _note_test(row, succeeded=True, result=result)
        events.record(
            "syslog.test_sent", f"Test message to syslog target {row} {result}", target=row, actor=job.actor, job=job
        )


def take_client_key(job: Job, progress: Progress) -> None:
    """Opens what was uploaded, checks it again, seals it under the console key, and deletes the upload in any case."""
    row = _target_of(job)
    progress.step("taking the uploaded key")
    if not row.uploaded_certificate_pem:
        raise Conflict("upload_gone", f"the client key uploaded for {row} is gone", hint="upload it again")
    try:
        chain, key = open_client_identity(
            row.uploaded_certificate_pem, bytes(row.uploaded_key_sealed), context=upload_context(row), owner=row
        )
    except ServiceError:
        _uploads(row).update(uploaded_certificate_pem="", uploaded_key_sealed=b"")
        raise
    with transaction.atomic():
        taken = _uploads(row).update(
            client_certificate_pem=row.uploaded_certificate_pem,
            client_key_sealed=keywrap.wrap(console_key(), key),
            uploaded_certificate_pem="",
            uploaded_key_sealed=b"",
        )
        if not taken:
            raise Conflict("upload_gone", f"{row} was changed meanwhile", hint="upload the certificate again")
        events.record(
            "syslog.client_certificate_installed",
            f"Client certificate {certificates.subject(chain[0])} for syslog target {row} installed",
            target=row, actor=job.actor, job=job, fingerprint=certificates.fingerprint(chain[0]),
            not_after=chain[0].not_valid_after_utc.isoformat(),
        )  # fmt: skip


def _uploads(row: SyslogTarget) -> QuerySet[SyslogTarget]:
    """The row, as long as the same upload waits on it."""
    return SyslogTarget.objects.filter(pk=row.pk, uploaded_certificate_pem=row.uploaded_certificate_pem)


def _send_one(row: SyslogTarget, job: Job, progress: Progress) -> str:
    link = open_link(row)
    try:
        progress.step(f"sending a test message to {row}")
        entry = Entry(
            Facility.AUDIT, Level.INFO, timezone.now(), APP_NAME, "syslog.test",
            [("test", str(job.pk)), ("actor", job.actor)], f"Test message of Bartizan to {row}",
        )  # fmt: skip
        link.send(written(entry, host=socket.gethostname()))
        if row.protocol == SyslogTarget.Protocol.UDP:
            link.check()
            return "sent by UDP: whether it arrived, only the collector can tell"
        if link.finish(CONFIRM_SECONDS):
            return f"sent over {link.description}, and read by the collector"
        return f"sent over {link.description}; the collector did not confirm within {CONFIRM_SECONDS:.0f} s"
    finally:
        link.close()


def _note_test(row: SyslogTarget, *, succeeded: bool, result: str) -> None:
    SyslogTarget.objects.filter(pk=row.pk).update(
        tested_at=timezone.now(), test_succeeded=succeeded, test_result=result[:500]
    )


def _target_of(job: Job) -> SyslogTarget:
    found = SyslogTarget.objects.filter(pk=job.target_id).first()
    if found is None:
        raise NotFound("syslog_target_not_found", f"the syslog target {job.target_name} is gone")
    return found
