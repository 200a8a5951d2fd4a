"""PostgreSQL and Redis as docs/production.md has them: TLS and a password for both, and nothing without."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from console.launch import processes
from lab.layout import free_ports
from lab.pki import Authority
from lab.user import LabUser

PASSWORD: Final = "production-only"


@dataclass(frozen=True, slots=True)
class Servers:
    """Both listen on 127.0.0.1. `place`: all that they keep, and their authority's certificate."""

    place: Path
    owner: LabUser
    database_port: int
    redis_port: int

    @property
    def trusted(self) -> Path:
        return self.place / "ca.crt"

    def database_url(self, database: str = "postgres", *, trusted: Path | None = None) -> str:
        return (
            f"postgresql://bartizan:{PASSWORD}@127.0.0.1:{self.database_port}/{database}"
            f"?sslmode=verify-full&sslrootcert={trusted or self.trusted}"
        )

    def redis_url(self, number: int = 0, *, trusted: Path | None = None) -> str:
        return (
            f"rediss://:{PASSWORD}@127.0.0.1:{self.redis_port}/{number}"
            f"?ssl_cert_reqs=required&ssl_ca_certs={trusted or self.trusted}"
        )


@contextmanager
def running(place: Path, owner: LabUser) -> Iterator[Servers]:
    """Both servers, run by `owner`, with all their files in the new folder `place`."""
    owner.folder(place)
    found = Servers(place, owner, *free_ports(2))
    issued = Authority.create(place / "ca", "Production").issue("servers", ips=["127.0.0.1"], server=True)
    owner.write(found.trusted, (place / "ca" / "ca-cert.pem").read_bytes(), 0o644)
    owner.write(place / "server.crt", issued.certificate_pem, 0o644)
    owner.write(place / "server.key", issued.key_pem)
    with (
        _server(owner, _postgresql(found), place / "postgresql.log"),
        _server(owner, _redis(found), place / "redis.log"),
    ):
        yield found


def answers(database_url: str) -> bool:
    try:
        psycopg.connect(database_url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _postgresql(servers: Servers) -> list[str]:
    """Debian's server on a new cluster; its command line."""
    place, owner = servers.place, servers.owner
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
        "port": servers.database_port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "ssl": "on",
        "ssl_cert_file": place / "server.crt", "ssl_key_file": place / "server.key",
        "fsync": "off", "max_wal_size": "64MB",
    }  # fmt: skip
    told = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return [str(programs[-1].with_name("postgres")), "-D", str(data), *told]


def _redis(servers: Servers) -> list[str]:
    place = servers.place
    data = place / "redis"
    servers.owner.folder(data)
    return [
        processes.redis_server(place), "--port", "0", "--tls-port", str(servers.redis_port), "--bind", "127.0.0.1",
        "--tls-auth-clients", "no",
        "--tls-cert-file", str(place / "server.crt"), "--tls-key-file", str(place / "server.key"),
        "--tls-ca-cert-file", str(servers.trusted), "--requirepass", PASSWORD,
        "--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction", "--dir", str(data),
    ]  # fmt: skip


@contextmanager
def _server(owner: LabUser, arguments: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as lines:
        server = subprocess.Popen(owner.command(arguments), cwd="/", stdout=lines, stderr=lines)
    try:
        yield
    finally:
        server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        server.wait(60)
