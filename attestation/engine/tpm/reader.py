"""A bounded reader of the TPM's big-endian structures (TPM 2.0 Library, part 2, section 5: marshalling).

Nothing is read past the end, and no length from the wire is believed before it is compared with a limit and with what
is there. All TPM structures of this package are read with it.
"""

import struct
from typing import ClassVar

from attestation.engine.errors import Malformed

_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")


class MalformedTpmStructure(Malformed):
    """No TPM structure, or not the one that was asked for."""

    what: ClassVar[str] = "TPM structure"


class Reader:
    """Reads on from `offset`. Every method raises MalformedTpmStructure when there are too few bytes."""

    __slots__ = ("_data", "offset")

    def __init__(self, data: bytes, offset: int = 0) -> None:
        self._data = data
        self.offset = offset

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes."""
        start, end = self.offset, self.offset + size
        if end > len(self._data):
            raise MalformedTpmStructure(f"{size} bytes of {what}", offset=start)
        self.offset = end
        return self._data[start:end]

    def u8(self, what: str) -> int:
        return self.take(1, what)[0]

    def u16(self, what: str) -> int:
        value: int = _U16.unpack(self.take(2, what))[0]
        return value

    def u32(self, what: str) -> int:
        value: int = _U32.unpack(self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = _U64.unpack(self.take(8, what))[0]
        return value

    def sized(self, limit: int, what: str) -> bytes:
        """A TPM2B: two bytes of size, then that many bytes, at most `limit`."""
        start = self.offset
        size = self.u16(f"the size of {what}")
        if size > limit:
            raise MalformedTpmStructure(f"{what} of at most {limit} bytes", offset=start)
        return self.take(size, what)

    def end(self, what: str) -> None:
        """Nothing may follow."""
        if self.offset != len(self._data):
            raise MalformedTpmStructure(f"the end of {what}", offset=self.offset)
