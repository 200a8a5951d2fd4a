"""Data centers, clusters, hosts and datastores."""

import uuid

from django.db import models
from typing_extensions import override

from inventory.engine.abilities import HostAbilities


class Datacenter(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=80, unique=True)

    class Meta:
        ordering = ["name"]

    @override
    def __str__(self) -> str:
        return self.name


class Cluster(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    datacenter = models.ForeignKey(Datacenter, on_delete=models.PROTECT, related_name="clusters")
    name = models.CharField(max_length=80)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["datacenter", "name"], name="cluster_name_in_datacenter")]

    @override
    def __str__(self) -> str:
        return self.name


class Host(models.Model):
    class State(models.TextChoices):
        CONNECTING = "connecting", "Connecting"
        CONNECTED = "connected", "Connected"
        DISCONNECTED = "disconnected", "Disconnected"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    cluster = models.ForeignKey(Cluster, on_delete=models.PROTECT, related_name="hosts")
    name = models.CharField(max_length=120, unique=True)
    uri = models.CharField(max_length=500, unique=True)
    migration_uri = models.CharField(
        max_length=500, blank=True, help_text="how other hosts reach this one, qemu+tls://...; empty: as uri"
    )
    vtpm_state_path = models.CharField(
        max_length=1000,
        blank=True,
        help_text="where the host keeps swtpm state, a folder per VM; empty: libvirt's system default",
    )
    state = models.CharField(max_length=16, choices=State, default=State.CONNECTING)
    state_reason = models.CharField(max_length=500, blank=True)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    added_at = models.DateTimeField(auto_now_add=True)

    host_uuid = models.UUIDField(null=True, blank=True)
    hostname = models.CharField(max_length=253, blank=True)
    hypervisor = models.CharField(max_length=40, blank=True)
    hypervisor_version = models.CharField(max_length=40, blank=True)
    libvirt_version = models.CharField(max_length=40, blank=True)
    cpu_model = models.CharField(max_length=120, blank=True)
    cpu_count = models.PositiveIntegerField(default=0)
    memory_bytes = models.BigIntegerField(default=0)
    memory_free_bytes = models.BigIntegerField(default=0)
    is_encrypted_connection = models.BooleanField(default=False)
    abilities = models.JSONField(default=dict, blank=True, help_text="see engine/abilities.py; empty: not known")
    abilities_checked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]

    @override
    def __str__(self) -> str:
        return self.name

    @property
    def known_abilities(self) -> HostAbilities:
        return HostAbilities.from_row(self.abilities)


class Datastore(models.Model):
    """One libvirt storage pool on one host."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="datastores")
    name = models.CharField(max_length=255)
    kind = models.CharField(max_length=40)
    path = models.CharField(max_length=1000, blank=True)
    is_active = models.BooleanField(default=False)
    capacity_bytes = models.BigIntegerField(default=0)
    available_bytes = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["host", "name"], name="datastore_name_on_host")]

    @override
    def __str__(self) -> str:
        return self.name
