"""Files on a host through libvirt's storage API: nothing of ours runs there, and no path need be mounted here.

libvirt reads and writes files as volumes of a pool. Where no pool covers a file's folder, a transient one is made for
the moment of the call; its name begins with POOL_PREFIX, so that it is never taken for a datastore.
"""

import errno
import posixpath
import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

import libvirt
from lxml import etree

from inventory.engine.hypervisor import FileFacts, OperationRefused

POOL_PREFIX: Final = "bartizan-"
_MAX_POOLS: Final = 32
_CHUNK: Final = 256 * 1024
PIECE: Final = 4 * 2**20
_CONFLICTS: Final = frozenset({libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_ERR_NO_STORAGE_POOL})


def read(connection: libvirt.virConnect, path: str, *, offset: int, length: int) -> bytes:
    """Up to `length` bytes from `offset`; a negative offset counts from the end. May raise libvirtError."""
    with pool_of(connection, path) as pool:
        volume = _volume(pool, path)
        size = _physical(volume)
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


def create(connection: libvirt.virConnect, path: str, *, size: int, head: bytes, like: str = "") -> None:
    """A sparse file, mode 0600, that begins with `head`; with the owner of the file `like`. May raise libvirtError."""
    owner = _owner(connection, like) if like else ()
    with pool_of(connection, path) as pool:
        volume = pool.createXML(_volume_xml(path, size, owner), 0)
        if not head:
            return
        try:
            _send(connection, volume, head)
        except libvirt.libvirtError:
            with suppress(libvirt.libvirtError):
                volume.delete(0)
            raise


def overwrite(connection: libvirt.virConnect, path: str, content: bytes, *, offset: int = 0) -> None:
    """May raise libvirtError. NOT done: a sync; libvirt offers none."""
    with pool_of(connection, path) as pool:
        _send(connection, _volume(pool, path), content, offset=offset)


def facts(connection: libvirt.virConnect, path: str) -> FileFacts | None:
    """None where there is no such file or folder. May raise libvirtError.

    A link counts as what it points to: libvirt follows it. What is neither file, device nor folder is not there.
    """
    try:
        with pool_of(connection, path) as pool:
            volume = _volume(pool, path)
            kind = volume.info()[0]
            size = _physical(volume)
            root = etree.fromstring(volume.XMLDesc(0).encode(), etree.XMLParser(resolve_entities=False))
    except libvirt.libvirtError as exc:
        code = exc.get_error_code()
        no_folder = code == libvirt.VIR_ERR_SYSTEM_ERROR and exc.get_int1() == errno.ENOENT
        if no_folder or code == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise
    written = root.findtext("target/timestamps/mtime") or ""
    return FileFacts(size=size, state=f"{size}.{written}", is_regular=kind == libvirt.VIR_STORAGE_VOL_FILE)


def _send(connection: libvirt.virConnect, volume: libvirt.virStorageVol, content: bytes, *, offset: int = 0) -> None:
    stream = connection.newStream(0)
    try:
        volume.upload(stream, offset, len(content), 0)
        sent = 0
        while sent < len(content):
            sent += stream.send(content[sent : sent + _CHUNK])
        stream.finish()
    except libvirt.libvirtError:
        with suppress(libvirt.libvirtError):
            stream.abort()
        raise


def delete(connection: libvirt.virConnect, path: str, *, wipe: bool) -> None:
    """May raise libvirtError."""
    with pool_of(connection, path) as pool:
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
    with pool_of(connection, path) as pool:
        try:
            _volume(pool, path).wipe(0)
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise


def size_of(connection: libvirt.virConnect, path: str) -> int | None:
    """May raise libvirtError. A qcow2 image's capacity is another number: what its guest sees."""
    try:
        with pool_of(connection, path) as pool:
            return _physical(_volume(pool, path))
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise


def _physical(volume: libvirt.virStorageVol) -> int:
    return int(volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])


def download(connection: libvirt.virConnect, path: str) -> Iterator[bytes]:
    """Pieces of at most PIECE bytes. May raise libvirtError."""
    with pool_of(connection, path) as pool, ExitStack() as undo:
        volume = _volume(pool, path)
        stream = connection.newStream(0)
        volume.download(stream, 0, 0, 0)
        undo.callback(_abort, stream)
        piece = bytearray()
        while part := stream.recv(_CHUNK):
            piece += part
            if len(piece) > PIECE - _CHUNK:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)
        undo.pop_all()
        stream.finish()


def upload(connection: libvirt.virConnect, path: str, *, size: int, blocks: Iterable[tuple[int, bytes]]) -> None:
    """One stream for each run of adjoining blocks; what lies between stays a hole. May raise libvirtError."""
    with pool_of(connection, path) as pool, ExitStack() as undo:
        volume = pool.createXML(_volume_xml(path, size), 0)
        undo.callback(_delete_quietly, volume)
        stream: libvirt.virStream | None = None
        end = -1
        for offset, data in blocks:
            if stream is None or offset != end:
                if stream is not None:
                    stream.finish()
                stream = connection.newStream(0)
                volume.upload(stream, offset, 0, 0)
                undo.callback(_abort, stream)
            sent = 0
            while sent < len(data):
                sent += stream.send(data[sent : sent + _CHUNK])
            end = offset + len(data)
        if stream is not None:
            stream.finish()
        undo.pop_all()


def _abort(stream: libvirt.virStream) -> None:
    with suppress(libvirt.libvirtError):  # it may have ended already
        stream.abort()


def _delete_quietly(volume: libvirt.virStorageVol) -> None:
    with suppress(libvirt.libvirtError):
        volume.delete(0)


def make_folder(connection: libvirt.virConnect, path: str) -> None:
    """By building a pool there, which makes all folders that are missing. May raise libvirtError."""
    with suppress(libvirt.libvirtError):
        connection.storagePoolLookupByTargetPath(_folder(path))
        return
    pool = connection.storagePoolCreateXML(_pool_xml(_folder(path)), libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD)
    with suppress(libvirt.libvirtError):
        pool.destroy()


def remove_folder(connection: libvirt.virConnect, path: str) -> None:
    """libvirt's deletion of a folder pool is an rmdir: it spares one that holds anything."""
    with suppress(libvirt.libvirtError):
        pool = connection.storagePoolDefineXML(_pool_xml(_folder(path)), 0)
        with suppress(libvirt.libvirtError):
            pool.delete(0)
        pool.undefine()


def free_bytes(connection: libvirt.virConnect, folder: str) -> int:
    """May raise libvirtError."""
    with pool_of(connection, posixpath.join(folder, "any")) as pool:
        pool.refresh(0)
        return int(pool.info()[3])


def _folder(path: str) -> str:
    folder = posixpath.normpath(path)
    if not folder.startswith("/") or folder == "/":
        raise OperationRefused("bad_path", "a folder on a host is named by an absolute path")
    return folder


def _owner(connection: libvirt.virConnect, path: str) -> tuple[tuple[str, str], ...]:
    """Names and values of the elements that tell a file's owner."""
    with pool_of(connection, path) as pool:
        root = etree.fromstring(_volume(pool, path).XMLDesc(0).encode(), etree.XMLParser(resolve_entities=False))
    return tuple((name, root.findtext(f"target/permissions/{name}") or "") for name in ("owner", "group"))


def _volume_xml(path: str, size: int, owner: Iterable[tuple[str, str]] = ()) -> str:
    root = etree.Element("volume")
    etree.SubElement(root, "name").text = posixpath.basename(path)
    etree.SubElement(root, "capacity", {"unit": "bytes"}).text = str(size)
    etree.SubElement(root, "allocation").text = "0"
    target = etree.SubElement(root, "target")
    etree.SubElement(target, "format", {"type": "raw"})
    permissions = etree.SubElement(target, "permissions")
    etree.SubElement(permissions, "mode").text = "0600"
    for name, value in owner:
        etree.SubElement(permissions, name).text = value
    return etree.tostring(root, encoding="unicode")


def _pool_xml(folder: str, name: str = "") -> str:
    root = etree.Element("pool", {"type": "dir"})
    etree.SubElement(root, "name").text = name or POOL_PREFIX + secrets.token_hex(6)
    etree.SubElement(etree.SubElement(root, "target"), "path").text = folder
    return etree.tostring(root, encoding="unicode")


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
def pool_of(connection: libvirt.virConnect, path: str) -> Iterator[libvirt.virStoragePool]:
    """The pool that covers the file's folder, or one for the time of the block."""
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
        try:
            return connection.storagePoolCreateXML(_pool_xml(folder), 0), True
        except libvirt.libvirtError as exc:
            if not tries or exc.get_error_code() not in _CONFLICTS:
                raise


@contextmanager
def own_pool(connection: libvirt.virConnect, folder: str, name: str) -> Iterator[libvirt.virStoragePool]:
    """A pool that nobody else uses, whatever pools the folder has; ended afterwards. May raise libvirtError.

    libvirt refuses a second pool on a folder, but compares the texts of the paths only: /a and /a/. are two.
    """
    pool, depth = None, 0
    while pool is None:
        depth += 1
        try:
            pool = connection.storagePoolCreateXML(_pool_xml(folder + "/." * depth, name), 0)
        except libvirt.libvirtError as exc:
            if exc.get_error_code() not in _CONFLICTS or depth == _MAX_POOLS:
                raise
    try:
        yield pool
    finally:
        with suppress(libvirt.libvirtError):
            pool.destroy()
