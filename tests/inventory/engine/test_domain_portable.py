"""Definitions that leave their host, and hostile ones that come: what passes, and what is refused."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory.engine.domain_copy import (
    FileRole,
    checked_name,
    own_files,
    renamed,
    secrets_of,
    with_files,
    with_logs,
    with_new_identity,
    with_secrets,
)
from inventory.engine.domain_portable import check_portable, portable
from inventory.engine.domain_xml import BadDefinition

NS = "https://bartizan.dev/ns/encryption/1"
SECRET = "11111111-2222-4333-8444-555555555555"
FILES = {(FileRole.DISK, "vda"): "vda.luks", (FileRole.NVRAM, ""): "nvram.fd", (FileRole.KERNEL, ""): "kernel"}
GOOD = f"""<domain type='qemu'><name>vm</name><uuid>6c1f2a54-0f0b-4a55-9d0c-2d5e6b7a8c90</uuid><genid>x</genid>
<metadata><b:protected-vm xmlns:b='{NS}'/></metadata><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='q35'>hvm</type>
<loader readonly='yes' secure='no' type='pflash'>/usr/share/OVMF/C.fd</loader>
<nvram template='/usr/share/OVMF/V.fd'>nvram.fd</nvram><kernel>kernel</kernel><cmdline>root=/dev/vda</cmdline></os>
<features><acpi/></features><clock offset='timezone' timezone='Europe/Vienna'/>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/>
<source file='vda.luks'>
<encryption format='luks' engine='qemu'>
<secret type='passphrase' uuid='{SECRET}'/></encryption></source><target dev='vda'
bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
<serial type='pty'><log file='console-0.log' append='off'/></serial>
<channel type='unix'><target type='virtio' name='a.b'/></channel>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'><encryption secret='{SECRET}'/></backend></tpm>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng><memballoon model='none'/></devices></domain>"""


def check(xml: str) -> None:
    check_portable(xml, FILES, metadata_namespaces=frozenset({NS}))


def test_a_good_one_passes() -> None:
    check(GOOD)


HOSTILE = [
    ("type='qemu'", "type='xen'"),
    ("</domain>", "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/></domain>"),
    ("<domain type", "<domain xmlns:q='urn:q' q:x='1' type"),
    ("</domain>", "<qemu/></domain>"),
    ("</domain>", "<seclabel type='none'/></domain>"),
    ("</domain>", "<launchSecurity type='sev'/></domain>"),
    ("</domain>", "<!-- a comment --></domain>"),
    ("</domain>", "<name>two</name></domain>"),
    ("<features>", "<bootloader>/bin/sh</bootloader><features>"),
    (f"xmlns:b='{NS}'", "xmlns:b='urn:other'"),
    ("nvram.fd</nvram>", "/etc/shadow</nvram>"),
    ("<kernel>kernel<", "<kernel>/boot/vmlinuz<"),
    ("<kernel>kernel</kernel>", ""),
    ("</cmdline>", "</cmdline><initrd>initrd</initrd>"),
    ("</cmdline>", "</cmdline><init>/bin/sh</init>"),
    ("</cmdline>", "</cmdline><acpi><table type='slic'>/etc/x</table></acpi>"),
    ("/usr/share/OVMF/C.fd", "/tmp/C.fd"),
    ("/usr/share/OVMF/C.fd", "/usr/share/../../tmp/C.fd"),
    ("readonly='yes' secure", "readonly='no' secure"),
    ("template='/usr/share/OVMF/V.fd'", "template='/etc/shadow'"),
    ("<nvram template", "<nvram type='network' template"),
    ("file='vda.luks'", "file='/dev/sda'"),
    ("file='vda.luks'", "file='../vda.luks'"),
    ("file='vda.luks'", "file='other.luks'"),
    ("file='vda.luks'", "dev='vda.luks'"),
    ("<disk type='file' device='disk'>", "<disk type='block' device='disk'>"),
    ("<disk type='file' device='disk'>", "<disk type='file' device='lun'>"),
    ("type='raw'/>", "type='vmdk'/>"),
    ("<driver name='qemu' type='raw'/>", ""),
    ("</source><target", "<slices/></source><target"),
    ("</source><target", "</source><backingStore type='file'><source file='x'/></backingStore><target"),
    ("</source><target", "</source><auth username='x'/><target"),
    ("</source><target", "</source><shareable/><target"),
    ("type='passphrase' uuid", "type='passphrase' usage='x' uuid"),
    ("format='luks'", "format='qcow'"),
    ("<target dev='sda'", "<source file='/iso'/><target dev='sda'"),
    ("<target dev='vda'", "<target dev='vdb'"),
    ("type='network'><mac", "type='hostdev'><mac"),
    ("type='network'><mac", "type='vhostuser'><mac"),
    ("<source network='default'/>", "<source network='default'/><script path='/tmp/x'/>"),
    ("file='console-0.log'", "file='/etc/cron.d/x'"),
    ("file='console-0.log'", "file='../x.log'"),
    ("<serial type='pty'>", "<serial type='dev'><source path='/dev/sda'/>"),
    ("<channel type='unix'>", "<channel type='unix'><source mode='connect' path='x'/>"),
    ("type='emulator'", "type='passthrough'"),
    ("<encryption secret", "<source type='dir' path='x'/><encryption secret"),
    ("/dev/urandom", "/etc/shadow"),
    ("model='random'", "model='egd'"),
    *(("</devices>", f"<{device}/></devices>") for device in (
        "hostdev", "filesystem", "emulator", "shmem", "redirdev", "smartcard", "lease", "parallel", "nvram", "memory",
        "unknown")),
    ("</devices>", "<input type='evdev'><source dev='/dev/input/event0'/></input></devices>"),
    ("</devices>", "<graphics type='vnc' socket='/run/x'/></devices>"),
    ("</devices>", "<graphics type='spice'><gl rendernode='/dev/dri/x'/></graphics></devices>"),
    ("</devices>", "<audio id='1' type='file' path='/tmp/x'/></devices>"),
    ("</devices>", "<video><model type='vga'/><driver vgaconf='a/b'/></video></devices>"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), HOSTILE)
def test_a_hostile_one_is_refused(old: str, new: str) -> None:
    assert old in GOOD, old
    with pytest.raises(BadDefinition) as refused:
        check(GOOD.replace(old, new, 1))
    assert refused.value.code == "definition_refused"


@given(st.text(alphabet="abx/.'<>=&;: ", max_size=30), st.integers(0, len(GOOD)))
def test_what_passes_names_no_file_of_the_host(text: str, at: int) -> None:
    """Whatever is put in anywhere: refused, or still the given files and nothing else."""
    changed = GOOD[:at] + text + GOOD[at:]
    try:
        check(changed)
        named = {(file.role, file.target): file.path for file in own_files(changed)}
    except BadDefinition:
        return
    assert named.items() <= FILES.items()


def test_what_is_of_one_host_goes() -> None:
    xml = GOOD.replace(
        "<devices>", "<resource><partition>/machine</partition></resource><devices><emulator>/q</emulator>"
    )
    xml = xml.replace("</domain>", "<seclabel type='none'/><!-- x --></domain>")
    xml = xml.replace("<target dev='sda'", "<source file='/iso'/><target dev='sda'")
    made = portable(xml)
    for gone in ("emulator>", "resource", "seclabel", "/iso", "<!--", "metadata"):
        assert gone not in made
    check(made)


def test_a_new_identity_and_new_places() -> None:
    made = with_new_identity(renamed(GOOD, "other"), UUID(int=7))
    assert "<name>other</name>" in made and "52:54:00" not in made and "<genid/>" in made
    made = with_files(made, {(FileRole.DISK, "vda"): "/new/vda", (FileRole.NVRAM, ""): "/new/nvram"})
    assert [file.path for file in own_files(made)] == ["/new/vda", "/new/nvram"]
    made = with_logs(made, lambda number: f"/new/console{number}.log")
    assert "/new/console0.log" in made
    old = next(iter(secrets_of(made)))
    new = UUID(int=8)
    assert secrets_of(with_secrets(made, {old: new})) == {new}


@pytest.mark.parametrize("name", ["", " a", ".a", "-a", "a/b", "a\\b", "a\n", "x" * 201, '"', "<a>", "a&b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(BadDefinition):
        checked_name(name)
