"""Domain XML read into facts, and hostile XML refused."""

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory.engine import domain_xml
from inventory.engine.domain_xml import BadDefinition, console_file, is_mirror_ready, loader_path, read_facts
from inventory.engine.hypervisor import Power, TpmFacts, VmFacts

FULL = (Path(__file__).parents[2] / "data/domains/full.xml").read_text()
SECRET = "11111111-2222-4333-8444-555555555555"


def read(xml: str, live: str | None = None, power: Power = Power.OFF) -> VmFacts:
    return read_facts(xml, live=live, power=power, is_persistent=True)


def test_reads_everything() -> None:
    facts = read(FULL)
    assert facts.name == "full"
    assert facts.uuid == UUID("7c0a6e0c-8a3e-4a4d-9a53-0d8f4c5f8f10")
    assert (facts.firmware, facts.has_secure_boot, facts.machine) == ("uefi", True, "pc-q35-7.2")
    assert (facts.vcpus, facts.memory_bytes) == (4, 2048 * 2**20)
    assert (facts.nvram_path, facts.nvram_secret_uuid) == ("/vms/full/full_VARS.fd", None)
    assert facts.tpm == TpmFacts("tpm-crb", "2.0", is_encrypted=False, secret_uuid=None)
    assert [(d.target, d.device, d.format, d.source, d.is_read_only) for d in facts.disks] == [
        ("vda", "disk", "raw", "/vms/full/a.img", False),
        ("vdb", "disk", "raw", "/dev/vg/full-b", False),
        ("sda", "cdrom", "raw", "", True),
        ("vdc", "disk", "raw", "rbd:pool/image", False),
    ]


@pytest.mark.parametrize("inside_source", [True, False])
def test_encryption_is_seen_wherever_libvirt_puts_it(inside_source: bool) -> None:
    luks = f'<encryption format="luks"><secret type="passphrase" uuid="{SECRET}"/></encryption>'
    source = '<source file="/vms/full/a.img" index="2"/>'
    inside, beside = f'<source file="/vms/full/a.img">{luks}</source>', source + luks
    vda = read(FULL.replace(source, inside if inside_source else beside)).disks[0]
    assert (vda.is_encrypted, vda.secret_uuid, vda.source) == (True, UUID(SECRET), "/vms/full/a.img")


def test_a_running_vm_is_told_by_its_live_xml_and_digested_by_its_definition() -> None:
    live = FULL.replace("<domain ", '<domain id="7" ').replace("/vms/full/a.img", "/vms/full/other.img")
    facts = read(FULL, live, Power.ON)
    assert facts.disks[0].source == "/vms/full/other.img"
    assert facts.definition_sha256 == read(FULL).definition_sha256


def test_digest_ignores_the_domain_number_and_notices_the_rest() -> None:
    assert read(FULL.replace("<domain ", '<domain id="7" ')).definition_sha256 == read(FULL).definition_sha256
    assert read(FULL.replace("DISK-A", "DISK-B")).definition_sha256 != read(FULL).definition_sha256


def test_small_questions() -> None:
    assert console_file(FULL) == "/vms/full/console.log"
    assert console_file(FULL.replace('<log file="/vms/full/console.log" append="off"/>', "")) is None
    file = '<serial type="file"><source path="/vms/full/serial.log"/></serial>'
    assert console_file(FULL.replace("<serial type", file + "<serial type")) == "/vms/full/serial.log"
    assert loader_path(FULL) == "/usr/share/OVMF/OVMF_CODE_4M.ms.fd"
    for ready, expected in (("yes", True), ("no", False), ("abort", False)):
        mirror = f'<mirror type="file" ready="{ready}"/>'
        assert is_mirror_ready(FULL.replace("<backingStore/>", mirror), "vda") is expected
    assert is_mirror_ready(FULL, "vda") is False


def test_bios_guest_without_devices() -> None:
    facts = read(
        f"<domain><name>b</name><uuid>{SECRET}</uuid><memory unit='GiB'>1</memory><os><type>hvm</type></os></domain>"
    )
    assert (facts.firmware, facts.tpm, facts.disks, facts.memory_bytes) == ("bios", None, (), 2**30)


def test_whether_guest_memory_may_be_in_a_core_dump() -> None:
    """Of the running domain where it runs; without a word the host's own setting decides, which is not known."""
    assert read(FULL).dumps_core
    forbidden = FULL.replace("<memory ", '<memory dumpCore="off" ', 1)
    assert not read(forbidden).dumps_core
    assert read(FULL.replace("<memory ", '<memory dumpCore="on" ', 1)).dumps_core
    assert read(forbidden, live=FULL, power=Power.ON).dumps_core
    assert not read(FULL, live=forbidden, power=Power.ON).dumps_core


BOMB = '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><domain><name>&b;</name></domain>'
FILE = '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/hostname">]><domain><name>&x;</name></domain>'


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "not xml",
        "<domain>",
        "<network/>",
        BOMB,
        FILE,
        '<!DOCTYPE domain SYSTEM "http://127.0.0.1/x.dtd"><domain/>',
        "<domain><uuid>x</uuid></domain>",
        f"<domain><name>a</name><uuid>{SECRET[:-1]}</uuid></domain>",
        f"<domain><name>{'a' * 256}</name><uuid>{SECRET}</uuid></domain>",
        FULL.replace("<memory unit", '<memory bogus="1" unit').replace("2048", "-1"),
        FULL.replace("2048", "9" * 18),
        FULL.replace('unit="MiB"', 'unit="parsec"'),
        FULL.replace('static">4<', 'static">' + "9" * 40 + "<"),
        FULL.replace('dev="vdb"', 'dev="vda"'),
        FULL.replace('<target dev="vdb" bus="virtio"/>', ""),
        FULL.replace("<backingStore/>", "<encryption><secret uuid='zz'/></encryption>"),
        "<domain>" + " " * domain_xml.MAX_BYTES + "</domain>",
        "<domain>" + "<a>" * 5000 + "</a>" * 5000 + "</domain>",
        "<domain>\ud800</domain>",
    ],
)
def test_refuses(xml: str) -> None:
    with pytest.raises(BadDefinition) as caught:
        read(xml)
    assert caught.value.code == "bad_definition"
    assert "hunter2" not in caught.value.message


def test_a_relative_namespace_has_no_canonical_form_and_is_refused() -> None:
    with pytest.raises(BadDefinition, match="no canonical form"):
        read(
            FULL.replace("xmlns:qemu='http://", "xmlns:qemu='0ttp//").replace(
                'xmlns:qemu="http://', 'xmlns:qemu="0ttp//'
            )
        )


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(BadDefinition):
        read(text)


@given(st.integers(0, len(FULL) - 1), st.characters())
def test_one_changed_character_never_raises_anything_else(place: int, char: str) -> None:
    try:
        read(FULL[:place] + char + FULL[place + 1 :])
    except BadDefinition as exc:
        assert exc.message
