"""Virtual hardware that Secure Boot and virtualization-based security need: what a VM has, what its host can give.

None, or an empty text where it says so: not known, because nobody has asked the host yet. What is not known is a
warning; what is known to be missing is a refusal.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostAbilities:
    """`nested`: the CPU feature of nested virtualization, "vmx" or "svm"; "" none, None not known. `nested_in_cpu`: the
    processor has it, whether or not VMs get it. `is_kvm` None: not known. `is_firmware_4m`: the firmware with Secure
    Boot is of the sort with 4 MiB of flash, whose variables have another size."""

    uefi: bool | None = None
    secure_boot: bool | None = None
    vtpm: bool | None = None
    nested: str | None = None
    viommu: bool | None = None
    q35: bool | None = None
    smm: bool | None = None
    plain_uefi: bool | None = None
    nested_in_cpu: str = ""
    is_kvm: bool | None = None
    is_firmware_4m: bool | None = None

    @property
    def is_known(self) -> bool:
        return self.secure_boot is not None


@dataclass(frozen=True, slots=True)
class VmHardware:
    """`is_q35` None: the machine type is not known. `has_vbs`: all that VBS needs is set. `remembers_vbs`: what it
    replaced stands in the definition. `iommu`: the model of the virtual IOMMU, "" for none. `is_firmware_4m` None: the
    definition names no firmware file."""

    is_q35: bool | None = None
    has_vbs: bool = False
    passthrough_devices: int = 0
    has_cpu_hotplug: bool = False
    has_memory_hotplug: bool = False
    remembers_vbs: bool = False
    iommu: str = ""
    is_kvm: bool | None = None
    is_firmware_4m: bool | None = None
