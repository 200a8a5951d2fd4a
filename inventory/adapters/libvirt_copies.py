"""Copies of disk images that a host makes by itself (virStorageVolCreateXMLFrom, which runs qemu-img there).

Measured with libvirt 9.0:

- It formats a LUKS target itself, with a key derivation calibrated to seconds; nothing in the XML makes it cheaper.
- The call blocks, cannot be broken off, and goes on when its client dies. Until it has ended, its pool refuses to be
  destroyed: that is how an earlier copy to the same file is found.
- Progress is how much of the file is allocated, asked through *another* pool. Asked through its own, libvirt takes the
  mode that the file has at that moment (0644) for the one that was wanted, and does not make it 0600 at the end.
- A LUKS source is known as one only where a secret for its very path exists when its pool is refreshed.
- libvirt makes an object id for QEMU of the name of a LUKS image's file, and QEMU takes letters, digits and -._ only.
- An `<ivgen>` with a hash makes a header that says "xts-plain64:sha256", which is not what cryptsetup writes.
"""

import hashlib
import posixpath
import queue
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import libvirt
from lxml import etree

from inventory.adapters import libvirt_connections
from inventory.adapters.libvirt_files import POOL_PREFIX, own_pool
from inventory.engine.hypervisor import HostImage, HostUnreachable, HypervisorError, ImageKey, OperationRefused
from inventory.engine.uri import HostUri

POLL_SECONDS: Final = 0.5
# A host whose storage hangs still keeps its connection alive. Longer than any file system takes to look at one file.
SILENCE_SECONDS: Final = 60.0
_CALIBRATION_FAILED: Final = "Unable to get accurate CPU usage"
_QEMU_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class _Ended:
    error: libvirt.libvirtError | HypervisorError | None


def copy(uri: HostUri, source: HostImage, target: HostImage, *, size: int, advance: Callable[[int], None]) -> None:
    """See `Hypervisor.copy_image`. Over two connections of its own. May raise libvirtError and HypervisorError."""
    for image in (source, target):
        if image.key is not None and not _QEMU_ID.fullmatch(posixpath.basename(image.path)):
            raise OperationRefused(
                "file_name_unusable",
                f"{image.path}: libvirt converts LUKS files only under a name of letters, digits and -._",
                hint="rename the file, beginning with a letter, and change the VM's definition",
            )
    told: queue.SimpleQueue[int | _Ended] = queue.SimpleQueue()
    ended = threading.Event()

    def work() -> None:
        error: libvirt.libvirtError | HypervisorError | None = None
        try:
            with libvirt_connections.checked_out(uri, timeout_seconds=15) as connection:
                _copy(connection, source, target, size)
        except (libvirt.libvirtError, HypervisorError) as exc:
            error = exc
        finally:
            ended.set()
            told.put(_Ended(error))

    def watch() -> None:
        with (
            suppress(libvirt.libvirtError, HypervisorError),
            libvirt_connections.checked_out(uri, timeout_seconds=15) as connection,
            _fresh_pool(connection, target.path, _pool_name("view", target.path)) as pool,
        ):
            done = 0
            while not ended.wait(POLL_SECONDS):
                with suppress(libvirt.libvirtError):  # whatever it says, it answers; a lost connection ends the copy
                    done = _allocated(pool, target.path)
                told.put(done)

    for run in (work, watch):
        threading.Thread(target=run, name=f"libvirt-{run.__name__}", daemon=True).start()
    try:
        while True:
            heard = told.get(timeout=SILENCE_SECONDS)
            if isinstance(heard, _Ended):
                break
            advance(min(heard, size))
    except queue.Empty:
        raise HostUnreachable(
            "host_silent",
            f"host {uri.label} said nothing about its copy for {SILENCE_SECONDS:.0f} s",
            hint="look at the host's storage, then try again",
        ) from None
    finally:
        ended.set()
    if heard.error is not None:
        raise heard.error


def _allocated(pool: libvirt.virStoragePool, path: str) -> int:
    """What the file takes on the host's disk; 0 while it is not there."""
    name = posixpath.basename(path)
    try:
        found: int = pool.storageVolLookupByName(name).info()[2]
        return found
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
    pool.refresh(0)
    return 0


def _copy(connection: libvirt.virConnect, source: HostImage, target: HostImage, size: int) -> None:
    with (
        _fresh_pool(connection, source.path, _pool_name("from", target.path)) as source_pool,
        _fresh_pool(connection, target.path, _pool_name("to", target.path)) as pool,
    ):
        folder = etree.fromstring(source_pool.XMLDesc(0).encode()).findtext("target/path")
        name = posixpath.basename(source.path)
        with (
            _secret(connection, source.key, f"{folder}/{name}"),
            _secret(connection, target.key, f"{POOL_PREFIX}{target.key.secret_uuid if target.key else ''}"),
        ):
            source_pool.refresh(0)
            volume = source_pool.storageVolLookupByName(name)
            _make(pool, _volume_xml(target, size), volume)


def _make(pool: libvirt.virStoragePool, xml: str, source: libvirt.virStorageVol) -> None:
    """QEMU's calibration sometimes sees no processor time used, on a busy host, and gives up; nothing is left then."""
    tries = 5
    while True:
        tries -= 1
        try:
            pool.createXMLFrom(xml, source, 0)
            return
        except libvirt.libvirtError as exc:
            if not tries or _CALIBRATION_FAILED not in (exc.get_error_message() or ""):
                raise


def _pool_name(role: str, path: str) -> str:
    """Tells which copy a pool belongs to, so that the next one to the same file finds it."""
    return f"{POOL_PREFIX}{role}-{hashlib.sha256(posixpath.normpath(path).encode()).hexdigest()[:16]}"


@contextmanager
def _fresh_pool(connection: libvirt.virConnect, path: str, name: str) -> Iterator[libvirt.virStoragePool]:
    """A pool of that name, made anew. Raises OperationRefused while an earlier copy uses the one that is there."""
    try:
        connection.storagePoolLookupByName(name).destroy()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR:  # "pool ... has asynchronous jobs running"
            raise OperationRefused(
                "copy_still_running",
                f"{path}: the host is still at an earlier copy, which cannot be broken off",
                hint="try again when it has ended",
            ) from exc
        if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
            raise
    with own_pool(connection, posixpath.dirname(posixpath.normpath(path)), name) as pool:
        yield pool


@contextmanager
def _secret(connection: libvirt.virConnect, key: ImageKey | None, usage: str) -> Iterator[None]:
    """The key as a private, ephemeral secret of that usage, gone afterwards."""
    if key is None:
        yield
        return
    _forget(connection, key.secret_uuid, usage)
    root = etree.Element("secret", {"ephemeral": "yes", "private": "yes"})
    etree.SubElement(root, "uuid").text = str(key.secret_uuid)
    etree.SubElement(etree.SubElement(root, "usage", {"type": "volume"}), "volume").text = usage
    secret = connection.secretDefineXML(etree.tostring(root, encoding="unicode"), 0)
    try:
        secret.setValue(key.passphrase, 0)
        yield
    finally:
        with suppress(libvirt.libvirtError):
            secret.undefine()


def _forget(connection: libvirt.virConnect, secret_uuid: UUID, usage: str) -> None:
    """What a killed worker left: libvirt allows one secret for a UUID, and one for a usage."""
    volume = libvirt.VIR_SECRET_USAGE_TYPE_VOLUME
    finders: tuple[Callable[[], libvirt.virSecret], ...] = (
        lambda: connection.secretLookupByUUIDString(str(secret_uuid)),
        lambda: connection.secretLookupByUsage(volume, usage),
    )
    for find in finders:
        try:
            find().undefine()
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
                raise


def _volume_xml(image: HostImage, size: int) -> str:
    root = etree.Element("volume")
    etree.SubElement(root, "name").text = posixpath.basename(image.path)
    etree.SubElement(root, "capacity", {"unit": "bytes"}).text = str(size)
    etree.SubElement(root, "allocation").text = "0"
    target = etree.SubElement(root, "target")
    etree.SubElement(target, "format", {"type": "raw" if image.key is not None else image.format})
    if image.key is None and image.format == "qcow2":
        etree.SubElement(target, "compat").text = "1.1"
    etree.SubElement(etree.SubElement(target, "permissions"), "mode").text = "0600"
    if image.key is not None:
        encryption = etree.SubElement(target, "encryption", {"format": "luks"})
        etree.SubElement(encryption, "secret", {"type": "passphrase", "uuid": str(image.key.secret_uuid)})
        etree.SubElement(encryption, "cipher", {"name": "aes", "size": "256", "mode": "xts", "hash": "sha256"})
        etree.SubElement(encryption, "ivgen", {"name": "plain64"})
    return etree.tostring(root, encoding="unicode")
