"""Cold migration: the files of a powered-off VM go as they are, through the worker, over both hosts' connections.

LUKS images and vTPM state stay under their keys, so no key is needed and none is sent.
"""

import posixpath

from encryption.services import migration_files, vm_files
from encryption.services.migration import NVRAM
from encryption.services.migration_files import Layout, Move
from inventory.errors import Conflict
from inventory.models import VirtualMachine
from inventory.services import connections
from inventory.services.connections import OperationRefused, VmFacts
from inventory.services.definitions import OwnFile


def go(move: Move, layout: Layout, copied: list[OwnFile], facts: VmFacts) -> None:
    """Copies, defines at the target, undefines at the source. A run that was killed before the definition begins
    anew."""
    vm = move.vm
    vm_files.refuse_unfit(vm)
    total = sum(move.here.file_size(file.path) or 0 for file in copied)
    move.progress.step(f"copying files to {move.target.name}", total=total)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        move.progress.advance(done)

    for file in copied:
        part = migration_files.part_of(file)
        place = layout.nvram if part == NVRAM else layout.disks[file.target].path
        migration_files.refuse_existing(move, place)
        migration_files.copy(move, file.path, place, count)
    if layout.logs_folder:
        with move.at_target():
            move.there.make_folder(layout.logs_folder)
    _copy_tpm_state(move, facts)
    move.progress.step(f"defining it on {move.target.name}")
    move.progress.checkpoint(copied=True)

    def carry(xml: str) -> str:
        """With the passwords of its graphics, which only this call sees; the source's definition stays."""
        with move.at_target():
            move.there.define(layout.edit(xml))
        return xml

    move.here.redefine(vm.uuid, carry)
    move.here.undefine(vm.uuid)


def _state_files(move: Move) -> tuple[str, str] | None:
    """Where the vTPM's state is and goes; None where there is nothing to copy: none, or both hosts see the same."""
    vm = move.vm
    if not vm.tpm_model:
        return None
    there = VirtualMachine(host=move.target, uuid=vm.uuid, name=vm.name, tpm_version=vm.tpm_version)
    here = VirtualMachine(host=move.source, uuid=vm.uuid, name=vm.name, tpm_version=vm.tpm_version)
    return vm_files.tpm_state_file(here), vm_files.tpm_state_file(there)


def _has(move: Move, path: str) -> bool:
    try:
        return move.here.file_size(path) is not None
    except OperationRefused:
        return False  # not even a folder: the VM never ran


def _copy_tpm_state(move: Move, facts: VmFacts) -> None:
    places = _state_files(move)
    if facts.tpm is None or places is None:
        return
    old, new = places
    if not _has(move, old) or (migration_files.shared_folders(move, [posixpath.dirname(old)]) and old == new):
        return
    with move.at_target():
        move.there.make_folder(posixpath.dirname(new))
        if move.there.file_size(new) is not None and not move.job.checkpoint.get("tpm"):
            raise Conflict(
                "vtpm_state_exists", f"{move.target} has vTPM state of this VM already: {new}",
                hint="it is of an earlier stay there: move that file away",
            )  # fmt: skip
    move.progress.checkpoint(tpm=[old, new])
    migration_files.copy(move, old, new, lambda size: None)


def drop_state(move: Move) -> None:
    """The VM stays: its state at the target goes."""
    places = move.job.checkpoint.get("tpm")
    if places:
        with move.at_target():
            _remove_state(move.there, places[1])
        move.progress.checkpoint(tpm=None)


def destroy_old(move: Move, layout: Layout) -> None:
    migration_files.destroy_old(move, layout)
    places = move.job.checkpoint.get("tpm")
    if places and places[0] != places[1]:
        _remove_state(move.here, places[0])


def _remove_state(hypervisor: connections.Hypervisor, path: str) -> None:
    folder = posixpath.dirname(path)
    hypervisor.delete_file(path, wipe=True)
    hypervisor.delete_file(posixpath.join(folder, ".lock"), wipe=False)
    hypervisor.remove_folder(folder)
    hypervisor.remove_folder(posixpath.dirname(folder))
