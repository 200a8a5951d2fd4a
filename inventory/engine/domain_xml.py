"""Domain XML read into facts. Editing is in `domain_edit.py`.

A host is not trusted to send good XML: documents are capped in size, a document type declaration is refused (so no
entity is ever expanded), nothing is loaded from elsewhere, and every count is limited.
"""

import hashlib
from typing import Final
from uuid import UUID

from lxml import etree

from inventory.engine import platform
from inventory.engine.hypervisor import DiskFacts, HypervisorError, Power, TpmFacts, VmFacts

MAX_BYTES: Final = 4 * 1024 * 1024
MAX_DISKS: Final = 1024
_UNITS: Final = {
    "b": 1, "bytes": 1, "KB": 10**3, "k": 2**10, "KiB": 2**10, "MB": 10**6, "M": 2**20, "MiB": 2**20,
    "GB": 10**9, "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40,
}  # fmt: skip


class BadDefinition(HypervisorError):
    """A domain's XML is malformed, hostile, or lacks what every domain has."""


def parse_document(xml: str) -> etree._Element:
    """The root `<domain>`. Raises BadDefinition."""
    data = xml.encode("utf-8", errors="surrogatepass")
    if len(data) > MAX_BYTES:
        raise BadDefinition("bad_definition", f"the domain's XML is longer than {MAX_BYTES} bytes")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as exc:
        # The parser's text may quote the document, so it is not passed on.
        raise BadDefinition("bad_definition", "the domain's XML cannot be parsed") from exc
    if has_doctype(root):
        raise BadDefinition("bad_definition", "the domain's XML holds a document type declaration")
    if root.tag != "domain":
        raise BadDefinition("bad_definition", "the XML is not that of a domain")
    return root


def has_doctype(root: etree._Element) -> bool:
    return root.getroottree().docinfo.internalDTD is not None


def serialize(root: etree._Element) -> str:
    return etree.tostring(root, encoding="unicode")


def read_facts(inactive: str, *, live: str | None, power: Power, is_persistent: bool) -> VmFacts:
    """Facts of one domain.

    `inactive` is the definition of the next start, `live` the running domain's. What a running VM uses (disks, NVRAM,
    TPM, firmware) is read from `live`, so that a definition changed for the next start does not hide what is open now.
    Sizes of disks are 0: they are not in the XML. Raises BadDefinition.
    """
    definition = parse_document(inactive)
    digest = definition_digest(definition)
    root = definition if live is None else parse_document(live)
    devices = root.find("devices")
    disks = () if devices is None else _disks(devices)
    nvram = root.find("os/nvram")
    return VmFacts(
        uuid=_uuid(_text(root, "uuid"), "domain"),
        name=_text(root, "name"),
        power=power,
        is_persistent=is_persistent,
        firmware="uefi" if _is_uefi(root) else "bios",
        has_secure_boot=_has_secure_boot(root),
        machine=_machine(root),
        vcpus=_number(root.findtext("vcpu"), 1),
        memory_bytes=_memory(root),
        nvram_path=_nvram_path(nvram),
        nvram_secret_uuid=_secret(None if nvram is None else nvram.find("source/encryption")),
        tpm=_tpm(devices),
        disks=disks,
        definition_sha256=digest,
        dumps_core=_dumps_core(root),
        platform=platform.read(root),
        definition=inactive,
    )


def unreadable(uuid: UUID, name: str, power: Power) -> VmFacts:
    """What is left to say of a domain whose XML was refused: it is there. Its `definition_sha256` is empty."""
    return VmFacts(
        uuid=uuid,
        name=name[:255],
        power=power,
        is_persistent=True,
        firmware="bios",
        has_secure_boot=False,
        machine="",
        vcpus=0,
        memory_bytes=0,
        nvram_path="",
        nvram_secret_uuid=None,
        tpm=None,
        disks=(),
        definition_sha256="",
    )


def definition_digest(root: etree._Element) -> str:
    """SHA-256 of the canonical XML (C14N 1.0) without the running domain's number.

    Raises BadDefinition for XML that has no canonical form: C14N 1.0 section 1.3 knows no relative namespace URIs.
    """
    number = root.get("id")
    if number is not None:
        del root.attrib["id"]
    try:
        return hashlib.sha256(etree.tostring(root, method="c14n")).hexdigest()
    except etree.C14NError as exc:
        raise BadDefinition("bad_definition", "the domain's XML has no canonical form") from exc
    finally:
        if number is not None:
            root.set("id", number)


def console_file(xml: str) -> str | None:
    """The file on the host that keeps what the first serial port prints; None where nothing is kept."""
    serial = parse_document(xml).find("devices/serial")
    if serial is None:
        return None
    log = serial.find("log")
    if log is not None and log.get("file"):
        return log.get("file")
    source = serial.find("source")
    if serial.get("type") == "file" and source is not None:
        return source.get("path")
    return None


def loader_path(xml: str) -> str:
    """The UEFI firmware file that the XML names; empty where libvirt has not chosen one yet."""
    return (parse_document(xml).findtext("os/loader") or "").strip()


def names_path(xml: str, path: str) -> bool:
    """Whether any attribute or text of the domain is that path: whatever libvirt's schema calls its place."""
    root = parse_document(xml)
    return any(
        path == (element.text or "").strip() or path in element.attrib.values() for element in root.iter(etree.Element)
    )


def is_mirror_ready(xml: str, disk: str) -> bool:
    """Whether a block copy of that disk is synchronised: `cur == end` alone is not enough (measured)."""
    for element in parse_document(xml).iterfind("devices/disk"):
        target = element.find("target")
        if target is not None and target.get("dev") == disk:
            mirror = element.find("mirror")
            return mirror is not None and mirror.get("ready") == "yes"
    return False


def _text(root: etree._Element, path: str) -> str:
    text = root.findtext(path)
    if not text or len(text) > 255:
        raise BadDefinition("bad_definition", f"the domain's {path} is missing or too long")
    return text


def _uuid(text: str, what: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as exc:
        raise BadDefinition("bad_definition", f"the {what}'s UUID is malformed") from exc


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadDefinition("bad_definition", "a number in the domain's XML is malformed")
    return int(text)


def _memory(root: etree._Element) -> int:
    memory = root.find("memory")
    if memory is None:
        return 0
    unit = _UNITS.get(memory.get("unit", "KiB"))
    if unit is None:
        raise BadDefinition("bad_definition", "the domain's memory has an unknown unit")
    size = _number(memory.text, 0) * unit
    if size >= 2**63:
        raise BadDefinition("bad_definition", "the domain's memory is out of range")
    return size


def _dumps_core(root: etree._Element) -> bool:
    """Unless the definition forbids it, the host's qemu.conf (dump_guest_core) decides, which nobody tells us."""
    memory = root.find("memory")
    return memory is None or memory.get("dumpCore") != "off"


def _machine(root: etree._Element) -> str:
    kind = root.find("os/type")
    return "" if kind is None else kind.get("machine", "")[:80]


def _is_uefi(root: etree._Element) -> bool:
    os = root.find("os")
    if os is None:
        return False
    loader = os.find("loader")
    return os.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")


def _has_secure_boot(root: etree._Element) -> bool:
    """Secure Boot as configured. NOT checked: which keys are enrolled, and whether the guest really booted with it."""
    loader = root.find("os/loader")
    if loader is not None and loader.get("secure") == "yes":
        return True
    return any(
        feature.get("name") == "secure-boot" and feature.get("enabled") == "yes"
        for feature in root.iterfind("os/firmware/feature")
    )


def _nvram_path(nvram: etree._Element | None) -> str:
    if nvram is None:
        return ""
    source = nvram.find("source")
    path = (nvram.text or "").strip() if source is None else source.get("file", "")
    return path[:1000]


def _secret(encryption: etree._Element | None) -> UUID | None:
    if encryption is None:
        return None
    secret = encryption.find("secret")
    uuid = None if secret is None else secret.get("uuid")
    return None if uuid is None else _uuid(uuid, "secret")


def _tpm(devices: etree._Element | None) -> TpmFacts | None:
    tpm = None if devices is None else devices.find("tpm")
    if tpm is None:
        return None
    backend = tpm.find("backend")
    encryption = None if backend is None else backend.find("encryption")
    secret = None if encryption is None else encryption.get("secret")
    return TpmFacts(
        model=(tpm.get("model") or "tpm-tis")[:40],
        version="" if backend is None else backend.get("version", "")[:8],
        is_encrypted=encryption is not None,
        secret_uuid=None if secret is None else _uuid(secret, "secret"),
    )


def _disks(devices: etree._Element) -> tuple[DiskFacts, ...]:
    found: dict[str, DiskFacts] = {}
    for disk in devices.iterfind("disk"):
        target = disk.find("target")
        name = "" if target is None else target.get("dev", "")
        if target is None or not name or len(name) > 32 or name in found:
            raise BadDefinition("bad_definition", "a disk has no target, or one that another disk has")
        if len(found) >= MAX_DISKS:
            raise BadDefinition("bad_definition", f"the domain has more than {MAX_DISKS} disks")
        source = disk.find("source")
        encryption = disk.find("encryption") if source is None else source.find("encryption")
        if encryption is None:
            encryption = disk.find("encryption")
        driver = disk.find("driver")
        found[name] = DiskFacts(
            target=name,
            device=disk.get("device", "disk")[:16],
            bus=target.get("bus", "")[:16],
            format="" if driver is None else driver.get("type", "")[:16],
            source=_source(source)[:1000],
            is_read_only=disk.find("readonly") is not None,
            is_encrypted=encryption is not None,
            secret_uuid=_secret(encryption),
        )
    return tuple(found.values())


def _source(source: etree._Element | None) -> str:
    if source is None:
        return ""
    if pool := source.get("pool"):
        return f"{pool}/{source.get('volume', '')}"
    if protocol := source.get("protocol"):
        return f"{protocol}:{source.get('name', '')}"
    return source.get("file") or source.get("dev") or source.get("dir") or ""
