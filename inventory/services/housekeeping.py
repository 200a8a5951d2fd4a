"""Keeps the tables from growing without end. Events stay: they are the history."""

from datetime import datetime, timedelta
from typing import Final

from django.utils import timezone

from inventory.models import LIVE_STATUSES, Alarm, Job

KEEP_JOBS: Final = timedelta(days=90)
KEEP_ALARMS: Final = timedelta(days=90)
BATCH: Final = 500


def prune_jobs(now: datetime | None = None) -> int:
    """Deletes jobs that ended more than 90 days ago; returns how many. Their events stay."""
    before = (now or timezone.now()) - KEEP_JOBS
    count = 0
    while True:
        # A batch at a time, so that the write lock is never held for long.
        old = Job.objects.exclude(status__in=LIVE_STATUSES).filter(ended_at__lt=before).order_by("created_at")
        ids = list(old.values_list("pk", flat=True)[:BATCH])
        if not ids:
            return count
        Job.objects.filter(pk__in=ids).delete()
        count += len(ids)


def prune_alarms(now: datetime | None = None) -> int:
    """Deletes alarms that were over more than 90 days ago; returns how many. Their events stay."""
    before = (now or timezone.now()) - KEEP_ALARMS
    count = 0
    while ids := list(Alarm.objects.filter(cleared_at__lt=before).values_list("pk", flat=True)[:BATCH]):
        Alarm.objects.filter(pk__in=ids).delete()
        count += len(ids)
    return count
