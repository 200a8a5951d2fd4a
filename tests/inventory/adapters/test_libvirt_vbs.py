"""VBS and Secure Boot as a real daemon takes them: defined, started, unset again. Slow: it looks at its QEMU first."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import libvirt
import pytest

from inventory.adapters.libvirt_driver import LibvirtHost, connect
from inventory.engine import domain_vbs
from inventory.engine.hypervisor import Power, VmFacts
from lab.user import ensure_user
from tests.inventory.adapters.daemon import session_daemon

pytestmark = [pytest.mark.lab, pytest.mark.slow]
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


@pytest.fixture(scope="module")
def daemon() -> Iterator[tuple[str, Path]]:
    with session_daemon() as (uri, folder):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        yield uri, folder


@pytest.fixture
def host(daemon: tuple[str, Path]) -> Iterator[LibvirtHost]:
    with connect(daemon[0]) as opened:
        yield opened


def definition(os: str, attributes: str = "") -> str:
    return (
        f"<domain type='qemu'><name>{uuid4()}</name><uuid>{uuid4()}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>"
        f"<os{attributes}><type arch='x86_64' machine='q35'>hvm</type>{os}</os><features><acpi/><apic/></features>"
        "<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>"
        "<devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
    )


def define(host: LibvirtHost, xml: str) -> VmFacts:
    known = {facts.uuid for facts in host.virtual_machines()}
    host.define(xml)
    (new,) = [facts for facts in host.virtual_machines() if facts.uuid not in known]
    return new


def started(host: LibvirtHost, uri: str, facts: VmFacts) -> VmFacts:
    """Started paused: QEMU has opened the firmware and made the devices; no guest runs."""
    connection = libvirt.open(uri)
    domain = connection.lookupByUUIDString(str(facts.uuid))
    domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    try:
        seen = host.virtual_machine(facts.uuid)
        assert seen.power is Power.PAUSED
        return seen
    finally:
        domain.destroy()
        connection.close()


def has_vbs(facts: VmFacts) -> bool:
    return facts.platform.has_vbs(has_secure_boot=facts.has_secure_boot)


def test_set_started_and_unset_with_firmware_of_libvirts_choice(host: LibvirtHost, daemon: tuple[str, Path]) -> None:
    can, vm = host.abilities(), define(host, definition("", " firmware='efi'"))
    before = host.definition(vm.uuid)
    host.redefine(vm.uuid, lambda xml: domain_vbs.set_vbs(xml, can))
    facts = host.virtual_machine(vm.uuid)
    assert has_vbs(facts) and facts.platform.remembers_vbs
    running = started(host, daemon[0], facts)
    assert has_vbs(running) and running.platform.loader == can.secure_loader
    host.redefine(vm.uuid, domain_vbs.unset_vbs)
    facts = host.virtual_machine(vm.uuid)
    assert (has_vbs(facts), facts.has_secure_boot, facts.platform.remembers_vbs) == (False, True, False)
    assert not has_vbs(started(host, daemon[0], facts))
    assert "<metadata" not in host.definition(vm.uuid) and "<metadata" not in before


def test_variables_that_have_a_place(host: LibvirtHost, daemon: tuple[str, Path]) -> None:
    can, path = host.abilities(), daemon[1] / "nvram.fd"
    path.write_bytes(VARIABLES.read_bytes())
    ensure_user().own(path)
    vm = define(host, definition(
        f"<loader readonly='yes' type='pflash'>{can.plain_loader}</loader>"
        f"<nvram template='{VARIABLES}'>{path}</nvram>"
    ))  # fmt: skip
    content = path.read_bytes()
    host.redefine(vm.uuid, lambda xml: domain_vbs.set_vbs(xml, can))
    running = started(host, daemon[0], vm)
    assert has_vbs(running) and running.nvram_path == str(path)
    assert path.read_bytes() == content
    host.redefine(vm.uuid, lambda xml: domain_vbs.set_secure_boot(xml, is_on=False, host=can))
    running = started(host, daemon[0], vm)
    assert (running.has_secure_boot, running.platform.loader) == (False, can.plain_loader)


def test_variables_not_made_yet_come_with_keys(host: LibvirtHost, daemon: tuple[str, Path]) -> None:
    """A place without a file: libvirt makes it from the template of the firmware that is named."""
    can, path = host.abilities(), daemon[1] / "new.fd"
    vm = define(host, definition(
        f"<loader readonly='yes' type='pflash'>{can.plain_loader}</loader><nvram>{path}</nvram>"
    ))  # fmt: skip
    host.redefine(vm.uuid, lambda xml: domain_vbs.set_secure_boot(xml, is_on=True, host=can))
    started(host, daemon[0], vm)
    assert path.read_bytes() == Path(can.secure_loader.replace("CODE", "VARS")).read_bytes()
