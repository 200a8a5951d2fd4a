"""Conversion of a powered-off VM's parts where no worker reaches its files: through libvirt's storage API on its host.

Disks are copied by the host itself (`Hypervisor.copy_image`): nothing but progress and samples travels. libvirt formats
a LUKS target with a key derivation of seconds and cannot be told otherwise (measured with 9.0: 8 million iterations);
so the engine writes the header anew afterwards, around the same volume key, and the image is then like one that a
worker made, and starts as quickly. The host draws the volume key, and knows it while it copies.

Small parts (NVRAM, tiny disks) are fetched, converted by the engine in the worker's memory, and sent; so is vTPM state
(`host_vtpm`).

Crash rules: a copy has no checkpoint. One that a kill, a lost host or a full datastore has interrupted is dropped and
begun anew; the host may still be at it, then that is waited for. A part whose copy is complete and verified is not
copied again. The original is only read, until the definition is switched and `change.destroy_originals` follows.

NOT done: a sync (libvirt offers none: originals stay until the host's kernel has written what was copied, see
`write_back`). NOT held: a lock on the sources once they are copied; that the VM stayed off and its files unchanged is
checked right before the switch, and one that was started in between gets its definition back.
"""

import posixpath
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from encryption.adapters.swtpm import SwtpmFailed
from encryption.engine import convert, luks, qcow2, verify
from encryption.engine.convert import Conversion
from encryption.engine.image import ImageError, ShortImage, Source, whole_sectors
from encryption.engine.secret import Secret
from encryption.models import Purpose, Stage, WrappedSecret
from encryption.services import host_vtpm, in_memory, space, vm_metadata
from encryption.services.change import Change
from encryption.services.host_file import HostFile
from encryption.services.offline import refuse_qcow2, set_size
from encryption.services.release import open_secrets, pass_gates
from inventory.errors import Conflict, Unavailable
from inventory.services.connections import HostImage, Hypervisor, ImageKey, OperationRefused
from inventory.services.definitions import (
    metadata,
    set_disk,
    set_dump_core,
    set_metadata,
    set_nvram,
    set_tpm_secret,
)

N_SAMPLES: Final = 64
IN_MEMORY_BYTES: Final = 16 * 2**20
_POLL_SECONDS: Final = 2.0
# qemu-img counts disks in these.
_UNIT: Final = 1024


@dataclass(frozen=True, slots=True)
class _Part:
    """A part, where it is read and written, and the passphrases of both sides (None: plain)."""

    row: WrappedSecret
    source: str
    source_format: str
    target: str
    target_format: str
    old: Secret | None
    new: Secret | None

    @property
    def verb(self) -> str:
        if self.old is None:
            return "encrypting"
        return "decrypting" if self.new is None else "recrypting"

    @property
    def conversion(self) -> Conversion:
        return Conversion(size=self.row.size_bytes, source_passphrase=self.old, target_passphrase=self.new)


@contextmanager
def converted_parts(change: Change) -> Iterator[None]:
    """Writes every copy that is missing; nothing refers to the copies yet. The definition is switched inside."""
    rows = change.rows(Stage.ENCRYPTING, Stage.DECRYPTING)
    images = [row for row in rows if row.purpose != Purpose.VTPM]
    for row in images:
        _check(change, row)
    space.check(change, images, {})
    if rows:
        pass_gates(change.vm.host, purpose="change of encryption")
    states = [(part, _convert(change, part)) for part in _opened(rows)]
    _check_off(change)
    for part, state in states:
        if _state(change, part.source) != state:
            raise Conflict(
                "source_changed",
                f"{part.row}: {part.source} was written to meanwhile",
                hint="see who uses it, apply again",
            )
    before = metadata(change.hypervisor.definition(change.vm.uuid), vm_metadata.NAMESPACE)
    try:
        yield
    except Conflict:
        change.look()
        if change.facts.power != "off":
            _switch_back(change, [part for part, _ in states], before)
        _check_off(change)
        raise


def _switch_back(change: Change, parts: list[_Part], element: str | None) -> None:
    """The VM was started in the moment before the switch. It runs on its originals, so they stay in its definition."""

    def edit(xml: str) -> str:
        for part in parts:
            secret_uuid = None if part.old is None else (part.row.replaces or part.row).secret_uuid
            if part.row.purpose == Purpose.NVRAM:
                xml = set_nvram(xml, path=part.source, secret_uuid=secret_uuid)
            elif part.row.purpose == Purpose.VTPM:
                xml = set_tpm_secret(xml, secret_uuid)
            else:
                xml = set_disk(
                    xml, part.row.target, path=part.source, format=part.source_format, secret_uuid=secret_uuid
                )
        xml = set_metadata(xml, vm_metadata.NAMESPACE, element)
        return set_dump_core(xml, is_allowed=element is None)

    change.hypervisor.redefine(change.vm.uuid, edit)


def _check_off(change: Change) -> None:
    change.look()
    if change.facts.power != "off":
        raise Conflict(
            "vm_started_meanwhile",
            f"{change.vm} was started on its host during the conversion",
            hint="shut it down, apply again",
        )


def _opened(rows: list[WrappedSecret]) -> list[_Part]:
    replaced = [row.replaces for row in rows if row.replaces is not None]
    keys = {one.row.pk: one.passphrase for one in open_secrets([*rows, *replaced])}
    return [_part(row, keys[row.pk], keys[row.replaces.pk] if row.replaces is not None else None) for row in rows]


def _part(row: WrappedSecret, key: Secret, replaced: Secret | None) -> _Part:
    source = _source(row)
    if row.stage == Stage.DECRYPTING:
        return _Part(row, source, "raw", row.plain_path, row.plain_format, key, None)
    source_format = "raw" if replaced is not None else row.plain_format
    return _Part(row, source, source_format, row.path, "raw", replaced, key)


def _source(row: WrappedSecret) -> str:
    if row.purpose == Purpose.VTPM:
        return host_vtpm.state_file(row.path)
    if row.stage == Stage.DECRYPTING:
        return row.path
    return row.plain_path if row.replaces is None else row.replaces.path


def _state(change: Change, path: str) -> str:
    found = change.hypervisor.file_facts(path)
    return "" if found is None else found.state


# Before


def _check(change: Change, row: WrappedSecret) -> None:
    """The exact content size of the part, and what forbids to convert its image.

    NOT checked: whether a QEMU has it open; the copy itself finds that out, by QEMU's locks on the host. Nor whether it
    is a link: libvirt follows it.
    """
    path = _source(row)
    found = change.hypervisor.file_facts(path)
    if found is None:
        raise Conflict("image_missing", f"{row}: there is no {path}", hint="start the VM once, or check the datastore")
    if not found.is_regular:
        raise Conflict(
            "image_not_regular",
            f"{row}: {path} is no regular file",
            hint="only disks in regular files can be converted; give the real path",
        )
    image = HostFile(change.hypervisor, path, found.size)
    try:
        if row.stage == Stage.DECRYPTING or row.replaces is not None:
            payload = found.size - len(convert.read_prefix(image))
            size = row.size_bytes if payload == whole_sectors(row.size_bytes) else payload
        elif row.plain_format == "qcow2" and found.size:
            size = _qcow2_size(row, image)
        else:
            size = found.size
    except (ImageError, luks.LuksError) as exc:
        raise Conflict("image_unreadable", f"{row}: {exc}", hint="check the datastore") from exc
    set_size(row, path, size)
    if size % _UNIT and not _is_small(row):
        raise Conflict(
            "disk_size_odd",
            f"{row} has {size} bytes; libvirt copies disks of whole KiB only",
            hint="resize it to a multiple of 1,024 bytes",
        )


def _qcow2_size(row: WrappedSecret, image: HostFile) -> int:
    head = bytearray(min(qcow2.HEADER_BYTES, image.size))
    image.read(0, memoryview(head))
    found = qcow2.parse(bytes(head))
    refuse_qcow2(
        row, backing=found.backing, data_file="another file" if found.has_external_data else "",
        snapshots=found.snapshot_count, is_encrypted=found.is_encrypted,
    )  # fmt: skip
    if not found.is_plainly_readable:
        raise Conflict(
            "disk_format",
            f"{row} is a qcow2 image of a form that could not be verified (zstd, extended L2 entries)",
            hint="convert it to plain qcow2 first",
        )
    return found.size


def _is_small(row: WrappedSecret) -> bool:
    return row.size_bytes <= IN_MEMORY_BYTES and row.plain_format != "qcow2"


# The copy


def _convert(change: Change, part: _Part) -> str:
    """Writes one part's copy; the state of its source at that time."""
    row = part.row
    try:
        if row.purpose == Purpose.VTPM:
            return _convert_vtpm(change, part)
        state = _state(change, part.source)
        done: dict[str, str] = change.progress.job.checkpoint.get("host_copies", {})
        if done.get(str(row.secret_uuid)) == state and change.files.exist(part.target):
            return state
        if _is_small(row):
            _convert_in_memory(change, part)
        else:
            _copy(change, part)
        _verify(change, part)
    except (ImageError, luks.LuksError, SwtpmFailed) as exc:
        raise Conflict("conversion_failed", f"{row}: {exc}", hint="the original is untouched") from exc
    except OSError as exc:  # the host's errors are HypervisorError: this is where small parts are converted
        raise Unavailable(
            "worker_memory_error",
            f"{row}: the worker cannot hold it in memory: {exc.strerror}",
            hint="see whether the memory or /dev/shm of the worker's machine is full, then apply again",
        ) from exc
    change.progress.checkpoint(host_copies={**done, str(row.secret_uuid): state})
    return state


def _convert_vtpm(change: Change, part: _Part) -> str:
    """Always anew: it is quick, and the VM may have run since. Without state (a VM that never ran) there is nothing to
    do: swtpm makes it, encrypted, at the first start."""
    host_vtpm.drop_staged(change.hypervisor, part.row)
    state = _state(change, part.source)
    if state:
        change.progress.step(f"{part.verb} the vTPM state")
        host_vtpm.convert(change.hypervisor, part.row, old=part.old, new=part.new)
    return state


def _convert_in_memory(change: Change, part: _Part) -> None:
    change.progress.step(f"{part.verb} {part.row.part}", total=part.row.size_bytes)
    hypervisor = change.hypervisor
    content = hypervisor.read_file(part.source, offset=0, length=IN_MEMORY_BYTES + luks.PREFIX_BYTES)
    made = in_memory.converted(part.conversion, content)
    hypervisor.delete_file(part.target, wipe=False)
    hypervisor.create_file(part.target, size=len(made), head=made, like=part.source)


def _copy(change: Change, part: _Part) -> None:
    """By the host. Whatever an earlier attempt has left is deleted; while the host is at that still, it is waited for
    (it would open the new file by the old one's name)."""
    row, hypervisor = part.row, change.hypervisor
    source = HostImage(part.source, part.source_format, _key(row.replaces or row, part.old))
    target = HostImage(part.target, part.target_format, _key(row, part.new))
    while True:
        hypervisor.delete_file(part.target, wipe=False)
        change.progress.step(f"{part.verb} {row.part} on {change.vm.host}", total=row.size_bytes)
        try:
            hypervisor.copy_image(source, target, size=row.size_bytes, advance=change.progress.advance)
            break
        except OperationRefused as exc:
            if _QEMU_LOCK in exc.message:
                raise Conflict(
                    "image_in_use",
                    f"{row}: {part.source} is open in QEMU on its host",
                    hint="see which process on the host uses it, then apply again",
                ) from exc
            if exc.code != "copy_still_running":
                raise
        change.progress.step(f"waiting until {change.vm.host} has ended an earlier copy of {row.part}")
        time.sleep(_POLL_SECONDS)
    if part.new is not None:
        change.progress.step(f"writing the header of {row.part}")
        prefix = hypervisor.read_file(part.target, offset=0, length=luks.PREFIX_BYTES)
        hypervisor.overwrite_file(part.target, luks.reseal(prefix, part.new))


_QEMU_LOCK: Final = '"write" lock'


def _key(row: WrappedSecret, passphrase: Secret | None) -> ImageKey | None:
    return None if passphrase is None else ImageKey(row.secret_uuid, passphrase.reveal())


# After


def _verify(change: Change, part: _Part) -> None:
    """Samples of both sides, or all, are fetched and compared as the guest would read them; header, size and key
    wholly."""
    change.progress.step(f"verifying {part.row.part}", total=part.row.size_bytes)
    source = _disk(change.hypervisor, part.source, part.source_format if part.old is None else "raw")
    target = _disk(change.hypervisor, part.target, part.target_format if part.new is None else "raw")
    if part.new is not None and target.size != part.conversion.target_bytes:
        raise ShortImage(f"the copy has {target.size} bytes, {part.conversion.target_bytes} are needed")
    found = verify.verify(
        part.conversion, source, target, full=change.verifies_fully, n_samples=N_SAMPLES,
        advance=change.progress.advance,
    )  # fmt: skip
    if found.mismatch is not None:
        raise Conflict(
            "verification_failed", f"{part.row}: the copy differs at byte {found.mismatch}", hint="check the datastore"
        )


def _disk(hypervisor: Hypervisor, path: str, image_format: str) -> Source:
    found = hypervisor.file_facts(path)
    if found is None:
        raise ShortImage(f"{posixpath.basename(path)} is not there")
    file = HostFile(hypervisor, path, found.size)
    return qcow2.Disk(file) if image_format == "qcow2" else file
