"""The anti-forensic splitter of LUKS1 (on-disk format specification 1.2.3, section 2.4).

A key is blown up to many stripes so that it is lost when any of them is; destroying a keyslot on media that keep old
blocks is then likelier to succeed.
"""

from cryptography.hazmat.primitives import hashes


def split(key: bytes, stripes: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
    """Return `stripes` and one more, computed; all of them are needed to get `key` back.

    `stripes` is fresh random bytes, a whole number of times as long as `key`.
    """
    return stripes + _xor(_fold(stripes, len(key), algorithm), key)


def merge(material: bytes, n_key_bytes: int, algorithm: hashes.HashAlgorithm) -> bytes:
    """Return the key of `n_key_bytes` in `material`, which is whole stripes. Does not check that the key is right."""
    if len(material) % n_key_bytes or not material:
        raise ValueError("key material is not whole stripes")
    return _xor(_fold(material[:-n_key_bytes], n_key_bytes, algorithm), material[-n_key_bytes:])


def _fold(stripes: bytes, n_key_bytes: int, algorithm: hashes.HashAlgorithm) -> bytes:
    """Each stripe onto the diffused sum of those before it."""
    # Diffusing hashes each digest-sized piece with its number in front: the thousands of stripes share that beginning.
    begun: list[tuple[hashes.Hash, int, int]] = []
    for number, start in enumerate(range(0, n_key_bytes, algorithm.digest_size)):
        numbered = hashes.Hash(algorithm)
        numbered.update(number.to_bytes(4, "big"))
        begun.append((numbered, start, min(start + algorithm.digest_size, n_key_bytes)))
    folded = bytes(n_key_bytes)
    for start in range(0, len(stripes), n_key_bytes):
        folded = _diffused(_xor(folded, stripes[start : start + n_key_bytes]), begun)
    return folded


def _diffused(block: bytes, begun: list[tuple[hashes.Hash, int, int]]) -> bytes:
    """The last digest is cut to what is left."""
    parts = []
    for numbered, start, end in begun:
        digest = numbered.copy()
        digest.update(block[start:end])
        parts.append(digest.finalize()[: end - start])
    return b"".join(parts)


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")
