"""What a real libvirt daemon says of VMs that do not migrate. Migrations: tests/encryption/test_vmotion_lab.py."""

from uuid import uuid4

import pytest

from inventory.adapters.libvirt_driver import connect
from tests.inventory.adapters.daemon import session_daemon

pytestmark = [pytest.mark.lab, pytest.mark.slow]
DOMAIN = (
    "<domain type='qemu'><name>stays</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>"
    "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><controller type='usb' model='none'/>"
    "<memballoon model='none'/></devices></domain>"
)


def test_without_a_migration() -> None:
    """Of a VM that is off libvirt refuses to say anything, so a migration that failed could not be cleared up."""
    uuid = uuid4()
    with session_daemon() as (uri, _), connect(uri) as host:
        assert host.migration(uuid) is None
        host.define(DOMAIN.format(uuid=uuid))
        for act in (lambda _: None, host.power_on, host.power_off):
            act(uuid)
            assert host.migration(uuid) is None
            host.abort_migration(uuid)
