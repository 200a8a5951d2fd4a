"""Random bytes from the crypto module's own DRBG.

`os.urandom` and `secrets` read the kernel's generator, which lies outside the module boundary; key generation has
to stay inside it (FIPS 140-3, SP 800-133). The only call of `cryptography` that hands out plain DRBG output is
AESGCM.generate_key, so everything is put together from 32-byte draws.
"""

from itertools import repeat

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_DRAW_BYTES = 32


def draw(n_bytes: int) -> bytes:
    """Return `n_bytes` fresh random bytes, fit for keys, salts and stripes."""
    if n_bytes < 1:
        raise ValueError(f"cannot draw {n_bytes} random bytes")
    n_draws = -(-n_bytes // _DRAW_BYTES)
    return b"".join(map(AESGCM.generate_key, repeat(_DRAW_BYTES * 8, n_draws)))[:n_bytes]
