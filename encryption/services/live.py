"""Conversion of a running VM's disks by QEMU's block copy: the guest goes on, and is switched at the pivot.

The engine makes the LUKS header beforehand. Were QEMU to format the target itself, it would hold up the guest for
seconds while it calibrates its key derivation (measured). NOT verified byte by byte: the guest writes meanwhile; it
is checked that QEMU reports both sides equal before the pivot.
"""

import time
from typing import Final

from encryption.adapters import image_files, qemu_img
from encryption.engine import luks
from encryption.models import Purpose, Stage, WrappedSecret
from encryption.services.change import Change, destroy_file, opens, restored, switched
from encryption.services.release import OpenedSecret, open_secrets, put_secret
from inventory.errors import Conflict
from inventory.services.connections import LuksTarget, reaches_files

_POLL_SECONDS: Final = 0.5


def convert_disks(change: Change) -> None:
    """Copies and pivots disk after disk, decryptions first. Only disks: the plan refuses the home of a running VM."""
    rows = change.rows(Stage.DECRYPTING) + change.rows(Stage.ENCRYPTING)
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
    row, vm, hypervisor = opened.row, change.vm, change.hypervisor
    encrypt = row.stage == Stage.ENCRYPTING
    change.progress.step(
        f"{'encrypting' if encrypt else 'decrypting'} {row.part} while the VM runs", total=row.size_bytes
    )
    if hypervisor.block_copy(vm.uuid, row.target).is_gone:
        _begin(change, opened)
    while True:
        copy = hypervisor.block_copy(vm.uuid, row.target)
        if copy.is_gone:
            break
        change.progress.step_total(copy.total)
        change.progress.advance(copy.done)
        if copy.is_ready:
            hypervisor.pivot(vm.uuid, row.target)
            break
        time.sleep(_POLL_SECONDS)
    change.look()
    if opens(change.facts, row) != encrypt:
        raise Conflict(
            "copy_failed",
            f"{row}: QEMU ended the copy without a switch; the guest runs on from the original",
            hint="check the datastore's free space and the host's log, then apply again",
        )
    (switched if encrypt else restored)(change, row)


def _begin(change: Change, opened: OpenedSecret) -> None:
    """An empty target, and the copy into it. A target of an earlier attempt holds nothing that is kept."""
    row, hypervisor = opened.row, change.hypervisor
    if row.stage == Stage.ENCRYPTING:
        destroy_file(change, row.path, wipe=False)
        size = -(-row.size_bytes // 512) * 512
        header = luks.create(opened.passphrase).header_bytes
        hypervisor.create_file(row.path, size=len(header) + size, head=header)
        target = LuksTarget(row.path, "raw", row.secret_uuid)
    else:
        target = LuksTarget(row.plain_path, _plain_target(change, row), None)
    hypervisor.start_block_copy(change.vm.uuid, row.target, target)


def _plain_target(change: Change, row: WrappedSecret) -> str:
    """Makes the empty plain image; its format. A qcow2 image needs a worker that reaches the file, else it is raw."""
    destroy_file(change, row.plain_path, wipe=False)
    if row.plain_format == "qcow2" and reaches_files(change.vm.host):
        image_files.create(row.plain_path, like=row.path)
        qemu_img.create_qcow2(row.plain_path, row.size_bytes)
        return "qcow2"
    if row.plain_format != "raw":
        row.plain_format = "raw"
        row.save(update_fields=["plain_format"])
    change.hypervisor.create_file(row.plain_path, size=row.size_bytes)
    return "raw"
