"""Whether a VM is what Windows 11 asks of a machine (Microsoft's "Windows 11 specifications").

NOT checked: the generation of the processor, which a VM only shows as its definition says, and graphics.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

GIB: Final = 2**30
MIN_VCPUS: Final = 2
MIN_MEMORY: Final = 4 * GIB
MIN_DISK: Final = 64 * GIB


class State(StrEnum):
    MET = "met"
    UNMET = "unmet"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Machine:
    """`largest_disk`: capacity in bytes of the largest hard disk, 0 where no size is known or there is none.
    `arch`: libvirt's, empty where not known."""

    tpm_version: str
    firmware: str
    has_secure_boot: bool
    arch: str
    vcpus: int
    memory_bytes: int
    largest_disk: int
    hard_disks: int


@dataclass(frozen=True, slots=True)
class Requirement:
    """`remedy` is empty where it is met."""

    code: str
    name: str
    state: State
    text: str
    remedy: str = ""


def checklist(machine: Machine) -> tuple[Requirement, ...]:
    return tuple(_requirements(machine))


def is_ready(requirements: Iterable[Requirement]) -> bool:
    """What is not known counts as not met."""
    return all(one.state is State.MET for one in requirements)


def _requirements(machine: Machine) -> Iterable[Requirement]:
    is_uefi = machine.firmware == "uefi"
    if not machine.tpm_version:
        yield Requirement("tpm", "TPM 2.0", State.UNMET, "No TPM", "add a virtual TPM under VM Options")
    elif machine.tpm_version != "2.0":
        yield Requirement(
            "tpm", "TPM 2.0", State.UNMET, f"TPM {machine.tpm_version}", "replace it by a TPM 2.0 in its definition"
        )
    else:
        yield Requirement("tpm", "TPM 2.0", State.MET, "There")
    yield _of(
        "uefi", "UEFI", is_uefi, "There" if is_uefi else "BIOS",
        "make a new VM with UEFI, or convert the guest's disk first (mbr2gpt.exe /convert in Windows)",
    )  # fmt: skip
    # Microsoft asks for "UEFI, Secure Boot capable"; a VM's firmware is the one that it has now, capable only when on.
    yield _of(
        "secure_boot", "Secure Boot", machine.has_secure_boot, "On" if machine.has_secure_boot else "Off",
        "switch it on under VM Options" if is_uefi else "needs UEFI",
    )  # fmt: skip
    if not machine.arch:
        yield Requirement("cpu_64_bit", "64-bit CPU", State.UNKNOWN, "Not known", "refresh the host")
    else:
        yield _of(
            "cpu_64_bit", "64-bit CPU", machine.arch in ("x86_64", "aarch64"), machine.arch, "make a new, 64-bit VM"
        )
    yield _of(
        "vcpus", f"{MIN_VCPUS} CPUs", machine.vcpus >= MIN_VCPUS, str(machine.vcpus),
        f"give it {MIN_VCPUS} CPUs or more",
    )  # fmt: skip
    yield _of(
        "memory", f"{MIN_MEMORY // GIB} GiB of memory", machine.memory_bytes >= MIN_MEMORY,
        f"{machine.memory_bytes / GIB:.1f} GiB", f"give it {MIN_MEMORY // GIB} GiB or more",
    )  # fmt: skip
    if machine.hard_disks and not machine.largest_disk:
        yield Requirement("disk", f"{MIN_DISK // GIB} GiB disk", State.UNKNOWN, "Size not known", "refresh the host")
    else:
        yield _of(
            "disk", f"{MIN_DISK // GIB} GiB disk", machine.largest_disk >= MIN_DISK,
            f"{machine.largest_disk / GIB:.1f} GiB" if machine.hard_disks else "No hard disk",
            f"give it a disk of {MIN_DISK // GIB} GiB or more",
        )  # fmt: skip


def _of(code: str, name: str, is_met: bool, text: str, remedy: str) -> Requirement:
    return Requirement(code, name, State.MET if is_met else State.UNMET, text, "" if is_met else remedy)
