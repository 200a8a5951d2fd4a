"""A host's abilities from recorded capabilities (libvirt 9.0.0, QEMU 7.2, no KVM), and from altered ones."""

from pathlib import Path

import pytest

from inventory.engine import abilities
from inventory.engine.abilities import HostAbilities, Probe

DATA = Path(__file__).parents[2] / "data/capabilities"
HOST = (DATA / "host.xml").read_text()
DOMAIN = (DATA / "domain-qemu.xml").read_text()
KVM_HOST = HOST.replace("<domain type='qemu'/>", "<domain type='qemu'/><domain type='kvm'/>")
SECURE, PLAIN = "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_CODE_4M.fd"
ALL = {
    Probe.SECURE_BOOT: f'-blockdev {{"filename":"{SECURE}"}}',
    Probe.PLAIN_UEFI: f'-blockdev {{"filename":"{PLAIN}"}}',
    Probe.SMM: "-machine smm=on",
    Probe.VIOMMU: "-device intel-iommu",
}


def test_what_libvirt_says() -> None:
    assert abilities.read(HOST, DOMAIN, dict(ALL)) == HostAbilities(
        virtualization="qemu", cpu_vendor="Intel", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True,
        viommu=True, nested="svm", nested_in_cpu="", hyperv=("spinlocks", "vendor_id"), secure_loader=SECURE,
        plain_loader=PLAIN,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "field", "value"),
    [
        ("<value>efi</value>", "", "uefi", False),
        ("<tpm supported='yes'>", "<tpm supported='no'>", "vtpm", False),
        ("<value>tpm-crb</value>", "", "vtpm", False),
        ("<value>emulator</value>", "", "vtpm", False),
        ("<value>2.0</value>", "", "vtpm", False),
        ("pc-q35-7.2", "pc-i440fx-7.2", "q35", False),
        ("<mode name='host-model' supported='yes'>", "<mode name='host-model' supported='no'>", "nested", ""),
        ("<feature policy='require' name='npt'/>", "<feature policy='disable' name='svm'/>", "nested", ""),
        ("<model fallback='forbid'>EPYC</model>", "<model fallback='forbid'>Skylake-Client</model>", "nested", ""),
        ("<feature policy='require' name='npt'/>", "<feature policy='require' name='vmx'/>", "nested", "vmx"),
        ("<value>spinlocks</value>", "<value>vpindex</value>", "hyperv", ("vendor_id", "vpindex")),
        (f"<value>{SECURE}</value>", "", "secure_boot", False),
    ],
)
def test_what_a_host_lacks(before: str, after: str, field: str, value: object) -> None:
    assert before in DOMAIN
    found = abilities.read(HOST, DOMAIN.replace(before, after), dict(ALL))
    assert getattr(found, field) == value


@pytest.mark.parametrize(
    ("probe", "field"), [(Probe.SECURE_BOOT, "secure_boot"), (Probe.SMM, "smm"), (Probe.VIOMMU, "viommu")]
)
def test_a_refused_probe_is_an_ability_that_is_not_there(probe: Probe, field: str) -> None:
    assert getattr(abilities.read(HOST, DOMAIN, dict(ALL) | {probe: None}), field) is False


def test_backends_without_versions_are_of_an_older_libvirt() -> None:
    older = DOMAIN.replace("<enum name='backendVersion'>", "<enum name='other'>")
    assert abilities.read(HOST, older, dict(ALL)).vtpm


def test_kvm_comes_before_emulation() -> None:
    assert abilities.virtualization(HOST) == "qemu"
    assert abilities.virtualization(KVM_HOST) == "kvm"
    assert abilities.virtualization("<capabilities/>") == ""


def test_a_processor_whose_kernel_passes_nothing_on() -> None:
    host = KVM_HOST.replace("<feature name='vme'/>", "<feature name='vmx'/>", 1)
    domain = DOMAIN.replace("<model fallback='forbid'>EPYC</model>", "<model fallback='forbid'>Skylake-Client</model>")
    found = abilities.read(host, domain, dict(ALL))
    assert (found.virtualization, found.nested, found.nested_in_cpu) == ("kvm", "", "vmx")


@pytest.mark.parametrize("bad", ["", "<", "<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", "<capabilities/>"])
def test_malformed_answers_are_not_known(bad: str) -> None:
    assert abilities.read(bad, DOMAIN, dict(ALL)) == HostAbilities()
    assert not abilities.read(bad, bad, {}).is_known


def test_rows() -> None:
    found = abilities.read(HOST, DOMAIN, dict(ALL))
    assert HostAbilities.from_row(found.as_row()) == found
    assert HostAbilities().as_row() == {}
    assert HostAbilities.from_row({}) == HostAbilities()
    # Of another version, or spoiled: what does not fit is not there.
    assert HostAbilities.from_row({"virtualization": "kvm", "uefi": "yes", "hyperv": "all", "more": 1}) == (
        HostAbilities(virtualization="kvm")
    )
