"""The files of a powered-off VM on its host, as copies of it need them: which they are, whether they stand still."""

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from encryption.engine import bundle
from encryption.models import Stage
from inventory.errors import Conflict, Invalid
from inventory.models import Host, PowerState, VirtualMachine
from inventory.services.connections import DomainMissing, Hypervisor, VmFacts, vtpm_state_path
from inventory.services.definitions import BadDefinition, FileRole, OwnFile, checked_name, own_files

SPARE_BYTES: Final = 64 * 2**20
_HEAD_BYTES: Final = 104


@dataclass(frozen=True, slots=True)
class SizedFile:
    """A file of a VM that is there. `size` in bytes of the file itself."""

    file: OwnFile
    size: int


def refuse_name(host: Host, name: str) -> None:
    """Of a VM to be made on that host. Raises Invalid `name_invalid`, Conflict `name_taken`."""
    try:
        checked_name(name)
    except BadDefinition as exc:
        raise Invalid("name_invalid", exc.message, hint="choose another name") from exc
    if VirtualMachine.objects.filter(host=host, name=name, is_present=True).exists():
        raise Conflict("name_taken", f"there is a VM {name} on {host} already", hint="choose another name")


def refuse_unfit(vm: VirtualMachine) -> None:
    """Raises Conflict where a copy of the VM's files would not be a copy of the VM. From what is known now."""
    if not vm.is_present:
        raise Conflict("vm_not_present", f"{vm} is no longer on {vm.host}", hint="refresh the host")
    if vm.power_state != PowerState.OFF:
        raise Conflict(
            "vm_running", f"{vm} is not powered off", hint="shut it down first: its files change while it runs"
        )
    if vm.has_managed_save:
        raise Conflict("vm_suspended", f"{vm} is suspended to a file", hint="start it and shut it down first")
    if vm.snapshot_count:
        raise Conflict("vm_has_snapshots", f"{vm} has snapshots", hint="delete or merge them first")
    if vm.wrapped_secrets.exclude(stage=Stage.IN_USE).exists():
        raise Conflict(
            "change_unfinished", f"an encryption change of {vm} is not finished", hint="apply its VM Options first"
        )


def files_of(vm: VirtualMachine, hypervisor: Hypervisor, facts: VmFacts, xml: str) -> list[SizedFile]:
    """Disks and NVRAM. Variables that were never made are left out: libvirt makes them at the first start.

    Raises Conflict `file_missing`, `disk_has_backing_file`.
    """
    if facts.power != "off":
        raise Conflict("vm_running", f"{vm} is not powered off", hint="shut it down first")
    found: list[SizedFile] = []
    for file in own_files(xml):
        size = hypervisor.file_size(file.path)
        if size is None:
            if file.role is FileRole.NVRAM and file.secret_uuid is None:
                continue
            raise Conflict("file_missing", f"{vm}: there is no {file.path}", hint="look at its datastore")
        if file.format == "qcow2":
            try:
                bundle.refuse_backing(hypervisor.read_file(file.path, offset=0, length=_HEAD_BYTES))
            except bundle.BadBundle as exc:
                raise Conflict(
                    "disk_has_backing_file", f"{vm}: disk {file.target} cannot be copied by itself: {exc}",
                    hint="merge it with the images behind it first",
                ) from exc  # fmt: skip
        found.append(SizedFile(file, size))
    return found


def tpm_state_file(vm: VirtualMachine) -> str:
    """The file with the state of the VM's TPM on its host. Raises Conflict `vtpm_state_unknown`."""
    folder = vtpm_state_path(vm)
    if folder is None:
        raise Conflict(
            "vtpm_state_unknown", f"where {vm.host} keeps vTPM state is not known",
            hint="set the vTPM state folder of the host (Configure)",
        )  # fmt: skip
    return posixpath.join(folder, "tpm-00.permall" if vm.tpm_version == "1.2" else "tpm2-00.permall")


def tpm_state_of(path: str, uuid: UUID) -> str:
    """The same file of another VM on that host: .../<uuid>/tpm2/<file>."""
    folder, name = posixpath.split(path)
    above, version = posixpath.split(folder)
    return posixpath.join(posixpath.dirname(above), str(uuid), version, name)


def check_space(hypervisor: Hypervisor, folder: str, needed: int, what: str) -> None:
    """Raises Conflict `space_missing`. `folder` exists on the host."""
    free = hypervisor.free_bytes(folder)
    if needed + SPARE_BYTES > free:
        raise Conflict(
            "space_missing", f"{what}: {needed >> 20} MiB are needed in {folder}, {free >> 20} MiB are free",
            hint="free space on that datastore",
        )  # fmt: skip


def blocks(pieces: Iterator[bytes], count: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """(offset, data) for `Hypervisor.upload`, without pieces that are zero throughout; `count` hears of every byte."""
    offset = 0
    for piece in pieces:
        if piece.count(0) != len(piece):
            yield offset, piece
        offset += len(piece)
        count(len(piece))


def has_vm(hypervisor: Hypervisor, uuid: UUID) -> bool:
    try:
        hypervisor.virtual_machine(uuid)
    except DomainMissing:
        return False
    return True
