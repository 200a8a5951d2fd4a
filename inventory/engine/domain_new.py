"""The definition of a virtual machine that there was none of before: q35, virtio where the guest knows it.

Disks, UEFI variables, TPM, Secure Boot and VBS are put in by the same edits as in a definition that is there
(`domain_edit.py`, `domain_tpm.py`, `domain_vbs.py`). NOT checked: whether the host has the network, and whether it
accepts the result; it says so when the VM is started, or defined.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from lxml import etree

from inventory.engine.domain_copy import checked_name
from inventory.engine.domain_xml import BadDefinition, serialize

MAX_VCPUS: Final = 512
MIB: Final = 2**20


class Guest(StrEnum):
    """What will be installed. Windows: devices that its installer has drivers for, and a clock in local time."""

    LINUX = "linux"
    WINDOWS = "windows"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class NewDomain:
    """`memory_bytes`: whole MiB. `network`: libvirt's name of it, "" for none. `iso`: path on the host, "" for none."""

    name: str
    uuid: UUID
    guest: Guest
    is_kvm: bool
    is_uefi: bool
    vcpus: int
    memory_bytes: int
    network: str = ""
    iso: str = ""


def disk_targets(guest: Guest, count: int) -> tuple[str, ...]:
    """Names of `count` hard disks (26 at most): SATA for guests whose installer may have no virtio drivers."""
    prefix = "vd" if guest is Guest.LINUX else "sd"
    return tuple(f"{prefix}{chr(ord('a') + number)}" for number in range(min(count, 26)))


def new_domain(new: NewDomain) -> str:
    """Without hard disks. Raises BadDefinition."""
    checked_name(new.name)
    if not 0 < new.vcpus <= MAX_VCPUS:
        raise BadDefinition("vcpus_invalid", f"a VM has 1 to {MAX_VCPUS} CPUs")
    if new.memory_bytes < MIB or new.memory_bytes % MIB:
        raise BadDefinition("memory_invalid", "the memory of a VM is a whole number of MiB")
    root = etree.Element("domain", {"type": "kvm" if new.is_kvm else "qemu"})
    _put(root, "name", new.name)
    _put(root, "uuid", str(new.uuid))
    _put(root, "memory", str(new.memory_bytes // MIB), unit="MiB")
    _put(root, "vcpu", str(new.vcpus))
    os = etree.SubElement(root, "os", {"firmware": "efi"} if new.is_uefi else {})
    _put(os, "type", "hvm", arch="x86_64", machine="q35")
    for device in ("hd", "cdrom"):
        _put(os, "boot", dev=device)
    features = etree.SubElement(root, "features")
    for name in ("acpi", "apic"):
        _put(features, name)
    if new.is_kvm:
        _put(root, "cpu", mode="host-model", check="partial")
    clock = _put(root, "clock", offset="localtime" if new.guest is Guest.WINDOWS else "utc")
    for name, policy in (("rtc", "catchup"), ("pit", "delay")):
        _put(clock, "timer", name=name, tickpolicy=policy)
    _put(clock, "timer", name="hpet", present="no")
    for event, then in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _put(root, event, then)
    _devices(etree.SubElement(root, "devices"), new)
    return serialize(root)


def _devices(devices: etree._Element, new: NewDomain) -> None:
    if new.iso:
        drive = _put(devices, "disk", type="file", device="cdrom")
        _put(drive, "driver", name="qemu", type="raw")
        _put(drive, "source", file=new.iso)
        _put(drive, "target", dev="sdz", bus="sata")
        _put(drive, "readonly")
    _put(devices, "controller", type="usb", model="qemu-xhci")
    if new.network:
        card = _put(devices, "interface", type="network")
        _put(card, "source", network=new.network)
        _put(card, "model", type="virtio" if new.guest is Guest.LINUX else "e1000e")
    _put(devices, "serial", type="pty")
    _put(devices, "console", type="pty")
    _put(devices, "input", type="tablet", bus="usb")
    _put(devices, "graphics", type="vnc", autoport="yes", listen="127.0.0.1")
    _put(_put(devices, "video"), "model", type="vga")
    source = _put(devices, "rng", model="virtio")
    _put(source, "backend", "/dev/urandom", model="random")


def _put(parent: etree._Element, tag: str, text: str | None = None, /, **attributes: str) -> etree._Element:
    made = etree.SubElement(parent, tag, attributes)
    made.text = text
    return made
