"""Files on a host through libvirt's storage API: nothing of ours runs there, and no path need be mounted here.

libvirt reads and writes files as volumes of a pool. Where no pool covers a file's folder, a transient one is made for
the moment of the call; its name begins with POOL_PREFIX, so that it is never taken for a datastore.
"""

import posixpath
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import libvirt
from lxml import etree

from inventory.engine.hypervisor import OperationRefused

POOL_PREFIX: Final = "bartizan-"
_CHUNK: Final = 256 * 1024
_CONFLICTS: Final = frozenset({libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_ERR_NO_STORAGE_POOL})


def read(connection: libvirt.virConnect, path: str, *, offset: int, length: int) -> bytes:
    """Up to `length` bytes from `offset`; a negative offset counts from the end. May raise libvirtError."""
    with _pool(connection, path) as pool:
        volume = _volume(pool, path)
        # info() looks at the file now; the number of the last refresh would hide what was written since.
        size = volume.info()[1]
        begin = max(0, size + offset) if offset < 0 else offset
        length = min(length, size - begin)
        if length <= 0:
            return b""
        stream = connection.newStream(0)
        try:
            volume.download(stream, begin, length, 0)
            parts: list[bytes] = []
            while part := stream.recv(_CHUNK):
                parts.append(part)
            stream.finish()
        except libvirt.libvirtError:
            with suppress(libvirt.libvirtError):
                stream.abort()
            raise
        return b"".join(parts)


def create(connection: libvirt.virConnect, path: str, *, size: int, head: bytes) -> None:
    """A sparse file, mode 0600, that begins with `head`. May raise libvirtError."""
    root = etree.Element("volume")
    etree.SubElement(root, "name").text = posixpath.basename(path)
    etree.SubElement(root, "capacity", {"unit": "bytes"}).text = str(size)
    etree.SubElement(root, "allocation").text = "0"
    target = etree.SubElement(root, "target")
    etree.SubElement(target, "format", {"type": "raw"})
    etree.SubElement(etree.SubElement(target, "permissions"), "mode").text = "0600"
    with _pool(connection, path) as pool:
        volume = pool.createXML(etree.tostring(root, encoding="unicode"), 0)
        if not head:
            return
        stream = connection.newStream(0)
        try:
            volume.upload(stream, 0, len(head), 0)
            sent = 0
            while sent < len(head):
                sent += stream.send(head[sent : sent + _CHUNK])
            stream.finish()
        except libvirt.libvirtError:
            with suppress(libvirt.libvirtError):
                stream.abort()
            with suppress(libvirt.libvirtError):
                volume.delete(0)
            raise


def delete(connection: libvirt.virConnect, path: str, *, wipe: bool) -> None:
    """May raise libvirtError."""
    with _pool(connection, path) as pool:
        try:
            volume = _volume(pool, path)
        except libvirt.libvirtError as exc:
            if exc.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
                return
            raise
        if wipe:
            volume.wipe(0)
        volume.delete(0)


def wipe(connection: libvirt.virConnect, path: str) -> None:
    """Overwrites a file with zeros and leaves it; none there is no error. May raise libvirtError."""
    with _pool(connection, path) as pool:
        try:
            _volume(pool, path).wipe(0)
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise


def _volume(pool: libvirt.virStoragePool, path: str) -> libvirt.virStorageVol:
    name = posixpath.basename(path)
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
    pool.refresh(0)  # the file is younger than libvirt's list
    return pool.storageVolLookupByName(name)


@contextmanager
def _pool(connection: libvirt.virConnect, path: str) -> Iterator[libvirt.virStoragePool]:
    folder, name = posixpath.split(posixpath.normpath(path))
    if not folder.startswith("/") or folder == "/" or not name:
        raise OperationRefused("bad_path", "a file on a host is named by an absolute path")
    pool, is_ours = _find_or_make(connection, folder)
    try:
        yield pool
    finally:
        if is_ours:
            with suppress(libvirt.libvirtError):  # a reader at our side may have ended it
                pool.destroy()


def _find_or_make(connection: libvirt.virConnect, folder: str) -> tuple[libvirt.virStoragePool, bool]:
    """Two callers may want the same folder at once: then libvirt refuses the second pool, and the first serves both."""
    tries = 3
    while True:
        tries -= 1
        try:
            pool = connection.storagePoolLookupByTargetPath(folder)
            if pool.isActive():
                return pool, False
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                raise
        root = etree.Element("pool", {"type": "dir"})
        etree.SubElement(root, "name").text = POOL_PREFIX + secrets.token_hex(6)
        etree.SubElement(etree.SubElement(root, "target"), "path").text = folder
        try:
            return connection.storagePoolCreateXML(etree.tostring(root, encoding="unicode"), 0), True
        except libvirt.libvirtError as exc:
            if not tries or exc.get_error_code() not in _CONFLICTS:
                raise
