"""supervisord for real, with small programs: it starts them, says how they are, and leaves none behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from console.launch import supervisor
from console.launch.processes import Installation, Program, base_environment
from console.launch.steps import LaunchError
from tests.launch.conftest import ROOT

pytestmark = pytest.mark.slow
SLEEPER = Program("console", "sleeper", (sys.executable, "-c", "import time; time.sleep(600)"), start_seconds=0)


@pytest.fixture
def started(installation: Installation) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Supervisors to end after the test, however it went."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def start(installation: Installation, programs: Sequence[Program]) -> subprocess.Popen[bytes]:
    return supervisor.start(
        programs, state=installation.state, root=ROOT, environment=base_environment(installation), detach=False
    )


def wait(installation: Installation, process: subprocess.Popen[bytes], expected: int) -> None:
    supervisor.wait_until_running(installation.state, root=ROOT, expected=expected, process=process, seconds=30)


def pids(installation: Installation) -> list[int]:
    found = supervisor.statuses(installation.state, root=ROOT)
    return [int(status.detail.split(",")[0].removeprefix("pid ")) for status in found]


def wait_until_gone(pid: int) -> None:
    for _ in range(300):
        if not Path("/proc", str(pid)).exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is still there")


def test_start_and_stop(installation: Installation, started: list[subprocess.Popen[bytes]]) -> None:
    state = installation.state
    assert supervisor.running_pid(state) is None
    process = start(installation, [SLEEPER])
    started.append(process)
    wait(installation, process, 1)
    assert supervisor.running_pid(state) == process.pid
    (child,) = pids(installation)
    supervisor.stop(process.pid)
    process.wait(10)
    assert not Path("/proc", str(child)).exists()
    assert supervisor.running_pid(state) is None
    assert supervisor.statuses(state, root=ROOT) == []


def test_programs_end_with_a_killed_supervisor(
    installation: Installation, started: list[subprocess.Popen[bytes]]
) -> None:
    process = start(installation, [SLEEPER])
    started.append(process)
    wait(installation, process, 1)
    (child,) = pids(installation)
    process.kill()
    process.wait(10)
    wait_until_gone(child)
    # Its pid file is still there, and names nobody who runs this configuration.
    assert supervisor.running_pid(installation.state) is None


def test_a_killed_program_comes_back(installation: Installation, started: list[subprocess.Popen[bytes]]) -> None:
    process = start(installation, [SLEEPER])
    started.append(process)
    wait(installation, process, 1)
    (before,) = pids(installation)
    os.kill(before, signal.SIGKILL)
    wait_until_gone(before)
    wait(installation, process, 1)
    assert pids(installation) != [before]


def test_a_program_that_cannot_run_is_named_with_its_words(
    installation: Installation, started: list[subprocess.Popen[bytes]]
) -> None:
    broken = Program("console", "broken", (sys.executable, "-c", "raise SystemExit('no such queue')"))
    process = start(installation, [SLEEPER, broken])
    started.append(process)
    log = installation.state.log / "broken.log"
    while "no such queue" not in supervisor.tail(log):
        time.sleep(0.05)
    with pytest.raises(LaunchError, match="not up after 0 s: console:broken") as caught:
        supervisor.wait_until_running(installation.state, root=ROOT, expected=2, process=process, seconds=0)
    assert "no such queue" in caught.value.details


def test_a_program_that_supervisord_gave_up_ends_the_wait(
    installation: Installation, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = [supervisor.Status("console:web", "FATAL", "Exited too quickly")]
    monkeypatch.setattr(supervisor, "statuses", lambda *_, **__: given_up)
    process = start(installation, [SLEEPER])
    started.append(process)
    (installation.state.log / "web.log").write_text("port in use\n")
    with pytest.raises(LaunchError, match=r"console:web does not start \(fatal: Exited too quickly\)") as caught:
        wait(installation, process, 1)
    assert caught.value.details == "port in use"


def test_programs_see_only_their_environment(
    installation: Installation, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BARTIZAN_PLANTED", "a secret of the caller's")
    program = Program("console", "sleeper", SLEEPER.command, {"GIVEN": "yes"}, start_seconds=0)
    process = start(installation, [program])
    started.append(process)
    wait(installation, process, 1)
    (child,) = pids(installation)
    environment = Path("/proc", str(child), "environ").read_bytes().decode().split("\0")
    assert "GIVEN=yes" in environment
    assert not [entry for entry in environment if "PLANTED" in entry]
