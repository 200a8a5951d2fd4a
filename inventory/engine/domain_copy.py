"""A domain's XML made another domain's: the files it owns, new identity, new places. Text in, text out.

What a copy on the same host keeps as it is (CD media, kernels, passthrough devices) is left alone here; what may leave
its host, or come from elsewhere, is decided in `domain_portable.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from lxml import etree

from inventory.engine.domain_xml import BadDefinition, parse_document, serialize

MAX_NAME: Final = 200
_MEDIA: Final = frozenset({"cdrom", "floppy"})
_PORTS: Final = ("serial", "parallel", "console", "channel")


class FileRole(StrEnum):
    """What a file of a definition is. KERNEL, INITRD and DTB belong to direct kernel boot."""

    DISK = "disk"
    NVRAM = "nvram"
    KERNEL = "kernel"
    INITRD = "initrd"
    DTB = "dtb"


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A file that the definition names. `target`: the disk's name, else empty; `format` raw or qcow2."""

    role: FileRole
    target: str
    path: str
    format: str
    secret_uuid: UUID | None


def own_files(xml: str) -> tuple[OwnFile, ...]:
    """Disks and NVRAM, in order. Raises BadDefinition `disk_not_copyable` for a disk that is no plain file or shared.

    Media in CD and floppy drives are left out: they are read only, and belong to no single VM.
    """
    root = parse_document(xml)
    found: list[OwnFile] = []
    for disk in root.iterfind("devices/disk"):
        if disk.get("device", "disk") in _MEDIA:
            continue
        found.append(_disk_file(disk))
    nvram = root.find("os/nvram")
    if nvram is not None:
        source = nvram.find("source")
        path = (nvram.text or "").strip() if source is None else source.get("file", "")
        if path:
            found.append(OwnFile(FileRole.NVRAM, "", path, "raw", _secret(nvram if source is None else source)))
        elif source is not None:
            raise BadDefinition("nvram_not_copyable", "the NVRAM is not in a file")
    return tuple(found)


def boot_files(xml: str) -> tuple[OwnFile, ...]:
    """Kernel, initial RAM disk and device tree of direct kernel boot."""
    os = parse_document(xml).find("os")
    if os is None:
        return ()
    roles = (FileRole.KERNEL, FileRole.INITRD, FileRole.DTB)
    named = ((role, (os.findtext(role.value) or "").strip()) for role in roles)
    return tuple(OwnFile(role, "", path, "raw", None) for role, path in named if path)


def _disk_file(disk: etree._Element) -> OwnFile:
    target, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
    name = "" if target is None else target.get("dev", "")
    path = "" if source is None else source.get("file", "")
    if disk.get("type") != "file" or not path or source is None:
        raise BadDefinition(
            "disk_not_copyable", f"disk {name} is not in a file", hint="move it to a file datastore, or detach it"
        )
    if disk.find("shareable") is not None:
        raise BadDefinition("disk_not_copyable", f"disk {name} is shared with other VMs", hint="detach it first")
    if source.find("slices") is not None or disk.find("transient") is not None:
        raise BadDefinition("disk_not_copyable", f"disk {name} is transient, or uses only a slice of its file")
    image_format = "" if driver is None else driver.get("type", "")
    if image_format not in ("raw", "qcow2"):
        raise BadDefinition("disk_not_copyable", f"disk {name} has the format {image_format[:20] or 'unknown'}")
    return OwnFile(FileRole.DISK, name, path, image_format, _secret(source) or _secret(disk))


def _secret(holder: etree._Element) -> UUID | None:
    secret = holder.find("encryption/secret")
    text = None if secret is None else secret.get("uuid")
    try:
        return None if text is None else UUID(text)
    except ValueError as exc:
        raise BadDefinition("bad_definition", "the UUID of a secret is malformed") from exc


def renamed(xml: str, name: str) -> str:
    """The same domain under another name; refuses one that libvirt would."""
    root = parse_document(xml)
    element = root.find("name")
    if element is None:
        raise BadDefinition("bad_definition", "the domain has no name")
    element.text = checked_name(name)
    return serialize(root)


def checked_name(name: str) -> str:
    """Raises BadDefinition `bad_name`. A name also becomes the name of files."""
    if not 0 < len(name) <= MAX_NAME or name != name.strip() or not name.isprintable() or name[0] in ".-":
        raise BadDefinition("bad_name", "a VM's name has 1 to 200 printable characters, and no dot or dash first")
    if any(char in '/\\<>"&' for char in name):
        raise BadDefinition("bad_name", "a VM's name holds none of / \\ < > \" &")
    return name


def with_new_identity(xml: str, uuid: UUID) -> str:
    """Another UUID, generation ID and MAC addresses; the latter two are drawn by libvirt.

    Passwords of the graphics are not in what a host shows, so a copy has none.
    """
    root = parse_document(xml)
    element = root.find("uuid")
    if element is None:
        raise BadDefinition("bad_definition", "the domain has no UUID")
    element.text = str(uuid)
    genid = root.find("genid")
    if genid is not None:
        genid.text = None
    for interface in root.iterfind("devices/interface"):
        for mac in interface.findall("mac"):
            interface.remove(mac)
    for entry in root.iterfind("sysinfo/system/entry"):
        if entry.get("name") == "uuid":  # libvirt wants it equal to the domain's
            entry.text = str(uuid)
    return serialize(root)


def with_files(xml: str, places: Mapping[tuple[FileRole, str], str]) -> str:
    """The files of `own_files` and `boot_files` at other places, by role and disk; those not named stay."""
    root = parse_document(xml)
    for disk in root.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        place = places.get((FileRole.DISK, "" if target is None else target.get("dev", "")))
        if place is not None and source is not None and disk.get("device", "disk") not in _MEDIA:
            source.set("file", place)
            for child in ("backingStore", "mirror"):
                for gone in disk.findall(child):
                    disk.remove(gone)
    for path in ("nvram", "kernel", "initrd", "dtb"):
        element, place = root.find(f"os/{path}"), places.get((FileRole(path), ""))
        if element is None or place is None:
            continue
        inner = element.find("source")
        if inner is None:
            element.text = place
        else:
            inner.set("file", place)
    return serialize(root)


def with_logs(xml: str, place: Callable[[int], str]) -> str:
    """What the guest prints goes to files of its own: `place` gives the path of the first (0), second ... one.

    Refuses ports on sockets of a fixed path: two domains cannot have the same.
    """
    root = parse_document(xml)
    numbers: dict[str, int] = {}
    for kind in _PORTS:
        for port in root.iterfind(f"devices/{kind}"):
            source, log = port.find("source"), port.find("log")
            if log is not None and log.get("file"):
                log.set("file", _numbered(numbers, log.get("file", ""), place))
            if port.get("type") == "file" and source is not None and source.get("path"):
                source.set("path", _numbered(numbers, source.get("path", ""), place))
            elif port.get("type") == "unix" and source is not None and source.get("path"):
                raise BadDefinition(
                    "port_not_copyable", f"a {kind} port is bound to a socket of its own",
                    hint="remove its path, so that libvirt chooses one",
                )  # fmt: skip
    return serialize(root)


def _numbered(numbers: dict[str, int], path: str, place: Callable[[int], str]) -> str:
    """libvirt shows the first serial port as a console too: the same file keeps one number."""
    return place(numbers.setdefault(path, len(numbers)))


def with_secrets(xml: str, secrets: Mapping[UUID, UUID]) -> str:
    """Other secrets open the same parts. Secrets that are not named stay."""
    root = parse_document(xml)
    holders = [(element, "uuid") for element in root.iterfind(".//encryption/secret")]
    holders += [(element, "secret") for element in root.iterfind("devices/tpm/backend/encryption")]
    for element, name in holders:
        try:
            new = secrets.get(UUID(element.get(name, "")))
        except ValueError as exc:
            raise BadDefinition("bad_definition", "the UUID of a secret is malformed") from exc
        if new is not None:
            element.set(name, str(new))
    return serialize(root)


def secrets_of(xml: str) -> frozenset[UUID]:
    """All secrets that the definition names."""
    root = parse_document(xml)
    texts = [element.get("uuid", "") for element in root.iterfind(".//encryption/secret")]
    texts += [element.get("secret", "") for element in root.iterfind("devices/tpm/backend/encryption")]
    try:
        return frozenset(UUID(text) for text in texts)
    except ValueError as exc:
        raise BadDefinition("bad_definition", "the UUID of a secret is malformed or missing") from exc
