"""Many vTPMs on one host: a hundred VMs, each with a TPM of its own whose state is encrypted under its own secret.

python -m tests.benchmarks.bench_vtpm [--vms 100] [--seconds 10]

A libvirt daemon of the lab's user starts the VMs through the console's own driver, keys sent before each start and
taken back after it. They are started paused, software emulation of a hundred processors being no matter of TPMs. Each
state file's header is read, each state is opened by its own secret, and ten are tried with another VM's.

Then one TPM alone, and all of them at once, answer commands for some seconds each, over those same states. SIMULATED:
the guests. The commands go to swtpm's socket as QEMU sends them, from one thread a TPM; of short commands the
interpreter lock of the threads, not the TPMs, is the limit. `--emulators` does
this last part alone, over states that swtpm_setup makes.
"""

import argparse
import os
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import libvirt

from encryption.adapters import swtpm
from encryption.engine import endorsement, tpm_command, vtpm_state
from encryption.engine.secret import Secret
from encryption.engine.tpm_command import Transmit
from inventory.adapters.libvirt_driver import LibvirtHost, connect
from inventory.engine.domain_edit import set_tpm_secret
from inventory.engine.domain_tpm import add_tpm
from tests.inventory.adapters.daemon import session_daemon

_DOMAIN = (
    "<domain type='qemu'><name>vtpm-{number:03d}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>"
    "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><controller type='usb' model='none'/>"
    "<video><model type='none'/></video><memballoon model='none'/></devices></domain>"
)
# TPM2_GetRandom of 32 bytes, and TPM2_Hash of 512 with SHA-256 (part 3, 16.1 and 15.4).
_RANDOM = struct.pack(">HIIH", 0x8001, 12, 0x17B, 32)
_HASH = (
    struct.pack(">HIIH", 0x8001, 10 + 2 + 512 + 2 + 4, 0x17D, 512) + bytes(512) + struct.pack(">HI", 0x000B, 0x40000007)
)
_ECC = next(kind.template for kind in endorsement.KINDS if kind.name == "ECC P-384")
_OTHERS = 10


@dataclass(frozen=True, slots=True)
class Vm:
    number: int
    uuid: UUID = field(default_factory=uuid4)
    secret_uuid: UUID = field(default_factory=uuid4)
    key: Secret = field(default_factory=lambda: Secret(Secret.generate(32).passphrase_text()))

    @property
    def xml(self) -> str:
        return set_tpm_secret(add_tpm(_DOMAIN.format(number=self.number, uuid=self.uuid)), self.secret_uuid)


def start(host: LibvirtHost, connection: libvirt.virConnect, vm: Vm) -> float:
    host.define(vm.xml)
    begun = time.perf_counter()
    host.put_secret(vm.secret_uuid, usage=f"vtpm-{vm.uuid}", vtpm=True, value=vm.key.reveal())
    connection.lookupByUUIDString(str(vm.uuid)).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    host.remove_secret(vm.secret_uuid)
    return time.perf_counter() - begun


def swtpm_memory(place: Path) -> list[tuple[int, int]]:
    """(RSS, PSS) in KiB of each swtpm whose state lies below `place`."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            words = (process / "cmdline").read_bytes()
            if words.startswith((b"/usr/bin/swtpm\0", b"swtpm\0")) and str(place).encode() in words:
                lines = (process / "smaps_rollup").read_text().splitlines()
                sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
                found.append((sizes["Rss"], sizes["Pss"]))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def check_states(folders: dict[int, Path], vms: list[Vm]) -> int:
    """All encrypted, each opened by its own secret; of some, that the neighbour's does not open them."""
    for vm in vms:
        content = swtpm.state_file(folders[vm.number]).read_bytes()
        header = vtpm_state.parse(content, file_bytes=len(content))
        assert header.encrypted and header.key_bits == 256, vm
    refused = 0
    for vm in vms[:_OTHERS]:
        try:
            with swtpm.started(folders[vm.number], vms[(vm.number + 1) % len(vms)].key):
                raise AssertionError(f"the state of {vm.number} opens with another VM's secret")
        except swtpm.KeyMismatch:
            refused += 1
    return refused


@contextmanager
def tpms(folders: dict[int, Path], vms: list[Vm]) -> Iterator[list[Transmit]]:
    with ExitStack() as stack:
        opened = []
        for vm in vms:
            transmit = stack.enter_context(swtpm.started(folders[vm.number], vm.key))
            tpm_command.startup(transmit)
            opened.append(transmit)
        yield opened


def emulated(folder: Path, vm: Vm) -> None:
    """State as libvirt has it made, without certificates."""
    read_end, write_end = os.pipe()
    os.write(write_end, vm.key.reveal())
    os.close(write_end)
    folder.mkdir(mode=0o700)
    command = ["swtpm_setup", "--tpm2", "--tpmstate", str(folder), "--cipher", "aes-256-cbc"]
    try:
        command += ["--pwdfile-fd", str(read_end), "--logfile", f"{folder}.log"]
        subprocess.run(command, check=True, capture_output=True, pass_fds=[read_end])
    finally:
        os.close(read_end)


def answered(command: bytes) -> Callable[[Transmit], object]:
    def operation(transmit: Transmit) -> None:
        answer = transmit(command)
        assert answer[6:10] == bytes(4), answer.hex()

    return operation


def rate(opened: list[Transmit], operation: Callable[[Transmit], object], seconds: float) -> tuple[float, int]:
    """Commands a second over all, and of the slowest TPM the commands it has answered."""
    counts = [0] * len(opened)
    barrier, stop = threading.Barrier(len(opened) + 1), threading.Event()

    def work(index: int) -> None:
        barrier.wait()
        while not stop.is_set():
            operation(opened[index])
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(opened))]
    for thread in threads:
        thread.start()
    barrier.wait()
    begun = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun), min(counts)


def measure(folders: dict[int, Path], vms: list[Vm], seconds: float) -> None:
    operations = (
        ("GetRandom, 32 bytes", answered(_RANDOM)),
        ("Hash, 512 bytes", answered(_HASH)),
        ("CreatePrimary, ECC P-384", partial(tpm_command.primary_public, template=_ECC)),
    )
    with tpms(folders, vms) as opened:
        for name, operation in operations:
            alone, _ = rate(opened[:1], operation, seconds)
            together, slowest = rate(opened, operation, seconds)
            print(f"{name}: one TPM alone {alone:.0f}/s; all {len(vms)} together {together:.0f}/s, "
                  f"{together / alone:.2f} times, the slowest {slowest / seconds:.1f}/s", flush=True)  # fmt: skip


def on_a_host(vms: list[Vm], seconds: float) -> None:
    with session_daemon() as (uri, files):
        connection = libvirt.open(uri)
        try:
            with connect(uri) as host:
                times = [start(host, connection, vm) for vm in vms]
                running = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PAUSED)
                assert len(running) == len(vms), f"{len(running)} of {len(vms)} came up"
            print(f"{len(vms)} VMs up, each with its own TPM; a start takes {statistics.median(times):.2f} s (median), "
                  f"{max(times):.2f} s (longest), {sum(times):.0f} s all", flush=True)  # fmt: skip
            memory = swtpm_memory(files.parent)
            assert len(memory) == len(vms)
            print(f"memory of a swtpm, mean: {statistics.mean(one[0] for one in memory) / 1024:.1f} MiB RSS, "
                  f"{statistics.mean(one[1] for one in memory) / 1024:.2f} MiB PSS", flush=True)  # fmt: skip
            for domain in running:
                domain.destroy()
        finally:
            connection.close()
        states = next(path for path in files.parent.rglob("swtpm") if path.parent.name == "qemu")
        folders = {vm.number: states / str(vm.uuid) / "tpm2" for vm in vms}
        refused = check_states(folders, vms)
        sizes = [swtpm.state_file(folder).stat().st_size for folder in folders.values()]
        print(f"{len(vms)} state files encrypted, 256-bit key, {statistics.median(sizes):.0f} bytes; "
              f"another VM's secret opens none of {refused} tried", flush=True)  # fmt: skip
        measure(folders, vms, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--emulators", action="store_true")
    options = parser.parse_args()
    vms = [Vm(number) for number in range(options.vms)]
    if not options.emulators:
        on_a_host(vms, options.seconds)
        return
    with tempfile.TemporaryDirectory(prefix="bench-vtpm-", dir="/var/tmp") as place:
        folders = {vm.number: Path(place, str(vm.number)) for vm in vms}
        for vm in vms:
            emulated(folders[vm.number], vm)
        measure(folders, vms, options.seconds)


if __name__ == "__main__":
    main()
