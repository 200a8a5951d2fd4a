"""Changes of a domain's XML that encryption needs: text in, text out, everything else left as it was.

The XML is parsed and written back by one library, so comments, unknown elements and foreign namespaces (such as
`qemu:commandline`) survive. NOT checked: whether libvirt accepts the result; it says so when the domain is defined.
"""

from copy import deepcopy
from typing import Final
from uuid import UUID

from lxml import etree

from inventory.engine.domain_xml import MAX_BYTES, BadDefinition, has_doctype, parse_document, serialize

_BUSES: Final = {"vd": "virtio", "sd": "sata"}
FORMATS: Final = frozenset({"raw", "qcow2"})


def set_disk(xml: str, disk: str, *, path: str, format: str, secret_uuid: UUID | None) -> str:
    """The disk (`vda`) opens the file `path` of `format`, as LUKS with that secret (QEMU opens it), or plain for None.

    Refuses disks that are not files or block devices, and those that use only a slice of their file.
    """
    root = parse_document(xml)
    element = _disk(root, disk)
    _point(element, disk, path=path, format=format, secret_uuid=secret_uuid)
    for name in ("backingStore", "mirror"):
        _drop(element, name)
    return serialize(root)


def add_disk(xml: str, disk: str, *, path: str, format: str, secret_uuid: UUID | None) -> str:
    """A new hard disk behind the others, on the bus that its name stands for: vd* is virtio, sd* is SATA."""
    root = parse_document(xml)
    devices = root.find("devices")
    if devices is None:
        raise BadDefinition("bad_definition", "the domain has no <devices>")
    if disk[:2] not in _BUSES or not disk[2:].isalpha():
        raise BadDefinition("disk_name_invalid", f"a disk cannot be called {disk[:20]}")
    if any(one.get("dev") == disk for one in devices.iterfind("disk/target")):
        raise BadDefinition("disk_exists", f"the VM has a disk {disk} already")
    element = etree.Element("disk", {"type": "file", "device": "disk"})
    etree.SubElement(element, "driver", {"name": "qemu", "type": _format(format)})
    _encrypt(etree.SubElement(element, "source", {"file": _path(path)}), secret_uuid)
    etree.SubElement(element, "target", {"dev": disk, "bus": _BUSES[disk[:2]]})
    others = devices.findall("disk")
    if others:
        others[-1].addnext(element)
    else:
        devices.append(element)
    return serialize(root)


def remove_disk(xml: str, disk: str) -> str:
    """Takes the disk out; its file stays. One that is not there is no error."""
    root = parse_document(xml)
    for element in root.findall("devices/disk"):
        target = element.find("target")
        if target is not None and target.get("dev") == disk:
            _detach(element)
    return serialize(root)


def copy_destination(xml: str, disk: str, *, path: str, format: str, secret_uuid: UUID | None) -> str:
    """The `<disk>` for libvirt's block copy: the disk's own driver settings (cache, io, discard), another file."""
    element = _disk(parse_document(xml), disk)
    copy = etree.Element("disk", {"type": "file"})
    driver = element.find("driver")
    element_driver = etree.SubElement(copy, "driver", {"name": "qemu"})
    if driver is not None:
        for name, value in driver.attrib.items():
            element_driver.set(name, value)
    element_driver.set("type", _format(format))
    _encrypt(etree.SubElement(copy, "source", {"file": _path(path)}), secret_uuid)
    return etree.tostring(copy, encoding="unicode")


def set_nvram(xml: str, *, path: str, secret_uuid: UUID | None, loader: str = "") -> str:
    """The UEFI variables are in the file `path`: a LUKS image that QEMU opens with the secret, or plain for None.

    An encrypted one needs an explicit loader (firmware autoselection knows none), so `<os firmware=...>` goes.
    The loader is the definition's own, else `loader`: what the running domain shows. Refused where neither is known.
    """
    root = parse_document(xml)
    os = root.find("os")
    if os is None:
        raise BadDefinition("bad_definition", "the domain has no <os>")
    element = os.find("loader")
    if element is None:
        if not loader:
            raise BadDefinition(
                "loader_unknown",
                "the VM's UEFI firmware file is not known",
                hint="start the VM once, so that libvirt chooses one, then try again",
            )
        element = etree.Element("loader")
        _insert_after(os, element, "type", "firmware")
    if not (element.text or "").strip():
        if not loader:
            raise BadDefinition(
                "loader_unknown",
                "the VM's UEFI firmware file is not known",
                hint="start the VM once, so that libvirt chooses one, then try again",
            )
        element.text = loader
    element.set("type", "pflash")
    element.set("readonly", "yes")
    if _unset(os, "firmware"):
        if any(
            feature.get("name") == "secure-boot" and feature.get("enabled") == "yes"
            for feature in os.iterfind("firmware/feature")
        ):
            element.set("secure", "yes")
        _drop(os, "firmware")
    nvram = os.find("nvram")
    if nvram is None:
        nvram = etree.Element("nvram")
        _insert_after(os, nvram, "loader")
    for child in list(nvram):
        nvram.remove(child)
    if secret_uuid is None:
        _unset(nvram, "type")
        nvram.text = _path(path)
    else:
        nvram.set("type", "file")
        nvram.text = None
        _encrypt(etree.SubElement(nvram, "source", {"file": _path(path)}), secret_uuid)
    return serialize(root)


def nvram_template(xml: str) -> str:
    """The file that libvirt copies to make the VM's first UEFI variables; empty where the definition names none."""
    nvram = parse_document(xml).find("os/nvram")
    return "" if nvram is None else nvram.get("template", "")


def set_tpm_secret(xml: str, secret_uuid: UUID | None) -> str:
    """swtpm opens the TPM's state with the secret; None: the state is plain. The state itself must fit already."""
    root = parse_document(xml)
    backend = root.find("devices/tpm/backend")
    if backend is None or backend.get("type") != "emulator":
        raise BadDefinition("no_virtual_tpm", "the VM has no emulated TPM")
    _drop(backend, "encryption")
    if secret_uuid is not None:
        backend.insert(0, etree.Element("encryption", {"secret": str(secret_uuid)}))
    return serialize(root)


def set_dump_core(xml: str, *, is_allowed: bool) -> str:
    """Whether the guest's memory may be in a core dump of QEMU (`<memory dumpCore=...>`)."""
    root = parse_document(xml)
    memory = root.find("memory")
    if memory is None:
        raise BadDefinition("bad_definition", "the domain has no <memory>")
    if is_allowed:
        _unset(memory, "dumpCore")
    else:
        memory.set("dumpCore", "off")
    return serialize(root)


def metadata(xml: str, namespace: str) -> str | None:
    """The element of that namespace in `<metadata>` as text; None where there is none. Refuses two of them."""
    found = _metadata_elements(parse_document(xml), namespace)
    if len(found) > 1:
        raise BadDefinition("bad_definition", f"the domain's metadata holds two elements of {namespace}")
    if not found:
        return None
    alone = deepcopy(found[0])
    etree.cleanup_namespaces(alone)  # those of the domain's root, which it has no use for
    return etree.tostring(alone, encoding="unicode", with_tail=False)


def set_metadata(xml: str, namespace: str, element: str | None) -> str:
    """Replaces the element of that namespace in `<metadata>` by `element` (XML text); None removes it."""
    root = parse_document(xml)
    for old in _metadata_elements(root, namespace):
        _detach(old)
    holder = root.find("metadata")
    if element is not None:
        new = _fragment(element)
        if etree.QName(new).namespace != namespace:
            raise BadDefinition("bad_definition", f"the element is not of the namespace {namespace}")
        if holder is None:
            holder = etree.Element("metadata")
            _insert_after(root, holder, "description", "title", "genid", "uuid", "name")
        holder.append(new)
    elif holder is not None and len(holder) == 0 and not (holder.text or "").strip():
        _detach(holder)
    return serialize(root)


def _fragment(text: str) -> etree._Element:
    if len(text) > MAX_BYTES:
        raise BadDefinition("bad_definition", "the metadata element is too long")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        element = etree.fromstring(text.encode(), parser)
    except (etree.XMLSyntaxError, ValueError) as exc:
        raise BadDefinition("bad_definition", "the metadata element cannot be parsed") from exc
    if has_doctype(element):
        raise BadDefinition("bad_definition", "the metadata element holds a document type declaration")
    return element


def _metadata_elements(root: etree._Element, namespace: str) -> list[etree._Element]:
    holder = root.find("metadata")
    if holder is None:
        return []
    return list(holder.iterchildren("{" + namespace + "}*"))


def _disk(root: etree._Element, disk: str) -> etree._Element:
    for element in root.iterfind("devices/disk"):
        target = element.find("target")
        if target is not None and target.get("dev") == disk:
            return element
    raise BadDefinition("disk_missing", f"the VM has no disk {disk}")


def _point(element: etree._Element, disk: str, *, path: str, format: str, secret_uuid: UUID | None) -> None:
    source = element.find("source")
    if element.get("type") not in {"file", "block"} or source is None:
        raise BadDefinition(
            "disk_source_unsupported",
            f"disk {disk} is neither a file nor a block device",
            hint="move it to a file or block datastore first",
        )
    if source.find("slices") is not None:
        raise BadDefinition("disk_source_unsupported", f"disk {disk} uses only a slice of its file")
    driver = element.find("driver")
    if driver is None:
        driver = etree.Element("driver", {"name": "qemu"})
        element.insert(0, driver)
    driver.set("type", _format(format))
    element.set("type", "file")
    for name in ("dev", "index"):
        _unset(source, name)
    source.set("file", _path(path))
    _drop(element, "encryption")
    _drop(source, "encryption")
    _encrypt(source, secret_uuid)


def _encrypt(source: etree._Element, secret_uuid: UUID | None) -> None:
    """Without engine='qemu' libvirt refuses NVRAM, and may pick another engine for disks."""
    if secret_uuid is None:
        return
    encryption = etree.SubElement(source, "encryption", {"format": "luks", "engine": "qemu"})
    etree.SubElement(encryption, "secret", {"type": "passphrase", "uuid": str(secret_uuid)})


def _format(format: str) -> str:
    if format not in FORMATS:
        raise BadDefinition("disk_format_unsupported", f"the disk format {format[:20]} is not supported")
    return format


def _path(path: str) -> str:
    if not path.startswith("/") or any(ord(char) < 32 or ord(char) == 127 for char in path):
        raise BadDefinition("bad_path", "a disk or NVRAM path must be absolute and without control characters")
    return path


def _detach(element: etree._Element) -> None:
    """Removes an element and leaves the white space behind it to its neighbours."""
    parent = element.getparent()
    if parent is not None:
        element.tail = None
        parent.remove(element)


def _unset(element: etree._Element, name: str) -> bool:
    """Removes an attribute; whether it was there."""
    if element.get(name) is None:
        return False
    del element.attrib[name]
    return True


def _drop(parent: etree._Element, name: str) -> None:
    for child in parent.findall(name):
        parent.remove(child)


def _insert_after(parent: etree._Element, new: etree._Element, *names: str) -> None:
    """Puts `new` behind the first of `names` that is there, else first."""
    for name in names:
        found = parent.find(name)
        if found is not None:
            found.addnext(new)
            return
    parent.insert(0, new)
