"""Storage policies, and whether VMs are as theirs say."""

import uuid

from django.db import models
from django.db.models import Q
from typing_extensions import override

from inventory.models import VirtualMachine


class ChosenPolicies(models.Manager["StoragePolicy"]):
    """Those that somebody can choose."""

    @override
    def get_queryset(self) -> models.QuerySet["StoragePolicy"]:
        return super().get_queryset().filter(is_for_vtpm=False)


class StoragePolicy(models.Model):
    """What a VM's home or a disk must be.

    `is_for_vtpm`: one row that nobody chooses and no list shows. It stands for a home that is encrypted because of the
    vTPM alone.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=80, unique=True)
    description = models.CharField(max_length=300, blank=True)
    encrypts = models.BooleanField(default=True)
    is_builtin = models.BooleanField(default=False)
    is_for_vtpm = models.BooleanField(default=False, editable=False)
    max_key_age_days = models.PositiveIntegerField(
        null=True, blank=True, help_text="VMs whose KEK is older get a new one by themselves; empty: never"
    )

    objects = ChosenPolicies()
    every = models.Manager["StoragePolicy"]()

    class Meta:
        ordering = ["-encrypts", "name"]
        verbose_name_plural = "storage policies"
        constraints = [
            models.UniqueConstraint(fields=["is_for_vtpm"], condition=Q(is_for_vtpm=True), name="one_policy_for_vtpms")
        ]

    @override
    def __str__(self) -> str:
        return self.name


class DiskPolicy(models.Model):
    """The storage policy of one disk, as last applied. A disk that is detached loses it (vSphere's rule)."""

    virtual_machine = models.ForeignKey(VirtualMachine, on_delete=models.CASCADE, related_name="disk_policies")
    target = models.CharField(max_length=32, help_text="vda ...")
    policy = models.ForeignKey(StoragePolicy, on_delete=models.PROTECT, related_name="disks")

    class Meta:
        ordering = ["target"]
        verbose_name_plural = "disk policies"
        constraints = [models.UniqueConstraint(fields=["virtual_machine", "target"], name="one_policy_per_disk")]

    @override
    def __str__(self) -> str:
        return f"{self.policy} of {self.target}"


class Compliance(models.Model):
    """Whether a VM is what its policies say, as last observed: headers, flags and definition, not what we wrote."""

    class State(models.TextChoices):
        COMPLIANT = "compliant", "Compliant"
        NONCOMPLIANT = "noncompliant", "Not compliant"
        UNKNOWN = "unknown", "Not known"

    virtual_machine = models.OneToOneField(VirtualMachine, on_delete=models.CASCADE, related_name="compliance")
    state = models.CharField(max_length=16, choices=State, default=State.UNKNOWN)
    findings = models.JSONField(default=list, help_text="of each: code, part, expected, observed, evidence, remedy")
    observations = models.JSONField(default=list, help_text="of each part: part, state, evidence")
    checked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "compliance"

    @override
    def __str__(self) -> str:
        return f"{self.virtual_machine}: {self.get_state_display()}"
