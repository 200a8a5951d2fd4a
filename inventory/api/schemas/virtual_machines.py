"""Virtual machines with their disks and TPM."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from ninja import Schema
from pydantic import Field
from typing_extensions import override

from inventory.api.frame import Input, PageOut
from inventory.api.schemas.common import Ref
from inventory.models import Disk, Firmware, PowerState, VirtualMachine


class DiskOut(Schema):
    """Sizes are bytes; `format` is the driver's type in libvirt."""

    target: str
    device: str
    bus: str
    format: str
    source: str
    is_read_only: bool
    is_encrypted: bool
    capacity_bytes: int
    allocation_bytes: int

    @classmethod
    def of(cls, row: Disk) -> Self:
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class TpmOut(Schema):
    model: str
    version: str
    is_encrypted: bool


_PLAIN = (
    "id", "uuid", "name", "is_present", "is_persistent", "power_state", "firmware", "has_secure_boot", "machine",
    "vcpus", "memory_bytes", "is_nvram_encrypted", "first_seen_at", "last_changed_at",
)  # fmt: skip


class VmLine(Schema):
    """A virtual machine as lists show it.

    `id` is this console's, `uuid` the domain's in libvirt. `is_present` is false once its host no longer lists it.
    `is_encrypted`: any disk, the NVRAM or the vTPM state is.
    """

    id: UUID
    uuid: UUID
    name: str
    host: Ref
    cluster: Ref
    datacenter: Ref
    is_present: bool
    is_persistent: bool
    power_state: PowerState
    firmware: Firmware
    has_secure_boot: bool
    machine: str
    vcpus: int
    memory_bytes: int
    tpm: TpmOut | None
    is_nvram_encrypted: bool
    is_encrypted: bool
    first_seen_at: datetime
    last_changed_at: datetime

    @classmethod
    def of(cls, row: VirtualMachine, *, is_encrypted: bool) -> Self:
        return cls.model_validate(cls.values(row, is_encrypted))

    @classmethod
    def values(cls, row: VirtualMachine, is_encrypted: bool) -> dict[str, Any]:
        tpm = TpmOut(model=row.tpm_model, version=row.tpm_version, is_encrypted=row.is_tpm_encrypted)
        return {name: getattr(row, name) for name in _PLAIN} | {
            "host": Ref.of(row.host),
            "cluster": Ref.of(row.host.cluster),
            "datacenter": Ref.of(row.host.cluster.datacenter),
            "tpm": tpm if row.tpm_model else None,
            "is_encrypted": is_encrypted,
        }


class VmOut(VmLine):
    """A virtual machine with its disks. `has_vbs`: its hardware is what virtualization-based security needs."""

    has_vbs: bool
    nvram_path: str
    is_autostarted: bool
    has_managed_save: bool
    snapshot_count: int
    memory_snapshot_count: int
    dumps_core: bool
    disks: list[DiskOut]

    @override
    @classmethod
    def values(cls, row: VirtualMachine, is_encrypted: bool) -> dict[str, Any]:
        names = (
            "has_vbs", "nvram_path", "is_autostarted", "has_managed_save", "snapshot_count", "memory_snapshot_count",
            "dumps_core",
        )  # fmt: skip
        own = {name: getattr(row, name) for name in names} | {"disks": [DiskOut.of(disk) for disk in row.disks.all()]}
        return super().values(row, is_encrypted) | own


class VmPage(PageOut):
    items: list[VmLine]


class ConfirmNameIn(Input):
    """`confirm` repeats the virtual machine's name."""

    confirm: Annotated[str, Field(max_length=255)]


class ConsoleTextOut(Schema):
    """What the guest last printed on its serial port.

    `text` is empty while nothing has been read yet: ask again in two seconds. `problem` says why it cannot be read.
    """

    text: str | None
    age_seconds: float | None
    problem: str
