"""AES-256-XTS over runs of 512-byte sectors: the payload cipher of LUKS (`aes-xts-plain64`).

Two paths give the same bytes (IEEE 1619, NIST SP 800-38E):

- the fast path: the tweaks of about a thousand sectors at once with numpy, and one call of the module's AES-ECB for
  all of them. AES runs inside the crypto module, the XTS arithmetic around it (xor, doubling in GF(2^128)) here;
- the per-sector path: the module's own XTS, one call a sector, several times slower. For sites that want the whole
  mode inside the module boundary.

`self_check` proves both equal to the standard's vector and to each other; workers call it when they start. XTS does
not authenticate: a changed sector decrypts to noise and is not noticed here.
"""

import threading

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import constant_time
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from encryption.engine.secret import Secret

SECTOR_BYTES = 512
VOLUME_KEY_BYTES = 64
_HALF_BYTES = VOLUME_KEY_BYTES // 2
_BLOCKS = SECTOR_BYTES // 16
_DOUBLINGS = (1, 2, 4, 8, 16)
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
    """AES-256-XTS under one volume key (64 bytes: data key, then tweak key).

    Threads may share one: it computes for one of them at a time. Two at once would be slower, not faster: the many
    short calls fight for the interpreter's lock (measured: 1.3 against 1.7 GiB/s).
    """

    def __init__(self, volume_key: Secret, *, per_sector: bool = False) -> None:
        """Raise ValueError for a key of another length, EqualKeyHalves for two equal halves."""
        key = volume_key.reveal()
        if len(key) != VOLUME_KEY_BYTES:
            raise ValueError(f"an AES-256-XTS key has {VOLUME_KEY_BYTES} bytes")
        if constant_time.bytes_eq(key[:_HALF_BYTES], key[_HALF_BYTES:]):
            raise EqualKeyHalves("the two halves of the volume key are equal")
        self.per_sector = per_sector
        self._one_at_a_time = threading.Lock()
        self._whole = algorithms.AES(key)
        data = Cipher(algorithms.AES(key[:_HALF_BYTES]), modes.ECB())  # noqa: S305 - XTS is built around it
        self._data_encryptor = data.encryptor()
        self._data_decryptor = data.decryptor()
        self._tweak_encryptor = Cipher(algorithms.AES(key[_HALF_BYTES:]), modes.ECB()).encryptor()  # noqa: S305
        self._tweaks = np.empty((_RUN_SECTORS, _BLOCKS, 2), dtype=_WORD)
        self._planes = tuple(np.empty((_BLOCKS, _RUN_SECTORS), dtype=_WORD) for _ in range(4))
        self._ciphered = bytearray(_RUN_SECTORS * SECTOR_BYTES + _ECB_SLACK)

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
        with self._one_at_a_time:
            for start in range(0, n_bytes, run_bytes):
                end, sector = min(start + run_bytes, n_bytes), first_sector + start // SECTOR_BYTES
                self._by_run(source[start:end], out[start:end], sector, encrypting=encrypting)

    def _by_run(self, data: memoryview, out: memoryview, first_sector: int, *, encrypting: bool) -> None:
        n_bytes = len(data)
        n_words = n_bytes // 8
        tweaks = self._sector_tweaks(first_sector, n_bytes // SECTOR_BYTES).reshape(n_words)
        # `out` holds the masked blocks in between: one buffer less to go through the cache.
        result = np.frombuffer(out, dtype=_WORD)
        np.bitwise_xor(np.frombuffer(data, dtype=_WORD), tweaks, out=result)
        aes = self._data_encryptor if encrypting else self._data_decryptor
        aes.update_into(out, memoryview(self._ciphered)[: n_bytes + _ECB_SLACK])
        np.bitwise_xor(np.frombuffer(self._ciphered, dtype=_WORD, count=n_words), tweaks, out=result)

    def _sector_tweaks(self, first_sector: int, n_sectors: int) -> _Words:
        """Return the tweaks of all blocks as words (sector, block, low/high).

        A sector's blocks have the tweaks T, Tx, Tx^2 ... in GF(2^128) (IEEE 1619, 5.2). The first k of them times x^k
        are the next k, so five rounds make 32, each with a few calls on long arrays: the planes are (block, sector),
        low and high words apart.
        """
        numbers = np.zeros((n_sectors, 2), dtype=_WORD)
        numbers[:, 0] = np.arange(n_sectors, dtype=_WORD) + np.uint64(first_sector)
        start = np.frombuffer(self._tweak_encryptor.update(numbers.tobytes()), dtype=_WORD).reshape(n_sectors, 2)
        low, high, over, part = (plane[:, :n_sectors] for plane in self._planes)
        low[0], high[0] = start[:, 0], start[:, 1]
        for power in _DOUBLINGS:
            _multiply(low[:power], high[:power], power, low[power : 2 * power], high[power : 2 * power],
                      over[:power], part[:power])  # fmt: skip
        tweaks = self._tweaks[:n_sectors]
        tweaks[:, :, 0] = low.T
        tweaks[:, :, 1] = high.T
        return tweaks

    def _by_sector(self, data: memoryview, out: memoryview, first_sector: int, *, encrypting: bool) -> None:
        for start in range(0, len(data), SECTOR_BYTES):
            number = first_sector + start // SECTOR_BYTES
            cipher = Cipher(self._whole, modes.XTS(number.to_bytes(16, "little")))
            context = cipher.encryptor() if encrypting else cipher.decryptor()
            end = start + SECTOR_BYTES
            out[start:end] = context.update(data[start:end]) + context.finalize()


def _multiply(
    low: _Words, high: _Words, power: int, out_low: _Words, out_high: _Words, over: _Words, part: _Words
) -> None:
    """Write (low, high) times x^power into the `out` arrays, for power up to 16; `over` and `part` are scratch.

    Shift left by `power`; the bits that fall out at the top come back in as their product with x^7 + x^2 + x + 1.
    """
    np.right_shift(high, 64 - power, out=over)
    np.left_shift(low, power, out=out_low)
    np.bitwise_xor(out_low, over, out=out_low)
    for exponent in (1, 2, 7):
        np.left_shift(over, exponent, out=part)
        np.bitwise_xor(out_low, part, out=out_low)
    np.left_shift(high, power, out=out_high)
    np.right_shift(low, 64 - power, out=part)
    np.bitwise_or(out_high, part, out=out_high)


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
