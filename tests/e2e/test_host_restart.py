"""A host crashes and comes up: its encrypted VM that starts with it runs again, though the host keeps no key."""

import os
import signal
from collections.abc import Iterator

import pytest

from lab import guests
from lab.user import ensure_user
from tests.e2e.conftest import Installation, wait_until

pytestmark = pytest.mark.lab
NAME = "autostart-01"
SIZE = 1 << 20


@pytest.fixture
def autostarted(installation: Installation) -> Iterator[str]:
    """An encrypted VM with nothing to boot from, marked for autostart, running."""
    host = installation.lab.host("a")
    user = ensure_user()
    folder = host.datastore / NAME
    user.folder(folder)
    disk = folder / "disk.raw"
    disk.write_bytes(b"\x5a" * SIZE)
    user.own(disk)
    with guests.connected(host) as connection:
        connection.defineXML(
            f"<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>64</memory>"
            "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><disk type='file' device='disk'>"
            f"<driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk></devices>"
            "</domain>"
        ).setAutostart(1)
    wait_until("the console discovers the VM", lambda: installation.rows(
        "SELECT 1 FROM inventory_virtualmachine WHERE name = ?", NAME))  # fmt: skip
    installation.encrypt(NAME, ["vda"])
    installation.change_power(NAME, "on")
    yield NAME
    installation.change_power(NAME, "off")
    installation.decrypt(NAME)
    with guests.connected(host) as connection:
        connection.lookupByName(NAME).undefine()
    wait_until("the console notices that the VM is gone", lambda: not installation.rows(
        "SELECT 1 FROM inventory_virtualmachine WHERE name = ? AND is_present", NAME))  # fmt: skip


def test_it_runs_again_by_itself(installation: Installation, autostarted: str) -> None:
    host = installation.lab.host("a")
    wait_until("autostart is known", lambda: installation.vm(NAME)["is_autostarted"])
    qemu = int((host.runtime / "libvirt" / "qemu" / "run" / f"{NAME}.pid").read_text())
    daemon = int(host.pid_file.read_text())
    os.kill(daemon, signal.SIGKILL)
    os.kill(qemu, signal.SIGKILL)
    found = wait_until("the console starts it again", lambda: installation.rows(
        "SELECT * FROM inventory_event WHERE kind = 'vm.autostart_requested' AND target_name = ?", NAME))  # fmt: skip
    assert found[0]["actor"] == "Bartizan"
    wait_until("it runs", lambda: installation.vm(NAME)["power_state"] == "on")
    installation.finish_job(NAME)
    with guests.connected(host) as connection:
        assert connection.lookupByName(NAME).isActive()
        assert connection.listSecrets() == []
