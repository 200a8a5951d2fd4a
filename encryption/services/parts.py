"""What a VM's definition says of one part (disk, NVRAM, vTPM state), compared with the secret that opens it."""

from uuid import UUID

from encryption.models import Purpose, WrappedSecret
from inventory.services.connections import VmFacts


def opens(facts: VmFacts, row: WrappedSecret) -> bool:
    """Whether the VM's definition opens this part with this secret."""
    if row.purpose == Purpose.NVRAM:
        return facts.nvram_secret_uuid == row.secret_uuid
    if row.purpose == Purpose.VTPM:
        return facts.tpm is not None and facts.tpm.secret_uuid == row.secret_uuid
    return any(disk.target == row.target and disk.secret_uuid == row.secret_uuid for disk in facts.disks)


def is_plain_again(facts: VmFacts, row: WrappedSecret) -> bool:
    """Whether the definition uses this part's decrypted copy.

    That it does not open the encrypted one is not enough: a disk can be detached, or replaced by another. A vTPM has
    one place only, so of it no more can be said.
    """
    if row.purpose == Purpose.NVRAM:
        return facts.nvram_secret_uuid is None and facts.nvram_path == row.plain_path
    if row.purpose == Purpose.VTPM:
        return facts.tpm is not None and facts.tpm.secret_uuid is None
    return any(
        disk.target == row.target and disk.secret_uuid is None and disk.source == row.plain_path for disk in facts.disks
    )


def path_in(facts: VmFacts, row: WrappedSecret) -> str:
    """Where the definition has the encrypted part now: files are moved and renamed between two changes."""
    if row.purpose == Purpose.NVRAM:
        return facts.nvram_path
    if row.purpose == Purpose.VTPM:
        return row.path
    return next(disk.source for disk in facts.disks if disk.target == row.target)


def secrets_of(facts: VmFacts) -> dict[UUID, str]:
    """The parts that the definition opens with a secret (vda ..., nvram, vtpm), by the secret's UUID."""
    found = {disk.secret_uuid: disk.target for disk in facts.disks if disk.secret_uuid is not None}
    if facts.nvram_secret_uuid is not None:
        found[facts.nvram_secret_uuid] = Purpose.NVRAM.value
    if facts.tpm is not None and facts.tpm.secret_uuid is not None:
        found[facts.tpm.secret_uuid] = Purpose.VTPM.value
    return found


def uses(facts: VmFacts, path: str) -> bool:
    """Whether the definition refers to the file."""
    return path == facts.nvram_path or any(disk.source == path for disk in facts.disks)
