"""The files of a VM that moves: what both hosts see, where the rest goes, and what is left behind.

Nothing is told by a datastore's name or path: two hosts share a folder where the one reads what the other has written.
"""

import posixpath
import secrets
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

from encryption.engine import luks
from encryption.engine.image import whole_sectors
from encryption.models import Purpose
from encryption.services import vm_files
from encryption.services.migration import NVRAM
from encryption.services.release import OpenedSecret
from inventory.errors import Conflict
from inventory.jobs import Progress
from inventory.models import Datastore, Host, Job, VirtualMachine
from inventory.services import connections
from inventory.services.connections import Hypervisor, HypervisorError, VmFacts
from inventory.services.definitions import FileRole, NewPlace, OwnFile, moved, names_path, own_files

_MARK_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Move:
    """One run of one job: the VM, its two hosts and open connections to both (`here`: the source)."""

    job: Job
    progress: Progress
    vm: VirtualMachine
    source: Host
    target: Host
    datastore: Datastore | None
    here: Hypervisor
    there: Hypervisor

    @contextmanager
    def at_target(self) -> Any:
        """Errors inside are the target's; outside of it, they are told as the source's."""
        try:
            yield
        except HypervisorError as exc:
            raise connections.translate(exc, self.target) from exc

    @property
    def folder(self) -> str:
        """Of the VM's files on the target's datastore."""
        assert self.datastore is not None  # noqa: S101  asked only where one was chosen
        return posixpath.join(self.datastore.path, self.vm.name)


@dataclass(slots=True)
class Layout:
    """Where the files are and go. Kept in the job's checkpoint before the first is made."""

    disks: dict[str, NewPlace] = field(default_factory=dict)
    nvram: str = ""
    logs_folder: str = ""
    old: list[tuple[str, bool]] = field(default_factory=list)  # (path on the source, whether it is a LUKS image)
    folders: list[str] = field(default_factory=list)  # on the source, removed once they are empty

    @property
    def new(self) -> list[str]:
        return [place.path for place in self.disks.values()] + ([self.nvram] if self.nvram else [])

    def edit(self, xml: str) -> str:
        return moved(xml, disks=self.disks, nvram=self.nvram, logs_folder=self.logs_folder)

    @property
    def changes_definition(self) -> bool:
        return bool(self.disks or self.nvram or self.logs_folder)

    def as_values(self) -> dict[str, Any]:
        return {
            "disks": {target: [place.path, place.format] for target, place in self.disks.items()},
            "nvram": self.nvram,
            "logs_folder": self.logs_folder,
            "old": self.old,
            "folders": self.folders,
        }

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        return cls(
            disks={target: NewPlace(path, kind) for target, (path, kind) in values["disks"].items()},
            nvram=values["nvram"],
            logs_folder=values["logs_folder"],
            old=[(path, bool(is_luks)) for path, is_luks in values["old"]],
            folders=list(values["folders"]),
        )


def part_of(file: OwnFile) -> str:
    return NVRAM if file.role is FileRole.NVRAM else file.target


def shared_folders(move: Move, folders: Iterable[str]) -> set[str]:
    """Of these folders on the source those that the target sees too, found out by writing a file there."""
    found: set[str] = set()
    for folder in set(folders):
        mark = secrets.token_bytes(_MARK_BYTES)
        path = posixpath.join(folder, f".bartizan-{move.job.pk.hex[:12]}.mark")
        move.here.delete_file(path, wipe=False)
        move.here.create_file(path, size=_MARK_BYTES, head=mark)
        try:
            with move.at_target():
                seen = move.there.file_facts(path)
                if seen is not None and move.there.read_file(path, offset=0, length=_MARK_BYTES) == mark:
                    found.add(folder)
        finally:
            move.here.delete_file(path, wipe=False)
    return found


def lay_out(move: Move, xml: str, shared: set[str], *, is_live: bool) -> tuple[Layout, list[OwnFile]]:
    """New places of the files that are copied, and these files. A qcow2 disk of a running VM becomes a raw image."""
    layout, copied = Layout(), []
    for file in own_files(xml):
        folder = posixpath.dirname(file.path)
        if file.role is FileRole.NVRAM and move.here.file_size(file.path) is None and file.secret_uuid is None:
            continue  # never started: libvirt makes the variables at the first start
        if stays(move, file.path, shared):
            continue
        if file.role is FileRole.NVRAM:
            layout.nvram = _place(move, "nvram", file.path) if move.datastore else file.path
        elif move.datastore is None:
            raise Conflict(
                "datastore_needed",
                f"{file.target} of {move.vm} is on storage that {move.target} does not share",
                hint="choose a datastore there",
            )
        else:
            image_format = "raw" if is_live else file.format
            ending = file.path if image_format == file.format else ".raw"
            layout.disks[file.target] = NewPlace(_place(move, file.target, ending), image_format)
        layout.old.append((file.path, file.secret_uuid is not None))
        layout.folders.append(folder)
        copied.append(file)
    layout.folders = list(dict.fromkeys(layout.folders))
    if move.datastore is not None and layout.changes_definition:
        layout.logs_folder = move.folder
    return layout, copied


def stays(move: Move, path: str, shared: set[str]) -> bool:
    """Where a datastore was chosen, everything goes there that is not on it and shared already."""
    if posixpath.dirname(path) not in shared:
        return False
    return move.datastore is None or path.startswith(f"{move.datastore.path.rstrip('/')}/")


def _place(move: Move, part: str, like: str) -> str:
    ending = posixpath.splitext(like)[1] if "/" in like else like
    return posixpath.join(move.folder, f"{part}-{move.job.pk.hex[:8]}{ending}")


def create(move: Move, layout: Layout, copied: list[OwnFile], facts: VmFacts, opened: list[OpenedSecret]) -> None:
    """Empty images for the disks, LUKS headers for the encrypted ones under the same passphrase; the NVRAM as it is.

    A disk's content comes from QEMU, the NVRAM's last state in the stream: libvirt takes a file that is there.
    """
    sizes = {disk.target: disk.capacity_bytes for disk in facts.disks}
    keys = {one.row.target: one for one in opened if one.row.purpose == Purpose.DISK}
    if move.datastore is not None:
        with move.at_target():
            move.there.make_folder(move.folder)
    for file in copied:
        if file.role is FileRole.NVRAM:
            refuse_existing(move, layout.nvram)
            copy(move, file.path, layout.nvram, lambda size: None)
            continue
        size = sizes.get(file.target, 0)
        if size <= 0:
            raise Conflict(
                "size_unknown", f"{move.vm}: the size of {file.target} is not known", hint="refresh the host"
            )
        place = layout.disks[file.target].path
        with move.at_target():
            move.there.delete_file(place, wipe=False)  # of a killed attempt of this job
            if file.secret_uuid is not None:
                header = luks.create(keys[file.target].passphrase).header_bytes
                move.there.create_file(place, size=len(header) + whole_sectors(size), head=header)
            else:
                move.there.create_file(place, size=size)


def refuse_existing(move: Move, path: str) -> None:
    """Raises Conflict `file_exists`. A file of ours bears the job's number; at the source's own path it could be
    anybody's."""
    with move.at_target():
        if move.datastore is None and path not in move.job.checkpoint.get("made", []):
            if move.there.file_facts(path) is not None:
                raise Conflict(
                    "file_exists",
                    f"{move.target} has a file {path} already",
                    hint="move it away, or choose a datastore",
                )
            move.progress.checkpoint(made=[*move.job.checkpoint.get("made", []), path])


def copy(move: Move, path: str, place: str, count: Any) -> None:
    """Byte by byte, through the worker."""
    size = move.here.file_size(path)
    if size is None:
        raise Conflict("file_missing", f"{move.vm}: there is no {path}", hint="look at its datastore")
    with move.at_target():
        move.there.make_folder(posixpath.dirname(place))
        move.there.delete_file(place, wipe=False)
        move.there.upload(place, size=size, blocks=vm_files.blocks(move.here.download(path), count))


def drop_new(move: Move, layout: Layout) -> None:
    """The VM stays at the source: nothing of it stays at the target."""
    luks_parts = {path for path, is_luks in layout.old if is_luks}
    kept = {path for path, _ in layout.old} if move.datastore is None else set()
    with move.at_target():
        for path in layout.new:
            if path in kept and path not in move.job.checkpoint.get("made", []):
                continue
            move.there.delete_file(path, wipe=not luks_parts)
        if move.datastore is not None:
            move.there.remove_folder(move.folder)


def destroy_old(move: Move, layout: Layout) -> None:
    """The VM runs, or is defined, at the target: what lies at the source is overwritten and deleted. Of a LUKS image
    the header with the wrapped volume key is: without it the rest cannot be opened by any passphrase."""
    same = {posixpath.dirname(path) for path, _ in layout.old if path in layout.new}
    shared = shared_folders(move, same)
    for path, is_luks in layout.old:
        if posixpath.dirname(path) in shared or _is_used(move.here, path):
            continue
        if is_luks and move.here.file_facts(path) is not None:
            move.here.overwrite_file(path, bytes(luks.PREFIX_BYTES))
        move.here.delete_file(path, wipe=not is_luks)
    for folder in layout.folders:
        if posixpath.basename(folder) == move.vm.name:
            move.here.remove_folder(folder)


def _is_used(hypervisor: Hypervisor, path: str) -> bool:
    """By another VM of the source host, as it is defined now."""
    return any(names_path(hypervisor.definition(facts.uuid), path) for facts in hypervisor.virtual_machines())
