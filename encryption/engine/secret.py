"""One wrapper for every key and passphrase, so that none is printed, pickled or sent by accident.

What it does NOT do: wipe memory. Python bytes cannot be erased; a secret lives until its page is reused. The
processes that hold secrets must therefore not dump core, nor swap in clear.
"""

from typing import NoReturn, SupportsIndex, final

from cryptography.hazmat.primitives import constant_time
from typing_extensions import override

from encryption.engine import drbg


@final
class Secret:
    """Key or passphrase bytes. `reveal()` is the only way to them, which makes every use easy to search for."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        """Wrap `value`, which must not be empty (an empty key is always a mistake upstream)."""
        if not isinstance(value, bytes):
            raise TypeError("a secret is made of bytes")
        if not value:
            raise ValueError("a secret must not be empty")
        self._value = value

    @classmethod
    def generate(cls, n_bytes: int) -> "Secret":
        """Draw a new secret of `n_bytes` from the crypto module's DRBG."""
        return cls(drbg.draw(n_bytes))

    def reveal(self) -> bytes:
        """Return the bytes in clear. The caller keeps them out of logs, errors, argv and repr."""
        return self._value

    def passphrase_text(self) -> bytes:
        """Return the secret as lower-case hexadecimal ASCII, two characters a byte.

        QEMU takes a LUKS passphrase only when it is valid UTF-8, which 32 random bytes hardly ever are.
        """
        return self._value.hex().encode("ascii")

    def __len__(self) -> int:
        return len(self._value)

    # Defining equality takes the hash away, and it stays away: nothing needs secrets as dictionary keys.
    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return constant_time.bytes_eq(self._value, other._value)

    @override
    def __repr__(self) -> str:
        return "Secret(redacted)"

    @override
    def __str__(self) -> str:
        return "Secret(redacted)"

    @override
    def __format__(self, spec: str) -> str:
        return "Secret(redacted)"

    @override
    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")

    @override
    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")
