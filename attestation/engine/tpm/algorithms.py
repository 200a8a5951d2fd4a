"""TPM_ALG_ID values as far as a verifier meets them (TCG Algorithm Registry; TPM 2.0 Library, part 2, section 6.3)."""

import hashlib
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from cryptography.hazmat.primitives import hashes

ALG_NULL = 0x0010
ALG_RSA = 0x0001
ALG_ECC = 0x0023
ALG_AES = 0x0006
ALG_CFB = 0x0043


class _Digest(Protocol):
    def digest(self) -> bytes: ...


class HashAlg(IntEnum):
    """A hash, and with it a PCR bank. The value is the TPM_ALG_ID."""

    SHA1 = 0x0004
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D

    @property
    def size(self) -> int:
        """Bytes of a digest."""
        return _SIZES[self]

    @property
    def label(self) -> str:
        """As people and tools write it: sha1, sha256, sha384, sha512."""
        return _LABELS[self]

    @property
    def is_weak(self) -> bool:
        """SHA-1: recognised, because old logs and banks have it, and never a proof."""
        return self is HashAlg.SHA1

    @property
    def primitive(self) -> hashes.HashAlgorithm:
        """The same hash for `cryptography`."""
        return _PRIMITIVES[self]

    @property
    def function(self) -> "Callable[[bytes | bytearray | memoryview], _Digest]":
        """The hash as hashlib has it, for those who digest much in a row."""
        return _FUNCTIONS[self]

    def digest(self, data: bytes | bytearray | memoryview) -> bytes:
        """H(data)."""
        return _FUNCTIONS[self](data).digest()

    @classmethod
    def of_label(cls, label: str) -> "HashAlg":
        """The hash of that name. Raises KeyError for any other."""
        return _OF_LABEL[label]


def _sha1(data: bytes | bytearray | memoryview) -> _Digest:
    # Replaying an old bank is no security decision of ours: what rests on SHA-1 is judged weak, and told.
    return hashlib.sha1(data, usedforsecurity=False)


_SIZES = {HashAlg.SHA1: 20, HashAlg.SHA256: 32, HashAlg.SHA384: 48, HashAlg.SHA512: 64}
_LABELS = {alg: alg.name.lower() for alg in HashAlg}
_OF_LABEL = {label: alg for alg, label in _LABELS.items()}
_FUNCTIONS: dict[HashAlg, Callable[[bytes | bytearray | memoryview], _Digest]] = {
    HashAlg.SHA1: _sha1,
    HashAlg.SHA256: hashlib.sha256,
    HashAlg.SHA384: hashlib.sha384,
    HashAlg.SHA512: hashlib.sha512,
}
_PRIMITIVES: dict[HashAlg, hashes.HashAlgorithm] = {
    HashAlg.SHA1: hashes.SHA1(),  # noqa: S303  recognised, and judged weak
    HashAlg.SHA256: hashes.SHA256(),
    HashAlg.SHA384: hashes.SHA384(),
    HashAlg.SHA512: hashes.SHA512(),
}


class SignatureScheme(IntEnum):
    """TPMI_ALG_SIG_SCHEME, the asymmetric ones that attestation keys use."""

    RSASSA = 0x0014
    RSAPSS = 0x0016
    ECDSA = 0x0018


class Curve(IntEnum):
    """TPM_ECC_CURVE, the NIST curves."""

    NIST_P256 = 0x0003
    NIST_P384 = 0x0004
    NIST_P521 = 0x0005

    @property
    def bytes(self) -> int:
        """Bytes of a coordinate."""
        return _CURVE_BYTES[self]


_CURVE_BYTES = {Curve.NIST_P256: 32, Curve.NIST_P384: 48, Curve.NIST_P521: 66}
