"""Edits of a definition: the wanted lines change and nothing else does."""

import difflib
from pathlib import Path
from uuid import UUID

import pytest

from inventory.engine import domain_edit
from inventory.engine.domain_xml import BadDefinition, parse_document, read_facts, serialize
from inventory.engine.hypervisor import Power, VmFacts

FULL = serialize(parse_document((Path(__file__).parents[2] / "data/domains/full.xml").read_text()))
SECRET = UUID("11111111-2222-4333-8444-555555555555")
LUKS = f'<encryption format="luks" engine="qemu"><secret type="passphrase" uuid="{SECRET}"/></encryption>'
NS = "https://example.org/ns"


def changed(before: str, after: str) -> list[str]:
    """Lines taken away, then lines added, without their indentation."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    return [sign + line[2:].strip() for sign in "-+" for line in lines if line[0] == sign]


def read(xml: str) -> VmFacts:
    return read_facts(xml, live=None, power=Power.OFF, is_persistent=True)


def test_disk_into_luks() -> None:
    after = domain_edit.set_disk(FULL, "vda", path="/vms/full/a.luks", format="raw", secret_uuid=SECRET)
    assert changed(FULL, after) == [
        '-<source file="/vms/full/a.img" index="2"/>',
        "-<backingStore/>",
        f'+<source file="/vms/full/a.luks">{LUKS}</source>',
    ]
    vda = read(after).disks[0]
    assert (vda.source, vda.is_encrypted, vda.secret_uuid) == ("/vms/full/a.luks", True, SECRET)


def test_disk_back_to_plain_qcow2() -> None:
    luks = domain_edit.set_disk(FULL, "vda", path="/vms/full/a.luks", format="raw", secret_uuid=SECRET)
    after = domain_edit.set_disk(luks, "vda", path="/vms/full/a.qcow2", format="qcow2", secret_uuid=None)
    assert "encryption" not in after
    assert '<driver name="qemu" type="qcow2" cache="none" discard="unmap"/>' in after
    assert '<source file="/vms/full/a.qcow2"/>' in after


def test_block_device_becomes_a_file() -> None:
    after = domain_edit.set_disk(FULL, "vdb", path="/vms/full/b.luks", format="raw", secret_uuid=SECRET)
    vdb = next(disk for disk in read(after).disks if disk.target == "vdb")
    assert (vdb.source, vdb.is_encrypted) == ("/vms/full/b.luks", True)
    assert "/dev/vg/full-b" not in after
    assert 'io="native"' in after


@pytest.mark.parametrize(
    ("disk", "path", "format", "code"),
    [
        ("vdz", "/x", "raw", "disk_missing"),
        ("vdc", "/x", "raw", "disk_source_unsupported"),
        ("sda", "/x", "raw", "disk_source_unsupported"),
        ("vda", "relative", "raw", "bad_path"),
        ("vda", "/with\nnewline", "raw", "bad_path"),
        ("vda", "/x", "vmdk", "disk_format_unsupported"),
    ],
)
def test_disk_refused(disk: str, path: str, format: str, code: str) -> None:
    with pytest.raises(BadDefinition) as caught:
        domain_edit.set_disk(FULL, disk, path=path, format=format, secret_uuid=SECRET)
    assert caught.value.code == code


def test_slice_refused() -> None:
    sliced = FULL.replace(
        '<source file="/vms/full/a.img" index="2"/>',
        '<source file="/vms/full/a.img"><slices><slice type="storage" offset="1" size="2"/></slices></source>',
    )
    with pytest.raises(BadDefinition):
        domain_edit.set_disk(sliced, "vda", path="/x", format="raw", secret_uuid=SECRET)


def test_destination_of_a_block_copy_keeps_the_driver() -> None:
    xml = domain_edit.copy_destination(FULL, "vda", path="/vms/full/a.luks", format="raw", secret_uuid=SECRET)
    assert xml == (
        '<disk type="file"><driver name="qemu" type="raw" cache="none" discard="unmap"/>'
        f'<source file="/vms/full/a.luks">{LUKS}</source></disk>'
    )


def test_a_path_cannot_break_out_of_its_attribute() -> None:
    path = "/x\"/><evil a='<&"
    after = domain_edit.set_disk(FULL, "vda", path=path, format="raw", secret_uuid=None)
    assert read(after).disks[0].source == path
    assert parse_document(after).find(".//evil") is None


def test_nvram_into_luks_makes_the_firmware_explicit() -> None:
    after = domain_edit.set_nvram(FULL, path="/vms/full/full_VARS.luks", secret_uuid=SECRET)
    assert changed(FULL, after) == [
        '-<os firmware="efi">',
        "-<firmware>",
        '-<feature enabled="yes" name="secure-boot"/>',
        '-<feature enabled="yes" name="enrolled-keys"/>',
        "-</firmware>",
        '-<loader readonly="yes" type="pflash">/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>',
        '-<nvram template="/usr/share/OVMF/OVMF_VARS_4M.ms.fd">/vms/full/full_VARS.fd</nvram>',
        "+<os>",
        '+<loader readonly="yes" type="pflash" secure="yes">/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>',
        '+<nvram template="/usr/share/OVMF/OVMF_VARS_4M.ms.fd" type="file">'
        f'<source file="/vms/full/full_VARS.luks">{LUKS}</source></nvram>',
    ]
    facts = read(after)
    assert (facts.firmware, facts.has_secure_boot, facts.nvram_secret_uuid) == ("uefi", True, SECRET)


def test_nvram_back_to_plain() -> None:
    luks = domain_edit.set_nvram(FULL, path="/vms/full/full_VARS.luks", secret_uuid=SECRET)
    after = domain_edit.set_nvram(luks, path="/vms/full/full_VARS.fd", secret_uuid=None)
    assert '<nvram template="/usr/share/OVMF/OVMF_VARS_4M.ms.fd">/vms/full/full_VARS.fd</nvram>' in after
    assert read(after).nvram_secret_uuid is None


def test_nvram_without_a_known_loader() -> None:
    loader = '<loader readonly="yes" type="pflash">/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>'
    bare = FULL.replace(loader, "")
    with pytest.raises(BadDefinition) as caught:
        domain_edit.set_nvram(bare, path="/n", secret_uuid=SECRET)
    assert caught.value.code == "loader_unknown"
    after = domain_edit.set_nvram(bare, path="/n", secret_uuid=SECRET, loader="/code.fd")
    assert ">/code.fd</loader>" in after


def test_tpm() -> None:
    after = domain_edit.set_tpm_secret(FULL, SECRET)
    assert changed(FULL, after) == [
        '-<backend type="emulator" version="2.0"/>',
        f'+<backend type="emulator" version="2.0"><encryption secret="{SECRET}"/></backend>',
    ]
    assert domain_edit.set_tpm_secret(after, None) == FULL
    with pytest.raises(BadDefinition) as caught:
        domain_edit.set_tpm_secret(FULL.replace('type="emulator"', 'type="passthrough"'), SECRET)
    assert caught.value.code == "no_virtual_tpm"


def test_dump_core() -> None:
    after = domain_edit.set_dump_core(FULL, is_allowed=False)
    assert '<memory unit="MiB" dumpCore="off">2048</memory>' in after
    assert domain_edit.set_dump_core(after, is_allowed=True) == FULL


def test_metadata_beside_that_of_others() -> None:
    element = f'<b:protected xmlns:b="{NS}" version="1"><b:key>k1</b:key></b:protected>'
    after = domain_edit.set_metadata(FULL, NS, element)
    assert domain_edit.metadata(after, NS) == element
    assert "libosinfo:os" in after
    replaced = domain_edit.set_metadata(after, NS, element.replace("k1", "k2"))
    assert domain_edit.metadata(replaced, NS) == element.replace("k1", "k2")
    assert domain_edit.set_metadata(replaced, NS, None) == FULL
    assert domain_edit.metadata(FULL, NS) is None


def test_metadata_where_there_was_none() -> None:
    bare = f"<domain><name>a</name><uuid>{SECRET}</uuid><memory>1</memory></domain>"
    after = domain_edit.set_metadata(bare, NS, f'<p xmlns="{NS}"/>')
    assert after.index("<uuid>") < after.index("<metadata>") < after.index("<memory>")
    assert domain_edit.set_metadata(after, NS, None) == bare


@pytest.mark.parametrize("element", ["", "<a", "<p xmlns='urn:other'/>", "<!DOCTYPE p []><p xmlns='" + NS + "'/>"])
def test_metadata_refused(element: str) -> None:
    with pytest.raises(BadDefinition):
        domain_edit.set_metadata(FULL, NS, element)


def test_two_elements_of_ours_are_refused_on_reading() -> None:
    two = FULL.replace("</metadata>", f'<p xmlns="{NS}"/><p xmlns="{NS}"/></metadata>')
    with pytest.raises(BadDefinition):
        domain_edit.metadata(two, NS)


def test_nothing_else_is_lost() -> None:
    after = domain_edit.set_tpm_secret(domain_edit.set_dump_core(FULL, is_allowed=False), SECRET)
    for kept in ("<!-- kept by hand: do not lose this -->", 'passwd="hunter2"', '<qemu:arg value="-global"/>'):
        assert kept in after
