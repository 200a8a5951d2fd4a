"""Can guests of this lab use KVM? Asked of a guest, because nothing else tells.

On a machine with broken KVM libvirt's capabilities list it, and a guest even starts and is reported running; it
just never executes. So a guest has to print a line.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from pathlib import Path

from lab.images import GuestImages
from lab.layout import Accelerator
from lab.user import PATH, LabUser

KVM = Path("/dev/kvm")
SECONDS = 20.0
SIGN_OF_LIFE = b"lab guest"


def probe(images: GuestImages, user: LabUser, *, seconds: float = SECONDS) -> Accelerator:
    """`kvm` when a guest of the lab's user really runs under it within `seconds`, else `qemu` (emulation)."""
    allowed = user.run(["test", "-r", str(KVM), "-a", "-w", str(KVM)]).returncode == 0
    return "kvm" if allowed and _boots(images, user, seconds) else "qemu"


def _boots(images: GuestImages, user: LabUser, seconds: float) -> bool:
    argv = ["qemu-system-x86_64", "-accel", "kvm", "-machine", "q35", "-m", "128", "-nodefaults"]
    argv += ["-display", "none", "-no-reboot", "-serial", "stdio"]
    argv += ["-kernel", str(images.kernel), "-initrd", str(images.initrd)]
    argv += ["-append", "console=ttyS0 quiet lab.name=probe"]
    process = subprocess.Popen(
        user.command(argv),
        env={"PATH": PATH},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            return process.stdout is not None and _prints(process.stdout.fileno(), time.monotonic() + seconds)
        finally:
            process.kill()


def _prints(descriptor: int, deadline: float) -> bool:
    seen = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            part = os.read(descriptor, 4096)
            if not part:
                return False
            seen += part
            if SIGN_OF_LIFE in seen:
                return True
    return False
