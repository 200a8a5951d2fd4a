"""Somebody is at work on a host with libvirt's own tools: each drift of an encrypted VM becomes an alarm with evidence
that ends when the drift does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from lab import guests
from tests.e2e.conftest import Installation, wait_until

pytestmark = pytest.mark.lab
NAME = "uefi-01"


def live(installation: Installation) -> list[str]:
    """Evidence of the VM's live alarm of compliance; empty without one."""
    rows = installation.rows(
        "SELECT evidence FROM inventory_alarm WHERE kind = 'vm.noncompliant' AND cleared_at IS NULL AND target_id = %s",
        installation.vm(NAME)["id"],
    )
    return [line for row in rows for line in row["evidence"]]


def state(installation: Installation) -> str:
    rows = installation.rows(
        "SELECT state FROM encryption_compliance WHERE virtual_machine_id = %s", installation.vm(NAME)["id"]
    )
    return str(rows[0]["state"]) if rows else ""


def define(installation: Installation, xml: str) -> None:
    with guests.connected(installation.host_of(NAME)) as connection:
        connection.defineXML(xml)


def check_now(installation: Installation) -> None:
    path = installation.options_path(NAME).replace("/options/", "/check/")
    assert installation.user.submit(installation.user.get(path), path).status == 200
    installation.finish_job(NAME)


def edited(xml: str, change: Callable[[etree._Element], None]) -> str:
    root = etree.fromstring(xml.encode())
    change(root)
    return etree.tostring(root, encoding="unicode")


def test_every_drift_is_an_alarm_with_evidence_until_it_is_repaired(installation: Installation) -> None:
    installation.encrypt(NAME, ["vda"])
    assert (state(installation), live(installation)) == ("compliant", [])
    before, folder = installation.domain_xml(NAME), installation.folder(NAME)
    extra = folder / "extra.raw"
    try:
        extra.write_bytes(b"plain" * 4096)
        extra.chmod(0o666)

        def attach(root: etree._Element) -> None:
            added = etree.fromstring(
                f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{extra}'/>"
                "<target dev='vdz' bus='virtio'/></disk>"
            )
            root.find("devices").append(added)  # type: ignore[union-attr]

        # A plain disk attached, and the encryption of a disk taken out of the definition: seen without being asked.
        for change, expected in (
            (attach, f"disk_plain_unknown: vdz: {extra}"),
            (drop_encryption, "definition_differs"),
        ):
            define(installation, edited(before, change))
            found = wait_until("the alarm is raised", lambda: live(installation), 60)
            assert any(line.startswith(expected) for line in found), found
            shown = installation.user.get(installation.options_path(NAME)).words()
            assert "Not compliant" in shown and expected.partition(":")[0] in shown
            assert expected.partition(":")[0] in installation.user.get("/alarms/").words()
            define(installation, before)
            wait_until("the alarm is cleared", lambda: not live(installation), 60)
            assert state(installation) == "compliant"

        # The file itself replaced, which libvirt tells nobody: seen when looked at.
        disk = Path(installation.sources(NAME)["vda"])
        kept = disk.read_bytes()[:4096]
        overwrite(disk, b"\0" * 4096)
        check_now(installation)
        (line,) = live(installation)
        assert line.startswith(f"header_missing: vda: {disk}: no LUKS header"), line
        overwrite(disk, kept)
        check_now(installation)
        assert (state(installation), live(installation)) == ("compliant", [])
    finally:
        define(installation, before)
        extra.unlink(missing_ok=True)
    installation.decrypt(NAME)
    assert state(installation) == ""


def drop_encryption(root: etree._Element) -> None:
    found: Any = root.xpath("devices/disk[target/@dev='vda']/source/encryption")
    (encryption,) = found
    encryption.getparent().remove(encryption)


def overwrite(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)
