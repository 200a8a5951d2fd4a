"""What a VM's virtual hardware is made of, as far as Secure Boot, VBS and hot-add depend on it."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Final, Self

from lxml import etree

# What VBS replaced, kept in the definition itself so that it goes where the VM goes (see `domain_vbs.py`).
VBS_NAMESPACE: Final = "https://bartizan.dev/ns/vbs/1"
NESTED: Final = ("vmx", "svm")
_ON: Final = ("require", "force")
_PASSED_THROUGH: Final = ("pci", "mdev")


@dataclass(frozen=True, slots=True)
class Platform:
    """`chipset`: "q35", "i440fx" or "" for another. `nested`: the CPU feature that the definition asks for, or "".

    `iommu`: libvirt's model of the virtual IOMMU, "" for none. `hyperv`: enlightenments that are on. `passthrough`: how
    many PCI devices of the host, or parts of one, the VM has. `selects_firmware`: libvirt chooses the firmware by what
    is asked of it (`<os firmware='efi'>`). `keys_enrolled`: whether enrolled keys are asked for; None where it does not
    say. `remembers_vbs`: the definition holds what VBS replaced.
    """

    domain_type: str = ""
    arch: str = ""
    chipset: str = ""
    smm: bool = False
    cpu_mode: str = ""
    nested: str = ""
    iommu: str = ""
    interrupt_remapping: bool = False
    split_ioapic: bool = False
    hyperv: tuple[str, ...] = ()
    passthrough: int = 0
    has_cpu_hot_add: bool = False
    has_memory_hot_add: bool = False
    selects_firmware: bool = False
    keys_enrolled: bool | None = None
    loader: str = ""
    remembers_vbs: bool = False

    @property
    def is_known(self) -> bool:
        return bool(self.domain_type)

    def has_vbs(self, *, has_secure_boot: bool) -> bool:
        """Whether everything is there that VBS needs. NOT said: whether the guest uses it."""
        return (
            has_secure_boot
            and self.chipset == "q35"
            and self.smm
            and bool(self.nested)
            and self.iommu == "intel"
            and self.interrupt_remapping
        )

    def as_text(self) -> str:
        """Compact and always the same for the same platform: what is as by default is left out. Empty where it
        is not known."""
        if not self.is_known:
            return ""
        found = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return json.dumps(found, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """An empty text, or one of a version that is not this one's, is a platform that is not known."""
        found = cls()
        try:
            values = json.loads(text) if text else {}
        except ValueError:
            return found
        if not isinstance(values, dict):
            return found
        for name, default in asdict(found).items():
            value = values.get(name)
            if isinstance(value, list):
                value = tuple(str(one) for one in value)
            if name == "keys_enrolled" and isinstance(value, bool):
                found = replace(found, keys_enrolled=value)
            elif value is not None and isinstance(value, type(default)):
                found = replace(found, **{name: value})
        return found


def read(root: etree._Element) -> Platform:
    """Of a `<domain>` that `domain_xml.parse_document` has accepted."""
    kind, loader, vcpu = root.find("os/type"), root.find("os/loader"), root.find("vcpu")
    cpu, iommu = root.find("cpu"), root.find("devices/iommu")
    driver = None if iommu is None else iommu.find("driver")
    os, ioapic = root.find("os"), root.find("features/ioapic")
    return Platform(
        domain_type=root.get("type", "")[:16],
        arch="" if kind is None else kind.get("arch", "")[:16],
        chipset=_chipset("" if kind is None else kind.get("machine", "")),
        smm=any(smm.get("state", "on") == "on" for smm in root.iterfind("features/smm")),
        cpu_mode="" if cpu is None else cpu.get("mode", "")[:20],
        nested=_nested(cpu),
        iommu="" if iommu is None else iommu.get("model", "")[:20],
        interrupt_remapping=driver is not None and driver.get("intremap") == "on",
        split_ioapic=ioapic is not None and ioapic.get("driver") == "qemu",
        hyperv=tuple(sorted(_hyperv(root))),
        passthrough=sum(one.get("type") in _PASSED_THROUGH for one in root.iterfind("devices/hostdev"))
        + len(root.findall("devices/interface[@type='hostdev']")),
        has_cpu_hot_add=vcpu is not None and vcpu.get("current", vcpu.text or "") != (vcpu.text or "").strip(),
        has_memory_hot_add=root.find("maxMemory") is not None,
        selects_firmware=os is not None and os.get("firmware") == "efi",
        keys_enrolled=_firmware_feature(os, "enrolled-keys"),
        loader="" if loader is None else (loader.text or "").strip()[:1000],
        remembers_vbs=root.find(f"metadata/{{{VBS_NAMESPACE}}}replaced") is not None,
    )


def _chipset(machine: str) -> str:
    if "q35" in machine:
        return "q35"
    return "i440fx" if machine == "pc" or "i440fx" in machine else ""


def _nested(cpu: etree._Element | None) -> str:
    if cpu is None:
        return ""
    found = {one.get("name") for one in cpu.iterfind("feature") if one.get("policy", "require") in _ON}
    return next((name for name in NESTED if name in found), "")


def _hyperv(root: etree._Element) -> Iterable[str]:
    for one in root.iterfind("features/hyperv/*"):
        if one.get("state") == "on":
            yield str(one.tag)[:40]


def _firmware_feature(os: etree._Element | None, name: str) -> bool | None:
    found = None if os is None else os.find(f"firmware/feature[@name='{name}']")
    return None if found is None else found.get("enabled") == "yes"
