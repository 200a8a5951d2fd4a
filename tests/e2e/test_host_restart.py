"""A host crashes and comes up: its encrypted VM that starts with it runs again, though the host keeps no key."""

import os
import signal
from collections.abc import Iterator

import pytest

from lab import guests
from tests.e2e.conftest import Installation, wait_until
from tests.e2e.small_vm import small_vm

pytestmark = pytest.mark.lab
NAME = "autostart-01"


@pytest.fixture
def autostarted(installation: Installation) -> Iterator[str]:
    """An encrypted VM, marked for autostart, running."""
    with small_vm(installation, NAME, autostart=True):
        installation.encrypt(NAME, ["vda"])
        installation.change_power(NAME, "on")
        yield NAME
        installation.change_power(NAME, "off")
        installation.decrypt(NAME)


def test_it_runs_again_by_itself(installation: Installation, autostarted: str) -> None:
    host = installation.lab.host("a")
    wait_until("autostart is known", lambda: installation.vm(NAME)["is_autostarted"])
    qemu = int((host.runtime / "libvirt" / "qemu" / "run" / f"{NAME}.pid").read_text())
    daemon = int(host.pid_file.read_text())
    os.kill(daemon, signal.SIGKILL)
    os.kill(qemu, signal.SIGKILL)
    found = wait_until("the console starts it again", lambda: installation.rows(
        "SELECT * FROM inventory_event WHERE kind = 'vm.autostart_requested' AND target_name = %s", NAME))  # fmt: skip
    assert found[0]["actor"] == "Bartizan"
    wait_until("it runs", lambda: installation.vm(NAME)["power_state"] == "on")
    installation.finish_job(NAME)
    with guests.connected(host) as connection:
        assert connection.lookupByName(NAME).isActive()
        assert connection.listSecrets() == []
