"""Keyslots of an image: a passphrase is added, or removed, and the volume key stays as it is.

Order of writes: what is added has its key material on stable storage before the header names it; what is removed is
out of the header before its key material is overwritten, and a removal that was cut short is completed by the next
one. At every point of a crash the passphrase that is kept opens the image. QEMU is locked out meanwhile.

Where no worker reaches the files, the same bytes are written through the storage API of the VM's host, each read back
before the next (`HostFile`). libvirt offers no sync, so the old keyslots stay until the host's kernel has had the time
to write the new ones. No lock is held there: a QEMU that starts meanwhile reads one header or the other, both good for
the passphrase that its definition names, and never writes to either. No key goes to the host.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from encryption.adapters import image_files
from encryption.adapters.image_files import ImageFileError
from encryption.engine import convert, luks
from encryption.engine.image import ImageError, ImageFile
from encryption.engine.secret import Secret
from encryption.models import WrappedSecret
from encryption.services import write_back
from encryption.services.host_file import HostFile
from encryption.services.part_files import PartFiles
from encryption.services.parts import opens, path_in
from encryption.services.release import open_secrets
from inventory.errors import Conflict, Unavailable
from inventory.jobs import Progress
from inventory.models import Job
from inventory.services.connections import VmFacts


@contextmanager
def added(rows: list[WrappedSecret], facts: VmFacts, files: PartFiles, progress: Progress) -> Iterator[None]:
    """Gives the image of each replaced secret a keyslot for the secret that replaces it; the definition is switched
    inside. Until the block ends no VM can be started from those images, where a worker reaches them. Can be repeated.

    Nothing is written before all is known to fit, and before the job's checkpoint says that it may have been.
    """
    keys = _passphrases(rows)
    with _all_opened([(row, _path(_replaced(row), facts)) for row in rows], files) as images:
        prefixes: list[bytes | None] = []
        for row, image in zip(rows, images, strict=True):
            with _named(row):
                prefix = convert.read_prefix(image)
                new = keys[row]
                prefixes.append(None if _fits(prefix, new) else luks.add_passphrase(prefix, keys[_replaced(row)], new))
        write_back.begun(progress, keyslots=True)
        for row, image, written in zip(rows, images, prefixes, strict=True):
            with _named(row):
                if written is not None:
                    _write_added(image, written)
        yield


def may_be_added(row: WrappedSecret, job: Job) -> bool:
    """Whether a job, this one or the one that began with the row, has come so far as to write keyslots."""
    if row.job_id is None:
        return True
    begun = job if row.job_id == job.pk else Job.objects.filter(pk=row.job_id).first()
    return begun is None or bool(begun.checkpoint.get("keyslots"))


def remove_replaced(row: WrappedSecret, facts: VmFacts, files: PartFiles, progress: Progress) -> None:
    """Destroys the keyslot of the replaced secret, once the definition names the new one. Can be repeated."""
    write_back.wait(files, progress, "the new keyslots", "destroying the old keyslots")
    _remove(row, _path(row, facts), files, gone=_replaced(row), kept=row)


def take_back(row: WrappedSecret, facts: VmFacts, files: PartFiles) -> None:
    """Destroys the new keyslot: the image is as it was before `added`. An image that is gone has none."""
    old = _replaced(row)
    path = _path(old, facts)
    if files.exist(path):
        _remove(row, path, files, gone=row, kept=old)


def _remove(row: WrappedSecret, path: str, files: PartFiles, *, gone: WrappedSecret, kept: WrappedSecret) -> None:
    keys = _passphrases([row])
    with _all_opened([(row, path)], files) as (image,), _named(row):
        prefix = convert.read_prefix(image)
        rest = luks.remove_passphrase(prefix, keys[gone], keys[kept])
        if rest != prefix:
            _write_removed(image, rest)


def _replaced(row: WrappedSecret) -> WrappedSecret:
    assert row.replaces is not None  # noqa: S101  only rows with `shares_image` come here
    return row.replaces


def _passphrases(rows: list[WrappedSecret]) -> dict[WrappedSecret, Secret]:
    opened = open_secrets([*rows, *map(_replaced, rows)])
    return {one.row: one.passphrase for one in opened}


def _path(row: WrappedSecret, facts: VmFacts) -> str:
    if not opens(facts, row):
        raise Conflict(
            "definition_changed",
            f"{row}: the VM's definition was changed outside this console",
            hint="bring back the definition that this console made",
        )
    return path_in(facts, row)


@contextmanager
def _all_opened(places: list[tuple[WrappedSecret, str]], files: PartFiles) -> Iterator[list[ImageFile | HostFile]]:
    """Images for reading and writing; those that a worker reaches with QEMU locked out."""
    with ExitStack() as held:
        yield [_opened(row, path, files, held) for row, path in places]


def _opened(row: WrappedSecret, path: str, files: PartFiles, held: ExitStack) -> ImageFile | HostFile:
    with _named(row):
        if not files.are_reached:
            return _opened_on_host(path, files)
        file = held.enter_context(image_files.opened(path, write=True))
        image_files.lock_against_writers(file)
    return ImageFile(file)


def _opened_on_host(path: str, files: PartFiles) -> HostFile:
    found = files.hypervisor.file_facts(path)
    if found is None:
        raise image_files.FileMissing(f"there is no file {path}")
    if not found.is_regular:
        raise image_files.NotRegular(f"{path} is no regular file")
    return HostFile(files.hypervisor, path, found.size)


def _fits(prefix: bytes, passphrase: Secret) -> bool:
    try:
        luks.unlock(prefix, passphrase)
    except luks.KeyslotLocked:
        return False
    return True


def _write_added(image: ImageFile | HostFile, prefix: bytes) -> None:
    image.write(luks.HEADER_BYTES, memoryview(prefix)[luks.HEADER_BYTES :])
    image.sync()
    image.write(0, memoryview(prefix)[: luks.HEADER_BYTES])
    image.sync()


def _write_removed(image: ImageFile | HostFile, prefix: bytes) -> None:
    image.write(0, memoryview(prefix)[: luks.HEADER_BYTES])
    image.sync()
    image.write(luks.HEADER_BYTES, memoryview(prefix)[luks.HEADER_BYTES :])
    image.sync()


@contextmanager
def _named(row: WrappedSecret) -> Iterator[None]:
    """What the engine and the system raise, as ServiceErrors that name the part."""
    try:
        yield
    except luks.NoFreeKeyslot as exc:
        raise Conflict(
            "no_free_keyslot", f"{row}: {exc}", hint="remove one with cryptsetup luksKillSlot, or make new volume keys"
        ) from exc
    except image_files.InUse as exc:
        raise Conflict("image_in_use", f"{row}: {exc}", hint="shut the VM down, then apply again") from exc
    except image_files.FileMissing as exc:
        raise Conflict("image_missing", f"{row}: {exc}", hint="check the datastore") from exc
    except image_files.NotRegular as exc:
        raise Conflict("image_not_regular", f"{row}: {exc}", hint="give the real path") from exc
    except (ImageError, ImageFileError, luks.LuksError) as exc:
        raise Conflict("image_unreadable", f"{row}: {exc}", hint="check the datastore") from exc
    except OSError as exc:
        raise Unavailable(
            "datastore_error", f"{row}: {exc.strerror}", hint="look at the datastore, then apply again"
        ) from exc
