"""Workers are killed and messages come twice: the work is done once, and whole."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.e2e.conftest import Installation, wait_until
from tests.e2e.small_vm import small_vm
from tests.e2e.test_encrypt_vm import content_of

pytestmark = pytest.mark.lab

NAME = "crash-01"
MIB = 2**20
SIZE = 1536 * MIB
RANDOM_BYTES = 192 * MIB


def fill(disk: BinaryIO) -> None:
    """A disk that takes a few seconds to convert."""
    for block in range(RANDOM_BYTES // MIB):
        disk.seek(block * 8 * MIB)
        disk.write(hashlib.shake_128(f"{NAME}/{block}".encode()).digest(MIB))
    disk.truncate(SIZE)


@pytest.fixture
def big_vm(installation: Installation) -> Iterator[Path]:
    with small_vm(installation, NAME, fill=fill) as disk:
        yield disk


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_killed_worker_is_replaced_and_the_job_goes_on_from_its_checkpoint(
    installation: Installation, big_vm: Path
) -> None:
    before = digest(big_vm)

    assert installation.set_encryption(NAME, "VM Encryption Policy", ["vda"]).status == 200
    installation.kill_worker_during(NAME, "encrypting", waits=True)
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
    assert [path.name for path in big_vm.parent.iterdir()] == ["disk.raw"]
    assert installation.passphrases(NAME) == {}


def test_a_message_that_comes_twice_does_the_work_once(installation: Installation) -> None:
    """And what was encrypted once is decrypted to the same bit."""
    name = "uefi-01"
    before = {target: content_of(path, target) for target, path in installation.sources(name).items()}
    assert installation.set_encryption(name, "VM Encryption Policy", ["vda", "vdb"]).status == 200
    job = installation.last_job(name)
    installation.manage(
        "from celery import current_app\n"
        "for _ in range(2):\n"
        f"    current_app.send_task('encryption.apply_options', args=['{job['id']}'], queue='crypto')\n"
        "result = True"
    )
    job = installation.finish_job(name)
    assert job["attempts"] == 1
    done = installation.rows("SELECT 1 FROM inventory_event WHERE kind = 'vm.encrypted' AND job_id = %s", job["id"])
    assert len(done) == 1
    installation.decrypt(name)
    assert {target: content_of(path, target) for target, path in installation.sources(name).items()} == before
