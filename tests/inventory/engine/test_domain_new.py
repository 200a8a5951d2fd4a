"""Definitions of new virtual machines."""

from dataclasses import replace
from uuid import UUID

import pytest

from inventory.engine.domain_edit import add_disk
from inventory.engine.domain_new import Guest, NewDomain, disk_targets, new_domain
from inventory.engine.domain_xml import BadDefinition, parse_document, read_facts
from inventory.engine.hypervisor import Power

NEW = NewDomain("web", UUID(int=7), Guest.LINUX, is_kvm=True, is_uefi=True, vcpus=2, memory_bytes=2**30)


def test_what_is_asked_for() -> None:
    xml = add_disk(new_domain(NEW), "vda", path="/i/vda.raw", format="raw", secret_uuid=None)
    facts = read_facts(xml, live=None, power=Power.OFF, is_persistent=True)
    assert (facts.name, facts.uuid, facts.vcpus, facts.memory_bytes) == ("web", UUID(int=7), 2, 2**30)
    assert (facts.firmware, facts.machine, facts.tpm, facts.platform.chipset) == ("uefi", "q35", None, "q35")
    assert [disk.target for disk in facts.disks] == ["vda"]


def test_guests_and_hosts() -> None:
    root = parse_document(new_domain(replace(NEW, guest=Guest.WINDOWS, network="default", iso="/iso/a.iso")))
    assert root.find("clock").get("offset") == "localtime"  # type: ignore[union-attr]
    assert root.find("devices/interface/model").get("type") == "e1000e"  # type: ignore[union-attr]
    assert root.find("devices/disk").get("device") == "cdrom" and root.find("devices/disk/readonly") is not None  # type: ignore[union-attr]
    plain = parse_document(new_domain(replace(NEW, is_kvm=False, is_uefi=False)))
    assert (plain.get("type"), plain.find("cpu"), plain.find("os").get("firmware")) == ("qemu", None, None)  # type: ignore[union-attr]
    assert plain.find("devices/interface") is None
    assert disk_targets(Guest.LINUX, 2) == ("vda", "vdb") and disk_targets(Guest.OTHER, 1) == ("sda",)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": ""}, "bad_name"),
        ({"name": "a/b"}, "bad_name"),
        ({"vcpus": 0}, "vcpus_invalid"),
        ({"vcpus": 513}, "vcpus_invalid"),
        ({"memory_bytes": 0}, "memory_invalid"),
        ({"memory_bytes": 2**20 + 1}, "memory_invalid"),
    ],
)
def test_refused(change: dict[str, object], code: str) -> None:
    with pytest.raises(BadDefinition) as caught:
        new_domain(replace(NEW, **change))  # type: ignore[arg-type]
    assert caught.value.code == code
