"""The lab's hosts are attested. What happens to one has its own finding and closes the gate; repaired, it opens."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from lab import guests
from tests.e2e.conftest import Installation, wait_until

pytestmark = pytest.mark.lab
VM = "attested-01"
SIZE = 1 << 20
# What the lab command line does to a host, the finding of it alone, and the report's words without their first letter,
# which is a capital one there.
SECURE_BOOT_OFF = ("--secure-boot-off", "secure_boot_off", "he host booted with Secure Boot off")
OTHERS = [
    ("--changed-kernel", "unknown_component", "is not a known component"),
    ("--swapped-tpm", "bad_signature", "he quote is not signed by the attestation key"),
    ("--edited-log", "log_does_not_replay", "he boot log does not give the quoted value of PCR"),
]


def boot(installation: Installation, *options: str, status: str) -> dict[str, Any]:
    """Boots host-a; its report as the API gives it, once it stands so. Its agent registers meanwhile, and then it is
    attested once more."""
    installation.run("manage", "lab", "reboot", "host-a", *options)

    def stands() -> dict[str, Any] | None:
        found = report(installation, "host-a")
        return found if (found["status"], found["is_trusted"]) == (status, status == "passed") else None

    found = wait_until(f"host-a has {status}", stands, 30)
    assert isinstance(found, dict)
    return found


def repair(installation: Installation) -> None:
    boot(installation, status="passed")
    wait_until("its alarms are over", lambda: not alarms(installation), 30)


def report(installation: Installation, host: str) -> dict[str, Any]:
    found = installation.user.json(f"/api/v1/hosts/{host_id(installation, host)}/attestation")
    assert isinstance(found, dict)
    return found


def host_id(installation: Installation, host: str) -> UUID:
    return UUID(installation.rows("SELECT id FROM inventory_host WHERE name = ?", host)[0]["id"])


def alarms(installation: Installation) -> set[str]:
    rows = installation.rows(
        "SELECT kind FROM inventory_alarm WHERE target_id = ? AND cleared_at IS NULL AND kind LIKE 'host.%'",
        host_id(installation, "host-a").hex,
    )
    return {row["kind"] for row in rows}


@pytest.fixture(scope="module")
def attacked(installation: Installation) -> Iterator[Installation]:
    """Afterwards host-a is as it should be again, and so is its alarms' list."""
    wait_until("the lab's hosts are attested", lambda: all(
        report(installation, host)["is_trusted"] for host in ("host-a", "host-b")), 60)  # fmt: skip
    assert report(installation, "host-a")["tpm"]["vouched_by"] == "Lab TPM CA"
    yield installation
    repair(installation)


def attack(installation: Installation, option: str, finding: str, words: str) -> None:
    """It has its own finding, closes the gate of this host alone, raises the alarm, and the report says it."""
    found = boot(installation, option, status="failed")
    codes = {each["code"] for each in found["verdict"]["findings"]}
    assert codes & {each for _, each, _ in (SECURE_BOOT_OFF, *OTHERS)} == {finding}, found["message"]
    expected = {"host.attestation_failed"} | ({"host.tpm_changed"} if option == "--swapped-tpm" else set())
    wait_until(f"alarms {expected}", lambda: alarms(installation) == expected, 30)
    page = installation.user.get(f"/attestation/hosts/{host_id(installation, 'host-a')}/").words()
    assert words in page and "Failed" in page, page
    assert report(installation, "host-b")["is_trusted"], "another host's attestation is its own"


@pytest.fixture
def encrypted(attacked: Installation) -> Iterator[str]:
    """A small encrypted VM on host-a, with nothing to boot from."""
    if not report(attacked, "host-a")["is_trusted"]:
        repair(attacked)
    host = attacked.lab.host("a")
    folder = host.datastore / VM
    attacked.lab.user.folder(folder)
    disk = folder / "disk.raw"
    disk.write_bytes(b"\x5a" * SIZE)
    attacked.lab.user.own(disk)
    with guests.connected(host) as connection:
        connection.defineXML(
            f"<domain type='qemu'><name>{VM}</name><memory unit='MiB'>64</memory>"
            "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><disk type='file' device='disk'>"
            f"<driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk></devices>"
            "</domain>"
        )
    wait_until("the console discovers the VM", lambda: attacked.rows(
        "SELECT 1 FROM inventory_virtualmachine WHERE name = ?", VM))  # fmt: skip
    attacked.encrypt(VM, ["vda"])
    yield VM
    attacked.decrypt(VM)
    with guests.connected(attacked.host_of(VM)) as connection:
        connection.lookupByName(VM).undefine()
    wait_until("the console notices that the VM is gone", lambda: not attacked.rows(
        "SELECT 1 FROM inventory_virtualmachine WHERE name = ? AND is_present", VM))  # fmt: skip


def migrate(installation: Installation, host: str) -> None:
    path = f"/encryption/vms/{UUID(installation.vm(VM)['id'])}/migrate/"
    page = installation.user.get(path)
    answer = installation.user.submit(page, path, target=str(host_id(installation, host)), datastore="auto")
    assert answer.status == 200, answer.words()[:500]
    installation.finish_job(VM)


def test_an_encrypted_vm_starts_on_the_attested_host_only(attacked: Installation, encrypted: str) -> None:
    attack(attacked, *SECURE_BOOT_OFF)
    job = attacked.change_power(VM, "on", status="failed")
    assert job["error_code"] == "host_attestation_failed"
    assert "the host booted with Secure Boot off" in job["message"]

    migrate(attacked, "host-b")
    attacked.change_power(VM, "on")
    attacked.change_power(VM, "off")
    (released,) = attacked.rows(
        "SELECT data FROM inventory_event WHERE kind = 'key.released' AND target_name = ? ORDER BY id DESC LIMIT 1", VM
    )
    told = json.loads(released["data"])
    assert told["host"] == "host-b" and "attestation=host_trusted" in told["gate"]
    assert any(each.startswith("verdict=") for each in told["gate"])

    repair(attacked)
    migrate(attacked, "host-a")
    attacked.change_power(VM, "on")
    attacked.change_power(VM, "off")


@pytest.mark.parametrize(("option", "finding", "words"), OTHERS)
def test_each_attack_has_its_own_finding_and_closes_the_gate(
    attacked: Installation, option: str, finding: str, words: str
) -> None:
    attack(attacked, option, finding, words)


def test_a_host_without_its_agent_is_not_reachable_and_not_failed(attacked: Installation) -> None:
    boot(attacked, "--stopped-agent", status="unreachable")
    assert "Not reachable" in attacked.user.get(f"/attestation/hosts/{host_id(attacked, 'host-a')}/").words()
