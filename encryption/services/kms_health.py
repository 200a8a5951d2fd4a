"""Worker side of the health of key providers: by schedule, and on request as a job.

Each key provider is looked at in a message of its own, and every step towards a server has its time limit, so that one
that hangs delays nobody else's check. Looked at: the certificate that the server shows, then one request that takes
both directions of trust. Events tell changes; a certificate's near end is told once for each certificate.
"""

import logging
import time
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from encryption.adapters.server_certificate import fetch_server_certificate
from encryption.engine.key_server import KmsError, ServerAddress
from encryption.models import Key, KmsCluster, KmsServer
from encryption.services import certificates, client_keys, key_access, key_lifecycle, kms_alarms, messages
from encryption.services.key_access import cluster_of
from encryption.services.kms_state import note_connected, note_failure, service_error
from inventory import events
from inventory.authorize import SYSTEM
from inventory.errors import Conflict, NotFound, ServiceError, Untrusted
from inventory.jobs import Progress
from inventory.models import Job, Severity

log = logging.getLogger(__name__)

CHECK_CLUSTER: Final = "encryption.check_kms_cluster"
KEYS_A_CHECK: Final = 50
KEY_STATE_AGE: Final = timedelta(hours=24)


def check_all() -> int:
    """By schedule: asks for a check of every key provider, each on its own; returns how many."""
    client_keys.ensure_transport_key()
    client_keys.drop_old_uploads()
    found = list(KmsCluster.objects.filter(servers__isnull=False).distinct().values_list("pk", flat=True))
    for cluster_id in found:
        messages.send(CHECK_CLUSTER, str(cluster_id))
    return len(found)


def check_cluster(cluster_id: str) -> None:
    """Every server of one key provider, then a few of its keys. Failures end as states and events, not as errors."""
    cluster = KmsCluster.objects.filter(pk=UUID(cluster_id)).first()
    if cluster is None:
        return
    warn_of_client_certificate(cluster)
    usable = [_check_server(cluster, server) is None for server in cluster.servers.all()]
    _review(cluster)
    if any(usable):
        old = cluster.keys.exclude(state=Key.State.DESTROYED).exclude(
            checked_at__gte=timezone.now() - KEY_STATE_AGE
        )  # fmt: skip
        try:
            key_lifecycle.refresh_states(
                cluster, list(old.order_by(F("checked_at").asc(nulls_first=True))[:KEYS_A_CHECK])
            )
        except ServiceError as exc:  # lost since a moment ago, and noted as such: the next check asks again
            log.warning("keys of %s were not asked for: %s", cluster, exc)


def check_key_provider(job: Job, progress: Progress) -> None:
    """The same as a job. It fails when no server is usable, and each server's row says why."""
    cluster = cluster_of(job)
    servers = list(cluster.servers.all())
    if not servers:
        raise Conflict("no_key_server", f"{cluster} has no server", hint="add one")
    warn_of_client_certificate(cluster)
    failures: list[ServiceError | None] = []
    for number, server in enumerate(servers):
        progress.step(f"connecting to {server}", total=len(servers))
        progress.advance(number)
        failures.append(_check_server(cluster, server))
    _review(cluster)
    first = next((one for one in failures if one is not None), None)
    if first is not None and None not in failures:
        raise first


def _review(cluster: KmsCluster) -> None:
    """Alarms that need no change to be seen: a removed server's, a certificate's whose end has come nearer."""
    kms_alarms.review_servers(cluster)
    kms_alarms.review_certificates(cluster)


def fetch_certificate(job: Job, progress: Progress) -> None:
    """The certificate that a server shows, kept for review. It is not trusted by this."""
    cluster = cluster_of(job)
    server = cluster.servers.filter(pk=job.params["server"]).first()
    if server is None:
        raise NotFound("key_server_not_found", "the key server is gone")
    progress.step(f"fetching the certificate of {server}")
    try:
        _look(server)
    except KmsError as exc:
        raise service_error(exc) from exc


def _check_server(cluster: KmsCluster, server: KmsServer) -> ServiceError | None:
    """Notes what one server is like; returns why it cannot be used."""
    asked_at = timezone.now()
    try:
        _look(server)
        began = time.monotonic()
        with key_access.open_client(cluster, server) as kms:
            kms.locate(maximum=1)  # an operation needs both directions of trust; a query does not on every server
            info = kms.query()
    except KmsError as exc:
        note_failure(server, exc, asked_at=asked_at)
        return service_error(exc)
    except Untrusted as exc:
        note_failure(server, exc, asked_at=asked_at)
        return exc
    note_connected(server, latency_ms=round((time.monotonic() - began) * 1000), vendor=info.vendor[:200])
    return None


def _look(server: KmsServer) -> None:
    """Keeps the certificate that the server shows. Raises KmsUnreachable, KmsProtocolError."""
    shown = fetch_server_certificate(
        ServerAddress(server.host, server.port), timeout=float(settings.KMIP_TIMEOUT_SECONDS)
    )
    KmsServer.objects.filter(pk=server.pk).update(
        certificate_pem=b"".join([shown.pem, *shown.issuers_pem]).decode("ascii"),
        certificate_subject=shown.subject[:500],
        certificate_issuer=shown.issuer[:500],
        certificate_fingerprint=shown.fingerprint,
        certificate_not_after=shown.not_after,
        certificate_seen_at=timezone.now(),
    )
    if _ends_soon(shown.not_after):
        with transaction.atomic():
            KmsCluster.objects.hold(server.cluster_id)
            same = KmsServer.objects.filter(pk=server.pk).exclude(certificate_warned=shown.fingerprint)
            if same.update(certificate_warned=shown.fingerprint):
                _warn(
                    server.cluster, f"the certificate of key server {server}", shown.not_after, shown.fingerprint,
                    "renew it on the key server",
                )  # fmt: skip


def warn_of_client_certificate(cluster: KmsCluster) -> None:
    """Once for each client certificate with less than 30 days left."""
    if not cluster.client_certificate_pem:
        return
    facts = certificates.describe(cluster.client_certificate_pem)[0]
    if not _ends_soon(facts.not_after):
        return
    with transaction.atomic():
        same = KmsCluster.objects.filter(pk=cluster.pk).exclude(client_warned=facts.fingerprint)
        if same.update(client_warned=facts.fingerprint):
            _warn(
                cluster, "this console's client certificate", facts.not_after, facts.fingerprint,
                "make a new one under Key Providers; the one in use stays until then",
            )  # fmt: skip


def _ends_soon(not_after: datetime) -> bool:
    return not_after - timezone.now() < certificates.WARN_BEFORE


def _warn(cluster: KmsCluster, what: str, not_after: datetime, fingerprint: str, remedy: str) -> None:
    days = (not_after - timezone.now()).days
    when = f"ends in {days} days" if days >= 0 else "has expired"
    events.record(
        "kms.certificate_expiring", f"{cluster}: {what} {when} ({not_after:%Y-%m-%d}); {remedy}",
        target=cluster, actor=SYSTEM, severity=Severity.WARNING, fingerprint=fingerprint,
        not_after=not_after.isoformat(), days=days,
    )  # fmt: skip
