"""Conversion of a powered-off VM's parts, by the engine and by tools on the worker that reaches the files."""

from typing import Any, Final

from encryption.adapters import image_files, qemu_img, swtpm
from encryption.adapters.image_files import ImageFileError
from encryption.adapters.qemu_img import QemuImgFailed
from encryption.adapters.swtpm import SwtpmFailed
from encryption.engine import convert, luks, verify
from encryption.engine.convert import Conversion
from encryption.engine.image import ImageError, ImageFile
from encryption.engine.secret import Secret
from encryption.models import Purpose, Stage, WrappedSecret
from encryption.services import vtpm_files
from encryption.services.change import Change, vtpm_state_exists
from encryption.services.release import OpenedSecret, open_secrets
from inventory.errors import Conflict, Unavailable
from inventory.jobs import Progress

SPARE_BYTES: Final = 64 * 2**20


def convert_parts(change: Change) -> None:
    """Writes every copy that is missing. Nothing refers to the copies yet."""
    rows = change.rows(Stage.ENCRYPTING, Stage.DECRYPTING)
    _check_sizes(change, rows)
    _check_space(change, rows)
    for opened in open_secrets(rows):
        row = opened.row
        try:
            if row.purpose == Purpose.VTPM:
                _convert_vtpm(change, opened)
            elif row.plain_format == "qcow2":
                _convert_qcow2(change, opened)
            else:
                _convert_raw(change, opened)
        except (ImageError, ImageFileError, luks.LuksError) as exc:
            raise Conflict("conversion_failed", f"{row}: {exc}", hint="the original is untouched") from exc
        except (QemuImgFailed, SwtpmFailed) as exc:
            raise Conflict("conversion_failed", f"{row}: {exc}", hint="the original is untouched") from exc
        except OSError as exc:
            raise Unavailable(
                "datastore_error", f"{row}: {exc.strerror}", hint="look at the datastore, then apply again"
            ) from exc
    change.look()
    if change.facts.power != "off":
        raise Conflict(
            "vm_started_meanwhile",
            f"{change.vm} was started on its host during the conversion",
            hint="shut it down, apply again",
        )


def _check_sizes(change: Change, rows: list[WrappedSecret]) -> None:
    """The exact content size of each part, and what forbids to convert its image."""
    for row in rows:
        if row.purpose == Purpose.VTPM or row.stage == Stage.DECRYPTING:
            continue
        try:
            if row.plain_format == "qcow2":
                found = qemu_img.info(row.plain_path, "qcow2")
                if found.backing:
                    raise Conflict(
                        "disk_has_backing", f"{row} is based on {found.backing}", hint="consolidate it first"
                    )
                if found.snapshots:
                    raise Conflict(
                        "snapshots_present", f"{row} has {len(found.snapshots)} snapshots", hint="delete them first"
                    )
                if found.is_encrypted:
                    raise Conflict(
                        "disk_encrypted_otherwise", f"{row} is encrypted by its own format", hint="decrypt it first"
                    )
                size = found.virtual_size
            else:
                size = image_files.size(row.plain_path)
        except (QemuImgFailed, ImageFileError) as exc:
            raise Conflict(
                "image_unreadable", f"{row}: {exc}", hint="start the VM once, or check the datastore"
            ) from exc
        if size <= 0:
            raise Conflict("image_empty", f"{row}: {row.plain_path} is empty")
        if size != row.size_bytes:
            row.size_bytes = size
            row.save(update_fields=["size_bytes"])


def _check_space(change: Change, rows: list[WrappedSecret]) -> None:
    """Free space for all copies that share a file system is not added up exactly: the sum is asked of each."""
    missing = 0
    files = [row for row in rows if row.purpose != Purpose.VTPM]
    for row in files:
        target = row.path if row.stage == Stage.ENCRYPTING else row.plain_path
        written = int(_offsets(change.progress).get(str(row.secret_uuid), {}).get("offset", 0))
        missing += max(0, row.size_bytes + luks.PREFIX_BYTES - written)
        free = image_files.free_bytes(target)
        if missing + SPARE_BYTES > free:
            raise Conflict(
                "space_missing",
                f"{change.vm}: {missing >> 20} MiB are needed beside {row.part}, {free >> 20} MiB are free",
                hint="free space on that datastore, or encrypt fewer disks at once",
            )


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


def _offsets(progress: Progress) -> dict[str, Any]:
    offsets: dict[str, Any] = progress.job.checkpoint.get("offsets", {})
    return offsets


def _convert_raw(change: Change, opened: OpenedSecret) -> None:
    """Raw to LUKS or back by the engine, resumable at every checkpoint, then verified by sample."""
    row, encrypt = opened.row, opened.row.stage == Stage.ENCRYPTING
    source, target = (row.plain_path, row.path) if encrypt else (row.path, row.plain_path)
    conversion = Conversion(
        size=row.size_bytes,
        source_passphrase=None if encrypt else opened.passphrase,
        target_passphrase=opened.passphrase if encrypt else None,
    )
    state = image_files.fingerprint(source)
    reporter = _Reporter(change.progress, row, state)
    start = reporter.start() if image_files.exists(target) else None
    if start is None:
        image_files.create(target, like=source)
    verb = "encrypting" if encrypt else "decrypting"
    change.progress.step(f"{verb} {row.part}", total=row.size_bytes)
    with image_files.opened(source) as reading, image_files.opened(target, write=True) as writing:
        image_files.lock_against_writers(reading)
        convert.convert(conversion, ImageFile(reading), ImageFile(writing), start=start, progress=reporter)
        change.progress.step(f"verifying {row.part}")
        wrong = verify.verify(conversion, ImageFile(reading), ImageFile(writing))
    if wrong.mismatch is not None:
        raise Conflict(
            "verification_failed", f"{row}: the copy differs at byte {wrong.mismatch}", hint="check the datastore"
        )
    _check_unchanged(row, source, state)


def _convert_qcow2(change: Change, opened: OpenedSecret) -> None:
    """qcow2 to LUKS or back by qemu-img: begun anew after a crash, compared in full at the end."""
    row, passphrase = opened.row, opened.passphrase
    encrypt = row.stage == Stage.ENCRYPTING
    source, target = (row.plain_path, row.path) if encrypt else (row.path, row.plain_path)
    state = image_files.fingerprint(source)
    if _offsets(change.progress).get(str(row.secret_uuid)) == {"offset": row.size_bytes, "source": state}:
        return
    verb = "encrypting" if encrypt else "decrypting"
    change.progress.step(f"{verb} {row.part}", total=row.size_bytes)

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
    _check_unchanged(row, source, state)
    _Reporter(change.progress, row, state).checkpoint(row.size_bytes)


def _write_header(target: str, passphrase: Secret, size: int) -> None:
    volume = luks.create(passphrase)
    with image_files.opened(target, write=True) as file:
        image = ImageFile(file)
        image.begin(luks.PREFIX_BYTES + -(-size // 512) * 512)
        image.write(0, memoryview(volume.header_bytes))
        image.sync()


def _check_unchanged(row: WrappedSecret, source: str, state: str) -> None:
    if image_files.fingerprint(source) != state:
        raise Conflict(
            "source_changed", f"{row}: {source} was written to meanwhile", hint="see who uses it, apply again"
        )


def _convert_vtpm(change: Change, opened: OpenedSecret) -> None:
    row, encrypt = opened.row, opened.row.stage == Stage.ENCRYPTING
    if not vtpm_state_exists(row):
        return
    change.progress.step("encrypting the vTPM state" if encrypt else "decrypting the vTPM state")
    swtpm.convert(
        vtpm_files.as_path(row.path),
        vtpm_files.staged(row),
        old=None if encrypt else opened.passphrase,
        new=opened.passphrase if encrypt else None,
    )
