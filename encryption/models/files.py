"""Files beside the VMs: leftovers in clear, exported bundles."""

import uuid

from django.db import models
from typing_extensions import override

from inventory.models import Host, VirtualMachine


class Leftover(models.Model):
    """A file on a host in which something of an encrypted VM lies in clear, as last found. See services/leftovers.py.

    One that somebody keeps (`kept_at`) stays listed as long as it is there, and is no alarm.
    """

    class Kind(models.TextChoices):
        ORIGINAL = "original", "Original of an encrypted part"
        PLAIN_COPY = "plain_copy", "Plain copy of a disk"
        BACKING_FILE = "backing_file", "Plain backing file"
        SAVED_STATE = "saved_state", "Saved state with guest memory"
        CORE_DUMP = "core_dump", "Dump of guest memory"
        NVRAM_COPY = "nvram_copy", "Copy of UEFI variables"
        VTPM_STATE = "vtpm_state", "Plain vTPM state"
        HALF_WRITTEN = "half_written", "Half-written copy"
        SAME_SIZE = "same_size", "Image as large as an encrypted disk"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="leftovers")
    path = models.CharField(max_length=1000)
    kind = models.CharField(max_length=16, choices=Kind)
    size_bytes = models.BigIntegerField(default=0)
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of size and first bytes: what was found")
    evidence = models.JSONField(default=list, help_text="lines for people")
    virtual_machine = models.ForeignKey(
        VirtualMachine, null=True, blank=True, on_delete=models.SET_NULL, related_name="leftovers",
        help_text="whose it is; empty: not known",
    )  # fmt: skip
    found_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField(auto_now=True)
    kept_at = models.DateTimeField(null=True, blank=True)
    kept_by = models.CharField(max_length=150, blank=True)
    kept_reason = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering = ["path"]
        constraints = [models.UniqueConstraint(fields=["host", "path"], name="leftover_path_on_host")]

    @override
    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """The file's own name, which confirms its destruction."""
        return self.path.rpartition("/")[2]


class Bundle(models.Model):
    """An exported VM in the exchange folder, as a worker last saw it. The folder is the truth, this row a picture of it
    for the web process, which may not reach the folder."""

    class State(models.TextChoices):
        WRITING = "writing", "Being written"
        COMPLETE = "complete", "Complete"
        UNUSABLE = "unusable", "Not usable"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    folder = models.CharField(max_length=200, unique=True, help_text="its name in the exchange folder")
    state = models.CharField(max_length=16, choices=State, default=State.WRITING)
    reason = models.CharField(max_length=500, blank=True, help_text="why it is not usable")
    vm_name = models.CharField(max_length=255, blank=True)
    vm_uuid = models.UUIDField(null=True, blank=True)
    size_bytes = models.BigIntegerField(default=0)
    is_clear = models.BooleanField(default=False, help_text="holds guest data that is not encrypted")
    made_at = models.DateTimeField(null=True, blank=True)
    made_by = models.CharField(max_length=150, blank=True)
    console = models.CharField(max_length=255, blank=True, help_text="where it was exported")
    kms_cluster = models.UUIDField(null=True, blank=True)
    kms_cluster_name = models.CharField(max_length=255, blank=True)
    key_id = models.CharField(max_length=255, blank=True)
    found_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-made_at", "folder"]

    @override
    def __str__(self) -> str:
        return self.folder


class CryptoInventory(models.Model):
    """A signed list of what protects every VM, made by a worker: see engine/crypto_inventory.py. Written once."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    asked_at = models.DateTimeField(auto_now_add=True)
    asked_by = models.CharField(max_length=150)
    made_at = models.DateTimeField(null=True, blank=True, help_text="null: a worker has not made it")
    virtual_machines = models.PositiveIntegerField(default=0)
    encrypted_parts = models.PositiveIntegerField(default=0)
    key = models.CharField(max_length=64, blank=True, help_text="fingerprint of the key that signed it")
    content = models.TextField(blank=True, help_text="the file")

    class Meta:
        ordering = ["-asked_at"]
        verbose_name_plural = "crypto inventories"

    @override
    def __str__(self) -> str:
        return f"crypto inventory of {self.asked_at:%Y-%m-%d %H:%M}"
