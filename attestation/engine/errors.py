"""What a parser of the attestation engine raises. A negative verdict is never an exception: see findings.py."""

from typing import ClassVar


class Malformed(ValueError):
    """Bytes that are not what they should be. Tells where and what was expected, never the bytes themselves.

    One subclass for each concern, which sets `what`: the name of the structure, as the TCG writes it or as people say.
    `offset` is in bytes from the start of what the caller gave, or None where there is no such place.
    """

    what: ClassVar[str] = "attestation evidence"

    def __init__(self, expected: str, *, offset: int | None = None) -> None:
        place = "" if offset is None else f" at byte {offset}"
        super().__init__(f"malformed {self.what}: expected {expected}{place}")
        self.expected = expected
        self.offset = offset
