"""Alarms of a key provider, from what its rows say: servers lost, certificates near their end, keys that cannot be had.

Called after each observation. The events of what has changed are written by the observer, so these write none.
"""

from datetime import datetime
from typing import Final

from django.db import transaction
from django.utils import timezone

from encryption.models import Key, KmsCluster, KmsServer
from encryption.services import certificates
from inventory.alarms import clear_alarm, raise_alarm
from inventory.models import Severity

SERVER_LOST: Final = "kms.server_lost"
UNAVAILABLE: Final = "kms.unavailable"
CERTIFICATE: Final = "kms.certificate_expiring"
KEY_UNUSABLE: Final = "kms.key_unusable"
MOST_EVIDENCE: Final = 50
_LOST: Final = (KmsServer.State.UNREACHABLE, KmsServer.State.UNTRUSTED, KmsServer.State.FAILING)
_UNUSABLE: Final = (Key.State.MISSING, Key.State.DESTROYED)


@transaction.atomic
def review_servers(cluster: KmsCluster) -> None:
    """A lost server beside others that work is one alarm, a cluster without any that works another.

    A server that was never asked (`unknown`) counts for neither.
    """
    # Of two workers that each note a server, the second must see what the first has written.
    KmsCluster.objects.hold(cluster.pk)
    servers = list(cluster.servers.all())
    lost = [server for server in servers if server.state in _LOST]
    evidence = [f"{server}: {server.get_state_display()}: {server.state_reason}"[:600] for server in lost]
    none_works = bool(lost) and len(lost) == len(servers)
    if none_works:
        raise_alarm(
            UNAVAILABLE, f"No server of key provider {cluster} can be used; VMs whose keys it holds cannot be started",
            target=cluster, severity=Severity.ERROR, evidence=evidence, is_told=True,
            remedy="bring a server back, or repair the trust with it; running VMs run on",
        )  # fmt: skip
    else:
        clear_alarm(UNAVAILABLE, target=cluster, is_told=True)
    if lost and not none_works:
        names = ", ".join(str(server) for server in lost)
        raise_alarm(
            SERVER_LOST, f"Key provider {cluster} has lost {len(lost)} of {len(servers)} servers: {names}",
            target=cluster, evidence=evidence, is_told=True,
            remedy="bring it back, or remove it from the key provider; the others are used meanwhile",
        )  # fmt: skip
    else:
        clear_alarm(SERVER_LOST, target=cluster, is_told=True)


@transaction.atomic
def review_certificates(cluster: KmsCluster) -> None:
    """Certificates of servers, as last seen, and the console's own, with less than 30 days left."""
    if KmsCluster.objects.hold(cluster.pk) is None:
        return
    ends = [
        (f"the certificate of key server {server}", server.certificate_not_after)
        for server in cluster.servers.all()
        if server.certificate_not_after is not None
    ]
    if cluster.client_certificate_pem:
        own = certificates.describe(cluster.client_certificate_pem)[0]
        ends.append(("this console's client certificate", own.not_after))
    soon = sorted((end, what) for what, end in ends if end - timezone.now() < certificates.WARN_BEFORE)
    if not soon:
        clear_alarm(CERTIFICATE, target=cluster, is_told=True)
        return
    has_ended = soon[0][0] <= timezone.now()
    raise_alarm(
        CERTIFICATE, f"{cluster}: {_told(*soon[0])}", target=cluster, is_told=True,
        severity=Severity.ERROR if has_ended else Severity.WARNING, evidence=[_told(*one) for one in soon],
        remedy="renew a server's certificate on the server, the console's own under Key Providers",
    )  # fmt: skip


def _told(not_after: datetime, what: str) -> str:
    verb = "ended" if not_after <= timezone.now() else "ends"
    return f"{what} {verb} on {not_after:%Y-%m-%d}"


@transaction.atomic
def review_keys(cluster: KmsCluster) -> None:
    """Keys that protect something and are missing or destroyed at the KMS. A revoked one is still given out by it."""
    gone = cluster.keys.filter(state__in=_UNUSABLE, wrapped_secrets__isnull=False).distinct()
    found = list(gone.prefetch_related("wrapped_secrets__virtual_machine")[: MOST_EVIDENCE + 1])
    if not found:
        clear_alarm(KEY_UNUSABLE, target=cluster, is_told=True)
        return
    evidence = []
    for key in found[:MOST_EVIDENCE]:
        vms = sorted({str(secret.virtual_machine) for secret in key.wrapped_secrets.all()})
        more = f" and {len(vms) - 10} more" if len(vms) > 10 else ""
        evidence.append(f"key {key}: {key.get_state_display().lower()}; protects {', '.join(vms[:10])}{more}"[:600])
    which = "1 key" if len(found) == 1 else f"{len(evidence)}{' or more' if len(found) > MOST_EVIDENCE else ''} keys"
    raise_alarm(
        KEY_UNUSABLE, f"{cluster}: {which} under which VMs are encrypted cannot be had", target=cluster,
        severity=Severity.ERROR, evidence=evidence,
        remedy="bring the key back at the KMS from its backup; without it these VMs do not open",
        is_told=True,
    )  # fmt: skip
