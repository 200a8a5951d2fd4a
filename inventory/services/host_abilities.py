"""What a host can give its VMs, in words: for people and for the API."""

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from inventory.authorize import VIEW, Actor, authorize
from inventory.engine.abilities import HostAbilities
from inventory.models import Host
from inventory.services.hosts import host_of


@dataclass(frozen=True, slots=True)
class Ability:
    """`remedy` is empty where nothing is missing."""

    code: str
    name: str
    is_there: bool
    text: str
    remedy: str = ""


def host_abilities(*, host_id: UUID, actor: Actor) -> tuple[Host, tuple[Ability, ...]]:
    """The host and what it can give; nothing where it has not been asked yet. Raises NotFound, Refused."""
    host = host_of(host_id)
    authorize(actor, VIEW, host)
    known = host.known_abilities
    return host, tuple(_abilities(known)) if known.is_known else ()


def _abilities(can: HostAbilities) -> Iterable[Ability]:
    is_kvm = can.virtualization == "kvm"
    yield Ability(
        "kvm", "Hardware virtualization", is_kvm,
        "Offered by libvirt (KVM)" if is_kvm else "VMs run in software emulation (TCG)",
        "" if is_kvm else "switch on VT-x or AMD-V in the host's firmware, and load kvm_intel or kvm_amd",
    )  # fmt: skip
    yield _simple("q35", "q35 machine type", can.q35, "install a QEMU that has it")
    yield _simple("uefi", "UEFI firmware", can.uefi, "install the firmware (Debian, Ubuntu: ovmf; Fedora: edk2-ovmf)")
    yield Ability(
        "secure_boot", "Secure Boot with enrolled keys", can.secure_boot,
        can.secure_loader if can.secure_boot else "No such firmware is known to libvirt",
        "" if can.secure_boot else "install firmware with Microsoft's keys in its variables (Debian, Ubuntu: ovmf)",
    )  # fmt: skip
    yield _simple("smm", "System Management Mode (SMM)", can.smm, "use a newer QEMU")
    yield Ability(
        "vtpm", "Virtual TPM 2.0", can.vtpm,
        "Emulated, with the CRB interface" if can.vtpm else "No emulated TPM 2.0 is offered by libvirt",
        "" if can.vtpm else "install swtpm and swtpm-tools, then restart libvirt's daemon",
    )  # fmt: skip
    yield _nested(can)
    yield Ability(
        "viommu", "Virtual IOMMU with interrupt remapping", can.viommu,
        "Intel's model (intel-iommu)" if can.viommu else "QEMU has none for q35",
        "" if can.viommu else "use a newer QEMU",
    )  # fmt: skip
    yield Ability(
        "hyperv", "Hyper-V enlightenments", bool(can.hyperv), ", ".join(can.hyperv) or "None",
        "" if can.hyperv else "nothing depends on them but the speed of Windows guests",
    )  # fmt: skip


def _nested(can: HostAbilities) -> Ability:
    text, remedy = can.nested, ""
    if not can.nested:
        text = "VMs get none"
        remedy = "use hosts whose processors have VT-x or AMD-V, with KVM"
        if can.nested_in_cpu and can.virtualization == "kvm":
            module = "kvm_intel" if can.nested_in_cpu == "vmx" else "kvm_amd"
            text = f"The processor has {can.nested_in_cpu}, and the kernel does not pass it on"
            remedy = f"load {module} with nested=1, then restart libvirt's daemon"
    elif can.virtualization == "qemu":
        text = f"{can.nested}, emulated in software"
    return Ability("nested", "Nested virtualization", bool(can.nested), text, remedy)


def _simple(code: str, name: str, is_there: bool, remedy: str) -> Ability:
    return Ability(code, name, is_there, "There" if is_there else "Not there", "" if is_there else remedy)
