"""Conversion of a running VM's disks by QEMU's block copy: the guest goes on, and is switched at the pivot.

The engine makes the LUKS header beforehand. Were QEMU to format the target itself, it would hold up the guest for
seconds while it calibrates its key derivation (measured). NOT verified byte by byte: the guest writes meanwhile; it
is checked that QEMU reports both sides equal before the pivot.
"""

import time
from typing import Final

from encryption.adapters import image_files, qemu_img
from encryption.adapters.image_files import ImageFileError
from encryption.adapters.qemu_img import QemuImgFailed
from encryption.engine import convert, luks
from encryption.engine.image import whole_sectors
from encryption.models import Purpose, Stage, WrappedSecret
from encryption.services import recrypt, space
from encryption.services.change import Change, destroy_file, settled
from encryption.services.release import OpenedSecret, open_secrets, pass_gates, put_secret
from inventory.errors import Conflict
from inventory.services.connections import LuksTarget, OperationRefused, reaches_files

_POLL_SECONDS: Final = 0.5
_RUNNING: Final = frozenset({"on", "paused"})


def convert_disks(change: Change) -> None:
    """Copies and pivots disk after disk, decryptions first. Only disks: the plan refuses the home of a running VM."""
    rows = change.rows(Stage.DECRYPTING) + change.rows(Stage.ENCRYPTING)
    if rows:
        pass_gates(change.vm.host, purpose="change of encryption")
    for opened in sorted(open_secrets(rows), key=lambda one: one.row.stage != Stage.DECRYPTING):
        if opened.row.purpose != Purpose.DISK:
            raise Conflict(
                "home_in_use", f"{change.vm} was started meanwhile, its home is open", hint="shut it down, apply again"
            )
        put_secret(change.hypervisor, opened)
        try:
            _copy_and_pivot(change, opened)
        finally:
            change.hypervisor.remove_secret(opened.row.secret_uuid)


def _copy_and_pivot(change: Change, opened: OpenedSecret) -> None:
    row = opened.row
    verb = "decrypting" if row.stage == Stage.DECRYPTING else "encrypting" if row.replaces is None else "recrypting"
    change.progress.step(f"{verb} {row.part} while the VM runs", total=row.size_bytes)
    try:
        _mirror(change, opened)
    except OperationRefused:
        change.look()
        if change.facts.power in _RUNNING:
            raise
    change.look()
    if settled(change, row):
        # Now and not with the last disk: a change that ends before that leaves this one switched.
        recrypt.write_metadata(recrypt.keyed_vm(change.vm), change.hypervisor)
        return
    if change.facts.power not in _RUNNING:
        raise Conflict(
            "vm_stopped_meanwhile",
            f"{change.vm} was shut down while {row.part} was being copied; it is as it was",
            hint="apply again",
        )
    raise Conflict(
        "copy_failed",
        f"{row}: QEMU ended the copy without a switch; the guest runs on from the original",
        hint="check the datastore's free space and the host's log, then apply again",
    )


def _mirror(change: Change, opened: OpenedSecret) -> None:
    """A copy until both sides are equal, and the pivot. Goes on with a copy that an earlier run of this job began."""
    row, vm, hypervisor = opened.row, change.vm, change.hypervisor
    begun: list[str] = change.progress.job.checkpoint.get("copies", [])
    if hypervisor.block_copy(vm.uuid, row.target).is_gone:
        change.progress.checkpoint(copies=[*begun, str(row.secret_uuid)])
        _begin(change, opened)
    elif str(row.secret_uuid) not in begun:
        raise Conflict(
            "block_job_active",
            f"{row}: QEMU is busy with another job on that disk",
            hint="end it on the host, then apply again",
        )
    while True:
        copy = hypervisor.block_copy(vm.uuid, row.target)
        if copy.is_gone:
            return
        change.progress.step_total(copy.total)
        change.progress.advance(copy.done)
        if copy.is_ready:
            hypervisor.pivot(vm.uuid, row.target)
            return
        time.sleep(_POLL_SECONDS)


def _begin(change: Change, opened: OpenedSecret) -> None:
    """An empty target, and the copy into it. A target of an earlier attempt holds nothing that is kept."""
    row, hypervisor = opened.row, change.hypervisor
    _set_size(change, row)
    space.check(change, [row], {})
    if row.stage == Stage.ENCRYPTING:
        destroy_file(change, row.path, wipe=False)
        header = luks.create(opened.passphrase).header_bytes
        hypervisor.create_file(row.path, size=len(header) + whole_sectors(row.size_bytes), head=header)
        target = LuksTarget(row.path, "raw", row.secret_uuid)
    else:
        target = LuksTarget(row.plain_path, _plain_target(change, row), None)
    hypervisor.start_block_copy(change.vm.uuid, row.target, target)


def _set_size(change: Change, row: WrappedSecret) -> None:
    """The disk as the guest has it now; the row's size, where only the last sector's padding is between them."""
    size = next((disk.capacity_bytes for disk in change.facts.disks if disk.target == row.target), 0)
    if not 0 < size <= convert.MAX_DISK_BYTES:
        raise Conflict("size_unknown", f"{row}: its host reports {size} bytes", hint="apply again in a moment")
    if size != whole_sectors(row.size_bytes):
        row.size_bytes = size
        row.save(update_fields=["size_bytes"])


def _plain_target(change: Change, row: WrappedSecret) -> str:
    """Makes the empty plain image; its format. A qcow2 image needs a worker that reaches the file, else it is raw."""
    destroy_file(change, row.plain_path, wipe=False)
    if row.plain_format == "qcow2" and reaches_files(change.vm.host):
        try:
            image_files.create(row.plain_path, like=row.path)
            qemu_img.create_qcow2(row.plain_path, row.size_bytes)
        except (ImageFileError, QemuImgFailed) as exc:
            raise Conflict("conversion_failed", f"{row}: {exc}", hint="the original is untouched") from exc
        return "qcow2"
    if row.plain_format != "raw":
        row.plain_format = "raw"
        row.save(update_fields=["plain_format"])
    change.hypervisor.create_file(row.plain_path, size=row.size_bytes)
    return "raw"
