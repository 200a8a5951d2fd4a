"""The drill of docs/operate.md: a backup, a new state folder with the old console key, and an encrypted VM starts."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab.user import ensure_user
from tests.e2e.conftest import LAUNCHER, Installation, connected, environment, wait_until
from tests.e2e.worker_side import WorkerSide

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


@contextmanager
def new_console(installation: Installation, state: Path) -> Iterator[Installation]:
    """A state folder and a database of its own, migrated, with the console key of `installation`."""
    (state / "secrets").mkdir(mode=0o700, parents=True)
    for folder in (state, state / "secrets"):
        shutil.chown(folder, state.parent.owner(), state.parent.group())
    private(state / "secrets" / "console_key", (installation.state / "secrets" / "console_key").read_text())
    url = installation.servers.database_url("drill")
    with ExitStack() as ending:
        installation.database.execute("CREATE DATABASE drill")
        ending.callback(installation.database.execute, "DROP DATABASE drill WITH (FORCE)")
        side = WorkerSide([LAUNCHER, "manage"], environment(state))
        ending.callback(side.end)
        made = Installation(
            state, installation.user, installation.servers, ending.enter_context(connected(url)), side
        )  # fmt: skip
        given = {"DATABASE_URL": url, "BARTIZAN_REDIS_URL": installation.servers.redis_url(3)}
        made.run("manage", "migrate", "--no-input", "-v", "0", given=given)
        yield made


def test_a_restored_console_starts_an_encrypted_vm(installation: Installation, place: Path) -> None:
    """SIMULATED: the restored console's worker. The start is run by the script that asks for it, in that console's
    database and with its key; the job's message stays in the broker, as nothing of that console runs."""
    installation.encrypt(NAME, [])
    try:
        passphrase = private(place / "passphrase", "a passphrase for the drill\n")
        backup = place / "console.backup"
        assert "objects" in installation.run("manage", "backup", str(backup), "--passphrase-file", str(passphrase))
        with new_console(installation, place / "state") as restored:
            assert "restored" in restored.run("manage", "restore", str(backup), "--passphrase-file", str(passphrase))
            assert restored.manage(START.format(name=NAME)) == ["succeeded", ""]
            assert installation.guest(NAME).ask("heartbeat")
            told = restored.rows("SELECT actor FROM inventory_event WHERE kind = 'vm.powered_on' ORDER BY id")[-1]
            assert told["actor"] == "Bartizan"
            assert "problem" not in restored.run("manage", "verify-events").lower()
    finally:
        wait_until("the first console sees it run", lambda: installation.vm(NAME)["power_state"] == "on", 60)
        installation.change_power(NAME, "off")
        installation.decrypt(NAME)
