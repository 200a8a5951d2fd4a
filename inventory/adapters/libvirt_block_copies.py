"""Block copies of running domains' disks. Measured: live encryption, decryption and re-keying all go this way."""

import libvirt

from inventory.engine import domain_edit, domain_xml
from inventory.engine.hypervisor import CopyProgress, LuksTarget


def start(domain: libvirt.virDomain, disk: str, target: LuksTarget, *, bytes_per_second: int) -> None:
    destination = domain_edit.copy_destination(
        domain.XMLDesc(0), disk, path=target.path, format=target.format, secret_uuid=target.secret_uuid
    )
    # REUSE_EXT: with a file that QEMU had to format, the guest freezes while it calibrates PBKDF2.
    flags = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
    if domain.isPersistent():
        flags |= libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    parameters: dict[str, int] = {}
    if bytes_per_second > 0:
        parameters[libvirt.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH] = bytes_per_second
    domain.blockCopy(disk, destination, parameters, flags)


def progress(domain: libvirt.virDomain, disk: str) -> CopyProgress:
    state = domain.blockJobInfo(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
    if not state:
        return CopyProgress(done=0, total=0, is_ready=False, is_gone=True)
    done, total = int(state["cur"]), int(state["end"])
    is_ready = done == total and domain_xml.is_mirror_ready(domain.XMLDesc(0), disk)
    return CopyProgress(done=done, total=total, is_ready=is_ready, is_gone=False)


def pivot(domain: libvirt.virDomain, disk: str) -> None:
    domain.blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)


def abort(domain: libvirt.virDomain, disk: str) -> None:
    """None there is no error."""
    if domain.isActive() and domain.blockJobInfo(disk, 0):
        domain.blockJobAbort(disk, 0)
