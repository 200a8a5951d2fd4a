"""One real installation for all end-to-end tests: `./bartizan up` in a state folder and on ports of its own, with
PostgreSQL and Redis over TLS and two workers for long jobs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import psycopg
import pytest
from celery import Celery
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

from console.launch.supervisor import tail
from lab import guests, layout
from lab.guest_client import GuestClient
from lab.kms import KmsLayout
from lab.layout import HostLayout, Lab
from lab.session import guest_client
from lab.user import ensure_user
from tests.e2e import servers
from tests.e2e.servers import Servers
from tests.e2e.web import Page, User
from tests.e2e.worker_side import WorkerSide

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = str(ROOT / "bartizan")
JOB_SECONDS = 180.0
LOG_LINES = 100
CRYPTO_WORKERS = ("crypto", "crypto-2")

Row = dict[str, Any]


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
    servers: Servers
    database: psycopg.Connection[Row]
    worker_side: WorkerSide

    @property
    def lab(self) -> Lab:
        found = layout.load(self.state / "lab", ensure_user())
        assert found is not None
        return found

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """Reads the console's own database, past the product. Ids are text."""
        return self.database.execute(sql.encode(), values).fetchall()

    def manage(self, code: str) -> Any:
        """What a Python snippet leaves in `result`, run on the workers' side (with the console key)."""
        return self.worker_side.run(code)

    def run(self, *arguments: str, given: Mapping[str, str] | None = None) -> str:
        """The launcher. `given`: variables of its caller."""
        done = subprocess.run(
            [LAUNCHER, *arguments],
            env=environment(self.state) | dict(given or {}), capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def vm(self, name: str) -> Row:
        return self.rows("SELECT * FROM inventory_virtualmachine WHERE name = %s AND is_present", name)[0]

    def path(self, name: str, page: str = "") -> str:
        return f"/inventory/vm/{self.vm(name)['id']}/{page}"

    def options_path(self, name: str) -> str:
        return f"/encryption/vms/{self.vm(name)['id']}/options/"

    def last_job(self, name: str) -> Row:
        return self.rows(
            "SELECT * FROM inventory_job WHERE target_id = %s ORDER BY created_at DESC LIMIT 1", self.vm(name)["id"]
        )[0]

    def finish_job(self, name: str, status: str = "succeeded", seconds: float = JOB_SECONDS) -> Row:
        """The VM's newest job, once it has ended, with the status that is expected."""
        wait_until(
            f"the job of {name} ends", lambda: self.last_job(name)["status"] not in ("pending", "running"), seconds
        )
        job = self.last_job(name)
        assert job["status"] == status, (job["kind"], job["status"], job["error_code"], job["message"])
        return job

    def change_power(self, name: str, verb: str, status: str = "succeeded") -> Row:
        path = self.path(name, f"power/{verb}/")
        answer = self.user.submit(self.user.get(path), path)
        assert answer.status == 200, answer.words()[:500]
        return self.finish_job(name, status)

    def set_encryption(self, name: str, policy: str, disks: list[str]) -> Page:
        """Presses Apply in the VM Options panel: `disks` get the encrypting policy, the others are not encrypted."""
        return self.user.set_encryption(self.options_path(name), policy, disks)

    def encrypt(self, name: str, disks: list[str]) -> Row:
        assert self.set_encryption(name, "VM Encryption Policy", disks).status == 200
        return self.finish_job(name)

    def decrypt(self, name: str) -> Row:
        assert self.set_encryption(name, "No encryption", []).status == 200
        return self.finish_job(name)

    def ask_recrypt(self, name: str, way: str, parts: list[str]) -> None:
        """Presses Recrypt in its dialog: "key", "passphrases" or "volume_keys"."""
        path = self.options_path(name).replace("/options/", "/recrypt/")
        answer = self.user.submit(self.user.get(path), path, way=way, parts=parts)
        assert answer.status == 200, answer.words()[:500]

    def recrypt(self, name: str, way: str, parts: list[str] | None = None) -> Row:
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

    def kill_worker_during(self, name: str, step: str, *, waits: bool = False) -> None:
        """By SIGKILL the worker that has the VM's job, with its children, once the job is well into that step.

        SIMULATED, unless it `waits`: the time until the job's heartbeat is stale. Its last one is dated back.
        """

        def running() -> Row | None:
            job = self.last_job(name)
            assert job["status"] in ("pending", "running"), f"the job ended before that: {job['message']}"
            return job if job["status"] == "running" else None

        def is_at_it() -> bool:
            job = running()
            return bool(job and job["step"].startswith(step) and (job["done"] or job["checkpoint"].get("offsets")))

        job = wait_until("a worker has the job", running)
        worker = self._worker_of(job["id"])
        wait_until(f"the job is {step}", is_at_it)
        for pid in self._processes_of(worker):
            with suppress(ProcessLookupError):  # gone with its parent
                os.kill(pid, signal.SIGKILL)
        if not waits:
            stale = "UPDATE inventory_job SET heartbeat_at = heartbeat_at - interval '1 minute' WHERE id = %s"
            self.database.execute(f"{stale} AND status = 'running'".encode(), [job["id"]])

    def _worker_of(self, job: str) -> str:
        """The node name of the crypto worker that is at it, asked through the broker."""
        nodes = [f"{name}@{socket.gethostname()}" for name in CRYPTO_WORKERS]
        with Celery(broker=self.servers.redis_url(), set_as_current=False) as app:
            told = app.control.inspect(destination=nodes, timeout=2, limit=len(nodes)).active() or {}
        (worker,) = (node for node, tasks in told.items() for task in tasks if job in task["args"])
        return str(worker).partition("@")[0]

    def _processes_of(self, worker: str) -> list[int]:
        """The worker's, and of the children that do its work."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                arguments, variables = ((process / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
                if f"{worker}@%h".encode() in arguments and f"BARTIZAN_STATE_DIR={self.state}".encode() in variables:
                    found.append(int(process.name))
        return found

    def guest(self, name: str) -> GuestClient:
        client = guest_client(self.lab, name)
        client.wait()
        return client

    def host_of(self, name: str) -> HostLayout:
        row = self.rows("SELECT name FROM inventory_host WHERE id = %s", self.vm(name)["host_id"])[0]
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
            " WHERE s.virtual_machine_id = %s",
            self.vm(name)["id"],
        )
        return str(found[0]["key_id"])

    def sources(self, name: str) -> dict[str, str]:
        rows = self.rows("SELECT target, source FROM inventory_disk WHERE virtual_machine_id = %s", self.vm(name)["id"])
        return {row["target"]: row["source"] for row in rows}


def environment(state: Path) -> dict[str, str]:
    ours = ("BARTIZAN_", "DJANGO_", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}  # noqa: TID251
    return {**kept, "BARTIZAN_STATE_DIR": str(state)}


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[Row]]:
    """Reads and writes at once, no transaction stays open; UUIDs come as text."""
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        connection.adapters.register_loader("uuid", TextLoader)
        yield connection


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """As an operator has it who has given `up` a database and a broker."""
    with ExitStack() as ending:
        place = Path(tempfile.mkdtemp(prefix="bz-e2e-", dir="/var/tmp"))
        ending.callback(shutil.rmtree, place, ignore_errors=True)
        place.chmod(0o755)
        owner = ensure_user()
        outside = ending.enter_context(servers.running(place / "servers", owner))
        wait_until("PostgreSQL takes connections", lambda: servers.answers(outside.database_url()), 60)
        database = ending.enter_context(connected(outside.database_url()))
        state = place / "var"
        port, registrar = layout.free_ports(2)
        ending.callback(
            subprocess.run, [LAUNCHER, "down"], env=environment(state), capture_output=True, timeout=300, check=False
        )
        owner.write(outside.place / "redis_url", outside.redis_url())
        given = {
            "DATABASE_URL": outside.database_url(),
            "BARTIZAN_REDIS_URL_FILE": str(outside.place / "redis_url"),
            "BARTIZAN_CRYPTO_WORKERS": str(len(CRYPTO_WORKERS)),
            "BARTIZAN_HOST_WRITE_BACK": "1",  # seconds; the lab's hosts lose no power
            "BARTIZAN_REGISTRAR_LISTEN": f"127.0.0.1:{registrar}",
        }
        done = subprocess.run(
            [LAUNCHER, "up", "--detach", "--listen", f"127.0.0.1:{port}"], env=environment(state) | given,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
        user = User(f"http://127.0.0.1:{port}")
        password = (state / "secrets" / "administrator_password").read_text().strip()
        assert user.log_in("administrator", password).status == 200
        worker_side = WorkerSide([LAUNCHER, "manage"], environment(state))
        ending.callback(worker_side.end)
        yield Installation(state, user, outside, database, worker_side)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's report has what the processes said last: their folder is gone afterwards."""
    report = yield
    installation = getattr(item, "funcargs", {}).get("installation")
    if report.failed and isinstance(installation, Installation):
        for log in sorted((installation.state / "log").glob("w*.log")):  # web, workers, watch-hosts
            report.sections.append((f"end of {log.name}", tail(log, LOG_LINES)))
    return report
