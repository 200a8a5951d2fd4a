"""Virtual hardware read from domain XML."""

import pytest

from inventory.engine import platform
from inventory.engine.domain_xml import parse_document
from inventory.engine.platform import Platform

FULL = f"""<domain type='kvm'><name>v</name><metadata><v:replaced xmlns:v='{platform.VBS_NAMESPACE}'/></metadata>
<os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
<firmware><feature enabled='yes' name='secure-boot'/><feature enabled='no' name='enrolled-keys'/></firmware>
<loader secure='yes'> /usr/share/OVMF/OVMF_CODE_4M.ms.fd </loader></os>
<maxMemory slots='4' unit='GiB'>8</maxMemory><vcpu placement='static' current='2'>4</vcpu>
<features><ioapic driver='qemu'/><smm state='on'/><hyperv mode='custom'><vapic state='on'/><relaxed state='on'/>
<reset state='off'/></hyperv></features>
<cpu mode='host-passthrough'><feature policy='require' name='vmx'/></cpu>
<devices><iommu model='intel'><driver intremap='on'/></iommu><hostdev mode='subsystem' type='pci'/>
<hostdev mode='subsystem' type='usb'/><interface type='hostdev'/></devices></domain>"""
WHOLE = Platform(
    domain_type="kvm", arch="x86_64", chipset="q35", smm=True, cpu_mode="host-passthrough", nested="vmx",
    iommu="intel", interrupt_remapping=True, split_ioapic=True, hyperv=("relaxed", "vapic"), passthrough=2,
    has_cpu_hot_add=True, has_memory_hot_add=True, selects_firmware=True, keys_enrolled=False,
    loader="/usr/share/OVMF/OVMF_CODE_4M.ms.fd", remembers_vbs=True,
)  # fmt: skip


def read(xml: str) -> Platform:
    return platform.read(parse_document(xml))


def test_everything() -> None:
    assert read(FULL) == WHOLE
    assert WHOLE.has_vbs(has_secure_boot=True)
    assert not WHOLE.has_vbs(has_secure_boot=False)


def test_nothing() -> None:
    assert read("<domain type='qemu'/>") == Platform(domain_type="qemu")


@pytest.mark.parametrize(
    ("before", "after", "field", "value"),
    [
        ("pc-q35-7.2", "q35", "chipset", "q35"),
        ("pc-q35-7.2", "pc", "chipset", "i440fx"),
        ("pc-q35-7.2", "pc-i440fx-9.0", "chipset", "i440fx"),
        ("pc-q35-7.2", "microvm", "chipset", ""),
        ("<smm state='on'/>", "<smm state='off'/>", "smm", False),
        ("<smm state='on'/>", "<smm/>", "smm", True),
        ("current='2'", "current='4'", "has_cpu_hot_add", False),
        (" current='2'", "", "has_cpu_hot_add", False),
        ("policy='require' name='vmx'", "policy='disable' name='vmx'", "nested", ""),
        ("policy='require' name='vmx'", "name='svm'", "nested", "svm"),
        ("intremap='on'", "caching_mode='on'", "interrupt_remapping", False),
        ("<ioapic driver='qemu'/>", "<ioapic driver='kvm'/>", "split_ioapic", False),
        ("<feature enabled='no' name='enrolled-keys'/>", "", "keys_enrolled", None),
    ],
)
def test_one_thing_else(before: str, after: str, field: str, value: object) -> None:
    assert before in FULL
    assert getattr(read(FULL.replace(before, after)), field) == value


@pytest.mark.parametrize("value", [WHOLE, Platform(), Platform(domain_type="qemu", keys_enrolled=True)])
def test_text(value: Platform) -> None:
    assert Platform.from_text(value.as_text()) == value


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"smm":"yes","chipset":7,"more":1}'])
def test_text_of_another_version(text: str) -> None:
    assert Platform.from_text(text) == Platform()
    assert not Platform.from_text(text).is_known
