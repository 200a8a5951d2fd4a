"""What Secure Boot and VBS depend on, as the plan sees it: from the rows of the VM and of its host."""

from encryption.engine.options import HostAbilities, VmHardware
from inventory.models import Disk, Host, VirtualMachine


def hardware_of(vm: VirtualMachine) -> VmHardware:
    found = vm.known_platform
    if not found.is_known:
        return VmHardware()
    return VmHardware(
        is_q35=found.chipset == "q35",
        has_vbs=vm.has_vbs,
        passthrough_devices=found.passthrough,
        has_cpu_hotplug=found.has_cpu_hot_add,
        has_memory_hotplug=found.has_memory_hot_add,
        remembers_vbs=found.remembers_vbs,
        iommu=found.iommu,
        is_kvm=found.domain_type == "kvm",
        is_firmware_4m=_is_4m(found.loader),
    )


def abilities_of(host: Host) -> HostAbilities:
    found = host.known_abilities
    if not found.is_known:
        return HostAbilities()
    return HostAbilities(
        uefi=found.uefi,
        secure_boot=found.secure_boot,
        vtpm=found.vtpm,
        nested=found.nested,
        viommu=found.viommu,
        q35=found.q35,
        smm=found.smm,
        plain_uefi=bool(found.plain_loader),
        nested_in_cpu=found.nested_in_cpu,
        is_kvm=found.virtualization == "kvm",
        is_firmware_4m=_is_4m(found.secure_loader),
    )


def is_blank(disk: Disk) -> bool:
    """Nothing was ever written to it: a raw file of holes alone. Of other formats that cannot be told from outside."""
    return disk.format == "raw" and disk.capacity_bytes > 0 and disk.allocation_bytes == 0


def _is_4m(loader: str) -> bool | None:
    """OVMF's packages name the files for 4 MiB of flash so (Debian, Ubuntu); others build one size only."""
    return "_4M" in loader if loader else None
