"""The product on PostgreSQL: a private server, all migrations, and the database-heavy tests once more."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from lab.layout import free_ports
from lab.user import ensure_user
from tests.e2e.conftest import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
# Claims, constraints, bulk writes, ordering, text search: what databases differ in.
TESTS = [
    "tests/inventory",
    "tests/console",
    "--ignore=tests/console/sign_on",  # of others' protocols
    "tests/encryption/test_api.py",
    "tests/encryption/services/test_lock_order.py",
    "tests/attestation/services",
    "tests/attestation/registrar",
]


@pytest.fixture
def database_url() -> Iterator[str]:
    """A server of Debian's PostgreSQL on a loopback port, run by the unprivileged user, gone afterwards."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert programs, "no PostgreSQL server: ./bartizan test installs it"
    folder = programs[-1].parent
    user = ensure_user()
    place = Path(tempfile.mkdtemp(prefix="bz-pg-", dir="/var/tmp"))
    place.chmod(0o755)
    data = place / "data"
    user.folder(data)
    (port,) = free_ports(1)
    make = [str(folder / "initdb"), "-D", str(data), "-U", "bartizan", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(user.command(make), check=True, capture_output=True, cwd="/")
    options = ["-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", "", "-c", "fsync=off"]
    server = subprocess.Popen(
        user.command([str(folder / "postgres"), *options]),
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until("PostgreSQL listens", listens, 60)
        yield f"postgres://bartizan@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(place, ignore_errors=True)


def test_the_database_tests_pass_on_postgresql(database_url: str, tmp_path: Path) -> None:
    environment = {**os.environ, "DATABASE_URL": database_url, "BARTIZAN_TEST_STATE": str(tmp_path)}  # noqa: TID251
    chosen = ["-m", "django_db and not lab and not browser and not slow", "--reuse-db", *TESTS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *chosen],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    with psycopg.connect(database_url) as connection:
        databases = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
    assert "test_postgres" in databases, "the tests ran on another database"
