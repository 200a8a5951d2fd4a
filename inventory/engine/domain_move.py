"""A domain's XML on its way to another host: what holds it where it is, and its files at their new places."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lxml import etree

from inventory.engine.domain_copy import FileRole, with_files, with_logs
from inventory.engine.domain_edit import set_disk
from inventory.engine.domain_xml import parse_document, read_facts
from inventory.engine.hypervisor import Power

_HELD: Final = {
    "hostdev": "the host's device",
    "filesystem": "the host's folder",
    "redirdev": "a redirected USB device",
    "smartcard": "the host's smart card",
    "shmem": "shared memory",
    "vsock": "a vsock address",
}


@dataclass(frozen=True, slots=True)
class Traits:
    """What decides where a domain can run. `held_by`: devices that no other host has, in words. `media`: files of CD
    and floppy drives and of direct kernel boot, which must be at the same path there."""

    domain_type: str
    architecture: str
    machine: str
    cpu_mode: str
    held_by: tuple[str, ...]
    media: tuple[str, ...]
    logs: tuple[str, ...]


def traits(xml: str) -> Traits:
    """Raises BadDefinition."""
    root = parse_document(xml)
    kind = root.find("os/type")
    cpu = root.find("cpu")
    held = [words for name, words in _HELD.items() if root.find(f"devices/{name}") is not None]
    if root.find("launchSecurity") is not None:
        held.append("memory encryption by this processor")
    return Traits(
        domain_type=root.get("type", ""),
        architecture="" if kind is None else kind.get("arch", ""),
        machine="" if kind is None else kind.get("machine", ""),
        cpu_mode="" if cpu is None else cpu.get("mode", ""),
        held_by=tuple(held),
        media=tuple(_media(root)),
        logs=tuple(_logs(root)),
    )


def _media(root: etree._Element) -> list[str]:
    found = []
    for disk in root.iterfind("devices/disk"):
        source = disk.find("source")
        if disk.get("device") in ("cdrom", "floppy") and source is not None and source.get("file"):
            found.append(source.get("file", ""))
    for name in ("kernel", "initrd", "dtb"):
        path = (root.findtext(f"os/{name}") or "").strip()
        if path:
            found.append(path)
    return found


def _logs(root: etree._Element) -> list[str]:
    found = []
    for kind in ("serial", "parallel", "console", "channel"):
        for port in root.iterfind(f"devices/{kind}"):
            source, log = port.find("source"), port.find("log")
            if log is not None and log.get("file"):
                found.append(log.get("file", ""))
            if port.get("type") == "file" and source is not None and source.get("path"):
                found.append(source.get("path", ""))
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class NewPlace:
    """Where a disk will be; `format` raw or qcow2."""

    path: str
    format: str


def moved(xml: str, *, disks: Mapping[str, NewPlace], nvram: str, logs_folder: str) -> str:
    """The definition with these disks and NVRAM there; "" leaves the NVRAM, and what the guest's ports print."""
    facts = read_facts(xml, live=None, power=Power.OFF, is_persistent=True)
    secrets = {disk.target: disk.secret_uuid for disk in facts.disks}
    for target, place in disks.items():
        xml = set_disk(xml, target, path=place.path, format=place.format, secret_uuid=secrets.get(target))
    if disks:  # what libvirt tells of the images behind them is of the old place
        xml = with_files(xml, {(FileRole.DISK, target): place.path for target, place in disks.items()})
    if nvram:
        xml = with_files(xml, {(FileRole.NVRAM, ""): nvram})
    if logs_folder:
        xml = with_logs(xml, lambda number: f"{logs_folder}/console{number or ''}.log")
    return xml
