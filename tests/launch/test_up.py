"""`./bartizan up` for real, from the shell script to the login page, and that nothing is left however it ends."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_until
from tests.e2e.web import User
from tests.launch.conftest import ROOT

SECONDS = 180


@dataclass(frozen=True, slots=True)
class Started:
    """One `./bartizan up` in the foreground."""

    process: subprocess.Popen[str]
    said: str
    url: str


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A state folder for all who leave nothing running in it."""
    with state_folder() as found:
        yield found


@pytest.fixture
def new_folder() -> Iterator[Path]:
    with state_folder() as found:
        yield found


@contextmanager
def state_folder() -> Iterator[Path]:
    """One that the service user can reach (pytest's own temporary folders are closed to it)."""
    parent = Path(tempfile.mkdtemp(prefix="bartizan-test-", dir="/var/tmp"))
    parent.chmod(0o755)
    folder = parent / "state"
    yield folder
    bartizan(folder, "down")
    wait_until_none(folder)
    shutil.rmtree(parent)


def environment(folder: Path) -> dict[str, str]:
    return {"PATH": os.defpath + ":/usr/sbin:/sbin", "HOME": str(Path.home()), "BARTIZAN_STATE_DIR": str(folder)}


def bartizan(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "bartizan"), *arguments], env=environment(folder), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip


def processes_of(*folders: Path) -> list[str]:
    """Command lines of all processes that name one of the folders there or in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                own_environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(str(folder) in line or f"={folder}".encode() in own_environment for folder in folders):
                found.append(f"{entry.name} {line}")
    return found


def wait_until_none(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while left := processes_of(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def start(folder: Path, *arguments: str) -> Started:
    """`up` until it says that it is up."""
    with socket.create_server(("127.0.0.1", 0)) as probe, socket.create_server(("127.0.0.1", 0)) as other:
        address, registrar = (f"127.0.0.1:{one.getsockname()[1]}" for one in (probe, other))
    process = subprocess.Popen(
        [str(ROOT / "bartizan"), "up", "--listen", address, *arguments],
        env={**environment(folder), "BARTIZAN_REGISTRAR_LISTEN": registrar},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            return Started(process, "".join(lines), f"http://{address}/")
    raise AssertionError("".join(lines))


def finish(started: Started) -> str:
    said, _ = started.process.communicate(timeout=SECONDS)
    return said


def encrypt_start_and_decrypt(url: str, password: str) -> None:
    """A VM of the lab's, on SQLite and the private Redis; all end-to-end tests run on a PostgreSQL and a Redis."""
    user = User(url)
    assert user.log_in("administrator", password).status == 200
    (vm,) = (one for one in user.json("/api/v1/virtual-machines")["items"] if one["name"] == "uefi-01")

    def ends_well() -> bool:
        job = user.json(f"/api/v1/jobs?target_id={vm['id']}")["items"][0]
        assert job["is_live"] or job["status"] == "succeeded", job
        return not job["is_live"]

    def is_encrypted() -> bool:
        return bool(user.json(f"/api/v1/virtual-machines/{vm['id']}")["is_encrypted"])

    options = f"/encryption/vms/{vm['id']}/options/"
    assert user.set_encryption(options, "VM Encryption Policy", ["vda"]).status == 200
    wait_until("it is encrypted", ends_well)
    assert is_encrypted()
    for verb in ("on", "off"):
        path = f"/inventory/vm/{vm['id']}/power/{verb}/"
        assert user.submit(user.get(path), path).status == 200
        wait_until(f"it is {verb}", ends_well)
    assert user.set_encryption(options, "No encryption", []).status == 200
    wait_until("it is decrypted", ends_well)
    assert not is_encrypted()


@pytest.mark.lab
@pytest.mark.slow
def test_up_with_the_lab_and_ctrl_c(folder: Path) -> None:
    started = start(folder)
    password = (folder / "secrets" / "administrator_password").read_text().strip()
    encrypt_start_and_decrypt(started.url, password)
    assert f"Bartizan   {started.url}\n" in started.said
    assert f"password   {password} " in started.said
    with urllib.request.urlopen(f"{started.url}login/", timeout=30) as answer:  # noqa: S310  our own address
        assert answer.status == 200
    status = bartizan(folder, "status")
    assert status.returncode == 0, status.stdout
    assert status.stdout.count("RUNNING") == 15
    base = (folder / "lab" / "run").resolve()  # elsewhere when the path is too long for the lab's sockets
    running = "\n".join(processes_of(folder, base))
    programs = (
        "redis-server",
        "gunicorn",
        "celery",
        "libvirtd",
        "lab.kms",
        "manage.py registrar",
        "manage.py forward_events",
        "bartizan_agent",
    )
    assert [program for program in programs if program not in running] == []
    assert password not in running
    started.process.send_signal(signal.SIGINT)
    assert finish(started).splitlines()[-2:] == ["stopping", "stopped"]
    assert started.process.returncode == 0
    assert processes_of(folder, base) == []


@pytest.mark.slow
def test_nothing_outlives_a_killed_launcher(folder: Path) -> None:
    started = start(folder, "--no-lab")
    assert len(processes_of(folder)) > 7
    started.process.kill()
    finish(started)
    wait_until_none(folder)


@pytest.mark.slow
def test_a_second_up_points_to_the_first_and_down_ends_both(folder: Path) -> None:
    started = start(folder, "--no-lab")
    second = bartizan(folder, "up", "--no-lab")
    assert second.returncode == 0
    assert f"already running at {started.url}" in second.stdout
    down = bartizan(folder, "down")
    assert (down.returncode, "stopped (" in down.stdout) == (0, True)
    assert finish(started).splitlines()[-1] == "stopped"
    assert processes_of(folder) == []
    # What the administrator would miss is still there.
    assert (folder / "db" / "bartizan.sqlite3").exists()


@pytest.mark.slow
def test_ctrl_c_during_set_up_leaves_nothing(new_folder: Path) -> None:
    process = subprocess.Popen(
        [str(ROOT / "bartizan"), "up", "--no-lab", "--listen", "127.0.0.1:1"], env=environment(new_folder),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(("npm packages", "assets", "static files", "database")):
            os.killpg(process.pid, signal.SIGINT)  # what a terminal does
            break
    process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    wait_until_none(new_folder)
