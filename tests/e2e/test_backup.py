"""The drill of docs/operate.md: a backup, a new state folder with the old console key, and an encrypted VM starts."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.user import ensure_user
from tests.e2e.conftest import Installation, wait_until

pytestmark = pytest.mark.lab
NAME = "uefi-01"

START = """
from console.celery import app
from inventory.authorize import SYSTEM
from inventory.models import VirtualMachine
from inventory.services import power
app.loader.import_default_modules()
app.autodiscover_tasks(force=True)
vm = VirtualMachine.objects.get(name={name!r}, is_present=True)
job = power.power_on(vm_id=vm.pk, actor=SYSTEM)
app.tasks[job.kind](str(job.pk))
job.refresh_from_db()
result = [job.status, job.message]
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the product's user may write to."""
    account = ensure_user()
    place = Path(tempfile.mkdtemp(prefix="bz-drill-", dir="/var/tmp"))
    shutil.chown(place, account.name, account.name)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    shutil.chown(path, path.parent.owner(), path.parent.group())
    return path


def test_a_restored_console_starts_an_encrypted_vm(installation: Installation, place: Path) -> None:
    """SIMULATED: the restored console's worker. The start is run by the script that asks for it, in that console's
    database and with its key; the job's message finds no broker, as nothing of that console runs."""
    installation.encrypt(NAME, [])
    try:
        passphrase = private(place / "passphrase", "a passphrase for the drill\n")
        backup = place / "console.backup"
        assert "objects" in installation.run("manage", "backup", str(backup), "--passphrase-file", str(passphrase))

        state = place / "state"
        (state / "secrets").mkdir(mode=0o700, parents=True)
        for folder in (state, state / "secrets"):
            shutil.chown(folder, place.owner(), place.group())
        private(state / "secrets" / "console_key", (installation.state / "secrets" / "console_key").read_text())
        restored = Installation(state, installation.user)
        restored.run("manage", "migrate", "--no-input", "-v", "0")
        assert "restored" in restored.run("manage", "restore", str(backup), "--passphrase-file", str(passphrase))

        assert restored.manage(START.format(name=NAME)) == ["succeeded", ""]
        assert installation.guest(NAME).ask("heartbeat")
        told = restored.rows("SELECT actor, data FROM inventory_event WHERE kind = 'vm.powered_on' ORDER BY id")[-1]
        assert told["actor"] == "Bartizan"
        assert "problem" not in restored.run("manage", "verify-events").lower()
    finally:
        wait_until("the first console sees it run", lambda: installation.vm(NAME)["power_state"] == "on", 60)
        installation.change_power(NAME, "off")
        installation.decrypt(NAME)
