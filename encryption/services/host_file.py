"""A file on a host whose files no worker reaches, as the engine sees an image: through libvirt's storage API."""

from encryption.engine.image import Extent, ImageError, ShortImage
from inventory.services.connections import Hypervisor


class HostFile:
    """A Source, and written in place. Nobody can ask libvirt for its holes, so all of it counts as data."""

    def __init__(self, hypervisor: Hypervisor, path: str, size: int) -> None:
        self._hypervisor = hypervisor
        self._path = path
        self.size = size

    def extent_at(self, offset: int) -> Extent:
        return Extent(offset, self.size, hole=False)

    def read(self, offset: int, into: memoryview) -> None:
        found = self._hypervisor.read_file(self._path, offset=offset, length=len(into)) if into else b""
        if len(found) != len(into):
            raise ShortImage(f"image ends at byte {offset + len(found)}, {len(into) - len(found)} bytes too early")
        into[:] = found

    def forget(self, offset: int, n_bytes: int) -> None:
        """Nothing: the host's memory is the host's."""

    def write(self, offset: int, content: memoryview) -> None:
        """Sent, then read back. Raises ImageError where the host does not have what was sent."""
        sent = bytes(content)
        self._hypervisor.overwrite_file(self._path, sent, offset=offset)
        if self._hypervisor.read_file(self._path, offset=offset, length=len(sent)) != sent:
            raise ImageError(f"{len(sent)} bytes at {offset} are not what was sent")

    def sync(self) -> None:
        """Nothing: libvirt offers none. The host's kernel writes in its own time."""
