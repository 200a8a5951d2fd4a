"""When hosts are attested: by schedule, soon after something happened, again and later where nothing answers."""

import logging
import random
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

from celery import current_app
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone
from kombu.exceptions import OperationalError

from attestation.models import AttestationPolicy, HostAttestation, VerdictReason
from attestation.services import verifier_identity

log = logging.getLogger(__name__)

ATTEST_HOSTS: Final = "attestation.attest_hosts"
QUEUE: Final = "attestation"
# One message is for so many hosts, whose agents are asked at the same time.
BATCH: Final = 25
MOST_AT_ONCE: Final = 2000
FIRST_RETRY: Final = timedelta(seconds=20)
# A worker that was killed while it asked leaves its claim behind for so long.
CLAIM_LASTS: Final = timedelta(seconds=90)
_EXPIRES_SECONDS: Final = 120


def attest_soon(host_id: UUID, *, reason: VerdictReason) -> None:
    """Asks a worker to attest one host, once the transaction has committed. The schedule makes lost messages good."""
    HostAttestation.objects.filter(host=host_id).update(next_check_at=timezone.now())
    transaction.on_commit(partial(send, [host_id], reason))


def void_and_attest(host_id: UUID, *, reason: VerdictReason) -> None:
    """The same, and until then no verdict from before opens the gate: the host was away and may have booted anew."""
    HostAttestation.objects.filter(host=host_id).update(voided_at=timezone.now())
    attest_soon(host_id, reason=reason)


def attest_cluster_soon(cluster_id: UUID, *, reason: VerdictReason) -> None:
    """Every enrolled host of a cluster, its whole IMA list included."""
    rows = HostAttestation.objects.filter(host__cluster=cluster_id)
    rows.update(ima_state=None, next_check_at=timezone.now())
    hosts = list(rows.values_list("host_id", flat=True)[:MOST_AT_ONCE])
    transaction.on_commit(partial(send, hosts, reason))


def attest_due() -> int:
    """By schedule: every enrolled host whose time has come; returns how many. Each is put off at once, so that one
    that is being asked, or waits in the queue, is not asked for again."""
    verifier_identity.ca_pem()  # made at the first time, so that hosts can be given it before any is enrolled
    now = timezone.now()
    due = list(
        HostAttestation.objects.filter(next_check_at__lte=now, host__tpm_identity__isnull=False)
        .order_by("next_check_at")
        .values_list("host_id", flat=True)[:MOST_AT_ONCE]
    )
    HostAttestation.objects.filter(host__in=due).update(next_check_at=now + timedelta(seconds=_EXPIRES_SECONDS))
    send(due, VerdictReason.SCHEDULE)
    return len(due)


def send(host_ids: Iterable[UUID], reason: VerdictReason) -> None:
    ids = [str(each) for each in host_ids]
    for first in range(0, len(ids), BATCH):
        try:
            current_app.send_task(
                ATTEST_HOSTS, args=[ids[first : first + BATCH], str(reason)], queue=QUEUE, retry=False,
                expires=_EXPIRES_SECONDS, ignore_result=True,
            )  # fmt: skip
        except (OSError, OperationalError) as exc:
            log.warning("attestation waits for the schedule: the broker did not take it (%s)", type(exc).__name__)
            return


def intervals_of(cluster_ids: Collection[UUID]) -> dict[UUID, timedelta]:
    """Between two attestations of a host, by cluster."""
    usual = AttestationPolicy._meta.get_field("interval_minutes").default
    rows = AttestationPolicy.objects.filter(cluster__in=cluster_ids).values_list("cluster_id", "interval_minutes")
    minutes = dict.fromkeys(cluster_ids, usual) | dict(rows)
    return {cluster_id: timedelta(minutes=found) for cluster_id, found in minutes.items()}


def next_after_answer(interval: timedelta, now: datetime) -> datetime:
    """An interval later, less up to a tenth, so that hosts that were asked together are not for ever."""
    return now + interval * (1 - random.uniform(0, 0.1))  # noqa: S311  no secret


def next_after_silence(interval: timedelta, failures: int, now: datetime) -> datetime:
    """Soon at first, then each time after twice as long, at most an interval."""
    wait = FIRST_RETRY * float(1 << min(max(failures - 1, 0), 20))
    return now + min(wait, interval) * random.uniform(0.8, 1.2)  # noqa: S311  no secret


def enrolled() -> "QuerySet[HostAttestation]":
    return HostAttestation.objects.filter(host__tpm_identity__isnull=False)
