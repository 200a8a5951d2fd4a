"""What lies in a host's folders, through libvirt's storage API: a folder pool lists its files and its folders."""

import errno
import logging
import posixpath
from collections.abc import Iterator
from typing import Final

import libvirt
from lxml import etree

from inventory.adapters import libvirt_errors
from inventory.adapters.libvirt_files import pool_of
from inventory.engine.hypervisor import ListedFile, OperationRefused

log = logging.getLogger(__name__)

DEPTH: Final = 4
MOST_FILES: Final = 50_000


def list_files(connection: libvirt.virConnect, folder: str) -> tuple[ListedFile, ...]:
    """May raise libvirtError, where the host is lost."""
    found: list[ListedFile] = []
    for facts in _below(connection, posixpath.normpath(folder), DEPTH):
        if len(found) >= MOST_FILES:
            raise OperationRefused(
                "too_many_files",
                f"{folder} holds more than {MOST_FILES} files",
                hint="give VMs a folder of their own, apart from other files",
            )
        found.append(facts)
    return tuple(found)


def _below(connection: libvirt.virConnect, folder: str, depth: int) -> Iterator[ListedFile]:
    deeper: list[str] = []
    try:
        with pool_of(connection, posixpath.join(folder, "any")) as pool:
            pool.refresh(0)
            for volume in pool.listAllVolumes(0):
                try:
                    kind = volume.info()[0]
                    if kind == libvirt.VIR_STORAGE_VOL_FILE:
                        yield _facts(volume)
                    elif kind == libvirt.VIR_STORAGE_VOL_DIR:
                        deeper.append(volume.path())
                except libvirt.libvirtError as exc:
                    if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                        raise  # else it is gone since it was listed
    except libvirt.libvirtError as exc:
        if libvirt_errors.is_lost(exc):
            raise
        if exc.get_int1() != errno.ENOENT:
            log.info("folder %s is not listed: %s", folder, libvirt_errors.text_of(exc))
        return
    if depth > 1:
        for path in deeper:
            yield from _below(connection, path, depth - 1)


def _facts(volume: libvirt.virStorageVol) -> ListedFile:
    root = etree.fromstring(
        volume.XMLDesc(0).encode(errors="surrogatepass"), etree.XMLParser(resolve_entities=False, no_network=True)
    )
    size = int(volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])
    capacity = int(root.findtext("capacity") or 0)
    return ListedFile(volume.path(), size, capacity, root.findtext("backingStore/path") or "")
