"""Workers are killed and messages come twice: the work is done once, and whole."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import guests
from lab.user import ensure_user
from tests.e2e.conftest import Installation, wait_until

pytestmark = pytest.mark.lab

NAME = "crash-01"
MIB = 2**20
SIZE = 3072 * MIB
RANDOM_BYTES = 256 * MIB


@pytest.fixture
def big_vm(installation: Installation) -> Iterator[Path]:
    """A powered-off VM with a disk that takes a few seconds to convert, made on host-a past the console."""
    host = installation.lab.host("a")
    folder = host.datastore / NAME
    user = ensure_user()
    user.folder(folder)
    disk = folder / "big.raw"
    with disk.open("wb") as file:
        for block in range(RANDOM_BYTES // MIB):
            file.seek(block * 8 * MIB)
            file.write(hashlib.shake_128(f"{NAME}/{block}".encode()).digest(MIB))
        file.truncate(SIZE)
    user.own(disk)
    disk.chmod(0o600)
    with guests.connected(host) as connection:
        domain = connection.defineXML(
            f"<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>64</memory>"
            "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><disk type='file' device='disk'>"
            f"<driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk></devices>"
            "</domain>"
        )
        wait_until("the console discovers the VM", lambda: installation.rows(
            "SELECT 1 FROM inventory_virtualmachine WHERE name = ?", NAME))  # fmt: skip
        yield disk
        domain.undefine()
    wait_until("the console notices that the VM is gone", lambda: not installation.rows(
        "SELECT 1 FROM inventory_virtualmachine WHERE name = ? AND is_present", NAME))  # fmt: skip


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_killed_worker_is_replaced_and_the_job_goes_on_from_its_checkpoint(
    installation: Installation, big_vm: Path
) -> None:
    before = digest(big_vm)

    assert installation.set_encryption(NAME, "VM Encryption Policy", ["vda"]).status == 200
    installation.kill_worker_during(NAME, "encrypting")
    assert digest(big_vm) == before, "the original changed"
    job = installation.finish_job(NAME)
    assert job["attempts"] == 2
    assert not big_vm.exists()
    old = Path(installation.sources(NAME)["vda"])

    installation.ask_recrypt(NAME, "volume_keys", ["vda"])
    installation.kill_worker_during(NAME, "recrypting")
    assert old.exists()
    job = installation.finish_job(NAME)
    assert job["attempts"] == 2
    encrypted = Path(installation.sources(NAME)["vda"])
    assert encrypted != old and not old.exists()

    assert installation.set_encryption(NAME, "No encryption", []).status == 200
    installation.kill_worker_during(NAME, "decrypting")
    assert encrypted.exists()
    job = installation.finish_job(NAME)
    assert job["attempts"] == 2
    assert installation.sources(NAME)["vda"] == str(big_vm)
    assert digest(big_vm) == before


def test_a_cancelled_conversion_leaves_the_original(installation: Installation, big_vm: Path) -> None:
    before = digest(big_vm)
    assert installation.set_encryption(NAME, "VM Encryption Policy", ["vda"]).status == 200
    wait_until("it runs", lambda: installation.last_job(NAME)["step"].startswith("encrypting"))
    page = installation.user.get("/tasks/")
    installation.user.submit(page, "/cancel/")
    installation.finish_job(NAME, "cancelled")
    assert digest(big_vm) == before
    assert installation.sources(NAME)["vda"] == str(big_vm)
    assert [path.name for path in big_vm.parent.iterdir()] == ["big.raw"]
    assert installation.passphrases(NAME) == {}


def test_a_message_that_comes_twice_does_the_work_once(installation: Installation) -> None:
    name = "uefi-01"
    assert installation.set_encryption(name, "VM Encryption Policy", ["vda"]).status == 200
    job = installation.last_job(name)
    for _ in range(2):
        installation.manage(
            "from celery import current_app\n"
            f"current_app.send_task('encryption.apply_options', args=['{job['id']}'], queue='crypto')\n"
            "result = True"
        )
    job = installation.finish_job(name)
    assert job["attempts"] == 1
    done = installation.rows("SELECT 1 FROM inventory_event WHERE kind = 'vm.encrypted' AND job_id = ?", job["id"])
    assert len(done) == 1
    installation.decrypt(name)
