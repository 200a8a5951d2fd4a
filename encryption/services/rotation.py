"""Recrypt by schedule: a VM whose KEK has become older than its storage policies allow gets a new one by itself.

Of the policies of a VM's home and disks the strictest counts, as a VM has one KEK. The age is that of the key at the
KMS, not of its use for this VM. One job for each key provider does the work (`recrypt.run_recrypt_vms`).
"""

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import Prefetch, Q, QuerySet
from django.utils import timezone

from encryption.models import DiskPolicy, KmsCluster, VmSecurity
from encryption.services.recrypt import MAX_VMS, RECRYPT_ALL
from inventory import events, jobs
from inventory.authorize import SYSTEM
from inventory.errors import Conflict
from inventory.models import LIVE_STATUSES, Job, JobStatus

RETRY_AFTER: Final = timedelta(days=1)


def with_policies(found: QuerySet[VmSecurity]) -> QuerySet[VmSecurity]:
    """With what `VmSecurity.key_due_at` and `Key.due_at` read, in a fixed number of queries."""
    of_disks = DiskPolicy.objects.select_related("policy")
    return found.select_related("policy", "key", "virtual_machine").prefetch_related(
        Prefetch("virtual_machine__disk_policies", of_disks)
    )


def start_due(now: datetime | None = None) -> list[Job]:
    """By schedule: a job for each key provider that has VMs with keys that are too old. The VMs may run.

    Not taken: VMs that are gone, locked or busy. A provider whose last such job within a day did not end well waits
    that day out, so that what fails is told once a day; one that is busy waits for the next round.
    """
    now = now or timezone.now()
    due: dict[UUID, dict[str, str]] = {}
    limited = Q(policy__max_key_age_days__isnull=False) | Q(
        virtual_machine__disk_policies__policy__max_key_age_days__isnull=False
    )
    found = VmSecurity.objects.filter(
        limited, key__isnull=False, locked_at=None, virtual_machine__is_present=True
    ).exclude(virtual_machine__in=Job.objects.filter(status__in=LIVE_STATUSES).values("target_id"))
    for security in with_policies(found.distinct()).iterator(chunk_size=500):
        due_at, key = security.key_due_at, security.key
        if due_at is None or key is None or due_at > now:
            continue
        reason = f"by policy {security.key_age_policy}, key age {(now - key.created_at).days} days"
        due.setdefault(key.cluster_id, {})[str(security.virtual_machine_id)] = reason
    clusters = KmsCluster.objects.filter(pk__in=due).exclude(pk__in=_waiting(now))
    started = [_start(cluster, due[cluster.pk]) for cluster in clusters]
    return [job for job in started if job is not None]


def _waiting(now: datetime) -> QuerySet[Job, UUID]:
    tried = Job.objects.filter(kind=RECRYPT_ALL.name, actor=SYSTEM.username, created_at__gt=now - RETRY_AFTER)
    return tried.exclude(status=JobStatus.SUCCEEDED).values_list("target_id", flat=True)


def _start(cluster: KmsCluster, due: dict[str, str]) -> Job | None:
    part = dict(sorted(due.items())[:MAX_VMS])
    try:
        with transaction.atomic():
            job = jobs.start(RECRYPT_ALL, target=cluster, actor=SYSTEM, params={"due": part})
            events.record(
                "key.rotation_started",
                f"New keys for {len(part)} VMs of {cluster}: their keys are older than their storage policies allow",
                target=cluster, actor=SYSTEM, job=job, virtual_machines=len(part),
            )  # fmt: skip
    except Conflict:  # target_busy: the next round finds them again
        return None
    return job
