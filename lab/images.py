"""Kernel, initial file system and Secure Boot disk of the guests, built once and kept in a cache folder.

The kernel is Debian's signed cloud kernel; the initial file system holds busybox, the virtio modules and
lab/guest/init. Nothing is taken from the running system and nothing is installed.
"""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab import packages
from lab.errors import LabError
from lab.user import LabUser

INIT = Path(__file__).parent / "guest" / "init"
# In the order in which insmod needs them: each after what it uses.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "efivarfs",
    "button",
    "evdev",
)
CMDLINE = "console=ttyS0 quiet panic=5"
# shim (1 MiB), GRUB (4 MiB), kernel (14 MiB), initial file system (1.5 MiB), and room for the next kernel.
BOOT_DISK_MIB = 40
BOOT_LABEL = "LABBOOT"
# Part of what identifies the images: raise it when this module builds something else from the same inputs.
RECIPE = "1"


@dataclass(frozen=True, slots=True)
class GuestImages:
    """The files that guests start from. `boot_disk` starts a guest named `secureboot-01` through shim and GRUB."""

    kernel: Path
    initrd: Path
    boot_disk: Path


def prepare(cache: Path, target: Path, user: LabUser) -> GuestImages:
    """Put the images into `target`, a folder of the lab's user; built in `cache` first where they are missing."""
    images = GuestImages(target / "vmlinuz", target / "initrd.gz", target / "boot.img")
    stamp = target / "inputs"
    # The cheap question first: a ready lab neither needs the packages nor the time to hash them.
    wanted_init = hashlib.sha256(INIT.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text().splitlines()[1:3] == [RECIPE, wanted_init]:
        return images
    built, identity = _build(cache)
    user.folder(target, 0o755)
    for path in (images.kernel, images.initrd, images.boot_disk):
        user.write(path, (built / path.name).read_bytes(), 0o644)
    user.write(stamp, f"{identity}\n{RECIPE}\n{wanted_init}\n", 0o644)
    return images


def _build(cache: Path) -> tuple[Path, str]:
    """The folder of the built images, and the digest of everything they were built from."""
    inputs = packages.fetch(cache / "packages")
    init = INIT.read_bytes()
    digest = hashlib.sha256(RECIPE.encode() + hashlib.sha256(init).digest())
    for name in sorted(inputs):
        digest.update(f"{name} {inputs[name].sha256}\n".encode())
    identity = digest.hexdigest()
    folder = cache / f"images-{identity[:16]}"
    if folder.is_dir():
        return folder, identity
    with tempfile.TemporaryDirectory(dir=cache, prefix=".images-") as name:
        aside = Path(name) / "images"
        aside.mkdir(mode=0o755)
        release = r"[^/]+"
        patterns = {"vmlinuz": rf"boot/vmlinuz-{release}"}
        patterns |= {m: rf"lib/modules/{release}/kernel/.*/{m}\.ko" for m in MODULES}
        kernel = packages.extract(inputs[packages.KERNEL], patterns)
        busybox = packages.extract(inputs[packages.BUSYBOX], {"busybox": r"(usr/)?bin/busybox"})["busybox"]
        shim = packages.extract(inputs[packages.SHIM], {"shim": r"usr/lib/shim/shimx64\.efi\.signed"})
        grub = packages.extract(inputs[packages.GRUB], {"grub": r"usr/lib/grub/x86_64-efi-signed/grubx64\.efi\.signed"})
        (aside / "vmlinuz").write_bytes(kernel["vmlinuz"])
        (aside / "initrd.gz").write_bytes(_initrd(busybox, init, {name: kernel[name] for name in MODULES}))
        _write_boot_disk(aside, shim["shim"], grub["grub"])
        try:
            aside.rename(folder)
        except OSError:
            # Another process built the same images meanwhile; theirs are as good.
            if not folder.is_dir():
                raise
    return folder, identity


def _initrd(busybox: bytes, init: bytes, modules: dict[str, bytes]) -> bytes:
    entries = [cpio_member("bin", 0o040755), cpio_member("modules", 0o040755)]
    entries.append(cpio_member("bin/busybox", 0o100755, busybox))
    entries.append(cpio_member("init", 0o100755, init))
    entries.append(cpio_member("modules/order", 0o100644, "".join(f"{name}\n" for name in modules).encode()))
    entries += [cpio_member(f"modules/{name}.ko", 0o100644, content) for name, content in modules.items()]
    entries.append(cpio_member("TRAILER!!!", 0))
    return gzip.compress(b"".join(entries), mtime=0)


def cpio_member(name: str, mode: int, content: bytes = b"") -> bytes:
    """One member in the kernel's own format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    encoded = name.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return header + b"\0" * (-len(header) % 4) + content + b"\0" * (-len(content) % 4)


def _write_boot_disk(folder: Path, shim: bytes, grub: bytes) -> None:
    """A FAT disk without partitions that any UEFI starts as removable media: shim, then GRUB, then the kernel."""
    grub_cfg = (
        "set timeout=0\n"
        f"search --no-floppy --set=root --label {BOOT_LABEL}\n"
        f"linux /vmlinuz {CMDLINE} lab.name=secureboot-01\n"
        "initrd /initrd.gz\n"
        "boot\n"
    )
    image = folder / "boot.img"
    with tempfile.TemporaryDirectory(dir=folder) as name:
        loose = Path(name)
        (loose / "BOOTX64.EFI").write_bytes(shim)
        (loose / "grubx64.efi").write_bytes(grub)
        (loose / "grub.cfg").write_text(grub_cfg)
        run_tool("mkfs.vfat", "-C", "-n", BOOT_LABEL, str(image), str(BOOT_DISK_MIB * 1024))
        run_tool("mmd", "-i", str(image), "::/EFI", "::/EFI/BOOT", "::/EFI/debian")
        boot = [str(loose / "BOOTX64.EFI"), str(loose / "grubx64.efi")]
        run_tool("mcopy", "-i", str(image), *boot, "::/EFI/BOOT/")
        run_tool("mcopy", "-i", str(image), str(loose / "grub.cfg"), "::/EFI/debian/")
        run_tool("mcopy", "-i", str(image), str(folder / "vmlinuz"), str(folder / "initrd.gz"), "::/")


def run_tool(*argv: str) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{argv[0]} failed: {done.stderr.strip() or done.returncode}")
