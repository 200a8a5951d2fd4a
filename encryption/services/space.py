"""Free space for the copies that stand beside their originals until those are destroyed."""

from collections.abc import Mapping
from typing import Final

from encryption.adapters.image_files import ImageFileError
from encryption.engine import luks
from encryption.models import Stage, WrappedSecret
from encryption.services.change import Change
from inventory.errors import Conflict

SPARE_BYTES: Final = 64 * 2**20


def check(change: Change, rows: list[WrappedSecret], written: Mapping[str, int]) -> None:
    """Raises Conflict `space_missing`. `written`: bytes that stand already, by the secret's UUID.

    Copies that share a file system are not told from those that do not: the sum is asked of each.
    """
    missing = 0
    for row in rows:
        target = row.path if row.stage == Stage.ENCRYPTING else row.plain_path
        missing += max(0, row.size_bytes + luks.PREFIX_BYTES - written.get(str(row.secret_uuid), 0))
        try:
            free = change.files.free_bytes(target)
        except ImageFileError as exc:
            raise Conflict("image_unreadable", f"{row}: {exc}", hint="check the datastore") from exc
        if missing + SPARE_BYTES > free:
            raise Conflict(
                "space_missing",
                f"{change.vm}: {missing >> 20} MiB are needed beside {row.part}, {free >> 20} MiB are free",
                hint="free space on that datastore, or choose fewer disks at once",
            )
