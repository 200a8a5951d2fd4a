"""The conversion of a small image in this process's memory: what it holds in clear never comes near a disk."""

import os
from typing import BinaryIO

from encryption.engine import convert
from encryption.engine.convert import Conversion
from encryption.engine.image import ImageFile


def converted(conversion: Conversion, content: bytes) -> bytes:
    """The whole image that `content`, an image of `conversion`'s source, becomes. Raises ImageError, LuksError."""
    with _memory() as reading, _memory() as writing:
        reading.write(content)
        convert.convert(conversion, ImageFile(reading), ImageFile(writing), start=None, progress=_Quiet())
        return os.pread(writing.fileno(), conversion.target_bytes, 0)


def _memory() -> BinaryIO:
    """An anonymous file of this process."""
    return open(os.memfd_create("image", os.MFD_CLOEXEC), "r+b", buffering=0)


class _Quiet:
    """It is done before anybody could read about it."""

    def advance(self, done_bytes: int) -> None:
        """Nothing."""

    def checkpoint(self, offset: int) -> None:
        """Nothing."""
