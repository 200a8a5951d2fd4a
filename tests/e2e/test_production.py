"""As docs/install.md has it for several machines: PostgreSQL and Redis over TLS, and two workers for long jobs.

SIMULATED: the machines. All processes run on this one, on the hosts and the key server of the shared lab, whose own
console does not look meanwhile.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
import pytest
import redis
from psycopg.rows import dict_row
from typing_extensions import override

from console.launch import processes
from lab import kms
from lab.layout import Lab, free_ports
from lab.pki import Authority
from lab.user import LabUser, ensure_user
from tests.e2e.conftest import ROOT, Installation, wait_until
from tests.e2e.web import User

pytestmark = [pytest.mark.lab, pytest.mark.slow]
NAME: Final = "uefi-01"
PASSWORD: Final = "production-only"
PREFIX: Final = ("-A", "console", "worker", "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO")

PLACES = """
from inventory.authorize import SYSTEM
from inventory.services import hosts, places
from lab.register import CLUSTER, DATACENTER
datacenter = places.add_datacenter(name=DATACENTER, actor=SYSTEM)
cluster = places.add_cluster(datacenter_id=datacenter.pk, name=CLUSTER, actor=SYSTEM)
hosts.add_host(cluster_id=cluster.pk, name="host-a", uri={uri!r}, migration_uri="", vtpm_state_path={tpm!r},
               actor=SYSTEM)
from encryption.services import key_providers
provider = key_providers.add_cluster(name="KMS", actor=SYSTEM)
key_providers.add_server(cluster_id=provider.pk, host={host!r}, port={port}, actor=SYSTEM)
key_providers.trust_server(cluster_id=provider.pk, certificate_pem={authority!r}, actor=SYSTEM)
key_providers.request_client_key(cluster_id=provider.pk, actor=SYSTEM)
result = str(provider.pk)
"""
INSTALL = """
from inventory.authorize import SYSTEM
from encryption.services import key_providers
key_providers.install_client_certificate(cluster_id={provider!r}, certificate_pem={certificate!r}, actor=SYSTEM)
result = str(key_providers.check(cluster_id={provider!r}, actor=SYSTEM).pk)
"""


@dataclass(frozen=True)
class Production(Installation):
    """A console of own units. `units`: name -> its process."""

    shared: Installation
    owner: LabUser
    database: str
    settings: dict[str, str]
    units: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @override
    def rows(self, sql: str, *values: object) -> list[dict[str, object]]:  # type: ignore[override]
        """As of the other console, on PostgreSQL."""
        with psycopg.connect(self.database, row_factory=dict_row) as connection:
            return connection.execute(
                sql.replace("?", "%s").replace("AND is_present", "AND is_present = true"), values
            ).fetchall()

    @property
    @override
    def lab(self) -> Lab:
        return self.shared.lab

    @override
    def run(self, *arguments: str) -> str:
        """manage.py, as its user."""
        done = self.owner.run([sys.executable, str(ROOT / "manage.py"), *arguments[1:]], env=self.settings, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout

    @override
    def vm(self, name: str) -> dict[str, object]:  # type: ignore[override]
        row = self.rows("SELECT * FROM inventory_virtualmachine WHERE name = ? AND is_present", name)[0]
        return row | {"id": str(row["id"]).replace("-", "")}

    def start(self, unit: str, *arguments: str) -> None:
        with (self.state / f"{unit}.log").open("ab") as log:
            self.units[unit] = subprocess.Popen(
                self.owner.command([sys.executable, *arguments]), env=self.settings, cwd=ROOT, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def worker(self, unit: str, queue: str) -> None:
        self.start(unit, "-m", "celery", *PREFIX, "-Q", queue, "-c", "1", "-n", f"{unit}@%h")

    def kill(self, unit: str) -> None:
        """With the children that do its work."""
        os.killpg(self.units[unit].pid, signal.SIGKILL)
        self.units.pop(unit).wait(30)

    def stop(self) -> None:
        for process in self.units.values():
            process.terminate()
        for process in self.units.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)


@contextmanager
def postgresql(place: Path, owner: LabUser, port: int) -> Iterator[None]:
    """Debian's server; it speaks TLS only, and wants the password."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert programs, "no PostgreSQL server: ./bartizan test installs it"
    data = place / "data"
    owner.folder(data)
    owner.write(place / "password", PASSWORD)
    made = owner.run(
        [str(programs[-1]), "-D", str(data), "-U", "bartizan", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync",
         "--pwfile", str(place / "password")]
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    owner.write(data / "pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256\n")
    options = {
        "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "ssl": "on",
        "ssl_cert_file": place / "server.crt", "ssl_key_file": place / "server.key",
    }  # fmt: skip
    told = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    with _server(owner, [str(programs[-1].with_name("postgres")), "-D", str(data), *told], place / "postgresql.log"):
        yield


@contextmanager
def redis_server(place: Path, owner: LabUser, port: int) -> Iterator[None]:
    """No port without TLS."""
    arguments = [
        processes.redis_server(place), "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1",
        "--tls-auth-clients", "no",
        "--tls-cert-file", str(place / "server.crt"), "--tls-key-file", str(place / "server.key"),
        "--tls-ca-cert-file", str(place / "ca.crt"), "--requirepass", PASSWORD, "--save", "", "--dir", str(place),
    ]  # fmt: skip
    with _server(owner, arguments, place / "redis.log"):
        yield


@contextmanager
def _server(owner: LabUser, arguments: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as lines:
        server = subprocess.Popen(owner.command(arguments), cwd="/", stdout=lines, stderr=lines)
    try:
        yield
    finally:
        server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        server.wait(60)


@pytest.fixture(scope="module")
def production(installation: Installation) -> Iterator[Production]:
    owner = ensure_user()
    place = Path(tempfile.mkdtemp(prefix="bz-prod-", dir="/var/tmp"))
    owner.own(place)
    database_port, redis_port, web_port = free_ports(3)
    issued = Authority.create(place / "ca", "Production").issue("servers", ips=["127.0.0.1"], server=True)
    owner.write(place / "ca.crt", (place / "ca" / "ca-cert.pem").read_bytes(), 0o644)
    owner.write(place / "server.crt", issued.certificate_pem, 0o644)
    owner.write(place / "server.key", issued.key_pem)
    state = place / "state"
    owner.folder(state)
    database = (
        f"postgresql://bartizan:{PASSWORD}@127.0.0.1:{database_port}/postgres"
        f"?sslmode=verify-full&sslrootcert={place}/ca.crt"
    )
    broker = f"rediss://:{PASSWORD}@127.0.0.1:{redis_port}/0?ssl_cert_reqs=required&ssl_ca_certs={place}/ca.crt"
    for name, secret in (("database_url", database), ("redis_url", broker), ("key", "0" * 48), ("console", "b7" * 32)):
        owner.write(place / name, secret)
    settings = {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(place),
        "DJANGO_SETTINGS_MODULE": "console.settings",
        "PYTHONPATH": str(ROOT),
        "BARTIZAN_STATE_DIR": str(state),
        "BARTIZAN_SECRET_KEY_FILE": str(place / "key"),
        "BARTIZAN_CONSOLE_KEY_FILE": str(place / "console"),
        "BARTIZAN_REDIS_URL_FILE": str(place / "redis_url"),
        "BARTIZAN_ASSETS_DIR": str(installation.state / "assets"),
        "BARTIZAN_STATIC_ROOT": str(installation.state / "static"),
        "DATABASE_URL_FILE": str(place / "database_url"),
    }
    made = Production(state, User(f"http://127.0.0.1:{web_port}"), installation, owner, database, settings)
    with ExitStack() as ending:
        ending.callback(shutil.rmtree, place)
        for name in ("watch-hosts", "beat"):
            installation.supervise("stop", f"console:{name}")
            ending.callback(installation.supervise, "start", f"console:{name}")
        ending.enter_context(postgresql(place, owner, database_port))
        ending.enter_context(redis_server(place, owner, redis_port))
        ending.callback(made.stop)
        wait_until("PostgreSQL takes connections", lambda: _answers(database), 60)
        made.run("manage", "migrate", "--no-input", "-v", "0")
        owner.write(place / "administrator", PASSWORD)
        made.run(
            "manage", "create_administrator", "--username", "admin", "--password-file", str(place / "administrator")
        )
        web = ("console.wsgi", "--bind", f"127.0.0.1:{web_port}", "--worker-class", "gthread", "--threads", "4")
        made.start("web", "-m", "gunicorn", *web, "--no-control-socket")
        made.start("beat", "-m", "celery", "-A", "console", "beat", "--pidfile=", "-s", str(state / "schedule"))
        made.start("watch-hosts", "manage.py", "watch_hosts")
        made.worker("control", "control,attestation")
        made.worker("crypto-1", "crypto")
        made.worker("crypto-2", "crypto")
        wait_until("the console is ready", lambda: _is_ready(made), 120)
        assert made.user.log_in("admin", PASSWORD).status == 200
        _enter(made, installation)
        yield made


def _answers(database: str) -> bool:
    try:
        psycopg.connect(database, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _is_ready(made: Production) -> bool:
    try:
        return made.user.get("/readyz").status == 200
    except OSError:
        return False


def _enter(made: Production, installation: Installation) -> None:
    host, layout = installation.lab.host("a"), kms.KmsLayout.load(installation.state / "lab" / "kms")
    provider = made.manage(
        PLACES.format(
            uri=host.uri, tpm=str(host.config / "libvirt" / "qemu" / "swtpm"), host=kms.HOST, port=layout.port,
            authority=(layout.ca / "ca-cert.pem").read_text(),
        )
    )  # fmt: skip
    asked = "SELECT client_csr_pem FROM encryption_kmscluster"
    wait_until("a client key is made", lambda: made.rows(asked)[0]["client_csr_pem"], 120)
    certificate = kms.sign_client_csr(layout, str(made.rows(asked)[0]["client_csr_pem"]).encode()).decode()
    made.manage(INSTALL.format(provider=provider, certificate=certificate))
    connected = "SELECT 1 FROM encryption_kmsserver WHERE state = 'connected'"
    wait_until("the key server is connected", lambda: made.rows(connected), 120)
    found = "SELECT 1 FROM inventory_virtualmachine WHERE name = ?"
    wait_until("the host's VMs are found", lambda: made.rows(found, NAME), 120)


def test_a_vm_is_encrypted_started_and_decrypted_though_a_worker_dies(production: Production) -> None:
    ssl = "SELECT bool_and(ssl) AS all FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL"
    assert production.rows(ssl)[0]["all"], "a connection to the database is in clear"
    assert production.set_encryption(NAME, "VM Encryption Policy", ["vda"]).status == 200
    wait_until("a worker is at it", lambda: production.last_job(NAME)["status"] != "pending", 60)
    production.kill("crypto-1")
    production.finish_job(NAME)
    production.change_power(NAME, "on")
    try:
        assert production.guest(NAME).ask("heartbeat")
    finally:
        production.change_power(NAME, "off")
    production.decrypt(NAME)
    assert not any(row["wrapped"] for row in production.rows("SELECT wrapped FROM encryption_wrappedsecret"))


def test_servers_that_another_authority_vouches_for_get_nothing(production: Production) -> None:
    Authority.create(production.state.parent / "other", "Other")
    wrong = production.state.parent / "other.crt"
    production.owner.write(wrong, (production.state.parent / "other" / "ca-cert.pem").read_bytes(), 0o644)

    def trusting_it(name: str) -> str:
        url = Path(production.settings[name]).read_text()
        return url.replace(f"{production.state.parent}/ca.crt", str(wrong))

    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(trusting_it("DATABASE_URL_FILE"))
    with pytest.raises(redis.exceptions.ConnectionError, match="certificate verify failed"):
        redis.Redis.from_url(trusting_it("BARTIZAN_REDIS_URL_FILE")).ping()
