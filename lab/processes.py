"""Find and end what belongs to one lab, by process id and never by name."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.layout import Lab

PROGRAMS = frozenset({"libvirtd", "qemu-system-x86_64", "swtpm"})


@dataclass(frozen=True, slots=True)
class LabProcess:
    pid: int
    program: str


def running(lab: Lab) -> list[LabProcess]:
    """Daemons, guests and TPM emulators of this lab: they run as its user and name a path below its run base.

    Children that libvirtd forks for a moment (probing QEMU, swtpm_setup) are seen only while they name such a path.
    """
    needle = f"{lab.base}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes()
            owner = entry.stat().st_uid
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        program = Path(arguments.split(b"\0", 1)[0].decode(errors="replace")).name
        if owner == lab.user.uid and program in PROGRAMS and needle in arguments:
            found.append(LabProcess(int(entry.name), program))
    return found


def end(lab: Lab, *, patience: float = 10.0) -> list[LabProcess]:
    """End every process of the lab, with SIGTERM first and SIGKILL after `patience` seconds. Returns who was ended."""
    ended = running(lab)
    deadline = time.monotonic() + patience
    # Daemons first: a running libvirtd could start something new meanwhile.
    for process in sorted(ended, key=lambda process: process.program != "libvirtd"):
        _signal(process.pid, signal.SIGTERM)
    while left := running(lab):
        if time.monotonic() > deadline:
            for process in left:
                _signal(process.pid, signal.SIGKILL)
        time.sleep(0.05)
    return ended


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
