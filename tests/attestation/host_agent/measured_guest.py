"""A machine that measures its boot: OVMF, shim, GRUB and Debian's signed kernel in QEMU, with an swtpm for a TPM.

Nothing is recorded: the PCRs are what firmware and loaders extended, the log is what the guest's kernel gives out. The
guest runs nothing but a shell script that passes TPM commands on between a serial port and its /dev/tpm0. Our agent
runs outside, and takes that port for the TPM, so that the initial file system needs no Python.
"""

import base64
import gzip
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import packages
from lab.domains import OVMF
from lab.images import cpio_member, run_tool
from lab.tpm import TpmAuthority

INIT = Path(__file__).with_name("measured_guest_init.sh")
BOOT_SECONDS = 240.0
DISK_MIB = 32
LABEL = "MEASURED"
# With Secure Boot off, GRUB 2.06's `linux` skips the kernel's EFI stub, which is what keeps the log for the kernel.
GRUB_CFG = f"""set timeout=0
search --no-floppy --set=root --label {LABEL}
linuxefi /vmlinuz console=ttyS0 quiet lockdown=integrity
initrdefi /initrd.gz
boot
"""


@dataclass(frozen=True)
class MeasuredGuest:
    """One machine that is switched on."""

    folder: Path
    lists: socket.socket

    @property
    def tpm(self) -> Path:
        """A socket that takes TPM commands, once it has booted."""
        return self.folder / "tpm.sock"

    @property
    def event_log(self) -> Path:
        return self.folder / "event-log"

    @property
    def ima_log(self) -> Path:
        return self.folder / "ima-log"

    def boot(self) -> None:
        """Waits until it has booted, and writes down what its kernel shows of that."""
        self.lists.settimeout(BOOT_SECONDS)
        received = b""
        while b"END-OF-LISTS" not in received:
            piece = self.lists.recv(65536)
            assert piece, f"the machine is gone: {(self.folder / 'console.log').read_text(errors='replace')[-2000:]}"
            received += piece
        _, log, ima = received.partition(b"END-OF-LISTS")[0].split(b"LIST")
        self.event_log.write_bytes(base64.b64decode(b"".join(log.split())))
        self.ima_log.write_bytes(base64.b64decode(b"".join(ima.split())))


def make_disk(folder: Path) -> Path:
    """The boot disk, from Debian's packages, which are downloaded and not installed."""
    found = packages.fetch(folder / "packages")
    kernel = packages.extract(found[packages.KERNEL], {"vmlinuz": r"boot/vmlinuz-[^/]+"})["vmlinuz"]
    busybox = packages.extract(found[packages.BUSYBOX], {"busybox": r"(usr/)?bin/busybox"})["busybox"]
    shim = packages.extract(found[packages.SHIM], {"shim": r"usr/lib/shim/shimx64\.efi\.signed"})["shim"]
    grub = packages.extract(found[packages.GRUB], {"grub": r"usr/lib/grub/x86_64-efi-signed/grubx64\.efi\.signed"})
    image = folder / "boot.img"
    with tempfile.TemporaryDirectory(dir=folder) as name:
        loose = Path(name)
        files = {
            "EFI/BOOT/BOOTX64.EFI": shim, "EFI/BOOT/grubx64.efi": grub["grub"],
            "EFI/debian/grub.cfg": GRUB_CFG.encode(), "vmlinuz": kernel, "initrd.gz": _initrd(busybox),
        }  # fmt: skip
        run_tool("mkfs.vfat", "-C", "-n", LABEL, str(image), str(DISK_MIB * 1024))
        run_tool("mmd", "-i", str(image), "::/EFI", "::/EFI/BOOT", "::/EFI/debian")
        for path, content in files.items():
            (loose / "file").write_bytes(content)
            run_tool("mcopy", "-i", str(image), str(loose / "file"), f"::/{path}")
    return image


def _initrd(busybox: bytes) -> bytes:
    entries = [cpio_member("bin", 0o040755), cpio_member("bin/busybox", 0o100755, busybox)]
    entries += [cpio_member("init", 0o100755, INIT.read_bytes()), cpio_member("TRAILER!!!", 0)]
    return gzip.compress(b"".join(entries), mtime=0)


@contextmanager
def powered_on(folder: Path, disk: Path, authority: TpmAuthority, *, secure_boot: bool) -> Iterator[MeasuredGuest]:
    """The machine runs; its files are in `folder`, its TPM is made at its first start."""
    authority.manufacture(folder / "tpm", folder.name)
    shutil.copyfile(OVMF / ("OVMF_VARS_4M.ms.fd" if secure_boot else "OVMF_VARS_4M.fd"), folder / "vars.fd")
    tpm = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}/tpm", "--ctrl", f"type=unixio,path={folder}/ctrl"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_for(folder / "ctrl", tpm)
        machine = subprocess.Popen(_qemu(folder, disk), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_for(folder / "lists.sock", machine)
            with socket.socket(socket.AF_UNIX) as lists:
                lists.connect(str(folder / "lists.sock"))
                yield MeasuredGuest(folder, lists)
        finally:
            machine.kill()
            machine.wait()
    finally:
        tpm.terminate()
        tpm.wait(10)


def _qemu(folder: Path, disk: Path) -> list[str]:
    return [
        "qemu-system-x86_64", "-accel", "tcg", "-M", "q35,smm=on", "-cpu", "qemu64", "-m", "512", "-smp", "1",
        "-nodefaults", "-no-reboot", "-display", "none", "-net", "none", "-rtc", "base=utc",
        "-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1",
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.secboot.fd",
        "-drive", f"if=pflash,unit=1,format=raw,file={folder}/vars.fd",
        "-chardev", f"socket,id=tpm,path={folder}/ctrl", "-tpmdev", "emulator,id=tpm0,chardev=tpm",
        "-device", "tpm-crb,tpmdev=tpm0", "-drive", f"if=none,id=disk,format=raw,file={disk},readonly=on",
        "-device", "virtio-blk-pci,drive=disk,bootindex=1", "-serial", f"file:{folder}/console.log",
        "-chardev", f"socket,id=lists,path={folder}/lists.sock,server=on,wait=off", "-serial", "chardev:lists",
        "-chardev", f"socket,id=commands,path={folder}/tpm.sock,server=on,wait=off", "-serial", "chardev:commands",
    ]  # fmt: skip


def _wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert process.poll() is None, f"nothing makes {path}"
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)
