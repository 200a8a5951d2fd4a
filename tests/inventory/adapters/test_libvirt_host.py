"""What a host can give, asked of a real daemon. Slow: it looks at its QEMU first."""

import libvirt
import pytest

from inventory.adapters.libvirt_driver import connect
from tests.inventory.adapters.daemon import session_daemon

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_abilities_leave_nothing_behind() -> None:
    with session_daemon() as (uri, _):
        with connect(uri) as host:
            can = host.abilities()
        assert can.virtualization in ("kvm", "qemu")
        assert all((can.q35, can.uefi, can.secure_boot, can.smm, can.vtpm, can.viommu)), can
        assert can.secure_loader.startswith("/usr/share/") and can.plain_loader.startswith("/usr/share/")
        assert can.secure_loader != can.plain_loader
        connection = libvirt.open(uri)
        assert connection.listAllDomains() == []
        connection.close()
