"""VMs of a test's own: one raw disk and nothing to boot from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lab import guests
from tests.e2e.conftest import Installation, wait_until


def _one_mebibyte(disk: BinaryIO) -> None:
    disk.write(b"\x5a" * 2**20)


@contextmanager
def small_vm(
    installation: Installation, name: str, *, fill: Callable[[BinaryIO], None] = _one_mebibyte, autostart: bool = False
) -> Iterator[Path]:
    """Powered off on host-a, made past the console and known to it; its disk. Afterwards it is gone from both."""
    host, user = installation.lab.host("a"), installation.lab.user
    folder = host.datastore / name
    user.folder(folder)
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        fill(file)
    user.own(disk)
    disk.chmod(0o600)
    with guests.connected(host) as connection:
        connection.defineXML(
            f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>"
            "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><disk type='file' device='disk'>"
            f"<driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk></devices>"
            "</domain>"
        ).setAutostart(autostart)
    known = "SELECT 1 FROM inventory_virtualmachine WHERE name = %s AND is_present"
    wait_until("the console discovers the VM", lambda: installation.rows(known, name))
    yield disk
    with guests.connected(installation.host_of(name)) as connection:
        domain = connection.lookupByName(name)
        if domain.isActive():
            domain.destroy()
        domain.undefine()
    wait_until("the console notices that the VM is gone", lambda: not installation.rows(known, name))
