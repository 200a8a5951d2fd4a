"""Only what belongs to this lab is found and ended."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import processes
from lab.layout import Lab
from lab.user import LabUser

WAITING = "echo up; read line"
DEAF = "trap '' TERM; echo up; while :; do read line; done"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path, tmp_path / "base", "22222222-2222-4222-8222-222222222222", LabUser.current(), (), "qemu")


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a shell that waits for input under the name of some program, with one more argument."""
    started: list[subprocess.Popen[str]] = []

    def run(program: str, argument: str, script: str = WAITING) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [program, "-c", script, argument],
            executable="/bin/sh",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_processes_of_the_lab_are_found(lab: Lab, start: Start) -> None:
    daemon = start("/usr/sbin/libvirtd", f"{lab.base}/a/libvirtd.conf")
    emulator = start("swtpm", f"dir={lab.base}/a/tpm")
    found = {(process.pid, process.program) for process in processes.running(lab)}
    assert found == {(daemon.pid, "libvirtd"), (emulator.pid, "swtpm")}


def test_other_labs_and_other_programs_are_not(lab: Lab, start: Start) -> None:
    start("swtpm", f"{lab.base}-other/a/tpm")
    start("tail", f"{lab.base}/a/libvirtd.log")
    assert processes.running(lab) == []


def test_end_ends_them_and_nobody_else(lab: Lab, start: Start) -> None:
    mine = start("swtpm", f"{lab.base}/a/tpm")
    other = start("swtpm", f"{lab.base}-other/a/tpm")
    # The shell is our child: somebody has to collect it, or it stays visible as a zombie without arguments.
    assert [process.pid for process in processes.end(lab)] == [mine.pid]
    assert mine.wait() == -15
    assert other.poll() is None


def test_end_insists(lab: Lab, start: Start) -> None:
    deaf = start("swtpm", f"{lab.base}/a/tpm", DEAF)
    processes.end(lab, patience=0.2)
    assert deaf.wait() == -9


def test_end_of_nothing(lab: Lab) -> None:
    assert processes.end(lab) == []
