"""Copies of a disk image file: encrypted, decrypted, or encrypted under another volume key.

Order of writes, so that the same command goes on after a kill at any point and nothing of anybody else's is harmed:

1. the source is opened for reading only, QEMU is kept from writing to it, and its passphrase is tried;
2. the side file is written (no target yet), then the target is made, with O_EXCL: a file that is there already and was
   not made by an interrupted run of the same command is never touched;
3. the side file learns the target's inode, and the engine converts (`engine/convert.py`), each checkpoint saved;
4. the copy is verified against the source, and the source's fingerprint once more;
5. the side file is removed. A target without one is complete.

The target is a regular file, mode 0600, and belongs to who runs this, whoever owns the source: the owner of an
encrypted image need not be one who may read the disk in it.

NOT noticed: a source that is written to by another program than QEMU in a way that leaves its modification time as it
was, unless the verification meets the place.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal, final

from encryption.adapters import image_files
from encryption.engine import convert, luks, qcow2, verify, xts
from encryption.engine.convert import Conversion
from encryption.engine.image import ImageError, ImageFile, whole_sectors
from encryption.engine.luks_header import MIN_ITERATIONS, SECTOR_BYTES
from encryption.engine.secret import Secret
from encryption.recovery.report import Report
from encryption.recovery.side_file import Checkpoints, Mark, Operation, SideFile
from inventory.errors import Conflict, Invalid, NotFound, Refused, Unavailable

Thoroughness = Literal["full", "sample", "none"]

_GERUNDS: dict[Operation, str] = {"encrypt": "encrypting", "decrypt": "decrypting", "recrypt": "recrypting"}
_QCOW2_MAGIC = b"QFI\xfb"
_HEX = frozenset(b"0123456789abcdef")
_OWN_PASSPHRASE_BYTES = 64


@dataclass(frozen=True, slots=True)
class DiskCopy:
    """What to do. `passphrase` opens the source, or the target of `encrypt`; `new_passphrase` is for `recrypt` alone.

    `size` is the disk's exact size in bytes, where the source is LUKS and it is known; None takes all that is there.
    """

    operation: Operation
    source: str
    target: str
    passphrase: Secret
    new_passphrase: Secret | None = None
    size: int | None = None
    thoroughness: Thoroughness = "sample"

    @property
    def source_passphrase(self) -> Secret | None:
        return None if self.operation == "encrypt" else self.passphrase

    @property
    def target_passphrase(self) -> Secret | None:
        return {"encrypt": self.passphrase, "decrypt": None, "recrypt": self.new_passphrase}[self.operation]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`start` is where this run began (above 0: it went on), `compared` how much of the disk was verified; bytes."""

    size: int
    start: int
    compared: int


def run(copy: DiskCopy, report: Report) -> Outcome:
    """Carry out or go on with a copy, to the end. Raises ServiceError; the source is as it was in any case."""
    source_path = os.path.realpath(copy.source)
    folder, name = os.path.split(copy.target)
    if name in {"", ".", ".."}:
        raise Invalid("target_no_file", f"{copy.target!r} names no file", hint="give the path of the file to make")
    target_path = os.path.join(os.path.realpath(folder), name)
    with named_failures(source_path), ExitStack() as held:
        _check_ciphers()
        reading = held.enter_context(image_files.opened(source_path))
        image_files.lock_against_writers(reading)
        conversion = _conversion(copy, source_path, ImageFile(reading), report)
        fingerprint = _fingerprint(reading)
        _try_passphrase(source_path, reading, copy.source_passphrase)
        with named_failures(target_path):
            side = SideFile(target_path)
            mark = _claim(side, target_path, Mark(copy.operation, fingerprint, conversion.size), conversion, report)
            writing = held.enter_context(_opened_target(target_path, mark))
            mark = replace(mark, target=os.fstat(writing.fileno()).st_ino)
            start = mark.offset
            if start is not None:
                _check_begun(target_path, writing, conversion)
            checkpoints = Checkpoints(side, mark)
            checkpoints.save(start)
            images = ImageFile(reading), ImageFile(writing)
            # Which of the two a system call failed on does not show any more.
            with named_failures(f"{source_path} or {target_path}"):
                report.step(_GERUNDS[copy.operation], conversion.size)
                receipt = convert.convert(conversion, *images, start=start, progress=_Reporter(report, checkpoints))
                compared, mismatch = _verify(copy, conversion, images, report)
            if _fingerprint(reading) != fingerprint:
                raise _source_changed(source_path, target_path, side)
            if mismatch is not None:
                checkpoints.save(None)
                raise Conflict(
                    "verification_failed",
                    f"{target_path} differs from its source at byte {mismatch} of the disk",
                    hint="check the storage; the same command again writes the copy anew",
                )
            side.remove()
    return Outcome(conversion.size, receipt.start, compared)


def _check_ciphers() -> None:
    try:
        xts.self_check()
    except xts.SelfCheckFailed as exc:
        raise Conflict("self_check_failed", str(exc), hint="use another machine") from exc


def _conversion(copy: DiskCopy, path: str, image: ImageFile, report: Report) -> Conversion:
    """The disk's size, and what speaks against this source."""
    prefix = memoryview(bytearray(min(image.size, luks.HEADER_BYTES)))
    image.read(0, prefix)
    start = bytes(prefix[:8])
    if copy.operation == "encrypt":
        size = image.size
        if start.startswith(_QCOW2_MAGIC):
            raise Conflict(
                "source_is_qcow2", f"{path} is a qcow2 image", hint="make it raw first: qemu-img convert -O raw"
            )
        if start.startswith(b"LUKS\xba\xbe"):
            report.note(f"{path} is a LUKS volume already: the copy will be encrypted twice")
        if size % SECTOR_BYTES:
            report.note(f"{path} ends inside a sector: decrypt the copy with --size {size} to get exactly this back")
    else:
        size = _payload_size(copy, path, image)
    if not 0 < size <= convert.MAX_DISK_BYTES:
        raise Conflict("image_empty", f"{path} holds a disk of {size} bytes", hint="there is nothing to copy")
    passphrase = copy.target_passphrase
    return Conversion(
        size=size,
        source_passphrase=copy.source_passphrase,
        target_passphrase=passphrase,
        iterations=MIN_ITERATIONS if passphrase is None else _iterations(passphrase),
    )


def _payload_size(copy: DiskCopy, path: str, image: ImageFile) -> int:
    payload = image.size - len(convert.read_prefix(image))
    if copy.size is None:
        if payload % SECTOR_BYTES:
            raise Conflict(
                "image_short",
                f"{path} ends inside a sector: it is damaged or cut off",
                hint=f"to copy what is whole of it: --size {payload - payload % SECTOR_BYTES}",
            )
        return payload
    if not 0 < copy.size <= whole_sectors(copy.size) <= payload:
        raise Invalid("size_does_not_fit", f"{path} holds {payload} bytes of a disk, not {copy.size}")
    return copy.size


def _iterations(passphrase: Secret) -> int:
    """Few for what has the form of this console's own random passphrases, many for what a person may have made up."""
    value = passphrase.reveal()
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        # `from None`: the cause would carry the passphrase.
        raise Invalid("passphrase_no_text", "the passphrase is not valid utf-8, which qemu insists on") from None
    is_ours = len(value) == _OWN_PASSPHRASE_BYTES and _HEX.issuperset(value)
    return MIN_ITERATIONS if is_ours else luks.TYPED_PASSPHRASE_ITERATIONS


def _fingerprint(file: BinaryIO) -> str:
    """Inode, size, modification time. Not the device: its number may be another after a restart of the machine."""
    facts = os.fstat(file.fileno())
    return f"{facts.st_ino}.{facts.st_size}.{facts.st_mtime_ns}"


def _try_passphrase(path: str, file: BinaryIO, passphrase: Secret | None) -> None:
    """Before anything is made: a wrong passphrase leaves no trace. `path` says which of two passphrases it is."""
    if passphrase is None:
        return
    with named_failures(path):
        luks.unlock(convert.read_prefix(ImageFile(file)), passphrase)


def _claim(side: SideFile, path: str, fresh: Mark, conversion: Conversion, report: Report) -> Mark:
    """The mark to go on from; a new one, saved, when there is no target. Refuses every other file at `path`."""
    mark = side.load()
    try:
        facts = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        _check_space(path, conversion, 0, report)
        side.save(fresh)
        return fresh
    if mark is None:
        raise Conflict("target_exists", f"{path} exists already", hint="it is not overwritten: give another name")
    is_ours = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid()
    # Without an inode the earlier run was killed before or while it made the target, which then is empty.
    if not is_ours or (facts.st_size if mark.target is None else facts.st_ino != mark.target):
        raise Conflict(
            "target_changed", f"{path} is not the file that the interrupted run made", hint=_anew(path, side)
        )
    if mark.operation != fresh.operation:
        raise Conflict(
            "resume_other_operation",
            f"{path} was begun by `disk {mark.operation}`",
            hint=f"go on with that, or {_anew(path, side)}",
        )
    if mark.source != fresh.source:
        raise _source_changed("the source", path, side)
    if mark.size != fresh.size:
        raise Conflict(
            "resume_other_size",
            f"{path} was begun for a disk of {mark.size} bytes, not {fresh.size}",
            hint=f"give the same --size, or {_anew(path, side)}",
        )
    _check_space(path, conversion, facts.st_blocks * 512, report)
    return mark


def _anew(path: str, side: SideFile) -> str:
    return f"to begin anew delete {path} and {side.path}"


def _source_changed(source: str, target: str, side: SideFile) -> Conflict:
    return Conflict(
        "source_changed",
        f"{source} is not as it was when the copy {target} was begun",
        hint=f"see who writes to it; {_anew(target, side)}",
    )


def _check_space(path: str, conversion: Conversion, taken: int, report: Report) -> None:
    """A LUKS target takes all its bytes; of a raw one the zeros are left out, so that less may do."""
    missing, free = conversion.target_bytes - taken, image_files.free_bytes(path)
    if missing <= free:
        return
    if conversion.target_passphrase is not None:
        raise Conflict(
            "no_space", f"{path} needs {missing} bytes more, {free} are free", hint="free some, or take another folder"
        )
    report.note(f"{path} may need {missing} bytes more, {free} are free; less when the disk has empty parts")


@contextmanager
def _opened_target(path: str, mark: Mark) -> Iterator[BinaryIO]:
    """The target for reading and writing, made when it is missing, with other runs and QEMU locked out."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if not os.path.lexists(path):
        flags |= os.O_CREAT | os.O_EXCL
    with open(os.open(path, flags, 0o600), "r+b", buffering=0) as file:
        file.name = path
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or mark.target not in {None, facts.st_ino}:
            raise Conflict("target_changed", f"{path} was replaced meanwhile", hint="see who writes to this folder")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("target_busy", f"another run is writing to {path}", hint="wait for it to end") from None
        image_files.lock_against_writers(file)
        image_files.sync_folder(path)
        yield file


def _check_begun(path: str, file: BinaryIO, conversion: Conversion) -> None:
    """What is to be gone on with has its full length from the start, and opens with the passphrase."""
    size = os.fstat(file.fileno()).st_size
    if size != conversion.target_bytes:
        raise Conflict(
            "target_changed",
            f"{path} has {size} bytes, the interrupted run left {conversion.target_bytes}",
            hint="delete it to begin anew",
        )
    _try_passphrase(path, file, conversion.target_passphrase)


def _verify(
    copy: DiskCopy, conversion: Conversion, images: tuple[ImageFile, ImageFile], report: Report
) -> tuple[int, int | None]:
    """Bytes compared, and where the first difference is."""
    if copy.thoroughness == "none":
        return 0, None
    full = copy.thoroughness == "full"
    report.step("verifying" if full else "verifying samples", conversion.size)
    result = verify.verify(conversion, *images, full=full, advance=report.advance if full else None)
    return result.compared_bytes, result.mismatch


@final
class _Reporter:
    """The engine's progress: to who looks, and into the side file."""

    def __init__(self, report: Report, checkpoints: Checkpoints) -> None:
        self._report = report
        self._checkpoints = checkpoints

    def advance(self, done_bytes: int) -> None:
        self._report.advance(done_bytes)

    def checkpoint(self, offset: int) -> None:
        self._checkpoints.save(offset)


@contextmanager
def named_failures(path: str) -> Iterator[None]:
    """Turns what the engine and the system raise about the image `path` into ServiceErrors that name it."""
    try:
        yield
    except luks.KeyslotLocked as exc:
        raise Refused(
            "wrong_passphrase",
            f"{path}: {exc}",
            hint="see whether the key file belongs to this image; one line end at its end is dropped",
        ) from exc
    except luks.NotLuks as exc:
        raise Conflict("not_luks", f"{path}: {exc}", hint="see what it is: disk info") from exc
    except luks.BadHeader as exc:
        raise Conflict("luks_header_damaged", f"{path}: {exc}", hint="restore it from a copy of this image") from exc
    except qcow2.BadQcow2 as exc:
        raise Conflict(
            "image_unusable", f"{path}: {exc}", hint="restore it from a copy; or see qemu-img check"
        ) from exc
    except (ImageError, luks.LuksError, xts.EqualKeyHalves) as exc:
        raise Conflict("image_unusable", f"{path}: {exc}", hint="see what it is: disk info") from exc
    except image_files.FileMissing as exc:
        raise NotFound("image_missing", str(exc)) from exc
    except image_files.NotRegular as exc:
        raise Invalid("image_not_regular", str(exc), hint="only disks in regular files can be copied") from exc
    except image_files.InUse as exc:
        raise Conflict("image_in_use", str(exc), hint="shut the virtual machine down") from exc
    except image_files.ImageFileError as exc:
        raise Unavailable("image_unreadable", str(exc)) from exc
    except OSError as exc:
        raise Unavailable(
            "storage_error",
            f"{exc.filename or path}: {exc.strerror}",
            hint="when that is mended, the same command again goes on",
        ) from exc
