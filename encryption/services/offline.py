"""Conversion of a powered-off VM's parts, by the engine and by tools on the worker that reaches the files."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from encryption.adapters import image_files, qemu_img, swtpm
from encryption.adapters.image_files import ImageFileError
from encryption.adapters.qemu_img import QemuImgFailed
from encryption.adapters.swtpm import SwtpmFailed
from encryption.engine import convert, luks, verify
from encryption.engine.convert import Conversion
from encryption.engine.image import ImageError, ImageFile, whole_sectors
from encryption.engine.secret import Secret
from encryption.models import Purpose, Stage, WrappedSecret
from encryption.services import space, vtpm_files
from encryption.services.change import Change
from encryption.services.release import open_secrets
from inventory.errors import Conflict, Unavailable
from inventory.jobs import Progress


@contextmanager
def converted_parts(change: Change) -> Iterator[None]:
    """Writes every copy that is missing; nothing refers to the copies yet. The definition is switched inside.

    Until the block ends QEMU is locked out of the sources, so that no VM writes to what has been copied already.
    """
    rows = change.rows(Stage.ENCRYPTING, Stage.DECRYPTING)
    with ExitStack() as held:
        for row in rows:
            _check_and_lock(row, held)
        space.check(change, [row for row in rows if row.purpose != Purpose.VTPM], _written(change.progress))
        states = [(part.row, _convert(change, part)) for part in _opened(rows)]
        change.look()
        if change.facts.power != "off":
            raise Conflict(
                "vm_started_meanwhile",
                f"{change.vm} was started on its host during the conversion",
                hint="shut it down, apply again",
            )
        for row, state in states:
            _check_unchanged(row, state)
        yield


@dataclass(frozen=True, slots=True)
class _Part:
    """A part and the passphrases of its source and of its copy (None: plain)."""

    row: WrappedSecret
    old: Secret | None
    new: Secret | None

    @property
    def verb(self) -> str:
        if self.old is None:
            return "encrypting"
        return "decrypting" if self.new is None else "recrypting"


def _opened(rows: list[WrappedSecret]) -> list[_Part]:
    replaced = [row.replaces for row in rows if row.replaces is not None]
    keys = {one.row: one.passphrase for one in open_secrets([*rows, *replaced])}
    return [
        _Part(row, keys[row.replaces] if row.replaces is not None else None, keys[row])
        if row.stage == Stage.ENCRYPTING
        else _Part(row, keys[row], None)
        for row in rows
    ]


def _convert(change: Change, part: _Part) -> str:
    """Writes one part's copy; the fingerprint of its source at that time."""
    row = part.row
    try:
        if row.purpose == Purpose.VTPM:
            return _convert_vtpm(change, part)
        if row.plain_format == "qcow2" and row.replaces is None:
            return _convert_qcow2(change, part)
        return _convert_raw(change, part)
    except (ImageError, ImageFileError, luks.LuksError, QemuImgFailed, SwtpmFailed) as exc:
        raise Conflict("conversion_failed", f"{row}: {exc}", hint="the original is untouched") from exc
    except OSError as exc:
        raise Unavailable(
            "datastore_error", f"{row}: {exc.strerror}", hint="look at the datastore, then apply again"
        ) from exc


def _source(row: WrappedSecret) -> str:
    if row.purpose == Purpose.VTPM:
        return str(swtpm.state_file(vtpm_files.as_path(row.path)))
    return row.original if row.stage == Stage.ENCRYPTING else row.path


def _check_and_lock(row: WrappedSecret, held: ExitStack) -> None:
    """The exact content size of the part, what forbids to convert its image, and the lock on it."""
    if row.purpose == Purpose.VTPM:
        return
    path = _source(row)
    try:
        file = held.enter_context(image_files.opened(path))
        image_files.lock_against_writers(file)
        if row.stage == Stage.DECRYPTING or row.replaces is not None:
            size = _payload_size(row, ImageFile(file))
        elif row.plain_format == "qcow2":
            size = _qcow2_size(row)
        else:
            size = image_files.size(path)
    except ImageFileError as exc:
        code, hint = _REFUSALS.get(type(exc), ("image_unreadable", "check the datastore"))
        raise Conflict(code, f"{row}: {exc}", hint=hint) from exc
    except (QemuImgFailed, ImageError, luks.LuksError) as exc:
        raise Conflict("image_unreadable", f"{row}: {exc}", hint="check the datastore") from exc
    set_size(row, path, size)


def set_size(row: WrappedSecret, path: str, size: int) -> None:
    """The content's size as found in `path`, into the row. Raises Conflict where that cannot be."""
    if size <= 0:
        raise Conflict("image_empty", f"{row}: {path} is empty", hint="start the VM once, or check the datastore")
    if size > convert.MAX_DISK_BYTES:
        raise Conflict("image_too_large", f"{row}: {path} claims {size} bytes", hint="check the image")
    if size != row.size_bytes:
        row.size_bytes = size
        row.save(update_fields=["size_bytes"])


_REFUSALS: Final[dict[type[ImageFileError], tuple[str, str]]] = {
    image_files.FileMissing: ("image_missing", "start the VM once, or check the datastore"),
    image_files.NotRegular: ("image_not_regular", "only disks in regular files can be converted; give the real path"),
    image_files.InUse: ("image_in_use", "see which process on the host uses it, then apply again"),
}


def refuse_qcow2(row: WrappedSecret, *, backing: str, data_file: str, snapshots: int, is_encrypted: bool) -> None:
    """Raises Conflict where the disk is not all in this image, or not in clear. `backing`, `data_file`: "" for none."""
    if backing:
        raise Conflict("disk_has_backing", f"{row} is based on {backing}", hint="consolidate it first")
    if data_file:
        raise Conflict(
            "disk_has_data_file", f"{row} keeps its data in {data_file}", hint="convert it to plain qcow2 first"
        )
    if snapshots:
        raise Conflict("snapshots_present", f"{row} has {snapshots} snapshots", hint="delete them first")
    if is_encrypted:
        raise Conflict("disk_encrypted_otherwise", f"{row} is encrypted by its own format", hint="decrypt it first")


def _qcow2_size(row: WrappedSecret) -> int:
    found = qemu_img.info(row.plain_path, "qcow2")
    refuse_qcow2(
        row, backing=found.backing, data_file=found.data_file, snapshots=len(found.snapshots),
        is_encrypted=found.is_encrypted,
    )  # fmt: skip
    return found.virtual_size


def _payload_size(row: WrappedSecret, image: ImageFile) -> int:
    """The disk in a LUKS image. Its last sector may be padding; an image that was resized has more (or less) than the
    row says, and the guest has seen that size."""
    payload = image.size - len(convert.read_prefix(image))
    return row.size_bytes if payload == whole_sectors(row.size_bytes) else payload


class _Reporter:
    """Engine progress as job progress. A checkpoint also names the source's state: a changed source starts anew."""

    def __init__(self, progress: Progress, row: WrappedSecret, source_state: str) -> None:
        self._progress = progress
        self._uuid = str(row.secret_uuid)
        self._source_state = source_state

    def advance(self, done_bytes: int) -> None:
        self._progress.advance(done_bytes)

    def checkpoint(self, offset: int) -> None:
        offsets = {**_offsets(self._progress), self._uuid: {"offset": offset, "source": self._source_state}}
        self._progress.checkpoint(offsets=offsets)

    def start(self) -> int | None:
        """Where to go on, None to begin anew."""
        known = _offsets(self._progress).get(self._uuid)
        return int(known["offset"]) if known and known["source"] == self._source_state else None


def _written(progress: Progress) -> dict[str, int]:
    return {secret_uuid: int(known["offset"]) for secret_uuid, known in _offsets(progress).items()}


def _offsets(progress: Progress) -> dict[str, Any]:
    offsets: dict[str, Any] = progress.job.checkpoint.get("offsets", {})
    return offsets


def _convert_raw(change: Change, part: _Part) -> str:
    """Raw to LUKS, back, or LUKS to LUKS by the engine, resumable at every checkpoint, then verified."""
    row = part.row
    source, target = _source(row), row.plain_path if part.new is None else row.path
    conversion = Conversion(size=row.size_bytes, source_passphrase=part.old, target_passphrase=part.new)
    state = image_files.fingerprint(source)
    reporter = _Reporter(change.progress, row, state)
    start = reporter.start() if image_files.exists(target) else None
    if start is None:
        image_files.create(target, like=source)
    change.progress.step(f"{part.verb} {row.part}", total=row.size_bytes)
    with image_files.opened(source) as reading, image_files.opened(target, write=True) as writing:
        convert.convert(conversion, ImageFile(reading), ImageFile(writing), start=start, progress=reporter)
        change.progress.step(f"verifying {row.part}", total=row.size_bytes)
        wrong = verify.verify(
            conversion, ImageFile(reading), ImageFile(writing), full=change.verifies_fully,
            advance=change.progress.advance,
        )  # fmt: skip
    if wrong.mismatch is not None:
        raise Conflict(
            "verification_failed", f"{row}: the copy differs at byte {wrong.mismatch}", hint="check the datastore"
        )
    return state


def _convert_qcow2(change: Change, part: _Part) -> str:
    """qcow2 to LUKS or back by qemu-img: begun anew after a crash, compared in full at the end."""
    row, encrypt = part.row, part.old is None
    passphrase = part.new or part.old
    assert passphrase is not None  # noqa: S101  one side is always LUKS
    source, target = _source(row), row.path if encrypt else row.plain_path
    state = image_files.fingerprint(source)
    reporter = _Reporter(change.progress, row, state)
    if reporter.start() == row.size_bytes and image_files.exists(target):
        return state
    change.progress.step(f"{part.verb} {row.part}", total=row.size_bytes)

    def advance(percent: int) -> None:
        change.progress.advance(row.size_bytes * percent // 100)

    image_files.create(target, like=source)
    if encrypt:
        _write_header(target, passphrase, row.size_bytes)
        qemu_img.copy_into_luks(source, "qcow2", target, passphrase, advance)
    else:
        qemu_img.copy_out_of_luks(source, target, "qcow2", passphrase, advance)
    with image_files.opened(target, write=True) as written:
        ImageFile(written).sync()
    change.progress.step(f"verifying {row.part}")
    plain, encrypted = (source, target) if encrypt else (target, source)
    if not qemu_img.equal(plain, "qcow2", encrypted, passphrase):
        raise Conflict("verification_failed", f"{row}: the copy differs from its source", hint="check the datastore")
    reporter.checkpoint(row.size_bytes)
    return state


def _write_header(target: str, passphrase: Secret, size: int) -> None:
    volume = luks.create(passphrase)
    with image_files.opened(target, write=True) as file:
        image = ImageFile(file)
        image.begin(luks.PREFIX_BYTES + whole_sectors(size))
        image.write(0, memoryview(volume.header_bytes))
        image.sync()


def _convert_vtpm(change: Change, part: _Part) -> str:
    """Always anew: it is quick, and the VM may have run since. Without state (a VM that never ran) there is nothing to
    do: swtpm makes it, encrypted, at the first start."""
    row = part.row
    vtpm_files.drop_staged(row)
    if not change.files.has_tpm_state(row):
        return ""
    state = image_files.fingerprint(_source(row))
    change.progress.step(f"{part.verb} the vTPM state")
    swtpm.convert(vtpm_files.as_path(row.path), vtpm_files.partial(row), old=part.old, new=part.new)
    vtpm_files.publish(row)
    return state


def _check_unchanged(row: WrappedSecret, state: str) -> None:
    source = _source(row)
    try:
        now = image_files.fingerprint(source)
    except FileNotFoundError:
        now = ""
    if now != state:
        raise Conflict(
            "source_changed", f"{row}: {source} was written to meanwhile", hint="see who uses it, apply again"
        )
