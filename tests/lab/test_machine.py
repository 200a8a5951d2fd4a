"""One lab host's firmware, TPM and agent, as a process of its own: it boots, boots anew, and leaves nothing behind."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestation.engine.boot.eventlog import parse
from attestation.engine.boot.replay import pcr_values
from attestation.engine.tpm.algorithms import HashAlg
from lab import layout, processes, tpm
from lab.boots import Situation, measured_log
from lab.errors import LabError
from lab.layout import Lab
from lab.machine import Machine, RunningMachine, measure, prepare, trust_console
from lab.pki import Authority
from lab.tpm import PoweredTpm
from lab.user import ensure_user

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="b", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        made = layout.load_or_create(Path(name), ensure_user())
        for host in made.hosts:
            made.user.folder(host.base)
        prepare(made)
        yield made
        assert processes.running(made) == []


@contextmanager
def running(machine: Machine) -> Iterator[subprocess.Popen[bytes]]:
    words = ["-m", "lab.machine", "--state", str(machine.lab.state), "--host", machine.host.name]
    process = subprocess.Popen([sys.executable, *words, "--registrar", "127.0.0.1:1"], cwd=ROOT)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_the_tpm_holds_the_recorded_boot(lab: Lab) -> None:
    machine = Machine(lab, lab.host("a"))
    log = measured_log(Situation.NORMAL)
    expected = pcr_values(parse(log))[HashAlg.SHA256]
    for _ in range(2):  # a boot begins with PCRs at zero
        with PoweredTpm(machine.tpm_state(Situation.NORMAL), machine.socket, lab.user) as opened:
            measure(opened, log)
            assert dict(zip(range(10), tpm.read(opened, range(10)), strict=True)) == {
                pcr: expected[pcr] for pcr in range(10)
            }
            opened.close()


@pytest.mark.slow
def test_it_boots_anew_when_asked(lab: Lab) -> None:
    machine = Machine(lab, lab.host("a"))
    with running(machine) as process:
        _wait_for_boots(machine, 1)
        assert machine.event_log.read_bytes() == measured_log(Situation.NORMAL)
        machine.reboot(Situation.EDITED_LOG)
        assert machine.boots == 2
        assert machine.event_log.read_bytes() != measured_log(Situation.EDITED_LOG)
        machine.reboot(Situation.NORMAL)
        assert process.poll() is None
    with pytest.raises(LabError, match="does not run"):
        machine.reboot(Situation.NORMAL)


def test_the_agent_starts_once_it_knows_the_console(lab: Lab, tmp_path: Path) -> None:
    machine = Machine(lab, lab.host("b"))
    machine.client_ca.unlink(missing_ok=True)
    pids = []
    with RunningMachine(machine, "127.0.0.1:1") as booted:
        pids.append(booted.agent_pid)
        for name in ("one", "one", "two"):
            trust_console(lab, Authority.create(tmp_path / name, "console").certificate_pem.decode())
            booted.look_after_agent()
            pids.append(booted.agent_pid)
    before, first, second, third = pids
    assert before is None
    assert first == second and first is not None
    assert third not in (None, first)


def test_another_tpm_has_another_key(lab: Lab) -> None:
    machine = Machine(lab, lab.host("a"))
    names = set()
    for situation in (Situation.NORMAL, Situation.SWAPPED_TPM):
        machine.authority.manufacture(machine.tpm_state(situation), "host-a")
        with PoweredTpm(machine.tpm_state(situation), machine.socket, lab.user) as opened:
            certificate = opened.read_nv(0x01C00002)
            assert certificate is not None
            names.add(certificate)
            opened.close()
    assert len(names) == 2


def _wait_for_boots(machine: Machine, count: int) -> None:
    for _ in range(600):
        if machine.boots >= count:
            return
        time.sleep(0.05)
    raise AssertionError("it does not boot")
