"""The folders of a vTPM's state: libvirt knows one place only, so old and new state change places by renaming.

.../<VM uuid>/tpm2                what swtpm opens
.../<VM uuid>/tpm2.part-<secret>  being written by a conversion
.../<VM uuid>/tpm2.new-<secret>   written in full, waits for the exchange
.../<VM uuid>/tpm2.old-<secret>   put aside by the exchange, to be destroyed
"""

import os
import uuid
from pathlib import Path

from encryption.adapters import image_files, swtpm
from encryption.engine import vtpm_state
from encryption.models import WrappedSecret
from inventory.errors import Conflict
from inventory.models import VirtualMachine
from inventory.services.connections import vtpm_state_path


def folder(vm: VirtualMachine) -> Path:
    found = vtpm_state_path(vm)
    if found is None:
        raise Conflict(
            "vtpm_state_unknown",
            f"where {vm.host} keeps vTPM state is not known",
            hint="set the vTPM state folder of the host (Configure)",
        )
    return Path(found)


def as_path(path: str) -> Path:
    return Path(path)


def put_aside(path: str, secret_uuid: uuid.UUID) -> str:
    return f"{path}.old-{secret_uuid.hex[:8]}"


def partial(row: WrappedSecret) -> Path:
    return Path(f"{row.path}.part-{row.secret_uuid.hex[:8]}")


def staged(row: WrappedSecret) -> Path:
    return Path(f"{row.path}.new-{row.secret_uuid.hex[:8]}")


def publish(row: WrappedSecret) -> None:
    """tpm2.part -> tpm2.new: from now on the exchange may be done."""
    partial(row).rename(staged(row))
    _sync(staged(row).parent)


def is_encrypted(path: str) -> bool:
    """Whether the folder holds encrypted state; one without state, or with what is no state, does not."""
    try:
        with swtpm.state_file(Path(path)).open("rb") as file:
            return vtpm_state.parse(file.read(vtpm_state.HEADER_BYTES)).encrypted
    except (FileNotFoundError, NotADirectoryError, vtpm_state.BadState):
        return False


def read(path: str) -> bytes | None:
    """The state in the folder; None where there is none. Raises ImageFileError, OSError."""
    name = str(swtpm.state_file(Path(path)))
    if not image_files.exists(name):
        return None
    with image_files.opened(name) as file:
        return file.read(vtpm_state.MAX_STATE_BYTES)


def replace(path: str, made: bytes) -> None:
    """Other content for the state in the folder, in one piece. Raises ImageFileError, OSError."""
    name = str(swtpm.state_file(Path(path)))
    image_files.create(f"{name}.replacing", like=name)
    with image_files.opened(f"{name}.replacing", write=True) as file:
        file.write(made)
        os.fsync(file.fileno())
    os.rename(f"{name}.replacing", name)
    image_files.sync_folder(name)


def exchange(row: WrappedSecret) -> None:
    """tpm2 -> tpm2.old, tpm2.new -> tpm2. Can be repeated: each rename is done only while its source is there."""
    new, current, old = staged(row), Path(row.path), Path(row.plain_path)
    if not new.exists():
        return
    if current.exists():
        current.rename(old)
    new.rename(current)
    _sync(current.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_staged(row: WrappedSecret) -> None:
    destroy(str(partial(row)))
    destroy(str(staged(row)))


def destroy(path: str) -> None:
    """Overwrites and deletes a state folder's files, then the folder; none there is no error."""
    place = Path(path)
    if not place.is_dir() or place.is_symlink():
        return
    for file in place.iterdir():
        image_files.destroy(str(file))
    place.rmdir()
