"""Domain XML that leaves its host, and such XML from elsewhere, which nobody vouches for.

`portable` takes away what belongs to one host; `check_portable` then refuses whatever is not known to be harmless: a
definition decides which files QEMU opens and what it may touch on its host. It is a list of what is allowed, so what a
later libvirt brings is refused until it is put here. Files are named without folders; the importer places them.

NOT decided here: which networks and bridges a VM may join; their names must exist on the importing host.
"""

import re
from collections.abc import Mapping
from typing import Final

from lxml import etree

from inventory.engine.domain_copy import FileRole
from inventory.engine.domain_xml import BadDefinition, parse_document, serialize

FIRMWARE_FOLDERS: Final = ("/usr/share/",)
MAX_ELEMENTS: Final = 20_000
LOG_NAME: Final = re.compile(r"console-[0-9]{1,2}\.log", re.ASCII)

# Of one host, or chosen by libvirt anew.
_HOSTS_OWN: Final = ("resource", "seclabel", "cputune", "numatune", "memoryBacking", "blkiotune", "memtune", "keywrap",
              "metadata")  # fmt: skip
_TOP: Final = frozenset({
    "name", "uuid", "genid", "title", "description", "metadata", "memory", "currentMemory", "maxMemory", "vcpu",
    "vcpus", "iothreads", "iothreadids", "os", "features", "cpu", "clock", "on_poweroff", "on_reboot", "on_crash",
    "on_lockfailure", "pm", "perf", "sysinfo", "devices",
})  # fmt: skip
_OS: Final = frozenset({
    "type", "loader", "nvram", "firmware", "boot", "bootmenu", "smbios", "bios", "kernel", "initrd", "dtb", "cmdline",
})  # fmt: skip
# Each device that is allowed, with the values of its `type` attribute that are (None: any).
_DEVICES: Final[Mapping[str, frozenset[str] | None]] = {
    "disk": frozenset({"file"}),
    "controller": None,
    "interface": frozenset({"network", "bridge", "user"}),
    "serial": frozenset({"pty", "null", "file"}),
    "console": frozenset({"pty", "null", "file"}),
    "channel": frozenset({"unix", "spicevmc", "pty", "null"}),
    "input": frozenset({"mouse", "keyboard", "tablet"}),
    "tpm": None,
    "graphics": frozenset({"vnc", "spice"}),
    "audio": frozenset({"none", "spice"}),
    "sound": None,
    "video": None,
    "memballoon": None,
    "rng": None,
    "watchdog": None,
    "panic": None,
    "hub": None,
    "iommu": None,
}
_DISK: Final = frozenset({
    "driver", "source", "target", "serial", "wwn", "vendor", "product", "boot", "address", "alias", "readonly",
    "iotune", "blockio", "geometry", "encryption",
})  # fmt: skip
_RANDOM: Final = frozenset({"/dev/urandom", "/dev/random"})
_FREE_TEXT: Final = frozenset({"title", "description", "cmdline", "entry"})


def portable(xml: str) -> str:
    """Without what belongs to the host: emulator, labels, tuning, media, metadata, comments."""
    root = parse_document(xml)
    etree.strip_elements(root, etree.Comment, etree.ProcessingInstruction, with_tail=False)
    _unset(root, "id")
    for name in _HOSTS_OWN:
        _drop(root, name)
    devices = root.find("devices")
    if devices is not None:
        _drop(devices, "emulator")
        for element in list(devices.iter("alias", "seclabel")):
            _remove(element)
        for disk in devices.iterfind("disk"):
            source = disk.find("source")
            if disk.get("device") in ("cdrom", "floppy") and source is not None:
                disk.remove(source)
                disk.set("type", "file")
            for name in ("backingStore", "mirror"):
                _drop(disk, name)
            if source is not None:
                _unset(source, "index")
        for port in devices.iter("serial", "console", "channel"):
            _unset(port, "tty")
            source = port.find("source")
            if source is not None and port.get("type") == "pty":
                port.remove(source)
        for graphics in devices.iterfind("graphics"):
            _unset(graphics, "socket")
    return serialize(root)


def check_portable(xml: str, files: Mapping[tuple[FileRole, str], str], *, metadata_namespaces: frozenset[str]) -> None:
    """Raises BadDefinition `definition_refused` unless the definition names the given files (by role and disk, names
    without folders), all of them, and nothing else of any host. No metadata but of those namespaces."""
    root = parse_document(xml)
    if sum(1 for _ in root.iter()) > MAX_ELEMENTS:
        raise _refused("it has too many elements")
    if root.get("type") not in ("kvm", "qemu") or set(root.attrib) - {"type"}:
        raise _refused("its domain type is not kvm or qemu")
    for child in root:
        _check_name(child)
        if child.tag not in _TOP:
            raise _refused(f"it has <{child.tag}>")
    for name in ("name", "uuid", "memory", "os", "devices"):
        if len(root.findall(name)) != 1:
            raise _refused(f"it has no single <{name}>")
    for element in root.iterfind("metadata/*"):
        if etree.QName(element).namespace not in metadata_namespaces:
            raise _refused("it has metadata of other programs")
    seen = _check_os(root.find("os"), files) | _check_devices(root.find("devices"), files)
    if seen != files.keys():
        raise _refused("it does not name the files that come with it")
    for child in root:
        if child.tag not in ("metadata", "os"):
            _check_values(child)


def _check_os(os: etree._Element | None, files: Mapping[tuple[FileRole, str], str]) -> set[tuple[FileRole, str]]:
    assert os is not None  # noqa: S101  counted by the caller
    seen: set[tuple[FileRole, str]] = set()
    if set(os.attrib) - {"firmware"}:
        raise _refused("its <os> has unknown attributes")
    for element in os:
        _check_name(element)
        tag = str(element.tag)
        if tag not in _OS:
            raise _refused(f"it has <os><{tag}>")
        text = (element.text or "").strip()
        if tag == "loader":
            if element.get("readonly") != "yes" and element.get("type") == "pflash":
                raise _refused("its firmware is not read only")
            if text and not _is_firmware(text):
                raise _refused("its firmware is not one of the host's")
            _no_values(element, but=())
        elif tag in ("nvram", "kernel", "initrd", "dtb"):
            key = (FileRole(tag), "")
            _check_file(element, key, files, text)
            if element.get("template") and not _is_firmware(element.get("template", "")):
                raise _refused("its NVRAM template is not one of the host's")
            if (
                set(element.attrib) - {"template", "type", "templateFormat", "format"}
                or element.get("type", "file") != "file"
            ):
                raise _refused("its NVRAM is no file")
            if text or len(element):
                seen.add(key)
        else:
            _check_values(element)
    return seen


def _check_file(
    element: etree._Element, key: tuple[FileRole, str], files: Mapping[tuple[FileRole, str], str], text: str
) -> None:
    sources = element.findall("source")
    if not text and not len(element):
        return
    if len(element) != len(sources) or len(sources) > 1 or (text and sources):
        raise _refused(f"its {key[0].value} is named in an unknown way")
    name = text or sources[0].get("file", "")
    if files.get(key) != name:
        raise _refused(f"its {key[0].value} is {name[:60]!r}, which does not come with it")
    if sources:
        _check_source(sources[0], key)


def _check_source(source: etree._Element, key: tuple[FileRole, str]) -> None:
    what = key[1] or key[0].value
    if set(source.attrib) - {"file", "startupPolicy"} or any(child.tag != "encryption" for child in source):
        raise _refused(f"the source of {what} is more than a file")
    for encryption in source:
        secrets = list(encryption)
        if (
            {str(name): str(value) for name, value in encryption.attrib.items()} != {"format": "luks", "engine": "qemu"}
            or len(secrets) != 1
            or secrets[0].tag != "secret"
            or set(secrets[0].attrib) != {"type", "uuid"}
            or secrets[0].get("type") != "passphrase"
            or len(secrets[0])
        ):
            raise _refused(f"{what} is encrypted in an unknown way")


def _check_devices(
    devices: etree._Element | None, files: Mapping[tuple[FileRole, str], str]
) -> set[tuple[FileRole, str]]:
    assert devices is not None  # noqa: S101  counted by the caller
    seen: set[tuple[FileRole, str]] = set()
    for device in devices:
        _check_name(device)
        tag = str(device.tag)
        if tag not in _DEVICES:
            raise _refused(f"it has the device <{tag}>")
        types = _DEVICES[tag]
        if types is not None and device.get("type") not in types:
            raise _refused(f"it has a {tag} of type {device.get('type', '')[:20]!r}")
        if tag == "disk":
            key = _check_disk(device, files)
            if key in seen:
                raise _refused("two of its disks have the same name")
            if key is not None:
                seen.add(key)
        elif tag in ("serial", "console", "channel"):
            _check_port(device)
        elif tag == "tpm":
            backends = device.findall("backend")
            if len(backends) != 1 or backends[0].get("type") != "emulator":
                raise _refused("its TPM is not an emulated one")
            if any(child.tag not in ("encryption", "active_pcr_banks", "profile") for child in backends[0]):
                raise _refused("its TPM's backend is of an unknown kind")
        elif tag == "rng":
            for backend in device.findall("backend"):
                if backend.get("model") not in ("random", "builtin") or len(backend):
                    raise _refused("its random numbers come from an unknown source")
                if (backend.text or "").strip() not in _RANDOM | {""}:
                    raise _refused("its random numbers come from a file")
    return seen


def _check_disk(disk: etree._Element, files: Mapping[tuple[FileRole, str], str]) -> tuple[FileRole, str] | None:
    """The file that the disk opens; None for an empty drive."""
    if disk.get("device", "disk") not in ("disk", "cdrom", "floppy"):
        raise _refused("it has a disk that is none")
    for child in disk:
        _check_name(child)
        if child.tag not in _DISK:
            raise _refused(f"a disk of it has <{child.tag}>")
    targets, sources, drivers = disk.findall("target"), disk.findall("source"), disk.findall("driver")
    if len(targets) != 1 or len(sources) > 1 or len(drivers) > 1 or disk.find("encryption") is not None:
        raise _refused("a disk of it is described in an unknown way")
    if disk.get("device", "disk") != "disk":
        if sources:
            raise _refused("it has a medium in a drive")
        return None
    key = (FileRole.DISK, targets[0].get("dev", ""))
    if not sources or files.get(key) is None or sources[0].get("file") != files[key]:
        raise _refused(f"its disk {key[1][:32]!r} is not among the files that come with it")
    if not drivers or drivers[0].get("type") not in ("raw", "qcow2") or drivers[0].get("name", "qemu") != "qemu":
        raise _refused(f"its disk {key[1]} has no known format")
    _check_source(sources[0], key)
    return key


def _check_port(port: etree._Element) -> None:
    for child in port:
        for name in ("file", "path"):
            value = child.get(name)
            if value is not None and not LOG_NAME.fullmatch(value):
                raise _refused(f"its {port.tag} port writes to {value[:60]!r}")
    if port.get("type") == "unix" and any(source.get("path") for source in port.iterfind("source")):
        raise _refused(f"its {port.tag} port is a socket of a fixed path")


def _check_values(element: etree._Element) -> None:
    """No value anywhere may name a path, whatever element it is in."""
    for one in element.iter():
        _check_name(one)
        text = (one.text or "").strip()
        if "/" in text and one.tag not in _FREE_TEXT and not (one.tag == "backend" and text in _RANDOM):
            raise _refused(f"<{one.tag}> names a path")
        _no_values(one, but=("timezone",))


def _no_values(element: etree._Element, *, but: tuple[str, ...]) -> None:
    for name, value in element.attrib.items():
        if "/" in str(value) and name not in but:
            raise _refused(f"<{element.tag}> names a path")


def _check_name(element: etree._Element) -> None:
    """Neither comments nor other programs' namespaces: `qemu:commandline` hands QEMU any option there is."""
    if not isinstance(element.tag, str):
        raise _refused("it has a comment or an instruction")
    if element.tag.startswith("{") or any(str(name).startswith("{") for name in element.attrib):
        raise _refused("it passes options through to QEMU, or has elements of other programs")


def _is_firmware(path: str) -> bool:
    return path.startswith(FIRMWARE_FOLDERS) and "/.." not in path


def _refused(why: str) -> BadDefinition:
    return BadDefinition(
        "definition_refused", f"the definition is not accepted: {why}",
        hint="remove that from the VM where it comes from, then export it again",
    )  # fmt: skip


def _unset(element: etree._Element, name: str) -> None:
    if element.get(name) is not None:
        del element.attrib[name]


def _drop(parent: etree._Element, name: str) -> None:
    for child in parent.findall(name):
        parent.remove(child)


def _remove(element: etree._Element) -> None:
    parent = element.getparent()
    if parent is not None:
        parent.remove(element)
