"""Long operations, and which of them wait for a second person."""

import uuid

from django.db import models
from django.db.models import Q
from typing_extensions import override

from inventory.models.targets import TargetKind


class JobStatus(models.TextChoices):
    WAITING = "waiting", "Waits for approval"
    PENDING = "pending", "Queued"
    RUNNING = "running", "Running"
    SUCCEEDED = "succeeded", "Completed"
    FAILED = "failed", "Failed"
    ERRORED = "errored", "Internal error"
    CANCELLED = "cancelled", "Cancelled"


LIVE_STATUSES = (JobStatus.PENDING, JobStatus.RUNNING)
# Besides those that wait for a second person: they keep nobody else from the target.
OPEN_STATUSES = (JobStatus.WAITING, *LIVE_STATUSES)


class Job(models.Model):
    """One long operation, as the tasks pane shows it. See `jobs.py` for its life."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=60)
    target_kind = models.CharField(max_length=16, choices=TargetKind)
    target_id = models.UUIDField()
    target_name = models.CharField(max_length=255)
    actor = models.CharField(max_length=150)
    source_address = models.CharField(
        max_length=45, blank=True, help_text="whence it was asked for; empty: from inside"
    )
    params = models.JSONField(default=dict)
    status = models.CharField(max_length=16, choices=JobStatus, default=JobStatus.PENDING)
    step = models.CharField(max_length=200, blank=True)
    done = models.BigIntegerField(default=0)
    total = models.BigIntegerField(default=0)
    error_code = models.CharField(max_length=60, blank=True)
    message = models.CharField(max_length=1000, blank=True)
    checkpoint = models.JSONField(default=dict)
    approval_right = models.CharField(
        max_length=60, blank=True, help_text="what a second person must hold who approves it; empty: needs none"
    )
    approved_by = models.CharField(max_length=150, blank=True)
    cancel_requested = models.BooleanField(default=False)
    claim = models.UUIDField(
        null=True, blank=True, help_text="of the worker that holds it; a lost claim stops that worker"
    )
    attempts = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    changed_at = models.DateTimeField(auto_now=True, db_index=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["target_kind", "target_id"],
                condition=Q(status__in=LIVE_STATUSES),
                name="one_live_job_per_target",
            )
        ]
        indexes = [
            models.Index(fields=["-created_at"]),
            models.Index(fields=["target_kind", "target_id", "-created_at"]),
            models.Index(fields=["status", "heartbeat_at"]),
        ]

    @override
    def __str__(self) -> str:
        return f"{self.kind} {self.target_name}"

    @property
    def is_live(self) -> bool:
        """Whether something is still to come."""
        return self.status in OPEN_STATUSES

    @property
    def percent(self) -> int | None:
        """0..100, or None while the amount of work is not known."""
        return min(100, self.done * 100 // self.total) if self.total > 0 else None


class TwoPersonRule(models.Model):
    """Whether an operation of this sort waits for a second person. See `services/approvals.py`."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    action = models.CharField(max_length=60, unique=True)
    is_on = models.BooleanField(default=False)

    @override
    def __str__(self) -> str:
        return f"two-person approval of {self.action}"
