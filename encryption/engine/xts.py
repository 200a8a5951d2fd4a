"""AES-256-XTS over runs of 512-byte sectors: the payload cipher of LUKS (`aes-xts-plain64`).

Two paths give the same bytes (IEEE 1619, NIST SP 800-38E):

- the fast path: the tweaks of about a thousand sectors at once with numpy, and one call of the module's AES-ECB for
  all of them. AES runs inside the crypto module, the XTS arithmetic around it (xor, doubling in GF(2^128)) here;
- the per-sector path: the module's own XTS, one call a sector, several times slower. For sites that want the whole
  mode inside the module boundary.

`self_check` proves both equal to the standard's vector and to each other; workers call it when they start. XTS does
not authenticate: a changed sector decrypts to noise and is not noticed here.
"""

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import constant_time
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from encryption.engine.secret import Secret

SECTOR_BYTES = 512
VOLUME_KEY_BYTES = 64
_HALF_BYTES = VOLUME_KEY_BYTES // 2
_BLOCKS = SECTOR_BYTES // 16
_WORDS = SECTOR_BYTES // 8
# 512 KiB of data with tweaks and scratch fits a level-2 cache; measured best between 0.25 and 4 MiB.
_RUN_SECTORS = 1024
# The ECB call asks for one block less a byte of slack behind its output.
_ECB_SLACK = 16
_SECTOR_NUMBERS = 1 << 64

# Little-endian whatever the machine: XTS reads tweak and sector number least significant byte first.
_WORD = np.dtype("<u8")
_Words = npt.NDArray[np.uint64]

Buffer = bytes | bytearray | memoryview


class EqualKeyHalves(ValueError):
    """Both halves of the XTS key are the same, which FIPS 140 (IG C.I) forbids and no honest generator produces."""


class SelfCheckFailed(Exception):
    """This machine's AES-XTS gives wrong results; nothing may be encrypted or decrypted with it."""


class Xts:
    """AES-256-XTS under one volume key (64 bytes: data key, then tweak key). Holds scratch space: one thread only."""

    def __init__(self, volume_key: Secret, *, per_sector: bool = False) -> None:
        """Raise ValueError for a key of another length, EqualKeyHalves for two equal halves."""
        key = volume_key.reveal()
        if len(key) != VOLUME_KEY_BYTES:
            raise ValueError(f"an AES-256-XTS key has {VOLUME_KEY_BYTES} bytes")
        if constant_time.bytes_eq(key[:_HALF_BYTES], key[_HALF_BYTES:]):
            raise EqualKeyHalves("the two halves of the volume key are equal")
        self.per_sector = per_sector
        self._volume_key = volume_key
        self._whole = algorithms.AES(key)
        data = Cipher(algorithms.AES(key[:_HALF_BYTES]), modes.ECB())  # noqa: S305 - XTS is built around it
        self._data_encryptor = data.encryptor()
        self._data_decryptor = data.decryptor()
        self._tweak_encryptor = Cipher(algorithms.AES(key[_HALF_BYTES:]), modes.ECB()).encryptor()  # noqa: S305
        self._tweaks = np.empty((_RUN_SECTORS, _BLOCKS, 2), dtype=_WORD)
        self._masked = bytearray(_RUN_SECTORS * SECTOR_BYTES)
        self._ciphered = bytearray(_RUN_SECTORS * SECTOR_BYTES + _ECB_SLACK)

    def twin(self) -> "Xts":
        """Return another one under the same key, for another thread."""
        return Xts(self._volume_key, per_sector=self.per_sector)

    def encrypt(self, data: Buffer, first_sector: int) -> bytes:
        """Encrypt whole sectors; `first_sector` is the number of the first, counted from the payload's start."""
        out = bytearray(len(data))
        self.encrypt_into(data, memoryview(out), first_sector)
        return bytes(out)

    def decrypt(self, data: Buffer, first_sector: int) -> bytes:
        """Reverse of `encrypt`."""
        out = bytearray(len(data))
        self.decrypt_into(data, memoryview(out), first_sector)
        return bytes(out)

    def encrypt_into(self, data: Buffer, out: memoryview, first_sector: int) -> None:
        """Encrypt `data` into `out` (as long as `data`; may be the same memory)."""
        self._run(data, out, first_sector, encrypting=True)

    def decrypt_into(self, data: Buffer, out: memoryview, first_sector: int) -> None:
        """Decrypt `data` into `out` (as long as `data`; may be the same memory)."""
        self._run(data, out, first_sector, encrypting=False)

    def _run(self, data: Buffer, out: memoryview, first_sector: int, *, encrypting: bool) -> None:
        n_bytes = len(data)
        if n_bytes % SECTOR_BYTES:
            raise ValueError(f"{n_bytes} bytes are not whole sectors of {SECTOR_BYTES}")
        if len(out) != n_bytes:
            raise ValueError("input and output differ in length")
        if first_sector < 0 or first_sector + n_bytes // SECTOR_BYTES > _SECTOR_NUMBERS:
            raise ValueError("sector number out of range for plain64")
        if self.per_sector:
            self._by_sector(memoryview(data), out, first_sector, encrypting=encrypting)
            return
        source = memoryview(data)
        run_bytes = _RUN_SECTORS * SECTOR_BYTES
        for start in range(0, n_bytes, run_bytes):
            end = min(start + run_bytes, n_bytes)
            self._by_run(source[start:end], out[start:end], first_sector + start // SECTOR_BYTES, encrypting=encrypting)

    def _by_run(self, data: memoryview, out: memoryview, first_sector: int, *, encrypting: bool) -> None:
        n_bytes = len(data)
        n_words = n_bytes // 8
        tweaks = self._sector_tweaks(first_sector, n_bytes // SECTOR_BYTES).reshape(n_words)
        masked = np.frombuffer(self._masked, dtype=_WORD, count=n_words)
        np.bitwise_xor(np.frombuffer(data, dtype=_WORD), tweaks, out=masked)
        aes = self._data_encryptor if encrypting else self._data_decryptor
        ciphered = memoryview(self._ciphered)[: n_bytes + _ECB_SLACK]
        aes.update_into(memoryview(self._masked)[:n_bytes], ciphered)
        result = np.frombuffer(self._ciphered, dtype=_WORD, count=n_words)
        np.bitwise_xor(result, tweaks, out=np.frombuffer(out, dtype=_WORD))

    def _sector_tweaks(self, first_sector: int, n_sectors: int) -> _Words:
        """Return the tweaks of all blocks as words (sector, block, low/high)."""
        numbers = np.zeros((n_sectors, 2), dtype=_WORD)
        numbers[:, 0] = np.arange(n_sectors, dtype=_WORD) + np.uint64(first_sector)
        start = np.frombuffer(self._tweak_encryptor.update(numbers.tobytes()), dtype=_WORD).reshape(n_sectors, 2)
        tweaks = self._tweaks[:n_sectors]
        low = start[:, 0].copy()
        high = start[:, 1].copy()
        carry = np.empty_like(low)
        spill = np.empty_like(low)
        for block in range(_BLOCKS):
            tweaks[:, block, 0] = low
            tweaks[:, block, 1] = high
            # Times x in GF(2^128): shift left by one, and fold the bit that falls out back in as 0x87 (IEEE 1619, 5.2).
            np.right_shift(high, 63, out=spill)
            np.multiply(spill, 0x87, out=spill)
            np.right_shift(low, 63, out=carry)
            np.left_shift(high, 1, out=high)
            np.bitwise_or(high, carry, out=high)
            np.left_shift(low, 1, out=low)
            np.bitwise_xor(low, spill, out=low)
        return tweaks

    def _by_sector(self, data: memoryview, out: memoryview, first_sector: int, *, encrypting: bool) -> None:
        for start in range(0, len(data), SECTOR_BYTES):
            number = first_sector + start // SECTOR_BYTES
            cipher = Cipher(self._whole, modes.XTS(number.to_bytes(16, "little")))
            context = cipher.encryptor() if encrypting else cipher.decryptor()
            end = start + SECTOR_BYTES
            out[start:end] = context.update(data[start:end]) + context.finalize()


# IEEE 1619-2007, annex B, vector 10 (XTS-AES-256, 512-byte data unit number 0xff). The standard's keys are the digits
# of e and pi; the plaintext is 00..ff twice.
_VECTOR_KEY = bytes.fromhex(
    "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592"
)
_VECTOR_SECTOR = 0xFF
_VECTOR_PLAIN = bytes(range(256)) * 2
_VECTOR_CIPHER_HEAD = bytes.fromhex("1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b")
_VECTOR_CIPHER_TAIL = bytes.fromhex("c4f36ffda9fcea70b9c6e693e148c151")


def self_check() -> None:
    """Check both paths against IEEE 1619 and each other, both ways; raise SelfCheckFailed at the first difference."""
    fast = Xts(Secret(_VECTOR_KEY))
    by_sector = Xts(Secret(_VECTOR_KEY), per_sector=True)
    known = fast.encrypt(_VECTOR_PLAIN, _VECTOR_SECTOR)
    if not (known.startswith(_VECTOR_CIPHER_HEAD) and known.endswith(_VECTOR_CIPHER_TAIL)):
        raise SelfCheckFailed("aes-xts: known answer of IEEE 1619 not met")
    # More than one run, and sector numbers that carry into the upper half of the 64-bit counter.
    plain = (_VECTOR_PLAIN + _VECTOR_PLAIN[::-1]) * (_RUN_SECTORS // 2 + 1)
    first_sector = (1 << 32) - 3
    ciphered = fast.encrypt(plain, first_sector)
    if ciphered != by_sector.encrypt(plain, first_sector):
        raise SelfCheckFailed("aes-xts: vectorised and per-sector encryption differ")
    if fast.decrypt(ciphered, first_sector) != plain or by_sector.decrypt(ciphered, first_sector) != plain:
        raise SelfCheckFailed("aes-xts: decryption does not reverse encryption")
