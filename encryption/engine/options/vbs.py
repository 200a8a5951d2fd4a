"""Secure Boot, and virtualization-based security (VBS): what Windows needs to isolate its secrets from itself.

VBS needs UEFI with Secure Boot, the q35 machine with SMM, nested virtualization and a virtual IOMMU. Nothing is done
inside the guest.
"""

from collections.abc import Iterable

from encryption.engine.options.state import CurrentVm, DesiredVm
from encryption.engine.options.steps import Finding, How, Step, StepKind


def wants_secure_boot(current: CurrentVm, desired: DesiredVm) -> bool:
    """After the change: VBS brings it along."""
    if desired.vbs or (desired.vbs is None and current.hardware.has_vbs and desired.secure_boot is None):
        return True
    return current.has_secure_boot if desired.secure_boot is None else desired.secure_boot


def sets_vbs(current: CurrentVm, desired: DesiredVm) -> bool:
    return desired.vbs is True and not current.hardware.has_vbs


def unsets_vbs(current: CurrentVm, desired: DesiredVm) -> bool:
    return desired.vbs is False and current.hardware.has_vbs


def changes_firmware(current: CurrentVm, desired: DesiredVm) -> bool:
    return wants_secure_boot(current, desired) != current.has_secure_boot


def refusals(current: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
    vbs, secure_boot = sets_vbs(current, desired), wants_secure_boot(current, desired)
    if not vbs and not unsets_vbs(current, desired) and not changes_firmware(current, desired):
        return
    what = "VBS" if vbs or unsets_vbs(current, desired) else "Secure Boot"
    if current.is_running:
        yield Finding("vbs_needs_power_off", f"{current.name} is running, and {what} is hardware", "shut it down first")
    if not (vbs or secure_boot):
        return
    if not current.is_uefi:
        yield Finding(
            "vbs_needs_uefi",
            f"{current.name} has BIOS firmware, and {what} needs UEFI",
            "convert the guest first (Windows: MBR2GPT), then change its firmware",
        )
    if current.hardware.is_q35 is False:
        yield Finding(
            "vbs_needs_q35", f"{current.name} has another machine type than q35, which {what} needs", "make a new VM"
        )
    if current.host.secure_boot is False:
        yield Finding(
            "secure_boot_not_on_host",
            "The host has no firmware with Secure Boot",
            "install OVMF with Secure Boot on it",
        )
    if desired.vbs is True and desired.secure_boot is False:
        yield Finding(
            "vbs_needs_secure_boot", "VBS needs Secure Boot, which shall be off", "choose both, or neither of them"
        )
    if not vbs:
        return
    if current.host.nested == "":
        yield Finding(
            "nested_not_on_host",
            "The host offers its VMs no nested virtualization (vmx, svm)",
            "switch it on in the host's firmware and its kvm module, or move the VM",
        )
    if current.host.viommu is False:
        yield Finding("viommu_not_on_host", "The host's QEMU has no virtual IOMMU", "use a newer QEMU, or move the VM")
    if current.hardware.passthrough_devices:
        yield Finding(
            "vbs_with_passthrough",
            f"{current.name} has devices of its host passed through",
            "remove these devices first",
        )
    if current.hardware.has_cpu_hotplug or current.hardware.has_memory_hotplug:
        yield Finding(
            "vbs_with_hotplug",
            f"CPUs or memory can be added to {current.name} while it runs",
            "switch hot-add off first",
        )


def steps(current: CurrentVm, desired: DesiredVm) -> Iterable[Step]:
    if changes_firmware(current, desired):
        on = wants_secure_boot(current, desired)
        yield Step(
            StepKind.SET_FIRMWARE, "", How.LIBVIRT, f"Switch Secure Boot {'on' if on else 'off'}",
            undo=f"switch Secure Boot {'off' if on else 'on'} again",
        )  # fmt: skip
    if sets_vbs(current, desired):
        yield Step(
            StepKind.SET_VBS, "", How.LIBVIRT,
            "Set what VBS needs: nested virtualization, a virtual IOMMU, SMM and Hyper-V features",
            undo="take the mark away again: what VBS brought goes, Secure Boot stays",
        )  # fmt: skip
    elif unsets_vbs(current, desired):
        yield Step(
            StepKind.UNSET_VBS, "", How.LIBVIRT, "Take away what VBS brought; UEFI, Secure Boot and vTPM stay",
            undo="set VBS again",
        )  # fmt: skip


def warnings(current: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
    if sets_vbs(current, desired):
        yield Finding(
            "vbs_in_guest",
            "VBS is prepared, not switched on: that is done in the guest",
            "in Windows by group policy (Device Guard); msinfo32 shows whether it runs",
        )
    if changes_firmware(current, desired) and not wants_secure_boot(current, desired):
        yield Finding("secure_boot_off", "Without Secure Boot the guest boots whatever lies on its disk, signed or not")
