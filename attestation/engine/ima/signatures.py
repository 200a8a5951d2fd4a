"""Signatures in security.ima (Linux, security/integrity/digsig.c): struct signature_v2_hdr, then the raw signature.

    u8 type 3 | u8 version 2 | u8 hash | u32 key id, big endian | u16 size, big endian | signature

over the file's digest: RSA with PKCS #1 v1.5, or ECDSA. The key id is the end of the key's SHA-1 identifier and only
tells which key to try. NOT supported: version 3 (fs-verity), whose files are then not approved by their signature.
"""

import struct
from binascii import Error as HexError
from binascii import unhexlify
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key

_HEADER = struct.Struct(">BBBIH")
_DIGSIG, _VERSION = 3, 2
_KEY_ID_BYTES = 4
MAX_SIGNATURE_BYTES = 1024

# enum hash_algo (include/uapi/linux/hash_info.h). SHA-1 is left out: a signature over it proves nothing today.
_HASHES: dict[int, tuple[bytes, hashes.HashAlgorithm]] = {
    4: (b"sha256", hashes.SHA256()),
    5: (b"sha384", hashes.SHA384()),
    6: (b"sha512", hashes.SHA512()),
}


class SigningKeys:
    """Public keys whose signatures approve files, by key id."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        """`keys`: DER SubjectPublicKeyInfo. Raises ValueError for one that is neither RSA nor EC."""
        self._keys: dict[bytes, list[rsa.RSAPublicKey | ec.EllipticCurvePublicKey]] = {}
        for der in keys:
            key = load_der_public_key(der)
            if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
                raise ValueError("an RSA or EC key")
            identifier = x509.SubjectKeyIdentifier.from_public_key(key).digest[-_KEY_ID_BYTES:]
            self._keys.setdefault(identifier, []).append(key)

    def approve(self, digest: bytes, signature: bytes) -> bool:
        """`digest` as in a measurement list, "sha256:<hex>"; `signature` raw, header first."""
        if not self._keys or not _HEADER.size < len(signature) <= _HEADER.size + MAX_SIGNATURE_BYTES:
            return False
        kind, version, algorithm, identifier, size = _HEADER.unpack_from(signature)
        if (kind, version) != (_DIGSIG, _VERSION) or algorithm not in _HASHES or size != len(signature) - _HEADER.size:
            return False
        name, hash_algorithm = _HASHES[algorithm]
        label, _, hexadecimal = digest.partition(b":")
        try:
            raw = unhexlify(hexadecimal)
        except HexError:
            return False
        if label != name or len(raw) != hash_algorithm.digest_size:
            return False
        candidates = self._keys.get(identifier.to_bytes(_KEY_ID_BYTES, "big"), [])
        return any(_is_by(key, signature[_HEADER.size :], raw, hash_algorithm) for key in candidates)


def _is_by(
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, signature: bytes, digest: bytes, algorithm: hashes.HashAlgorithm
) -> bool:
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, digest, padding.PKCS1v15(), Prehashed(algorithm))
        else:
            key.verify(signature, digest, ec.ECDSA(Prehashed(algorithm)))
    except InvalidSignature:
        return False
    return True
