"""Secure Boot, and what Windows needs for virtualization-based security (VBS): edits of the next start's definition.

Setting VBS remembers, in the definition's own metadata, each element that it replaces, so that unsetting restores it
exactly. It goes back only as far as it is safe: machine type, SMM, UEFI, Secure Boot, UEFI variables and vTPM stay,
for a guest that has used them may not start without.

NOT checked here: whether the guest does anything with it, and which keys the UEFI variables hold: variables that are
there stay as they are, and without enrolled keys the guest's firmware stays in setup mode, that is without Secure Boot.
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Final

from lxml import etree

from inventory.engine.abilities import HostAbilities
from inventory.engine.domain_xml import BadDefinition, parse_document, serialize
from inventory.engine.platform import NESTED, VBS_NAMESPACE

_REPLACED: Final = f"{{{VBS_NAMESPACE}}}replaced"
_PART: Final = f"{{{VBS_NAMESPACE}}}part"
# Enlightenments, each with what QEMU wants to be on beside it (target/i386/kvm: hyperv_properties). Before those that
# need them; hypervclock is a timer, which is the guest's own matter.
_HYPERV: Final = (
    ("relaxed", ()),
    ("vapic", ()),
    ("spinlocks", ()),
    ("vpindex", ()),
    ("runtime", ()),
    ("synic", ("vpindex",)),
    ("stimer", ("synic", "hypervclock")),
    ("reset", ()),
    ("frequencies", ()),
    ("reenlightenment", ()),
    ("tlbflush", ("vpindex",)),
    ("ipi", ("vpindex",)),
    ("evmcs", ("vapic",)),
)
SPINLOCK_RETRIES: Final = "8191"


def set_secure_boot(xml: str, *, is_on: bool, host: HostAbilities) -> str:
    """Firmware with Secure Boot or without. SMM is switched on with it, and stays."""
    root = parse_document(xml)
    _set_secure_boot(root, is_on=is_on, host=host)
    return serialize(root)


def set_vbs(xml: str, host: HostAbilities) -> str:
    """Nested virtualization, Secure Boot, a virtual IOMMU and the Hyper-V enlightenments that the host has.

    Raises BadDefinition `vbs_needs_q35`, `nested_not_on_host`, `other_viommu`, and what `set_secure_boot` raises.
    """
    root = parse_document(xml)
    kind = root.find("os/type")
    if kind is None or "q35" not in kind.get("machine", ""):
        raise BadDefinition("vbs_needs_q35", "VBS needs the q35 machine type", hint="make a new VM")
    if not host.nested:
        raise BadDefinition("nested_not_on_host", "the host gives VMs no nested virtualization")
    iommu = root.find("devices/iommu")
    if iommu is not None and iommu.get("model") != "intel":
        raise BadDefinition("other_viommu", "the VM has a virtual IOMMU of another kind", hint="remove it first")
    _set_secure_boot(root, is_on=True, host=host)
    if root.find(f"metadata/{_REPLACED}") is None:
        _remember(root, host.nested)
    _require_nested(root, host.nested)
    _set_iommu(root, is_kvm=host.virtualization == "kvm")
    _set_hyperv(root, host)
    return serialize(root)


def unset_vbs(xml: str) -> str:
    """Takes away what VBS brought, and puts back what it replaced.

    Where nothing is remembered (VBS was set by other means) nested virtualization and the virtual IOMMU go; Hyper-V
    enlightenments and the I/O APIC stay, for they serve other ends, too.
    """
    root = parse_document(xml)
    memory = root.find(f"metadata/{_REPLACED}")
    if memory is None:
        for name in NESTED:
            _put_back(root, f"cpu/{name}", None)
        _put_back(root, "iommu", None)
        return serialize(root)
    for part in memory.iterfind(_PART):
        _put_back(root, part.get("name", ""), part[0] if len(part) else None)
    holder = memory.getparent()
    if holder is not None:
        holder.remove(memory)
        if len(holder) == 0 and not (holder.text or "").strip():
            root.remove(holder)
    return serialize(root)


def _set_secure_boot(root: etree._Element, *, is_on: bool, host: HostAbilities) -> None:
    """With UEFI variables that have a place: the host's firmware file, by name, because libvirt chooses none for
    encrypted ones. Without: libvirt chooses, and makes the variables from the template that belongs to its choice."""
    os, loader = root.find("os"), host.secure_loader if is_on else host.plain_loader
    if os is None:
        raise BadDefinition("bad_definition", "the domain has no <os>")
    if not loader:
        what = "with Secure Boot" if is_on else "without Secure Boot"
        raise BadDefinition("firmware_not_on_host", f"the host has no UEFI firmware {what}", hint="install it there")
    for name in ("firmware", "loader"):
        for old in os.findall(name):
            os.remove(old)
    nvram = os.find("nvram")
    if nvram is not None and not (nvram.text or "").strip() and nvram.find("source") is None:
        os.remove(nvram)
        nvram = None
    if nvram is not None:
        etree.strip_attributes(os, "firmware")
        etree.strip_attributes(nvram, "template")  # of the other firmware
        attributes = {"readonly": "yes", "secure": "yes" if is_on else "no", "type": "pflash"}
        element = etree.Element("loader", attributes)
        element.text = loader
        _after(os, element, "type")
    else:
        os.set("firmware", "efi")
        element = etree.Element("firmware")
        for feature in ("secure-boot", "enrolled-keys") if is_on else ("secure-boot",):
            etree.SubElement(element, "feature", {"enabled": "yes" if is_on else "no", "name": feature})
        _after(os, element, "type")
    if is_on:
        _feature(root, "smm").set("state", "on")


def _remember(root: etree._Element, nested: str) -> None:
    holder = root.find("metadata")
    if holder is None:
        holder = etree.Element("metadata")
        _after(root, holder, "description", "title", "genid", "uuid", "name")
    memory = etree.SubElement(holder, _REPLACED, nsmap={"vbs": VBS_NAMESPACE})
    for name in (f"cpu/{nested}", "ioapic", "hyperv", "iommu"):
        part = etree.SubElement(memory, _PART, {"name": name})
        old = _find(root, name)
        if old is not None:
            copy = deepcopy(old)
            copy.tail = None
            part.append(copy)


def _find(root: etree._Element, name: str) -> etree._Element | None:
    if name.startswith("cpu/"):
        return root.find(f"cpu/feature[@name='{_nested_name(name)}']")
    return root.find({"ioapic": "features/ioapic", "hyperv": "features/hyperv", "iommu": "devices/iommu"}[name])


def _put_back(root: etree._Element, name: str, before: etree._Element | None) -> None:
    """The element that was there, where the present one is; none for None."""
    if name not in ("ioapic", "hyperv", "iommu"):
        name = f"cpu/{_nested_name(name)}"
    now = _find(root, name)
    if before is not None:
        copy = deepcopy(before)
        copy.tail = None
        if now is not None:
            now.addprevious(copy)
        else:
            parent = {"iommu": "devices", "ioapic": "features", "hyperv": "features"}.get(name, "cpu")
            _child(root, parent).append(copy)
    if now is not None:
        _detach(now)


def _nested_name(part: str) -> str:
    name = part.removeprefix("cpu/")
    if name not in NESTED:
        raise BadDefinition("bad_definition", "the domain's metadata do not tell what VBS replaced")
    return name


def _require_nested(root: etree._Element, name: str) -> None:
    cpu = root.find("cpu")
    if cpu is None:  # libvirt fills one in when it defines a domain, so only a definition that it has not seen
        cpu = etree.Element("cpu", {"mode": "host-model", "check": "partial"})
        _after(root, cpu, "features", "os")
    feature = cpu.find(f"feature[@name='{name}']")
    if feature is None:
        feature = etree.SubElement(cpu, "feature", {"policy": "require", "name": name})
    if feature.get("policy") != "force":
        feature.set("policy", "require")


def _set_iommu(root: etree._Element, *, is_kvm: bool) -> None:
    # Interrupt remapping needs the I/O APIC in QEMU (libvirt refuses it otherwise).
    _feature(root, "ioapic").set("driver", "qemu")
    iommu = root.find("devices/iommu")
    if iommu is None:
        iommu = etree.SubElement(_child(root, "devices"), "iommu", {"model": "intel"})
    driver = iommu.find("driver")
    if driver is None:
        driver = etree.SubElement(iommu, "driver")
        iommu.insert(0, driver)
    for name in ("intremap", "caching_mode", "iotlb"):
        driver.set(name, "on")
    if is_kvm:
        driver.set("eim", "on")  # QEMU refuses it in software emulation


def _set_hyperv(root: etree._Element, host: HostAbilities) -> None:
    wanted = list(_enlightenments(root, host))
    if not wanted:
        return
    hyperv = _feature(root, "hyperv")
    if hyperv.get("mode") == "passthrough":
        return  # everything that the host has is on already
    hyperv.set("mode", "custom")
    for name in wanted:
        element = hyperv.find(name)
        if element is None:
            element = etree.SubElement(hyperv, name)
        element.set("state", "on")
        if name == "spinlocks" and element.get("retries") is None:
            element.set("retries", SPINLOCK_RETRIES)


def _enlightenments(root: etree._Element, host: HostAbilities) -> Iterable[str]:
    there: set[str] = {str(one.tag) for one in root.iterfind("features/hyperv/*") if one.get("state") == "on"}
    if root.find("clock/timer[@name='hypervclock'][@present='yes']") is not None:
        there.add("hypervclock")
    for name, needs in _HYPERV:
        if name not in host.hyperv or not there.issuperset(needs):
            continue
        if name == "evmcs" and host.nested != "vmx":
            continue  # Intel's VMCS
        there.add(name)
        yield name


def _feature(root: etree._Element, name: str) -> etree._Element:
    features = root.find("features")
    if features is None:
        features = etree.Element("features")
        _after(root, features, "os")
    found = features.find(name)
    return etree.SubElement(features, name) if found is None else found


def _child(root: etree._Element, name: str) -> etree._Element:
    found = root.find(name)
    if found is None:
        raise BadDefinition("bad_definition", f"the domain has no <{name}>")
    return found


def _after(parent: etree._Element, new: etree._Element, *names: str) -> None:
    """Puts `new` behind the first of `names` that is there, else first."""
    for name in names:
        found = parent.find(name)
        if found is not None:
            found.addnext(new)
            return
    parent.insert(0, new)


def _detach(element: etree._Element) -> None:
    parent = element.getparent()
    if parent is not None:
        element.tail = None
        parent.remove(element)
