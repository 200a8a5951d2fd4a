"""Virtual hardware that Secure Boot and virtualization-based security need: what a VM has, what its host can give.

None, or an empty text where it says so: not known, because nobody has asked the host yet. What is not known is a
warning; what is known to be missing is a refusal.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostAbilities:
    """`nested`: the CPU feature of nested virtualization, "vmx" or "svm"; "" none, None not known."""

    uefi: bool | None = None
    secure_boot: bool | None = None
    vtpm: bool | None = None
    nested: str | None = None
    viommu: bool | None = None
    q35: bool | None = None
    smm: bool | None = None


@dataclass(frozen=True, slots=True)
class VmHardware:
    """`is_q35` None: the machine type is not known. `has_vbs`: everything that VBS needs is set."""

    is_q35: bool | None = None
    has_vbs: bool = False
    passthrough_devices: int = 0
    has_cpu_hotplug: bool = False
    has_memory_hotplug: bool = False
