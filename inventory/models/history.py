"""Events with their chain, the keys that vouch for it, and alarms."""

import uuid

from django.db import models
from django.db.models import Q
from typing_extensions import override

from inventory.models.jobs import Job
from inventory.models.targets import TargetKind


class Severity(models.TextChoices):
    INFO = "info", "Information"
    WARNING = "warning", "Warning"
    ERROR = "error", "Error"


class Outcome(models.TextChoices):
    SUCCESS = "success", "Success"
    FAILURE = "failure", "Failure"
    DENIED = "denied", "Denied"


class Event(models.Model):
    """One line of history; written once, never changed, but for the seal that `services/event_chain.py` adds.

    `id` grows as rows are begun, which under PostgreSQL is not the order in which they become visible; `sequence` is
    the order for all who follow the history. A job is dropped after 90 days; what `job` holds stays: it is sealed too.
    """

    id = models.BigAutoField(primary_key=True)
    time = models.DateTimeField(auto_now_add=True, db_index=True)
    kind = models.CharField(max_length=60)
    severity = models.CharField(max_length=8, choices=Severity, default=Severity.INFO)
    outcome = models.CharField(max_length=8, choices=Outcome, default=Outcome.SUCCESS)
    reason = models.CharField(
        max_length=200, blank=True, help_text="why not: an error's code, or the right that lacked"
    )
    target_kind = models.CharField(max_length=16, choices=TargetKind)
    target_id = models.UUIDField(null=True, blank=True)
    target_name = models.CharField(max_length=255)
    actor = models.CharField(max_length=150)
    source_address = models.CharField(
        max_length=45, blank=True, help_text="whence it was asked for; empty: from inside"
    )
    message = models.CharField(max_length=1000)
    data = models.JSONField(default=dict)
    job = models.ForeignKey(
        Job, null=True, blank=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="events"
    )
    plan_digest = models.CharField(max_length=64, blank=True, help_text="of the plan that was approved")
    sequence = models.BigIntegerField(null=True, blank=True, unique=True, help_text="1, 2, 3 ...; null until sealed")
    digest = models.CharField(max_length=64, blank=True, help_text="see engine/event_chain.py; empty until sealed")

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["target_kind", "target_id", "-id"]),
            models.Index(fields=["kind", "-id"], name="event_kind"),
            models.Index(fields=["actor", "-id"], name="event_actor"),
            models.Index(fields=["source_address", "-id"], name="event_address"),
            models.Index(fields=["id"], condition=Q(sequence__isnull=True), name="event_unsealed"),
            # Not partial ones: SQLite does not see that they fit a query with parameters.
            models.Index(fields=["severity", "-id"], name="event_severity"),
            models.Index(fields=["outcome", "-id"], name="event_outcome"),
            models.Index(fields=["target_name", "-id"], name="event_target_name"),
        ]

    @override
    def __str__(self) -> str:
        return self.message


class EventChain(models.Model):
    """The head of the chain of events: one row. See `services/event_chain.py`."""

    sequence = models.BigIntegerField(default=0, help_text="of the last sealed event; 0: none")
    digest = models.CharField(max_length=64, blank=True)
    signed_sequence = models.BigIntegerField(default=0, help_text="up to which a checkpoint vouches")
    signed_digest = models.CharField(max_length=64, blank=True)
    signed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(pk=1), name="one_event_chain")]

    @override
    def __str__(self) -> str:
        return f"event chain, {self.sequence} events"


class AuditKey(models.Model):
    """A key pair of the console for signatures over its history (ECDSA, P-256). Rows stay for good: old signatures
    are checked with them. The newest signs."""

    fingerprint = models.CharField(primary_key=True, max_length=64, help_text="SHA-256 of the public key's DER form")
    public_pem = models.TextField()
    private_sealed = models.BinaryField(help_text="RFC 5649 under the console key")
    made_at = models.DateTimeField(auto_now_add=True)

    @override
    def __str__(self) -> str:
        return self.fingerprint


class Alarm(models.Model):
    """A state that needs somebody, from when it was seen until it is seen to be over. See `alarms.py`.

    At most one of a kind is live for an object; a second sighting refreshes it.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=60, help_text="dotted, as events have it: vm.noncompliant")
    severity = models.CharField(max_length=8, choices=Severity, default=Severity.WARNING)
    target_kind = models.CharField(max_length=16, choices=TargetKind)
    target_id = models.UUIDField()
    target_name = models.CharField(max_length=255)
    message = models.CharField(max_length=1000)
    remedy = models.CharField(max_length=500, blank=True)
    evidence = models.JSONField(default=list, help_text="lines for people: what was seen, where")
    raised_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField(auto_now=True)
    acknowledged_at = models.DateTimeField(null=True, blank=True)
    acknowledged_by = models.CharField(max_length=150, blank=True)
    cleared_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-raised_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "target_kind", "target_id"],
                condition=Q(cleared_at__isnull=True),
                name="one_live_alarm_of_a_kind",
            )
        ]
        indexes = [models.Index(fields=["target_kind", "target_id", "-raised_at"])]

    @override
    def __str__(self) -> str:
        return self.message
