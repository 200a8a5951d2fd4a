"""What virtual hardware a host can give its VMs, from libvirt's capabilities, domain capabilities and a few probes.

Domain capabilities (libvirt 9.0) say nothing of a virtual IOMMU, nor which firmware has keys enrolled. A probe is the
XML of a domain that libvirt turns into a QEMU command line and never makes (`virConnectDomainXMLToNative`): it chooses
the firmware and checks what it would check at a start, in milliseconds, and leaves nothing behind.

NOT known here: whether KVM really works (libvirt offers it wherever /dev/kvm can be opened), and whether QEMU accepts
at its start what libvirt let pass.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Final, Self

from lxml import etree

MAX_BYTES: Final = 4 * 1024 * 1024
NESTED: Final = ("vmx", "svm")
# AMD's models of libvirt's CPU map hold svm; a host without it has them with svm disabled. No Intel model holds vmx.
_MODELS_WITH_SVM: Final = ("EPYC", "Opteron")


class Probe(StrEnum):
    """A question that only a made-up domain answers."""

    SECURE_BOOT = "secure_boot"
    PLAIN_UEFI = "plain_uefi"
    SMM = "smm"
    VIOMMU = "viommu"


@dataclass(frozen=True, slots=True)
class HostAbilities:
    """Of the best virtualization that the host offers: "kvm", else "qemu" (software emulation), "" for not known.

    `nested`: the CPU feature of nested virtualization that VMs can have, "vmx" or "svm", or "". `nested_in_cpu`: that
    of the processor itself, whether or not the host passes it on. `secure_loader` and `plain_loader`: firmware files
    with Secure Boot (and keys enrolled in its template) and without; empty where there is none. `hyperv`: the Hyper-V
    enlightenments that QEMU carries out.
    """

    virtualization: str = ""
    cpu_vendor: str = ""
    q35: bool = False
    uefi: bool = False
    secure_boot: bool = False
    smm: bool = False
    vtpm: bool = False
    viommu: bool = False
    nested: str = ""
    nested_in_cpu: str = ""
    hyperv: tuple[str, ...] = ()
    secure_loader: str = ""
    plain_loader: str = ""

    @property
    def is_known(self) -> bool:
        return bool(self.virtualization)

    def as_row(self) -> dict[str, object]:
        """For a JSON column; empty where nothing is known."""
        return asdict(self) | {"hyperv": list(self.hyperv)} if self.is_known else {}

    @classmethod
    def from_row(cls, row: Mapping[str, object]) -> Self:
        """What an older version wrote may lack fields; they count as not there."""
        found = cls()
        for name, default in asdict(found).items():
            value = row.get(name)
            if name == "hyperv":
                value = tuple(str(one) for one in value) if isinstance(value, list) else ()
            if isinstance(value, type(default)):
                found = replace(found, **{name: value})
        return found


def virtualization(capabilities: str) -> str:
    """ "kvm" where the host offers it for 64-bit x86, else "qemu"; empty where it has neither."""
    root = _parsed(capabilities)
    if root is None:
        return ""
    offered = {domain.get("type") for domain in root.iterfind("guest/arch[@name='x86_64']/domain")}
    return next((kind for kind in ("kvm", "qemu") if kind in offered), "")


def read(capabilities: str, domain_capabilities: str, answers: Mapping[Probe, str | None]) -> HostAbilities:
    """`answers`: of each probe the QEMU command line, None where libvirt refused it. What is malformed is not known."""
    host, domain = _parsed(capabilities), _parsed(domain_capabilities)
    kind = virtualization(capabilities)
    if host is None or domain is None or not kind:
        return HostAbilities()
    secure = _loader(domain, answers.get(Probe.SECURE_BOOT))
    tpm = domain.find("devices/tpm[@supported='yes']")
    in_cpu = {feature.get("name") for feature in host.iterfind("host/cpu/feature")}
    return HostAbilities(
        virtualization=kind,
        cpu_vendor=(host.findtext("host/cpu/vendor") or "")[:40],
        q35="q35" in (domain.findtext("machine") or ""),
        uefi="efi" in _values(domain, "os/enum[@name='firmware']"),
        secure_boot=bool(secure) and "yes" in _values(domain, "os/loader/enum[@name='secure']"),
        smm=answers.get(Probe.SMM) is not None,
        vtpm=tpm is not None
        and "tpm-crb" in _values(tpm, "enum[@name='model']")
        and "emulator" in _values(tpm, "enum[@name='backendModel']")
        # libvirt before 8.10 does not list versions.
        and "2.0" in (_values(tpm, "enum[@name='backendVersion']") or {"2.0"}),
        viommu=answers.get(Probe.VIOMMU) is not None,
        nested=_nested(domain),
        nested_in_cpu=next((name for name in NESTED if name in in_cpu), ""),
        hyperv=tuple(sorted(_values(domain, "features/hyperv[@supported='yes']/enum[@name='features']"))),
        secure_loader=secure,
        plain_loader=_loader(domain, answers.get(Probe.PLAIN_UEFI)),
    )


def probe_xml(probe: Probe, kind: str) -> str:
    """The made-up domain; `kind` is what `virtualization` says."""
    os, features, devices, firmware = "", "<acpi/><apic/>", "", ""
    if probe in (Probe.SECURE_BOOT, Probe.PLAIN_UEFI):
        firmware = " firmware='efi'"
        wanted = {"secure-boot": "yes", "enrolled-keys": "yes"} if probe is Probe.SECURE_BOOT else {"secure-boot": "no"}
        os = "".join(f"<feature enabled='{state}' name='{name}'/>" for name, state in wanted.items())
        os = f"<firmware>{os}</firmware>"
    if probe in (Probe.SECURE_BOOT, Probe.SMM):
        features += "<smm state='on'/>"
    if probe is Probe.VIOMMU:
        features += "<ioapic driver='qemu'/>"
        devices = "<iommu model='intel'><driver intremap='on' caching_mode='on' iotlb='on'/></iommu>"
    return (
        f"<domain type='{kind}'><name>probe</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>"
        f"<os{firmware}><type arch='x86_64' machine='q35'>hvm</type>{os}</os><features>{features}</features>"
        f"<devices><controller type='usb' model='none'/><memballoon model='none'/>{devices}</devices></domain>"
    )


def _nested(domain: etree._Element) -> str:
    """From the host-model CPU: what QEMU can give a guest here and now, which the kernel may have switched off."""
    mode = domain.find("cpu/mode[@name='host-model'][@supported='yes']")
    if mode is None:
        return ""
    policies = {feature.get("name"): feature.get("policy") for feature in mode.iterfind("feature")}
    for name in NESTED:
        if policies.get(name) in ("require", "force"):
            return name
    model = mode.findtext("model") or ""
    return "svm" if model.startswith(_MODELS_WITH_SVM) and "svm" not in policies else ""


def _loader(domain: etree._Element, command_line: str | None) -> str:
    """The firmware that libvirt put onto the command line: the one of the host's loaders that stands there."""
    if command_line is None:
        return ""
    loaders = [(value.text or "").strip() for value in domain.iterfind("os/loader/value")]
    named = [loader for loader in loaders if loader and f'"{loader}"' in command_line]
    return named[0][:1000] if named else ""


def _values(root: etree._Element, path: str) -> set[str]:
    return {(value.text or "").strip() for value in root.iterfind(f"{path}/value")}


def _parsed(xml: str) -> etree._Element | None:
    data = xml.encode("utf-8", errors="surrogatepass")
    if len(data) > MAX_BYTES:
        return None
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        return etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError):
        return None
