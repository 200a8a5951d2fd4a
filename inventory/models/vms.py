"""Virtual machines, their definitions and disks."""

import uuid

from django.db import models
from typing_extensions import override

from inventory.engine.platform import Platform
from inventory.models.places import Host


class PowerState(models.TextChoices):
    OFF = "off", "Powered off"
    ON = "on", "Powered on"
    PAUSED = "paused", "Paused"
    CRASHED = "crashed", "Crashed"
    UNKNOWN = "unknown", "Unknown"


class Firmware(models.TextChoices):
    BIOS = "bios", "BIOS"
    UEFI = "uefi", "UEFI"


class VirtualMachine(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="virtual_machines")
    uuid = models.UUIDField(help_text="the domain's UUID in libvirt")
    name = models.CharField(max_length=255, db_index=True)
    is_present = models.BooleanField(default=True, help_text="false once libvirt no longer lists it on its host")
    is_persistent = models.BooleanField(default=True)
    power_state = models.CharField(max_length=16, choices=PowerState, default=PowerState.UNKNOWN, db_index=True)
    firmware = models.CharField(max_length=8, choices=Firmware, default=Firmware.BIOS)
    has_secure_boot = models.BooleanField(default=False)
    machine = models.CharField(max_length=80, blank=True)
    vcpus = models.PositiveIntegerField(default=0)
    memory_bytes = models.BigIntegerField(default=0)
    nvram_path = models.CharField(max_length=1000, blank=True)
    is_nvram_encrypted = models.BooleanField(default=False)
    tpm_model = models.CharField(max_length=40, blank=True, help_text="empty: no TPM")
    tpm_version = models.CharField(max_length=8, blank=True)
    is_tpm_encrypted = models.BooleanField(default=False)
    is_autostarted = models.BooleanField(default=False, help_text="started by its host when that comes up")
    has_managed_save = models.BooleanField(default=False, help_text="suspended to a file, guest memory in it")
    snapshot_count = models.PositiveIntegerField(default=0)
    memory_snapshot_count = models.PositiveIntegerField(default=0, help_text="of those, with guest memory in them")
    dumps_core = models.BooleanField(default=True, help_text="guest memory is part of a core dump of QEMU")
    platform = models.TextField(blank=True, help_text="see engine/platform.py; empty: not known")
    definition_sha256 = models.CharField(max_length=64, blank=True)
    first_seen_at = models.DateTimeField(auto_now_add=True)
    last_changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name", "id"]
        constraints = [models.UniqueConstraint(fields=["host", "uuid"], name="vm_uuid_on_host")]
        indexes = [models.Index(fields=["host", "name"]), models.Index(fields=["uuid"])]

    @override
    def __str__(self) -> str:
        return self.name

    @property
    def is_running(self) -> bool:
        return self.power_state in {PowerState.ON, PowerState.PAUSED}

    @property
    def known_platform(self) -> Platform:
        return Platform.from_text(self.platform)

    @property
    def has_vbs(self) -> bool:
        return self.known_platform.has_vbs(has_secure_boot=self.has_secure_boot)


class VmDefinition(models.Model):
    """The definition of a VM's next start as its host last reported it: libvirt's XML, with secrets by UUID only.

    A row of its own, so that no list loads it. It is that of the VM's row only where `sha256` is the same.
    """

    virtual_machine = models.OneToOneField(
        VirtualMachine, on_delete=models.CASCADE, primary_key=True, related_name="stored_definition"
    )
    sha256 = models.CharField(max_length=64)
    xml = models.TextField(blank=True, help_text="empty: longer than is kept")

    @override
    def __str__(self) -> str:
        return f"definition of {self.virtual_machine}"


class Disk(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    virtual_machine = models.ForeignKey(VirtualMachine, on_delete=models.CASCADE, related_name="disks")
    target = models.CharField(max_length=32, help_text="vda, sdb ...")
    device = models.CharField(max_length=16, default="disk", help_text="disk, cdrom, floppy, lun")
    bus = models.CharField(max_length=16, blank=True)
    format = models.CharField(max_length=16, blank=True, help_text="raw, qcow2 ...: libvirt's driver type")
    source = models.CharField(max_length=1000, blank=True)
    is_read_only = models.BooleanField(default=False)
    is_encrypted = models.BooleanField(default=False)
    capacity_bytes = models.BigIntegerField(default=0)
    allocation_bytes = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["target"]
        constraints = [models.UniqueConstraint(fields=["virtual_machine", "target"], name="disk_target_in_vm")]

    @override
    def __str__(self) -> str:
        return self.target
