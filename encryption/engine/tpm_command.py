"""TPM 2.0 commands as bytes, and answers read from bytes: the few that a virtual TPM's certificates need.

Codes, structures and attributes: TCG, TPM 2.0 Library, parts 2 and 3. Authorizations are empty passwords: that of the
platform is empty after each start of a TPM until firmware sets one. Sending them is the caller's matter.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

PLATFORM: Final = 0x4000000C
ENDORSEMENT: Final = 0x4000000B
_PASSWORD: Final = bytes.fromhex("40000009 0000 00 0000")
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_HEADER: Final = struct.Struct(">HII")
_RETRY: Final = 0x922  # TPM_RC_RETRY: it tests an algorithm at its first use, and wants the command again
_ATTEMPTS: Final = 20
_MAX_ANSWER: Final = 8192
_CAP_HANDLES: Final = 1
_MOST_HANDLES: Final = 256
MAX_NV_BYTES: Final = 2048  # of one index, libtpms' MAX_NV_INDEX_SIZE
_NV_CHUNK: Final = 512

PPWRITE, WRITELOCKED, WRITEDEFINE = 1 << 0, 1 << 11, 1 << 13
PPREAD, OWNERREAD, AUTHREAD = 1 << 16, 1 << 17, 1 << 18
NO_DA, WRITTEN, PLATFORMCREATE = 1 << 25, 1 << 29, 1 << 30

Transmit = Callable[[bytes], bytes]
"""Sends one command to a TPM and returns its whole answer."""


class TpmRefused(Exception):
    """The TPM's answer is not success; `code` is its TPM_RC."""

    def __init__(self, doing: str, code: int) -> None:
        super().__init__(f"the TPM refuses to {doing}: TPM_RC 0x{code:03x}")
        self.code = code


class BadAnswer(Exception):
    """The answer is no TPM 2.0 answer, or not one to the command."""


@dataclass(frozen=True, slots=True)
class NvPublic:
    """An NV index: its TPMA_NV `attributes`, and the size of its content in bytes."""

    index: int
    attributes: int
    size: int


def startup(transmit: Transmit) -> None:
    """TPM2_Startup(CLEAR): as at a power-on."""
    _run(transmit, "start", 0x144, parameters=b"\x00\x00")


def shutdown(transmit: Transmit) -> None:
    """TPM2_Shutdown(CLEAR), so that the next start is not counted as one after a power cut."""
    _run(transmit, "shut down", 0x145, parameters=b"\x00\x00")


def nv_indexes(transmit: Transmit, first: int) -> tuple[int, ...]:
    """The NV indexes that are defined, from `first` on; at most 256."""
    parameters = struct.pack(">III", _CAP_HANDLES, first, _MOST_HANDLES)
    answer = _Reader(_run(transmit, "list its NV indexes", 0x17A, parameters=parameters))
    answer.take(1)  # whether there are more
    if answer.number(4) != _CAP_HANDLES:
        raise BadAnswer("it tells of another capability")
    count = answer.number(4)
    if count > _MOST_HANDLES:
        raise BadAnswer(f"it tells of {count} indexes")
    return tuple(answer.number(4) for _ in range(count))


def nv_public(transmit: Transmit, index: int) -> NvPublic:
    answer = _Reader(_run(transmit, "show an NV index", 0x169, handles=(index,)))
    public = _Reader(answer.sized())
    if public.number(4) != index:
        raise BadAnswer("it shows another NV index")
    public.take(2)  # nameAlg
    attributes = public.number(4)
    public.sized()  # authPolicy
    size = public.number(2)
    if size > MAX_NV_BYTES:
        raise BadAnswer(f"NV index {index:#x} claims {size} bytes")
    return NvPublic(index, attributes, size)


def nv_read(transmit: Transmit, public: NvPublic) -> bytes:
    """The whole content of an index that is written and may be read by its own empty password or by the platform."""
    authority = public.index if public.attributes & AUTHREAD else PLATFORM
    content = b""
    while len(content) < public.size:
        length = min(_NV_CHUNK, public.size - len(content))
        answer = _Reader(
            _run(
                transmit, "read an NV index", 0x14E, handles=(authority, public.index), session=True,
                parameters=struct.pack(">HH", length, len(content)),
            )
        )  # fmt: skip
        piece = answer.sized()
        if len(piece) != length:
            raise BadAnswer("it reads less than was asked for")
        content += piece
    return content


def nv_undefine(transmit: Transmit, index: int) -> None:
    """By the platform, which defined it."""
    _run(transmit, "remove an NV index", 0x122, handles=(PLATFORM, index), session=True)


def nv_define(transmit: Transmit, public: NvPublic) -> None:
    """By the platform, with an empty password of its own, name algorithm SHA-256 and no policy."""
    area = struct.pack(">IHIHH", public.index, 0x000B, public.attributes, 0, public.size)
    parameters = _sized(b"") + _sized(area)
    _run(transmit, "define an NV index", 0x12A, handles=(PLATFORM,), session=True, parameters=parameters)


def nv_write(transmit: Transmit, index: int, content: bytes) -> None:
    for offset in range(0, len(content), _NV_CHUNK):
        parameters = _sized(content[offset : offset + _NV_CHUNK]) + offset.to_bytes(2, "big")
        _run(transmit, "write an NV index", 0x137, handles=(PLATFORM, index), session=True, parameters=parameters)


def nv_write_lock(transmit: Transmit, index: int) -> None:
    """For ever, where the index has WRITEDEFINE: only its removal by the platform opens it again."""
    _run(transmit, "lock an NV index", 0x138, handles=(PLATFORM, index), session=True)


def primary_public(transmit: Transmit, template: bytes) -> bytes:
    """The TPMT_PUBLIC of the endorsement hierarchy's primary key of that template; the key is unloaded again."""
    parameters = _sized(_sized(b"") + _sized(b"")) + _sized(template) + _sized(b"") + bytes(4)
    answer = _run(
        transmit, "make its endorsement key", 0x131, handles=(ENDORSEMENT,), session=True, parameters=parameters,
        returns_handle=True,
    )  # fmt: skip
    reader = _Reader(answer)
    handle = reader.take(4)
    public = reader.sized()
    _run(transmit, "unload a key", 0x165, parameters=handle)
    return public


def _run(
    transmit: Transmit,
    doing: str,
    code: int,
    *,
    handles: tuple[int, ...] = (),
    session: bool = False,
    parameters: bytes = b"",
    returns_handle: bool = False,
) -> bytes:
    """The answer behind its header: a handle, if one is returned, then the parameters."""
    body = b"".join(handle.to_bytes(4, "big") for handle in handles)
    if session:
        body += len(_PASSWORD).to_bytes(4, "big") + _PASSWORD
    body += parameters
    command = _HEADER.pack(_SESSIONS if session else _NO_SESSIONS, _HEADER.size + len(body), code) + body
    result = _RETRY
    for _ in range(_ATTEMPTS):
        answer = transmit(command)
        if not _HEADER.size <= len(answer) <= _MAX_ANSWER:
            raise BadAnswer(f"an answer of {len(answer)} bytes")
        tag, size, result = _HEADER.unpack_from(answer)
        if size != len(answer):
            raise BadAnswer("an answer of another length than it says")
        if result == 0:
            if tag != (_SESSIONS if session else _NO_SESSIONS):
                raise BadAnswer("an answer with the wrong tag")
            return _without_sessions(answer[_HEADER.size :], returns_handle=returns_handle) if session else answer[10:]
        if result != _RETRY:
            break
    raise TpmRefused(doing, result)


def _without_sessions(body: bytes, *, returns_handle: bool) -> bytes:
    """Drops the size of the parameters, and the sessions behind them."""
    reader = _Reader(body)
    handle = reader.take(4) if returns_handle else b""
    return handle + reader.take(reader.number(4))


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


class _Reader:
    """Takes bytes from the front. Raises BadAnswer where there are not that many."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, length: int) -> bytes:
        if length > len(self._data):
            raise BadAnswer("an answer that ends too soon")
        taken, self._data = self._data[:length], self._data[length:]
        return taken

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))


def public_key_fields(public: bytes) -> tuple[bool, int, bytes, bytes]:
    """Of a TPMT_PUBLIC with a key that has no scheme of its own: (is RSA, exponent or curve, modulus or x, y)."""
    reader = _Reader(public)
    kind = reader.number(2)
    if kind not in (0x0001, 0x0023):
        raise BadAnswer("a key that is neither RSA nor ECC")
    reader.take(2 + 4)  # nameAlg, objectAttributes
    reader.sized()  # authPolicy
    if reader.number(2) != 0x0010:  # symmetric
        reader.take(4)
    if reader.number(2) != 0x0010:  # scheme
        raise BadAnswer("a key with a scheme")
    if kind == 0x0001:
        reader.take(2)  # keyBits
        exponent = reader.number(4) or 65537
        return True, exponent, reader.sized(), b""
    curve = reader.number(2)
    if reader.number(2) != 0x0010:  # kdf
        raise BadAnswer("a key with a key derivation")
    return False, curve, reader.sized(), reader.sized()
