"""VBS and Secure Boot in a definition: what is set, what comes back, what is never taken away."""

from dataclasses import replace
from pathlib import Path

import pytest

from inventory.engine import domain_vbs
from inventory.engine.abilities import HostAbilities
from inventory.engine.domain_xml import BadDefinition, parse_document, read_facts, serialize
from inventory.engine.hypervisor import Power, VmFacts
from inventory.engine.platform import VBS_NAMESPACE

ALL_HYPERV = (
    "evmcs", "frequencies", "ipi", "reenlightenment", "relaxed", "reset", "runtime", "spinlocks", "stimer", "synic",
    "tlbflush", "vapic", "vendor_id", "vpindex",
)  # fmt: skip
INTEL = HostAbilities(
    virtualization="kvm", cpu_vendor="Intel", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True, viommu=True,
    nested="vmx", nested_in_cpu="vmx", hyperv=ALL_HYPERV, secure_loader="/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
    plain_loader="/usr/share/OVMF/OVMF_CODE_4M.fd",
)  # fmt: skip
AMD = replace(INTEL, cpu_vendor="AMD", nested="svm", nested_in_cpu="svm")
EMULATED = replace(AMD, virtualization="qemu", hyperv=("spinlocks", "vendor_id"))
CHOSEN = serialize(
    parse_document("""<domain type="kvm">
  <name>win</name>
  <uuid>7c0a6e0c-8a3e-4a4d-9a53-0d8f4c5f8f11</uuid>
  <memory unit="MiB">4096</memory>
  <vcpu>2</vcpu>
  <os firmware="efi">
    <type arch="x86_64" machine="pc-q35-7.2">hvm</type>
  </os>
  <features>
    <acpi/>
    <apic/>
  </features>
  <cpu mode="host-passthrough" check="none"/>
  <devices>
    <memballoon model="none"/>
  </devices>
</domain>""")
)
PLACED = CHOSEN.replace(
    '<os firmware="efi">\n    <type arch="x86_64" machine="pc-q35-7.2">hvm</type>',
    '<os>\n    <type arch="x86_64" machine="pc-q35-7.2">hvm</type>'
    '<loader readonly="yes" type="pflash">/usr/share/OVMF/OVMF_CODE_4M.fd</loader>'
    '<nvram template="/usr/share/OVMF/OVMF_VARS_4M.fd">/vms/win/nvram.fd</nvram>',
)
ENCRYPTED = PLACED.replace(
    '<nvram template="/usr/share/OVMF/OVMF_VARS_4M.fd">/vms/win/nvram.fd</nvram>',
    '<nvram type="file"><source file="/vms/win/nvram.luks"><encryption format="luks" engine="qemu"><secret '
    'type="passphrase" uuid="11111111-2222-4333-8444-555555555555"/></encryption></source></nvram>',
)
FULL = serialize(parse_document((Path(__file__).parents[2] / "data/domains/full.xml").read_text()))


def read(xml: str) -> VmFacts:
    return read_facts(xml, live=None, power=Power.OFF, is_persistent=True)


def has_vbs(xml: str) -> bool:
    facts = read(xml)
    return facts.platform.has_vbs(has_secure_boot=facts.has_secure_boot)


@pytest.mark.parametrize("host", [INTEL, AMD, EMULATED])
@pytest.mark.parametrize("before", [CHOSEN, PLACED, ENCRYPTED], ids=["chosen", "placed", "encrypted"])
def test_set_and_unset(before: str, host: HostAbilities) -> None:
    after = domain_vbs.set_vbs(before, host)
    assert has_vbs(after) and not has_vbs(before)
    facts = read(after)
    assert (facts.platform.nested, facts.platform.remembers_vbs) == (host.nested, True)
    assert domain_vbs.set_vbs(after, host) == after  # once more changes nothing, nor what is remembered
    back = domain_vbs.unset_vbs(after)
    assert not has_vbs(back)
    assert VBS_NAMESPACE not in back
    # Everything is as it was but firmware and SMM, which stay.
    assert back == _with_smm(domain_vbs.set_secure_boot(before, is_on=True, host=host), back)
    assert read(back).has_secure_boot and read(back).platform.smm


def _with_smm(wanted: str, found: str) -> str:
    """White space apart: lxml leaves the indentation where elements were."""
    assert "".join(wanted.split()) == "".join(found.split())
    return found


def test_an_emulated_host() -> None:
    after = domain_vbs.set_vbs(CHOSEN, EMULATED)
    assert '<iommu model="intel"><driver intremap="on" caching_mode="on" iotlb="on"/></iommu>' in after
    assert '<hyperv mode="custom"><spinlocks state="on" retries="8191"/></hyperv>' in after
    assert '<cpu mode="host-passthrough" check="none"><feature policy="require" name="svm"/></cpu>' in after
    assert (
        '<firmware><feature enabled="yes" name="secure-boot"/><feature enabled="yes" name="enrolled-keys"/></firmware>'
        in after
    )


def test_kvm_on_intel() -> None:
    after = domain_vbs.set_vbs(CHOSEN, INTEL)
    assert '<driver intremap="on" caching_mode="on" iotlb="on" eim="on"/>' in after
    on = read(after).platform.hyperv
    # No stimer without the hypervclock timer, and never a vendor_id.
    assert on == tuple(name for name in ALL_HYPERV if name not in ("stimer", "vendor_id"))
    with_clock = CHOSEN.replace(
        "<devices>", '<clock offset="localtime"><timer name="hypervclock" present="yes"/></clock><devices>'
    )
    assert "stimer" in read(domain_vbs.set_vbs(with_clock, INTEL)).platform.hyperv


def test_evmcs_is_intels() -> None:
    assert "evmcs" not in read(domain_vbs.set_vbs(CHOSEN, AMD)).platform.hyperv


def test_enlightenments_wait_for_what_they_need() -> None:
    host = replace(INTEL, hyperv=("evmcs", "ipi", "stimer", "synic", "tlbflush"))
    assert read(domain_vbs.set_vbs(CHOSEN, host)).platform.hyperv == ()


def test_what_was_there_comes_back() -> None:
    before = CHOSEN.replace(
        "<apic/>",
        '<apic/><hyperv mode="custom"><spinlocks state="on" retries="4095"/><vapic state="off"/></hyperv>'
        '<ioapic driver="kvm"/>',
    ).replace(
        '<cpu mode="host-passthrough" check="none"/>',
        '<cpu mode="host-passthrough" check="none"><feature policy="disable" name="vmx"/></cpu>',
    )
    after = domain_vbs.set_vbs(before, INTEL)
    assert 'retries="4095"' in after and {"vapic", "spinlocks"} <= set(read(after).platform.hyperv)
    back = domain_vbs.unset_vbs(after)
    for element in (
        '<hyperv mode="custom"><spinlocks state="on" retries="4095"/><vapic state="off"/></hyperv>',
        '<ioapic driver="kvm"/>',
        '<feature policy="disable" name="vmx"/>',
    ):
        assert element in back
    assert "<iommu" not in back


def test_passthrough_enlightenments_stay() -> None:
    before = CHOSEN.replace("<apic/>", '<apic/><hyperv mode="passthrough"/>')
    features = parse_document(domain_vbs.set_vbs(before, INTEL)).find("features/hyperv")
    assert features is not None and features.get("mode") == "passthrough" and not len(features)


def test_unset_of_what_somebody_else_set() -> None:
    theirs = domain_vbs.set_vbs(CHOSEN, INTEL)
    start, end = theirs.index("<metadata>"), theirs.index("</metadata>") + len("</metadata>")
    back = domain_vbs.unset_vbs(theirs[:start] + theirs[end:])
    facts = read(back)
    assert (facts.platform.nested, facts.platform.iommu, facts.has_secure_boot) == ("", "", True)
    assert "relaxed" in facts.platform.hyperv


def test_unset_where_nothing_is_set() -> None:
    assert domain_vbs.unset_vbs(CHOSEN) == CHOSEN


def test_other_metadata_stay() -> None:
    after = domain_vbs.set_vbs(FULL, INTEL)
    assert read(after).platform.remembers_vbs
    back = domain_vbs.unset_vbs(after)
    assert back.count("<metadata>") == FULL.count("<metadata>") == 1


def test_secure_boot_on_and_off() -> None:
    on = domain_vbs.set_secure_boot(CHOSEN, is_on=True, host=INTEL)
    off = domain_vbs.set_secure_boot(on, is_on=False, host=INTEL)
    assert [read(one).has_secure_boot for one in (CHOSEN, on, off)] == [False, True, False]
    assert '<feature enabled="no" name="secure-boot"/>' in off and "enrolled-keys" not in off
    assert read(off).platform.smm


@pytest.mark.parametrize("before", [PLACED, ENCRYPTED], ids=["placed", "encrypted"])
def test_variables_that_have_a_place_stay_there(before: str) -> None:
    on = domain_vbs.set_secure_boot(before, is_on=True, host=INTEL)
    facts = read(on)
    assert (facts.nvram_path, facts.nvram_secret_uuid) == (read(before).nvram_path, read(before).nvram_secret_uuid)
    assert f'<loader readonly="yes" secure="yes" type="pflash">{INTEL.secure_loader}</loader>' in on
    assert "template=" not in on
    off = domain_vbs.set_secure_boot(on, is_on=False, host=INTEL)
    assert f'<loader readonly="yes" secure="no" type="pflash">{INTEL.plain_loader}</loader>' in off


@pytest.mark.parametrize(
    ("xml", "host", "code"),
    [
        (CHOSEN.replace("pc-q35-7.2", "pc-i440fx-7.2"), INTEL, "vbs_needs_q35"),
        (CHOSEN, replace(INTEL, nested=""), "nested_not_on_host"),
        (CHOSEN, replace(INTEL, secure_loader=""), "firmware_not_on_host"),
        (CHOSEN.replace("<memballoon", '<iommu model="virtio"/><memballoon'), INTEL, "other_viommu"),
        ("<domain type='kvm'/>", INTEL, "vbs_needs_q35"),
        ("<", INTEL, "bad_definition"),
    ],
)
def test_refused(xml: str, host: HostAbilities, code: str) -> None:
    with pytest.raises(BadDefinition) as caught:
        domain_vbs.set_vbs(xml, host)
    assert caught.value.code == code


def test_a_memory_that_somebody_altered_is_refused() -> None:
    after = domain_vbs.set_vbs(CHOSEN, INTEL).replace('name="cpu/vmx"', "name=\"x' or @name='y\"")
    with pytest.raises(BadDefinition):
        domain_vbs.unset_vbs(after)
