"""Secure Boot, and virtualization-based security (VBS): what Windows needs to isolate its secrets from itself.

VBS needs UEFI with Secure Boot, the q35 machine with SMM, nested virtualization and a virtual IOMMU. Nothing is done
inside the guest. A VM with BIOS gets UEFI only where it has nothing to lose: no hard disk, or none ever written to.

NOT decided here: whether keys are enrolled in UEFI variables that are there, which only a look into them tells; the
worker enrolls them where they are missing.
"""

from collections.abc import Iterable

from encryption.engine.options.hardware import HostAbilities
from encryption.engine.options.state import CurrentVm, DesiredVm
from encryption.engine.options.steps import Finding, How, Step, StepKind

IN_GUEST = (
    "in Windows: Group Policy, Computer Configuration > Administrative Templates > System > Device Guard > Turn On "
    "Virtualization Based Security, then restart; msinfo32 shows whether it runs"
)


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
    sets, changes = sets_vbs(current, desired), changes_firmware(current, desired)
    if not sets and not unsets_vbs(current, desired) and not changes:
        return
    what = "VBS" if sets or unsets_vbs(current, desired) else "Secure Boot"
    if current.is_running:
        yield Finding("vbs_needs_power_off", f"{current.name} is running, and {what} is hardware", "shut it down first")
    if current.hardware.has_vbs and desired.vbs is not False and desired.secure_boot is False:
        yield Finding(
            "vbs_needs_secure_boot", f"{current.name} has VBS, which needs Secure Boot", "switch VBS off with it"
        )
    elif desired.vbs is True and desired.secure_boot is False:
        yield Finding(
            "vbs_needs_secure_boot", "VBS needs Secure Boot, which shall be off", "choose both, or neither of them"
        )
    if (sets or changes) and not current.host.is_known:
        yield Finding(
            "host_not_asked", "What the host of the VM can give is not known yet", "refresh the host, then try again"
        )
        return
    if changes:
        yield from _firmware_refusals(current, wants_secure_boot(current, desired))
    if sets:
        yield from _vm_refusals(current)
        yield from _host_refusals(current, current.host)


def _firmware_refusals(current: CurrentVm, is_on: bool) -> Iterable[Finding]:
    if is_on and not current.is_uefi and not _is_blank(current):
        yield Finding(
            "vbs_needs_uefi",
            f"{current.name} has BIOS firmware and disks with data on them, which would not boot with UEFI",
            "convert the guest first (Windows: mbr2gpt.exe /convert /allowFullOS), then change the firmware in its "
            "definition; or make a new VM with UEFI",
        )
    if is_on and current.hardware.is_q35 is False:
        yield Finding(
            "vbs_needs_q35",
            f"{current.name} has another machine type than q35, which Secure Boot needs",
            "make a new VM with q35, and attach the disks to it: every device has another address there",
        )
    if is_on and current.host.secure_boot is False:
        yield Finding(
            "secure_boot_not_on_host",
            "The host has no UEFI firmware with Secure Boot and enrolled keys",
            "install it (Debian, Ubuntu: ovmf), refresh the host",
        )
    if is_on and current.host.smm is False:
        yield Finding("smm_not_on_host", "The host's QEMU has no SMM, which Secure Boot needs", "use a newer QEMU")
    if not is_on and current.host.plain_uefi is False:
        yield Finding(
            "plain_uefi_not_on_host",
            "The host has no UEFI firmware without Secure Boot",
            "install it, refresh the host",
        )
    has_variables = current.is_uefi and bool(current.nvram_path)
    mine, hosts = current.hardware.is_firmware_4m, current.host.is_firmware_4m
    if has_variables and mine is not None and hosts is not None and mine != hosts:
        yield Finding(
            "firmware_of_other_size",
            f"The UEFI variables of {current.name} are of another size than those of the host's firmware",
            "make a new VM, and attach the disks to it",
        )


def _is_blank(current: CurrentVm) -> bool:
    return all(disk.is_blank for disk in current.disks if disk.is_hard_disk)


def _vm_refusals(current: CurrentVm) -> Iterable[Finding]:
    if current.hardware.is_q35 is False and current.has_secure_boot:
        yield Finding(
            "vbs_needs_q35",
            f"{current.name} has another machine type than q35, which VBS needs",
            "make a new VM with q35, and attach the disks to it: every device has another address there",
        )
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
            "switch hot-add off first: in its definition, <vcpu> without current, no <maxMemory>",
        )
    if current.hardware.iommu not in ("", "intel"):
        yield Finding(
            "vbs_with_other_viommu",
            f"{current.name} has a virtual IOMMU of another kind ({current.hardware.iommu})",
            "remove it first",
        )
    if current.host.is_kvm and current.hardware.is_kvm is False:
        yield Finding(
            "vbs_in_emulation",
            f"{current.name} runs in software emulation, though its host has KVM",
            "change its domain type to kvm",
        )


def _host_refusals(current: CurrentVm, host: HostAbilities) -> Iterable[Finding]:
    if host.nested == "":
        module = {"vmx": "kvm_intel", "svm": "kvm_amd"}.get(host.nested_in_cpu, "")
        if host.is_kvm and module:
            hint = f"load {module} with nested=1 on the host, restart libvirt's daemon there, refresh the host"
        else:
            hint = "switch VT-x or AMD-V on in the host's firmware, or move the VM to a host that has it"
        yield Finding("nested_not_on_host", "The host gives VMs no nested virtualization (vmx, svm)", hint)
    if host.viommu is False:
        yield Finding("viommu_not_on_host", "The host's QEMU has no virtual IOMMU", "use a newer QEMU, or move the VM")


def steps(current: CurrentVm, desired: DesiredVm) -> Iterable[Step]:
    if changes_firmware(current, desired):
        on = wants_secure_boot(current, desired)
        text = f"Switch Secure Boot {'on' if on else 'off'}"
        undo = f"switch Secure Boot {'off' if on else 'on'} again"
        if on and not current.is_uefi:
            text, undo = "Replace the BIOS firmware by UEFI with Secure Boot", "put BIOS back in the VM's definition"
        yield Step(StepKind.SET_FIRMWARE, "", How.LIBVIRT, text, undo=undo)
    if sets_vbs(current, desired):
        nested = f" ({current.host.nested})" if current.host.nested else ""
        yield Step(
            StepKind.SET_VBS, "", How.LIBVIRT,
            f"Set what VBS needs: nested virtualization{nested}, a virtual IOMMU with interrupt remapping, SMM, and "
            "the Hyper-V enlightenments that the host has",
            undo="switch VBS off again: what it brought goes, what it replaced comes back; UEFI and Secure Boot stay",
        )  # fmt: skip
    elif unsets_vbs(current, desired):
        yield Step(
            StepKind.UNSET_VBS, "", How.LIBVIRT,
            "Take away what VBS brought and put back what it replaced; UEFI, Secure Boot and vTPM stay",
            undo="set VBS again",
        )  # fmt: skip


def warnings(current: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
    if sets_vbs(current, desired):
        yield Finding("vbs_in_guest", "VBS is prepared, not switched on: that is done in the guest", IN_GUEST)
        if current.host.is_kvm is False:
            yield Finding(
                "vbs_emulated",
                "The host emulates nested virtualization in software, which is slow",
                "use a host with KVM",
            )
    if unsets_vbs(current, desired):
        yield Finding(
            "vbs_off_in_guest", "A guest that still has VBS switched on boots without its protection",
            "switch it off in the guest first",
        )  # fmt: skip
        if not current.hardware.remembers_vbs:
            yield Finding(
                "vbs_not_remembered",
                "VBS was set outside this console: nested virtualization and the virtual IOMMU go, Hyper-V "
                "enlightenments stay",
            )
    if not changes_firmware(current, desired):
        return
    if not wants_secure_boot(current, desired):
        yield Finding(
            "secure_boot_off",
            "Without Secure Boot the guest boots whatever lies on its disk, signed or not",
            "keys and boot entries stay in its UEFI variables: Secure Boot can be switched on again",
        )
    elif current.is_uefi and current.nvram_path:
        yield Finding(
            "keys_enrolled",
            "Where no keys are enrolled in the UEFI variables, those of the host's firmware are, as a rule Microsoft's",
            "a guest that is not signed with them will not boot; boot entries stay",
        )
    if current.has_tpm and desired.vtpm is not False:
        yield Finding(
            "measured_boot_changes",
            "What a guest has sealed to Secure Boot's state in its vTPM (PCR 7, BitLocker) does not open afterwards",
            "have the recovery key at hand, or suspend BitLocker first",
        )
