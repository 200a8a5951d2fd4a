"""vTPM state on a host whose files no worker reaches: read, converted on the worker, and put back, through libvirt.

libvirt's storage API can neither rename nor write a file in one piece, so the exchange is another than in
`vtpm_files`: the new state is written in full beside the old one, and read back, before the definition is switched;
after that it is the truth, and whatever stands in its place is replaced by it, as often as it takes.

.../tpm2/tpm2-00.permall               what swtpm opens
.../tpm2/tpm2-00.permall.new-<secret>  written in full, waits for the exchange
"""

from pathlib import Path
from typing import Final

from encryption.adapters import swtpm
from encryption.adapters.memory_folder import memory_folder
from encryption.engine import vtpm_state
from encryption.engine.secret import Secret
from encryption.models import WrappedSecret
from inventory.errors import Conflict
from inventory.services.connections import Hypervisor

_MAX_STATE_BYTES: Final = 4 * 2**20


def state_file(path: str) -> str:
    """The state in the folder `path`."""
    return str(swtpm.state_file(Path(path)))


def _staged(row: WrappedSecret) -> str:
    return f"{state_file(row.path)}.new-{row.secret_uuid.hex[:8]}"


def is_encrypted(hypervisor: Hypervisor, path: str) -> bool:
    """Whether the folder holds encrypted state; one without state, or with what is no state, does not."""
    if hypervisor.file_facts(state_file(path)) is None:
        return False
    try:
        head = hypervisor.read_file(state_file(path), offset=0, length=vtpm_state.HEADER_BYTES)
        return vtpm_state.parse(head).encrypted
    except vtpm_state.BadState:
        return False


def is_staged(hypervisor: Hypervisor, row: WrappedSecret) -> bool:
    return hypervisor.file_facts(_staged(row)) is not None


def convert(hypervisor: Hypervisor, row: WrappedSecret, *, old: Secret | None, new: Secret | None) -> None:
    """Writes the new state beside the old. Raises SwtpmFailed; Conflict where it does not come back as it was sent."""
    found = hypervisor.file_facts(state_file(row.path))
    if found is None or found.size > _MAX_STATE_BYTES:
        raise swtpm.SwtpmFailed(f"there is no vTPM state in {row.path}")
    with memory_folder() as place:  # plain state has no business on a worker's disk
        source, target = Path(place, "old"), Path(place, "new")
        source.mkdir(mode=0o700)
        swtpm.state_file(source).write_bytes(_read(hypervisor, state_file(row.path)))
        swtpm.convert(source, target, old=old, new=new)
        made = swtpm.state_file(target).read_bytes()
    hypervisor.create_file(_staged(row), size=len(made), head=made, like=state_file(row.path))
    if _read(hypervisor, _staged(row)) != made:
        raise Conflict("verification_failed", f"{row}: the copy differs from what was sent", hint="check the datastore")


def exchange(hypervisor: Hypervisor, row: WrappedSecret) -> None:
    """The new state takes the old one's place. Can be repeated after a kill at any point."""
    current, staged = state_file(row.path), _staged(row)
    if hypervisor.file_facts(staged) is None:
        return
    made = _read(hypervisor, staged)
    if hypervisor.file_facts(current) is None or _read(hypervisor, current) != made:
        hypervisor.delete_file(current, wipe=True)
        hypervisor.create_file(current, size=len(made), head=made, like=staged)
    hypervisor.delete_file(staged, wipe=True)


def drop_staged(hypervisor: Hypervisor, row: WrappedSecret) -> None:
    if hypervisor.file_facts(_staged(row)) is not None:
        hypervisor.delete_file(_staged(row), wipe=True)


def read(hypervisor: Hypervisor, path: str) -> bytes | None:
    """The state in the folder; None where there is none."""
    found = hypervisor.file_facts(state_file(path))
    return None if found is None or found.size > _MAX_STATE_BYTES else _read(hypervisor, state_file(path))


def replace(hypervisor: Hypervisor, path: str, made: bytes) -> None:
    """Other content for the state in the folder. Between the old one's end and the new one's place a kill leaves the
    new one beside it, in full: `finish_replacing`."""
    current, beside = state_file(path), _beside(path)
    hypervisor.delete_file(beside, wipe=False)
    hypervisor.create_file(beside, size=len(made), head=made, like=current)
    if _read(hypervisor, beside) != made:
        raise Conflict("verification_failed", f"{path}: the copy is not what was sent", hint="check the datastore")
    _take_place(hypervisor, path, made)


def finish_replacing(hypervisor: Hypervisor, path: str) -> None:
    """After a kill: where the state is missing, what stands beside it takes its place."""
    if hypervisor.file_facts(_beside(path)) is not None and hypervisor.file_facts(state_file(path)) is None:
        _take_place(hypervisor, path, _read(hypervisor, _beside(path)))


def _take_place(hypervisor: Hypervisor, path: str, made: bytes) -> None:
    hypervisor.delete_file(state_file(path), wipe=False)
    hypervisor.create_file(state_file(path), size=len(made), head=made, like=_beside(path))
    hypervisor.delete_file(_beside(path), wipe=True)


def _beside(path: str) -> str:
    return f"{state_file(path)}.replacing"


def destroy(hypervisor: Hypervisor, path: str) -> None:
    """The state, overwritten, and its folder."""
    for name in (state_file(path), _beside(path), f"{path}/.lock"):
        if hypervisor.file_facts(name) is not None:
            hypervisor.delete_file(name, wipe=True)
    hypervisor.remove_folder(path)


def _read(hypervisor: Hypervisor, path: str) -> bytes:
    return hypervisor.read_file(path, offset=0, length=_MAX_STATE_BYTES)
