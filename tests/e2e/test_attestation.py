"""The lab's hosts are attested. What happens to one has its own finding and closes the gate; repaired, it opens."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Installation, wait_until
from tests.e2e.small_vm import small_vm

pytestmark = pytest.mark.lab
VM = "attested-01"
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
    installation.manage(
        f"from django.core.management import call_command\ncall_command('lab', 'reboot', 'host-a', *{options!r})\n"
        "result = True"
    )

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


def host_id(installation: Installation, host: str) -> str:
    return str(installation.rows("SELECT id FROM inventory_host WHERE name = %s", host)[0]["id"])


def alarms(installation: Installation) -> set[str]:
    rows = installation.rows(
        "SELECT kind FROM inventory_alarm WHERE target_id = %s AND cleared_at IS NULL AND kind LIKE 'host.%%'",
        host_id(installation, "host-a"),
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
    """A small encrypted VM on host-a."""
    if not report(attacked, "host-a")["is_trusted"]:
        repair(attacked)
    with small_vm(attacked, VM):
        attacked.encrypt(VM, ["vda"])
        yield VM
        attacked.decrypt(VM)


def migrate(installation: Installation, host: str) -> None:
    path = f"/encryption/vms/{installation.vm(VM)['id']}/migrate/"
    page = installation.user.get(path)
    answer = installation.user.submit(page, path, target=host_id(installation, host), datastore="auto")
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
        "SELECT data FROM inventory_event WHERE kind = 'key.released' AND target_name = %s ORDER BY id DESC LIMIT 1", VM
    )
    told = released["data"]
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
