"""Keys of the key servers, by their IDs."""

import uuid
from datetime import datetime

from django.db import models
from typing_extensions import override

from encryption.models.kms import KmsCluster


class Key(models.Model):
    """One managed object of a KMS, known by its unique identifier. The key itself never comes near the database."""

    class State(models.TextChoices):
        PRE_ACTIVE = "pre_active", "Pre-active"
        ACTIVE = "active", "Active"
        DEACTIVATED = "deactivated", "Deactivated"
        COMPROMISED = "compromised", "Compromised"
        DESTROYED = "destroyed", "Destroyed"
        MISSING = "missing", "Missing at the KMS"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    cluster = models.ForeignKey(KmsCluster, on_delete=models.PROTECT, related_name="keys")
    key_id = models.CharField(max_length=255, help_text="the KMIP unique identifier")
    name = models.CharField(max_length=255, blank=True)
    algorithm = models.CharField(max_length=20, default="AES-256")
    state = models.CharField(max_length=16, choices=State, default=State.PRE_ACTIVE)
    created_at = models.DateTimeField(auto_now_add=True)
    checked_at = models.DateTimeField(null=True, blank=True, help_text="when the KMS was last asked for its state")
    last_used_at = models.DateTimeField(null=True, blank=True, help_text="when a worker last fetched it")
    last_used_by = models.CharField(max_length=150, blank=True, help_text="for whom")
    last_used_for = models.CharField(max_length=340, blank=True, help_text="the job, with its target")
    is_foreign = models.BooleanField(
        default=False, help_text="made by somebody else and added here: it may protect what this console does not know"
    )

    class Meta:
        ordering = ["-created_at"]
        constraints = [models.UniqueConstraint(fields=["cluster", "key_id"], name="key_id_in_kms_cluster")]

    @override
    def __str__(self) -> str:
        return self.key_id

    @property
    def due_at(self) -> datetime | None:
        """When the first of its VMs gets a new key by its policies; read with `rotation.with_policies`."""
        return min((at for row in self.virtual_machines.all() if (at := row.key_due_at) is not None), default=None)
