"""A stream encrypted under a passphrase: nothing of it is given out before its tag has been checked.

    magic | salt (16) | iterations (4, big endian) | chunk 0 | chunk 1 | ...

Each chunk is AES-256-GCM over 64 KiB (the last one over less, or nothing), tag behind it. The key comes from the
passphrase by PBKDF2-HMAC-SHA-256 (SP 800-132) with a fresh salt, so no two files share it and the nonce may be a
counter (SP 800-38D section 8.2.1): number of the chunk (11 bytes), then 1 for the last and 0 for others. So a chunk
that is changed, moved, missing or added is noticed, also at the end (STREAM: Hoang, Reyhanitabar, Rogaway and Vizar,
2015). The head stands as associated data in every chunk.
"""

import io
import os
import struct
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from typing_extensions import override

MAGIC: Final = b"Bartizan backup 1\n"
CHUNK: Final = 64 * 1024
ITERATIONS: Final = 600_000  # what OWASP asks for with SHA-256
MAX_ITERATIONS: Final = 10_000_000
MIN_PASSPHRASE: Final = 12
_SALT: Final = 16
_TAG: Final = 16
_COUNT: Final = struct.Struct(">I")
_HEAD: Final = len(MAGIC) + _SALT + _COUNT.size


class NotSealed(Exception):
    """No file of this kind, of another version, or with an impossible head."""


class DoesNotOpen(Exception):
    """The passphrase is another one, or the file was changed or cut."""


class SealedWriter(io.RawIOBase):
    """Writes what it is given to `target`, encrypted. Only `close` makes it whole; it leaves `target` open."""

    def __init__(self, target: BinaryIO, passphrase: str) -> None:
        super().__init__()
        self._target, self._waiting, self._number = target, bytearray(), 0
        self._head = MAGIC + os.urandom(_SALT) + _COUNT.pack(ITERATIONS)
        self._cipher = _cipher(self._head, passphrase)
        target.write(self._head)

    @override
    def writable(self) -> bool:
        return True

    @override
    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]  # of bytes, no buffers else
        self._waiting += data
        while len(self._waiting) > CHUNK:  # a full one may be the last: it waits
            self._put(bytes(self._waiting[:CHUNK]), is_last=False)
            del self._waiting[:CHUNK]
        return len(data)

    @override
    def close(self) -> None:
        if not self.closed:
            self._put(bytes(self._waiting), is_last=True)
        super().close()

    def _put(self, clear: bytes, *, is_last: bool) -> None:
        self._target.write(self._cipher.encrypt(_nonce(self._number, is_last), clear, self._head))
        self._number += 1


class SealedReader(io.RawIOBase):
    """Reads what a SealedWriter wrote. Raises NotSealed at once, DoesNotOpen at the first chunk that does not fit."""

    def __init__(self, source: BinaryIO, passphrase: str) -> None:
        super().__init__()
        self._head = source.read(_HEAD)
        if len(self._head) != _HEAD or not self._head.startswith(MAGIC):
            raise NotSealed
        self._cipher = _cipher(self._head, passphrase)
        self._source, self._number, self._clear, self._ended = source, 0, b"", False
        self._next = source.read(CHUNK + _TAG)

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        while not self._clear and not self._ended:
            self._open_next()
        given = min(len(buffer), len(self._clear))
        buffer[:given] = self._clear[:given]
        self._clear = self._clear[given:]
        return given

    def _open_next(self) -> None:
        sealed, self._next = self._next, self._source.read(CHUNK + _TAG)
        self._ended = not self._next
        try:
            self._clear = self._cipher.decrypt(_nonce(self._number, self._ended), sealed, self._head)
        except (InvalidTag, ValueError) as exc:
            raise DoesNotOpen from exc
        self._number += 1


def _nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])


def _cipher(head: bytes, passphrase: str) -> AESGCM:
    salt = head[len(MAGIC) : len(MAGIC) + _SALT]
    (iterations,) = _COUNT.unpack(head[-_COUNT.size :])
    if not ITERATIONS <= iterations <= MAX_ITERATIONS:
        raise NotSealed
    derived = PBKDF2HMAC(SHA256(), 32, salt, iterations).derive(passphrase.encode())
    return AESGCM(derived)
