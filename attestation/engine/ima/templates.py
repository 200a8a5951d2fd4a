"""IMA's templates: the fields of a line, and the template data that were hashed (security/integrity/ima in Linux).

    ima        <SHA-1> <name>               20 bytes, then the name padded with zeros to 256
    ima-ng     <hash>:<hex> <path>          each field: u32 length, little endian, then the data; texts end with NUL
    ima-sig    <hash>:<hex> <path> <hex>    the signature as stored in security.ima; empty where there is none
    ima-buf    <hash>:<hex> <name> <hex>    not a file: keys, the kexec command line, policies
    ima-ngv2, ima-sigv2                     the same, with ima: or verity: before the hash

The kernel writes an underscore for each space of a path, so a space always ends a field.
"""

from binascii import Error as HexError
from binascii import unhexlify
from collections.abc import Callable, Mapping
from typing import NamedTuple

_LEGACY_NAME_BYTES = 256
_LEGACY_DIGEST_BYTES = 20

# Linux' names of file hashes, to digest sizes. Only the size is looked at: no file is at hand to be hashed.
HASH_SIZES: Mapping[bytes, int] = {
    b"md5": 16,
    b"sha1": 20,
    b"rmd160": 20,
    b"sha224": 28,
    b"sha256": 32,
    b"sha384": 48,
    b"sha512": 64,
    b"sm3": 32,
    b"sm3-256": 32,
    b"wp256": 32,
    b"wp384": 48,
    b"wp512": 64,
    b"sha3-256": 32,
    b"sha3-384": 48,
    b"sha3-512": 64,
}
_DIGEST_TYPES = frozenset({b"ima", b"verity"})


class Unreadable(ValueError):
    """An unknown template, or fields that are not those of the template."""


class Fields(NamedTuple):
    """`data` is what the template hash is over; `digest` as in the list, "sha1:<hex>" for the first template."""

    data: bytes
    digest: bytes
    path: bytes
    signature: bytes = b""
    is_buffer: bool = False


def read(template: bytes, fields: list[bytes]) -> Fields:
    """`fields` are the words behind the template's name. Raises Unreadable."""
    reader = _READERS.get(template)
    if reader is None or not fields:
        raise Unreadable
    try:
        return reader(fields)
    except HexError as exc:
        raise Unreadable from exc


def digest_prefix(name: bytes) -> tuple[bytes, int]:
    """What stands before the raw digest in an ima-ng line's data, and the size of the digest. Raises Unreadable."""
    size = HASH_SIZES.get(name)
    if size is None:
        raise Unreadable
    return (len(name) + 2 + size).to_bytes(4, "little") + name + b":\0", size


def _ima(fields: list[bytes]) -> Fields:
    digest, path = fields[0], b" ".join(fields[1:])
    raw = unhexlify(digest)
    if len(raw) != _LEGACY_DIGEST_BYTES or not 0 < len(path) < _LEGACY_NAME_BYTES:
        raise Unreadable
    return Fields(raw + path.ljust(_LEGACY_NAME_BYTES, b"\0"), b"sha1:" + digest, path)


def _ima_ng(fields: list[bytes]) -> Fields:
    path = b" ".join(fields[1:])
    return Fields(_digest_field(fields[0], typed=False) + _text_field(path), fields[0], path)


def _ima_ng_v2(fields: list[bytes]) -> Fields:
    path = b" ".join(fields[1:])
    return Fields(_digest_field(fields[0], typed=True) + _text_field(path), fields[0], path)


def _ima_sig(fields: list[bytes]) -> Fields:
    return _with_hex(fields, typed=False)


def _ima_sig_v2(fields: list[bytes]) -> Fields:
    return _with_hex(fields, typed=True)


def _ima_buf(fields: list[bytes]) -> Fields:
    return _with_hex(fields, typed=False)._replace(signature=b"", is_buffer=True)


def _with_hex(fields: list[bytes], *, typed: bool) -> Fields:
    """A last column in hexadecimal digits; the line ends with a space where that is empty."""
    if len(fields) < 3:
        raise Unreadable
    path, last = b" ".join(fields[1:-1]), unhexlify(fields[-1])
    return Fields(_digest_field(fields[0], typed=typed) + _text_field(path) + _field(last), fields[0], path, last)


def _digest_field(digest: bytes, *, typed: bool) -> bytes:
    labels, _, hexadecimal = digest.rpartition(b":")
    kind, _, name = labels.rpartition(b":")
    raw = unhexlify(hexadecimal)
    if (kind in _DIGEST_TYPES) is not typed or (kind and not typed) or len(raw) != HASH_SIZES.get(name, -1):
        raise Unreadable
    return _field(labels + b":\0" + raw)


def _text_field(text: bytes) -> bytes:
    if not text:
        raise Unreadable
    return _field(text + b"\0")


def _field(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


_READERS: Mapping[bytes, Callable[[list[bytes]], Fields]] = {
    b"ima": _ima,
    b"ima-ng": _ima_ng,
    b"ima-sig": _ima_sig,
    b"ima-buf": _ima_buf,
    b"ima-ngv2": _ima_ng_v2,
    b"ima-sigv2": _ima_sig_v2,
}
