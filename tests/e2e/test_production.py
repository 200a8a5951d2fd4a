"""docs/production.md is tried: what goes over TLS and to whom, and the units with the environment and the arguments
that stand there. All other end-to-end tests run on the same PostgreSQL and Redis, with two workers for long jobs.

SIMULATED: the machines (all processes run on this one), systemd, and static files, which are the shared installation's.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
import redis

from console.launch import crypto
from lab.layout import free_ports
from lab.pki import Authority
from lab.user import LabUser, ensure_user
from tests.e2e.conftest import ROOT, Installation, connected, wait_until
from tests.e2e.servers import PASSWORD
from tests.e2e.web import User
from tests.launch.test_own_units import TEXT, units

pytestmark = [pytest.mark.lab, pytest.mark.slow]
PLACES = """
from inventory.authorize import SYSTEM
from inventory.services import hosts, places
datacenter = places.add_datacenter(name="Units", actor=SYSTEM)
cluster = places.add_cluster(datacenter_id=datacenter.pk, name="Units", actor=SYSTEM)
hosts.add_host(cluster_id=cluster.pk, name="a", uri={uri!r}, migration_uri="", vtpm_state_path="", actor=SYSTEM)
"""


def test_nothing_of_the_console_is_elsewhere_or_in_clear(installation: Installation) -> None:
    ssl = "SELECT bool_and(ssl) AS all FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL"
    assert installation.rows(ssl)[0]["all"], "a connection to the database is in clear"
    running = installation.supervise("status")
    assert "console:worker-crypto-2" in running and "redis" not in running
    assert not list((installation.state / "db").iterdir()) and not list((installation.state / "redis").iterdir())


def test_servers_that_another_authority_vouches_for_get_nothing(installation: Installation, tmp_path: Path) -> None:
    Authority.create(tmp_path / "other", "Other")
    wrong = tmp_path / "other" / "ca-cert.pem"
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(installation.servers.database_url(trusted=wrong))
    with pytest.raises(redis.exceptions.ConnectionError, match="certificate verify failed"):
        redis.Redis.from_url(installation.servers.redis_url(trusted=wrong)).ping()


@dataclass(frozen=True)
class Documented:
    """The document's environment and arguments, with this machine's paths, and processes started with them."""

    place: Path
    owner: LabUser
    web_port: int
    settings: dict[str, str]
    arguments: dict[str, list[str]]
    tls: list[str]
    units: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, unit: str, *more: str) -> None:
        """Two sorts of units get the console key."""
        has_key = unit == "forward-events" or unit.startswith("worker-")
        key = {"BARTIZAN_CONSOLE_KEY_FILE": str(self.place / "console_key")} if has_key else {}
        with (self.place / f"{unit}.log").open("ab") as log:
            self.units[unit] = subprocess.Popen(
                self.owner.command([*self.arguments[unit], *more]), env=self.settings | key, cwd=ROOT,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def manage(self, *arguments: str) -> None:
        done = subprocess.run(
            self.owner.command([str(ROOT / ".venv" / "bin" / "python"), "manage.py", *arguments]), env=self.settings,
            cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]

    def stop(self) -> None:
        for process in self.units.values():
            process.terminate()
        for process in self.units.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)


def read_document(place: Path, owner: LabUser) -> Documented:
    (port,) = free_ports(1)
    here = {
        "127.0.0.1:8440": f"127.0.0.1:{port}", "/opt/bartizan": str(ROOT), "/var/lib/bartizan/state": f"{place}/state",
        "/etc/bartizan": str(place), "console.example.org": "127.0.0.1", "%%": "%",
    }  # fmt: skip

    def with_ours(text: str) -> str:
        return re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], text)

    (lines,) = re.findall(r"^```\n(DJANGO_SETTINGS_MODULE=.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    settings = dict(line.split("=", 1) for line in with_ours(lines).splitlines())
    (tls,) = re.findall(r"--certfile FILE --keyfile FILE (--ciphers \S+)`", TEXT)
    arguments = {
        name: shlex.split(with_ours(unit.partition("\nExecStart=")[2].partition("\n")[0]))
        for name, unit in units().items()
    }
    return Documented(place, owner, port, settings, arguments, tls.split())


@pytest.fixture
def documented(installation: Installation) -> Iterator[Documented]:
    """With a database of its own on the shared server, and another of Redis's."""
    owner = ensure_user()
    with ExitStack() as ending:
        place = Path(tempfile.mkdtemp(prefix="bz-units-", dir="/var/tmp"))
        ending.callback(shutil.rmtree, place)
        owner.own(place)
        found = read_document(place, owner)
        owner.folder(place / "state")
        servers = installation.servers
        installation.database.execute("CREATE DATABASE units")
        ending.callback(installation.database.execute, "DROP DATABASE units WITH (FORCE)")
        for name, secret in {
            "database_url": servers.database_url("units"), "redis_url": servers.redis_url(1),
            "secret_key": "0" * 48, "console_key": "b7" * 32, "password": PASSWORD,
        }.items():  # fmt: skip
            owner.write(place / name, secret)
        found.settings.pop("BARTIZAN_CRYPTO_MODULES")
        found.settings.update(crypto.environment(ROOT))
        (registrar,) = free_ports(1)
        found.settings.update({
            "BARTIZAN_REGISTRAR_LISTEN": f"127.0.0.1:{registrar}",
            "PATH": f"{ROOT}/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(place),
            "BARTIZAN_ASSETS_DIR": str(installation.state / "assets"),
            "BARTIZAN_STATIC_ROOT": str(installation.state / "static"),
        })  # fmt: skip
        ending.callback(found.stop)
        yield found


def test_units_as_the_document_has_them_serve_and_work(installation: Installation, documented: Documented) -> None:
    documented.manage("migrate", "--no-input")
    documented.manage(
        "create_administrator", "--username", "administrator", "--password-file", str(documented.place / "password")
    )  # fmt: skip
    servers = installation.servers
    given = [*documented.tls, "--certfile", str(servers.place / "server.crt")]
    documented.start("web", *given, "--keyfile", str(servers.place / "server.key"))
    for unit in ("worker-control", "beat", "watch-hosts", "forward-events", "registrar"):
        documented.start(unit)
    user = User(f"https://127.0.0.1:{documented.web_port}")
    user.session.verify = str(servers.trusted)
    user.session.trust_env = False  # a CA bundle of the environment would go before it

    def is_ready() -> bool:
        try:
            return user.get("/readyz").status == 200
        except OSError:
            return False

    wait_until("the console is ready", is_ready, 120)
    assert user.log_in("administrator", PASSWORD).status == 200
    documented.manage("shell", "-v", "0", "-c", PLACES.format(uri=installation.lab.host("a").uri))
    with connected(servers.database_url("units")) as database:
        tested = "SELECT 1 FROM inventory_job WHERE target_name = 'a' AND status = 'succeeded'"
        wait_until("a worker has tested the host", lambda: database.execute(tested).fetchone(), 120)
        listed = "SELECT id FROM inventory_virtualmachine WHERE name = 'uefi-01'"
        found = wait_until("its VMs are found", lambda: database.execute(listed).fetchone(), 120)
    assert "uefi-01" in user.get(f"/inventory/vm/{found['id']}/").words()
    ended = {unit: process.returncode for unit, process in documented.units.items() if process.poll() is not None}
    assert not ended
