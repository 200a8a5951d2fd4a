"""Where the work of a recovery is shown."""

from typing import Protocol


class Report(Protocol):
    """A person looks at it, so no text here holds key material."""

    def note(self, text: str) -> None:
        """Something to know that stops nothing."""

    def step(self, name: str, total_bytes: int) -> None:
        """What begins now, and how much of it there is."""

    def advance(self, done_bytes: int) -> None:
        """How far the step has come. Called often: throttle."""
