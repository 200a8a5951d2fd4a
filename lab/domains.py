"""The lab's guests as libvirt domains: what they are made of, and their XML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from lab.disks import data_disks
from lab.images import CMDLINE, GuestImages
from lab.layout import HostLayout, Lab

CHANNEL = "lab.commands"
OVMF = Path("/usr/share/OVMF")


@dataclass(frozen=True, slots=True)
class Firmware:
    """OVMF code and the variable store that goes with it."""

    code: Path
    variables: Path
    secure: bool


UEFI = Firmware(OVMF / "OVMF_CODE_4M.fd", OVMF / "OVMF_VARS_4M.fd", secure=False)
# Microsoft's and Debian's keys are enrolled in this store, so shim's signature is known and Secure Boot is on.
SECURE_BOOT = Firmware(OVMF / "OVMF_CODE_4M.ms.fd", OVMF / "OVMF_VARS_4M.ms.fd", secure=True)


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest of the lab. `firmware` None means BIOS. All files of a guest lie in one folder of its datastore."""

    name: str
    host: str
    memory_mib: int
    firmware: Firmware | None
    boots_from_disk: bool
    vtpm: bool
    started: bool

    @property
    def system_disk(self) -> str | None:
        return "system.raw" if self.boots_from_disk else None

    def folder(self, host: HostLayout) -> Path:
        return host.datastore / self.name


# Memory as measured: under Secure Boot 160 MiB do not boot, and shim + GRUB need more than a direct kernel.
GUESTS = (
    Guest("bios-01", "a", 128, None, boots_from_disk=False, vtpm=False, started=True),
    Guest("uefi-01", "a", 256, UEFI, boots_from_disk=False, vtpm=True, started=False),
    Guest("secureboot-01", "b", 384, SECURE_BOOT, boots_from_disk=True, vtpm=True, started=True),
)


def domain_xml(lab: Lab, guest: Guest, images: GuestImages, *, folder: Path | None = None) -> str:
    """The definition of `guest`, its files in `folder` (by default its own on its host)."""
    home = folder or guest.folder(lab.host(guest.host))
    domain = ET.Element("domain", type=lab.accelerator or "qemu")
    _text(domain, "name", guest.name)
    _text(domain, "uuid", lab.uuid_for(guest.name))
    _text(domain, "memory", str(guest.memory_mib), unit="MiB")
    _text(domain, "vcpu", "1")
    _os(domain, guest, images, home)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if guest.firmware is not None:
        # OVMF's Secure Boot build keeps its variables behind SMM; the plain build does not mind it.
        ET.SubElement(features, "smm", state="on")
    # OVMF under software emulation starts in half the time with this model (measured: 6.7 s against 14.0 s).
    cpu = ET.SubElement(domain, "cpu", mode="custom", match="exact", check="none")
    _text(cpu, "model", "qemu64", fallback="forbid")
    ET.SubElement(domain, "clock", offset="utc")
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "destroy")
    _devices(domain, guest, home)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def _os(domain: ET.Element, guest: Guest, images: GuestImages, home: Path) -> None:
    element = ET.SubElement(domain, "os")
    _text(element, "type", "hvm", arch="x86_64", machine="q35")
    if guest.firmware is not None:
        secure = "yes" if guest.firmware.secure else "no"
        _text(element, "loader", str(guest.firmware.code), readonly="yes", secure=secure, type="pflash")
        _text(element, "nvram", str(home / "nvram.fd"), template=str(guest.firmware.variables))
    if not guest.boots_from_disk:
        _text(element, "kernel", str(images.kernel))
        _text(element, "initrd", str(images.initrd))
        _text(element, "cmdline", f"{CMDLINE} lab.name={guest.name}")


def _devices(domain: ET.Element, guest: Guest, home: Path) -> None:
    devices = ET.SubElement(domain, "devices")
    disks = [(disk.name, disk.file_name, disk.format) for disk in data_disks(guest.name)]
    if guest.system_disk is not None:
        disks.insert(0, ("system", guest.system_disk, "raw"))
    for index, (serial, file_name, format_) in enumerate(disks):
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(disk, "driver", name="qemu", type=format_, cache="none", discard="unmap")
        ET.SubElement(disk, "source", file=str(home / file_name))
        ET.SubElement(disk, "target", dev=f"vd{chr(ord('a') + index)}", bus="virtio")
        _text(disk, "serial", serial)
        if serial == "system":
            ET.SubElement(disk, "boot", order="1")
    # No USB, graphics or video: firmware starts faster without them, and nobody looks at a screen.
    ET.SubElement(devices, "controller", type="usb", model="none")
    serial_port = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial_port, "log", file=str(home / "console.log"), append="off")
    # No path: libvirt chooses one per host, so the channel survives a migration.
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name=CHANNEL)
    if guest.vtpm:
        tpm = ET.SubElement(devices, "tpm", model="tpm-crb")
        ET.SubElement(tpm, "backend", type="emulator", version="2.0")
    video = ET.SubElement(devices, "video")
    ET.SubElement(video, "model", type="none")
    ET.SubElement(devices, "memballoon", model="none")


def _text(parent: ET.Element, tag: str, content: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = content


def pool_xml(name: str, folder: Path) -> str:
    """A directory pool."""
    pool = ET.Element("pool", type="dir")
    _text(pool, "name", name)
    _text(ET.SubElement(pool, "target"), "path", str(folder))
    return ET.tostring(pool, encoding="unicode")


def channel_path(live_xml: str) -> Path | None:
    """The socket of a running guest's command channel, from its live XML; None while it does not run."""
    source = ET.fromstring(live_xml).find(f"./devices/channel[@type='unix']/target[@name='{CHANNEL}']/../source")  # noqa: S314
    path = None if source is None else source.get("path")
    return None if path is None else Path(path)
