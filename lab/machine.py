"""What a lab host is besides libvirt: firmware that measures a boot into a TPM, and an attestation agent.

`python -m lab.machine --state DIR --host a --registrar HOST:PORT` runs one in the foreground until SIGTERM. At each
boot (its start, and SIGHUP) it

1. reads the situation (lab/boots.py), and switches on the TPM that the host has in it;
2. extends the PCRs with a recorded boot, and PCR 10 with the first line of an IMA list;
3. leaves the boot log and the list where the agent reads them, and starts the agent.

The hypervisor and its guests know nothing of it: they run on through such a boot.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from attestation.agent import bartizan_agent
from attestation.agent.bartizan_agent import Tpm
from attestation.engine.tpm.algorithms import HashAlg
from lab import layout, tpm
from lab.boots import Situation, events, measured_log, shown_log
from lab.errors import LabError
from lab.layout import ADDRESS, HostLayout, Lab
from lab.tpm import PoweredTpm, TpmAuthority
from lab.user import LabUser, ensure_user

STOP_SECONDS = 10.0
AGENT_SECONDS = 15.0
IMA_PCR = 10
_NOT_EXTENDED = 3  # EV_NO_ACTION


@dataclass(frozen=True, slots=True)
class Machine:
    """Where everything of one host lies. Folder and files belong to whoever runs the machine."""

    lab: Lab
    host: HostLayout

    @property
    def folder(self) -> Path:
        return self.host.base / "machine"

    @property
    def socket(self) -> Path:
        return self.host.base / "tpm.sock"

    @property
    def client_ca(self) -> Path:
        """The console's CA toward agents. The agent starts when it is there."""
        return self.folder / "console-ca.pem"

    @property
    def event_log(self) -> Path:
        return self.folder / "binary_bios_measurements"

    @property
    def ima_log(self) -> Path:
        return self.folder / "ascii_runtime_measurements"

    @property
    def authority(self) -> TpmAuthority:
        return authority(self.lab)

    def tpm_state(self, situation: Situation) -> Path:
        return self.host.base / ("tpm-other" if situation is Situation.SWAPPED_TPM else "tpm")

    @property
    def agent_port(self) -> int:
        """Where the agent listens: taken once, as hosts keep their ports."""
        path = self.folder / "agent-port"
        try:
            return int(path.read_text())
        except (FileNotFoundError, ValueError):
            (port,) = layout.free_ports(1)
            _write(path, f"{port}\n", self.lab.user)
            return port

    @property
    def situation(self) -> Situation:
        try:
            return Situation((self.folder / "situation").read_text().strip())
        except (FileNotFoundError, ValueError):
            return Situation.NORMAL

    @property
    def boots(self) -> int:
        """How often it has booted. 0: never."""
        try:
            return int(json.loads((self.folder / "booted.json").read_text())["boots"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0

    def reboot(self, situation: Situation, *, seconds: float = 60.0) -> None:
        """Have the running machine boot into a situation, and wait until it has.

        Raises LabError when it does not run, or not within `seconds`.
        """
        before, pid = self.boots, self._pid()
        _write(self.folder / "situation", situation + "\n", self.lab.user)
        os.kill(pid, signal.SIGHUP)
        deadline = time.monotonic() + seconds
        while self.boots == before:
            if time.monotonic() > deadline:
                raise LabError(f"host {self.host.name} has not booted after {seconds:.0f} s")
            time.sleep(0.1)

    def _pid(self) -> int:
        try:
            pid = int((self.folder / "pid").read_text())
            words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            words, pid = [], 0
        if b"lab.machine" not in words or str(self.lab.state).encode() not in words:
            raise LabError(f"the machine of host {self.host.name} does not run")
        return pid


def authority(lab: Lab) -> TpmAuthority:
    return TpmAuthority(lab.base / "tpm-ca", lab.user)


def prepare(lab: Lab) -> None:
    """A folder and a TPM for each host, made once."""
    for host in lab.hosts:
        machine = Machine(lab, host)
        lab.user.folder(machine.folder)
        machine.authority.manufacture(machine.tpm_state(Situation.NORMAL), f"host-{host.name}")


def trust_console(lab: Lab, ca_pem: str) -> None:
    """Leaves the console's CA where the agents look for it; they start anew when it is another."""
    for host in lab.hosts:
        _write(Machine(lab, host).client_ca, ca_pem, lab.user)


class RunningMachine:
    """Context manager: one boot of a machine, from power on to power off."""

    def __init__(self, machine: Machine, registrar: str) -> None:
        self._machine, self._registrar = machine, registrar
        self._stack = contextlib.ExitStack()
        self._agent: subprocess.Popen[bytes] | None = None
        self._trusted = b""

    def __enter__(self) -> "RunningMachine":
        machine, situation = self._machine, self._machine.situation
        state = machine.tpm_state(situation)
        machine.authority.manufacture(state, f"host-{machine.host.name}")
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(PoweredTpm(state, machine.socket, machine.lab.user))
            try:
                measure(opened, measured_log(situation))
                _write(machine.ima_log, measure_aggregate(opened), machine.lab.user)
            finally:
                opened.close()
            machine.event_log.write_bytes(shown_log(situation))
            stack.callback(self._stop_agent)
            self.look_after_agent()
            self._wait_for_agent()
            self._stack = stack.pop_all()
        booted = {"boots": machine.boots + 1, "situation": situation.value}
        _write(machine.folder / "booted.json", json.dumps(booted), machine.lab.user)
        return self

    def _wait_for_agent(self) -> None:
        """Until it listens, where it was started and can."""
        deadline = time.monotonic() + AGENT_SECONDS
        while self._agent is not None and self._agent.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((ADDRESS, self._machine.agent_port)) == 0:
                    return
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def agent_pid(self) -> int | None:
        """None while it does not run."""
        return None if self._agent is None else self._agent.pid

    def look_after_agent(self) -> None:
        """Called again and again: starts the agent once it can, and anew when it ended or trusts another console."""
        trusted = self._machine.client_ca.read_bytes() if self._machine.client_ca.exists() else b""
        if self._machine.situation is Situation.STOPPED_AGENT or not trusted:
            self._stop_agent()
            return
        if self._agent is not None and (trusted != self._trusted or self._agent.poll() is not None):
            self._stop_agent()
        if self._agent is None:
            self._trusted = trusted
            self._start_agent()

    def _start_agent(self) -> None:
        machine = self._machine
        settings = machine.folder / "agent.conf"
        values = {
            "id": machine.host.uuid,
            "registrar": self._registrar,
            "trusted_client_ca": machine.client_ca,
            "contact_host": ADDRESS,
            "listen": f"{ADDRESS}:{machine.agent_port}",
            "state": machine.folder,
            "tpm": machine.socket,
            "event_log": machine.event_log,
            "ima_log": machine.ima_log,
        }
        text = "[agent]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())
        _write(settings, text, machine.lab.user)
        # Whoever runs the machine runs the agent too: the lab's user may be unable to read the checkout.
        argv = [sys.executable, "-I", bartizan_agent.__file__, "--settings", str(settings)]
        self._agent = subprocess.Popen(LabUser.current().command(argv, dies_with_caller=True), cwd="/")

    def _stop_agent(self) -> None:
        if self._agent is None:
            return
        self._agent.terminate()
        try:
            self._agent.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            self._agent.wait()
        self._agent = None


def measure(opened: Tpm, log: bytes) -> None:
    """What firmware, shim, GRUB and kernel did at that boot: extend the PCR of each event."""
    for event in events(log):
        if event.type != _NOT_EXTENDED:
            tpm.extend(opened, event.pcr, event.digests[HashAlg.SHA256])


def measure_aggregate(opened: Tpm) -> str:
    """The first line of an IMA list (ima-ng): a digest over PCR 0 to 9, which ties the list to the boot."""
    aggregate = hashlib.sha256(b"".join(tpm.read(opened, range(10)))).digest()
    name, path = b"sha256:\0" + aggregate, b"boot_aggregate\0"
    template = b"".join(len(field).to_bytes(4, "little") + field for field in (name, path))
    tpm.extend(opened, IMA_PCR, hashlib.sha256(template).digest())
    template_digest = hashlib.sha1(template, usedforsecurity=False).hexdigest()
    return f"{IMA_PCR} {template_digest} ima-ng sha256:{aggregate.hex()} boot_aggregate\n"


def _write(path: Path, content: str, user: LabUser) -> None:
    """Never half: others read it while it is written."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(content)
    if os.geteuid() == 0:
        user.own(unfinished)
    unfinished.replace(path)


class _Ended(BaseException):
    """SIGTERM arrived. Not an Exception, so nothing on the way takes it for a failure of its own."""


def _run(machine: Machine, registrar: str) -> None:
    again = False

    def on_hangup(_number: int, _frame: object) -> None:
        nonlocal again
        again = True

    def on_end(_number: int, _frame: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        raise _Ended

    signal.signal(signal.SIGHUP, on_hangup)
    signal.signal(signal.SIGTERM, on_end)
    signal.signal(signal.SIGINT, on_end)
    _write(machine.folder / "pid", f"{os.getpid()}\n", machine.lab.user)
    while True:
        again = False
        with RunningMachine(machine, registrar) as running:
            print(f"booted: {machine.situation}", flush=True)
            while not again:
                running.look_after_agent()
                time.sleep(0.5)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.machine", description="run firmware, TPM and agent of a host")
    parser.add_argument("--state", type=Path, required=True, help="the lab's folder")
    parser.add_argument("--host", required=True)
    parser.add_argument("--registrar", required=True, metavar="HOST:PORT")
    options = parser.parse_args(arguments)
    try:
        lab = layout.load(options.state, ensure_user())
        if lab is None:
            raise LabError(f"there is no lab in {options.state}")
        _run(Machine(lab, lab.host(options.host)), options.registrar)
    except LabError as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return 1
    except _Ended:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
