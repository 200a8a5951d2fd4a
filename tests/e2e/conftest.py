"""One real installation for all end-to-end tests: `./bartizan up` in a state folder and on ports of its own."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from lab import guests, layout
from lab.guest_client import GuestClient
from lab.kms import KmsLayout
from lab.layout import HostLayout, Lab
from lab.session import guest_client
from lab.user import ensure_user
from tests.e2e.web import Page, User

ROOT = Path(__file__).resolve().parents[2]
JOB_SECONDS = 180.0


def wait_until(what: str, is_so: Callable[[], Any], seconds: float = JOB_SECONDS) -> Any:
    """The first true answer of `is_so`; fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := is_so():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


@dataclass(frozen=True)
class Installation:
    """A console with its lab, as `up` leaves it, and somebody logged in as the administrator."""

    state: Path
    user: User

    @property
    def lab(self) -> Lab:
        found = layout.load(self.state / "lab", ensure_user())
        assert found is not None
        return found

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """Reads the console's own database, past the product."""
        with sqlite3.connect(f"file:{self.state}/db/bartizan.sqlite3?mode=ro", uri=True, timeout=30) as database:
            database.row_factory = sqlite3.Row
            return list(database.execute(sql, values))

    def manage(self, code: str) -> Any:
        """What a Python snippet leaves in `result`, run on the worker's side (with the console key)."""
        told = f"import json\n{code}\nprint('RESULT ' + json.dumps(result))"
        done = self.run("manage", "shell", "-v", "0", "-c", told)
        return json.loads(done.partition("RESULT ")[2])

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(ROOT / "bartizan"), *arguments],
            env=self.environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.state)

    def vm(self, name: str) -> sqlite3.Row:
        return self.rows("SELECT * FROM inventory_virtualmachine WHERE name = ? AND is_present", name)[0]

    def path(self, name: str, page: str = "") -> str:
        return f"/inventory/vm/{self._id(name)}/{page}"

    def options_path(self, name: str) -> str:
        return f"/encryption/vms/{self._id(name)}/options/"

    def _id(self, name: str) -> str:
        digits = self.vm(name)["id"]
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def last_job(self, name: str) -> sqlite3.Row:
        return self.rows(
            "SELECT * FROM inventory_job WHERE target_id = ? ORDER BY created_at DESC LIMIT 1", self.vm(name)["id"]
        )[0]

    def finish_job(self, name: str, status: str = "succeeded", seconds: float = JOB_SECONDS) -> sqlite3.Row:
        """The VM's newest job, once it has ended, with the status that is expected."""
        wait_until(
            f"the job of {name} ends", lambda: self.last_job(name)["status"] not in ("pending", "running"), seconds
        )
        job = self.last_job(name)
        assert job["status"] == status, (job["kind"], job["status"], job["error_code"], job["message"])
        return job

    def change_power(self, name: str, verb: str, status: str = "succeeded") -> sqlite3.Row:
        path = self.path(name, f"power/{verb}/")
        answer = self.user.submit(self.user.get(path), path)
        assert answer.status == 200, answer.words()[:500]
        return self.finish_job(name, status)

    def set_encryption(self, name: str, policy: str, disks: list[str]) -> Page:
        """Presses Apply in the VM Options panel: `disks` get the encrypting policy, the others are not encrypted."""
        path = self.options_path(name)
        page = self.user.get(path)
        form = page.form("/options/")

        def choice(field: str, wanted: str) -> str:
            options = form.xpath(f'.//select[@name="{field}"]/option')
            return str(next(one.get("value") for one in options if one.text_content() == wanted))

        chosen: dict[str, Any] = {
            field: choice(field, "VM Encryption Policy" if field.removeprefix("disk-") in disks else "No encryption")
            for field in form.xpath('.//select[starts-with(@name, "disk-")]/@name')
        }
        return self.user.submit(page, "/options/", **chosen, policy=choice("policy", policy))

    def encrypt(self, name: str, disks: list[str]) -> sqlite3.Row:
        assert self.set_encryption(name, "VM Encryption Policy", disks).status == 200
        return self.finish_job(name)

    def decrypt(self, name: str) -> sqlite3.Row:
        assert self.set_encryption(name, "No encryption", []).status == 200
        return self.finish_job(name)

    def ask_recrypt(self, name: str, way: str, parts: list[str]) -> None:
        """Presses Recrypt in its dialog: "key", "passphrases" or "volume_keys"."""
        path = self.options_path(name).replace("/options/", "/recrypt/")
        answer = self.user.submit(self.user.get(path), path, way=way, parts=parts)
        assert answer.status == 200, answer.words()[:500]

    def recrypt(self, name: str, way: str, parts: list[str] | None = None) -> sqlite3.Row:
        self.ask_recrypt(name, way, parts or [])
        return self.finish_job(name)

    def ask_migration(self, name: str, host: str) -> None:
        """Chooses the host in the Migrate dialog and presses its button."""
        path = self.options_path(name).replace("/options/", "/migrate/")
        page = self.user.get(path)
        (label,) = [one for one in page.form("/migrate/").xpath(".//label") if one.text_content().strip() == host]
        target = page.form("/migrate/").xpath(f'.//input[@id="{label.get("for")}"]/@value')[0]
        answer = self.user.submit(page, "/migrate/", target=target)
        assert answer.status == 200, answer.words()[:500]

    def kill_worker_during(self, name: str, step: str) -> None:
        """The crypto worker and the children that do its work, by SIGKILL, once the VM's job is well into that step."""

        def is_at_it() -> bool:
            job = self.last_job(name)
            assert job["status"] in ("pending", "running"), f"the job ended before that: {job['message']}"
            return bool(job["step"].startswith(step) and job["done"] > 0)

        wait_until(f"the job is {step}", is_at_it)
        parent = self.supervise("pid", "console:worker-crypto")
        children = subprocess.run(["pgrep", "-P", parent], capture_output=True, text=True, check=False).stdout.split()
        os.kill(int(parent), signal.SIGKILL)
        for pid in children:
            with suppress(ProcessLookupError):  # gone with its parent
                os.kill(int(pid), signal.SIGKILL)

    def guest(self, name: str) -> GuestClient:
        client = guest_client(self.lab, name)
        client.wait()
        return client

    def host_of(self, name: str) -> HostLayout:
        row = self.rows("SELECT name FROM inventory_host WHERE id = ?", self.vm(name)["host_id"])[0]
        return self.lab.host(row["name"].removeprefix("host-"))

    def folder(self, name: str) -> Path:
        return self.host_of(name).datastore / name

    def domain_xml(self, name: str) -> str:
        with guests.connected(self.host_of(name)) as connection:
            return str(connection.lookupByName(name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def supervise(self, *words: str) -> str:
        """supervisorctl on this installation: start, stop, pid ... of one process."""
        control = str(Path(sys.executable).with_name("supervisorctl"))
        config = str(self.state / "run" / "supervisord.conf")
        done = subprocess.run([control, "-c", config, *words], check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def key_server_listens(self) -> bool:
        with socket.socket() as probe:
            port = KmsLayout.load(self.state / "lab" / "kms").port
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def passphrases(self, name: str) -> dict[str, str]:
        """ "vda", "nvram" ... -> the LUKS passphrase, from the KMS and unwrapped, as the console's workers do it."""
        found = self.manage(
            "from encryption.models import WrappedSecret\n"
            "from encryption.services.release import open_secrets\n"
            "rows = WrappedSecret.objects.filter("
            f"virtual_machine__name={name!r}).select_related('key__cluster', 'virtual_machine')\n"
            "opened = open_secrets(rows)\n"
            "result = {one.row.target or one.row.purpose: one.passphrase.reveal().decode() for one in opened}"
        )
        assert isinstance(found, dict)
        return found

    def key_of(self, name: str) -> str:
        """The KEK's id at the KMS."""
        found = self.rows(
            "SELECT k.key_id FROM encryption_key k JOIN encryption_vmsecurity s ON s.key_id = k.id"
            " WHERE s.virtual_machine_id = ?",
            self.vm(name)["id"],
        )
        return str(found[0]["key_id"])

    def sources(self, name: str) -> dict[str, str]:
        rows = self.rows("SELECT target, source FROM inventory_disk WHERE virtual_machine_id = ?", self.vm(name)["id"])
        return {row["target"]: row["source"] for row in rows}


def environment(state: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BARTIZAN_", "DJANGO_"))}  # noqa: TID251
    return {**kept, "BARTIZAN_STATE_DIR": str(state)}


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    place = Path(tempfile.mkdtemp(prefix="bz-e2e-", dir="/var/tmp"))
    place.chmod(0o755)
    state = place / "var"
    port, registrar = layout.free_ports(2)
    launcher = str(ROOT / "bartizan")
    try:
        done = subprocess.run(
            [launcher, "up", "--detach", "--listen", f"127.0.0.1:{port}"],
            env={**environment(state), "BARTIZAN_REGISTRAR_LISTEN": f"127.0.0.1:{registrar}"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
        user = User(f"http://127.0.0.1:{port}")
        password = (state / "secrets" / "administrator_password").read_text().strip()
        assert user.log_in("administrator", password).status == 200
        yield Installation(state, user)
    finally:
        subprocess.run([launcher, "down"], env=environment(state), capture_output=True, timeout=300, check=False)
        shutil.rmtree(place, ignore_errors=True)
