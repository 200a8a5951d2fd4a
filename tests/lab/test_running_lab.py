"""The lab for real: two daemons, three guests that boot, a migration, and nothing left afterwards. Slow.

The guests run under software emulation where KVM does not work, so the waiting times are generous.
"""

import hashlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

from lab import guests, layout, processes, session
from lab.disks import SCRATCH_SECTOR, SECTOR, data_disks
from lab.errors import LabError
from lab.guest_client import GuestClient
from lab.layout import Lab
from lab.pki import Authority, write_private
from lab.session import RunningLab
from lab.user import ensure_user

pytestmark = [pytest.mark.lab, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
CACHE = ROOT / "var" / "cache"
BOOT_SECONDS = 180.0


@pytest.fixture(scope="module")
def running() -> Iterator[RunningLab]:
    with tempfile.TemporaryDirectory(prefix="b", dir="/var/tmp") as name:
        state = Path(name) / "lab"
        try:
            with RunningLab(state, cache=CACHE) as lab:
                yield lab
            assert processes.running(lab.lab) == []
        finally:
            session.destroy(state)


def ready(running: RunningLab, name: str) -> GuestClient:
    client = running.guest(name)
    client.wait(timeout=BOOT_SECONDS)
    return client


def assert_planted(client: GuestClient, vm: str) -> None:
    """The guest reads from both data disks what was planted, area by area, and zeros after its scratch sector."""
    for disk in data_disks(vm):
        for offset, content in disk.planted():
            seen = client.ask(f"sha256 {disk.name} {offset // SECTOR} {len(content) // SECTOR}")
            assert seen == hashlib.sha256(content).hexdigest(), (disk.name, offset)
        hole = client.ask(f"sha256 {disk.name} {SCRATCH_SECTOR + 1} 4096")
        assert hole == hashlib.sha256(bytes(4096 * SECTOR)).hexdigest()


def test_bios_guest(running: RunningLab) -> None:
    client = ready(running, "bios-01")
    assert client.ask("firmware") == "bios"
    assert client.ask("secureboot") == "none"
    assert client.ask("tpm") == "none"
    with pytest.raises(LabError, match="no tpm"):
        client.ask("tpm-raw 80010000000c0000017b0010")
    assert_planted(client, "bios-01")


def test_secure_boot_guest(running: RunningLab) -> None:
    client = ready(running, "secureboot-01")
    assert client.ask("firmware") == "efi"
    assert client.ask("secureboot") == "on"
    assert client.ask("tpm") == "2"
    # TPM2_GetRandom(16), TPM 2.0 Part 3, section 16.1: tag, size, command code, count.
    answer = bytes.fromhex(client.ask("tpm-raw 80010000000c0000017b0010"))
    assert answer[:12] == bytes.fromhex("80010000001c000000000010")
    assert_planted(client, "secureboot-01")


def test_uefi_guest_is_off_starts_and_obeys_the_power_button(running: RunningLab) -> None:
    with guests.connected(running.lab.host("a")) as connection:
        domain = connection.lookupByName("uefi-01")
        assert not domain.isActive()
        with pytest.raises(LabError, match="uefi-01 does not run"):
            running.guest("uefi-01")
        domain.create()
        client = ready(running, "uefi-01")
        assert client.ask("firmware") == "efi"
        assert client.ask("secureboot") == "off"
        assert client.ask("tpm") == "2"
        assert_planted(client, "uefi-01")
        domain.shutdown()
        wait_for(lambda: not domain.isActive())
    console = running.lab.host("a").datastore / "uefi-01" / "console.log"
    assert "power button pressed, uefi-01 goes down" in console.read_text()


def test_heartbeat_stands_on_console_and_disk(running: RunningLab) -> None:
    client = ready(running, "bios-01")
    before = int(client.ask("heartbeat"))
    wait_for(lambda: int(client.ask("heartbeat")) > before)
    # A beat that came while we looked: the first answer is 0 right after the start, and beat 0 is never printed.
    later = int(client.ask("heartbeat"))
    console = running.lab.host("a").datastore / "bios-01" / "console.log"
    wait_for(lambda: f"heartbeat bios-01 {later}\n" in console.read_text())
    assert "cannot-write" not in console.read_text()
    for name in ("data-raw", "data-qcow2"):
        assert client.read(name, SCRATCH_SECTOR, 1).startswith(b"scratch bios-01 ")


def test_what_the_guest_writes_it_reads_back(running: RunningLab) -> None:
    client = ready(running, "bios-01")
    sector = 20 << 11
    for name in ("data-raw", "data-qcow2"):
        assert client.ask(f"write {name} {sector} {'5a' * SECTOR}") == "written"
        assert client.read(name, sector, 1) == b"\x5a" * SECTOR
    assert client.ask("disks").split()[0] == "vda:data-raw:131072"
    for wrong in ("read nothing 0 1", "read data-raw 0 129", "read data-raw x 1", "write data-raw -1 00", "bogus"):
        with pytest.raises(LabError, match="refused"):
            client.ask(wrong)


def test_daemons_run_as_the_labs_user_with_their_own_identity(running: RunningLab) -> None:
    lab = running.lab
    assert {p.program for p in processes.running(lab)} == {"libvirtd", "qemu-system-x86_64", "swtpm"}
    for host in lab.hosts:
        with guests.connected(host) as connection:
            capabilities = connection.getCapabilities()
            assert f"<uuid>{host.uuid}</uuid>" in capabilities
            pools = {pool.name(): pool for pool in connection.listAllStoragePools()}
            assert set(pools) == {"default", "shared"}
            assert all(p.isActive() and p.isPersistent() and p.autostart() for p in pools.values())
    if lab.user.switch:
        assert lab.user.uid != 0


def test_tls_listener_takes_clients_of_the_labs_ca_only(running: RunningLab, tmp_path: Path) -> None:
    a, b = running.lab.hosts
    connection = libvirt.open(b.peer_uri(a.pki))
    try:
        assert connection.isEncrypted() == 1
    finally:
        connection.close()
    foreign = Authority.create(tmp_path / "ca", "some other CA").issue("lab host a", client=True)
    (tmp_path / "cacert.pem").write_bytes((a.pki / "cacert.pem").read_bytes())
    (tmp_path / "clientcert.pem").write_bytes(foreign.certificate_pem)
    write_private(tmp_path / "clientkey.pem", foreign.key_pem)
    # no_sanity: otherwise the client itself sees that its certificate does not fit, and the server is never asked.
    with pytest.raises(libvirt.libvirtError, match="TLS confirmation"):
        libvirt.open(b.peer_uri(tmp_path) + "&no_sanity=1")


def test_a_second_start_is_refused_while_the_lab_runs(running: RunningLab) -> None:
    with pytest.raises(LabError, match="runs already"), RunningLab(running.lab.state, cache=CACHE):
        pass


def test_define_again_changes_nothing(running: RunningLab) -> None:
    ready(running, "bios-01")
    lab, made = session.prepare(running.lab.state, cache=CACHE)
    assert lab == running.lab

    def state() -> list[tuple[str, int, int]]:
        found = []
        for host in lab.hosts:
            with guests.connected(host) as connection:
                found += [(d.name(), d.ID(), d.isActive()) for d in connection.listAllDomains()]
        return sorted(found)

    before = state()
    guests.define(lab, made)
    assert state() == before


@contextmanager
def run_command(state: Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m lab run` in another process, running when the block begins."""
    argv = [sys.executable, "-m", "lab", "run", "--state", str(state), "--cache", str(CACHE)]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("lab runs in ")
        yield process
    finally:
        process.kill()
        process.communicate()


def programs(lab: Lab) -> list[str]:
    return sorted(process.program for process in processes.running(lab))


def test_a_killed_run_is_taken_over_and_an_ended_one_leaves_nothing() -> None:
    everything = ["libvirtd", "libvirtd", "qemu-system-x86_64", "qemu-system-x86_64", "swtpm"]
    with tempfile.TemporaryDirectory(prefix="b", dir="/var/tmp") as name:
        state = Path(name) / "lab"
        try:
            with run_command(state) as process:
                lab = layout.load(state, ensure_user())
                assert lab is not None
                assert programs(lab) == everything
                guests_before = {p.pid for p in processes.running(lab) if p.program != "libvirtd"}
                process.kill()
                process.wait()
                # Daemons end with whoever ran them; guests do not, here as on any libvirt host.
                wait_for(lambda: "libvirtd" not in programs(lab))
            with run_command(state) as process:
                assert programs(lab) == everything
                assert {p.pid for p in processes.running(lab) if p.program != "libvirtd"} == guests_before
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
                assert processes.running(lab) == []
        finally:
            session.destroy(state)
        assert not lab.base.exists()
        assert list(Path(name).iterdir()) == []


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
