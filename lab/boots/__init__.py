"""What the lab's hosts boot: recorded logs of real boots, and what happens to a host that an administrator must notice.

A situation decides which boot the TPM measures, which log the host shows afterwards, which TPM it has, and whether its
agent runs.
"""

import hashlib
from enum import StrEnum
from pathlib import Path

from attestation.engine.boot.eventlog import Event, parse

_FOLDER = Path(__file__).parent
# GRUB's measurement of the kernel's file, and the kernel's image as the firmware and shim have measured it.
_KERNEL_EVENTS = range(40, 43)


class Situation(StrEnum):
    """What a host boots into. NORMAL is right; everything else is to be found out by attestation."""

    NORMAL = "normal"
    SECURE_BOOT_OFF = "secure-boot-off"
    CHANGED_KERNEL = "changed-kernel"
    SWAPPED_TPM = "swapped-tpm"
    EDITED_LOG = "edited-log"
    STOPPED_AGENT = "stopped-agent"


def measured_log(situation: Situation) -> bytes:
    """The log whose events the TPM is extended with."""
    if situation in (Situation.SECURE_BOOT_OFF, Situation.EDITED_LOG):
        return (_FOLDER / "secure-boot-off.bin").read_bytes()
    genuine = (_FOLDER / "secure-boot-on.bin").read_bytes()
    return with_other_kernel(genuine) if situation is Situation.CHANGED_KERNEL else genuine


def shown_log(situation: Situation) -> bytes:
    """The log that the host gives out: what was measured, unless somebody has edited it."""
    if situation is Situation.EDITED_LOG:
        return (_FOLDER / "secure-boot-off-edited.bin").read_bytes()
    return measured_log(situation)


def with_other_kernel(log: bytes) -> bytes:
    """The same boot with another kernel, by the same signer: its digests are others, in every bank."""
    for event in events(log):
        if event.number in _KERNEL_EVENTS:
            for bank, digest in event.digests.items():
                log = log.replace(digest, hashlib.new(bank.label, b"another kernel" + digest).digest())  # noqa: TID251  TPM banks
    return log


def events(log: bytes) -> tuple[Event, ...]:
    return parse(log).events
