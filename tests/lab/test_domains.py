"""The XML of the guests; that libvirt takes it is shown in test_running_lab."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from lab.domains import GUESTS, Guest, channel_path, domain_xml, pool_xml
from lab.images import GuestImages
from lab.layout import HostLayout, Lab
from lab.user import LabUser

IMAGES = GuestImages(Path("/i/vmlinuz"), Path("/i/initrd.gz"), Path("/i/boot.img"))


@pytest.fixture
def lab() -> Lab:
    hosts = tuple(
        HostLayout(
            name,
            "11111111-1111-4111-8111-111111111111",
            20000,
            (20001, 20008),
            Path("/l") / name,
            Path("/l/datastores") / name,
            Path("/l/datastores/shared"),
        )
        for name in ("a", "b")
    )
    user = LabUser("lab", 1, 1, switch=False)
    return Lab(Path("/s"), Path("/l"), "22222222-2222-4222-8222-222222222222", user, hosts, "qemu")


def parse(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - our own text


def guest(name: str) -> Guest:
    return next(guest for guest in GUESTS if guest.name == name)


def definition(lab: Lab, name: str) -> ET.Element:
    return parse(domain_xml(lab, guest(name), IMAGES))


def sources(domain: ET.Element) -> list[tuple[str, str, str]]:
    """(serial number, driver type, path) of each disk."""
    found = []
    for disk in domain.iterfind("./devices/disk"):
        driver, source = disk.find("driver"), disk.find("source")
        assert driver is not None
        assert source is not None
        found.append((disk.findtext("serial", ""), driver.get("type", ""), source.get("file", "")))
    return found


def test_names_and_uuids_are_unique(lab: Lab) -> None:
    assert len({g.name for g in GUESTS}) == len({lab.uuid_for(g.name) for g in GUESTS}) == 3


@pytest.mark.parametrize("name", ["bios-01", "uefi-01", "secureboot-01"])
def test_every_guest_has_a_raw_and_a_qcow2_data_disk_in_its_own_folder(lab: Lab, name: str) -> None:
    home = guest(name).folder(lab.host(guest(name).host))
    found = sources(definition(lab, name))
    assert ("data-raw", "raw", f"{home}/data-raw.raw") in found
    assert ("data-qcow2", "qcow2", f"{home}/data-qcow2.qcow2") in found


def test_bios_guest_has_no_firmware_files_and_no_tpm(lab: Lab) -> None:
    domain = definition(lab, "bios-01")
    assert domain.find("./os/loader") is None
    assert domain.find("./os/nvram") is None
    assert domain.find("./devices/tpm") is None
    assert domain.findtext("./os/kernel") == "/i/vmlinuz"
    assert domain.findtext("./os/cmdline", "").endswith("lab.name=bios-01")


def test_uefi_guest_keeps_its_variables_in_its_folder(lab: Lab) -> None:
    domain = definition(lab, "uefi-01")
    loader = domain.find("./os/loader")
    assert loader is not None
    assert loader.get("secure") == "no"
    assert domain.findtext("./os/nvram") == "/l/datastores/a/uefi-01/nvram.fd"
    assert domain.find("./devices/tpm/backend[@version='2.0']") is not None


def test_secure_boot_guest_starts_from_its_disk_only(lab: Lab) -> None:
    domain = definition(lab, "secureboot-01")
    assert domain.find("./os/kernel") is None
    assert sources(domain)[0] == ("system", "raw", "/l/datastores/b/secureboot-01/system.raw")
    assert domain.find("./devices/disk[serial='system']/boot[@order='1']") is not None
    assert domain.find("./os/loader[@secure='yes']") is not None
    assert domain.find("./features/smm[@state='on']") is not None


def test_nothing_of_a_guest_lies_elsewhere_when_its_folder_is_given(lab: Lab) -> None:
    text = domain_xml(lab, guest("uefi-01"), IMAGES, folder=Path("/shared/uefi-01"))
    assert "/l/datastores" not in text
    assert "/shared/uefi-01/console.log" in text


def test_channel_path_is_read_from_live_xml_only(lab: Lab) -> None:
    text = domain_xml(lab, guest("bios-01"), IMAGES)
    assert channel_path(text) is None
    domain = parse(text)
    channel = domain.find("./devices/channel")
    assert channel is not None
    ET.SubElement(channel, "source", mode="bind", path="/run/x")
    assert channel_path(ET.tostring(domain, encoding="unicode")) == Path("/run/x")


def test_pool_names_its_folder_even_with_odd_characters() -> None:
    pool = parse(pool_xml("default", Path("/a & b")))
    assert pool.get("type") == "dir"
    assert pool.findtext("./target/path") == "/a & b"
