"""From where a stream of messages has to be sent again when its connection breaks.

Syslog over TCP has no acknowledgement: what was written may lie in our own send buffer, in the collector's receive
buffer, or in its memory, and is lost with it. So whatever may not have been read and stored yet stays *in doubt*, and
is sent again over the next connection. Collectors tell repeated messages by their number.

A message is out of doubt when both hold:
1. it was written AGE_SECONDS ago, so that whoever has read it has had time to store it;
2. more octets were written after it than may lie unread: MARGIN, and what the connection itself says (`unread`).

NOT covered: a collector that reads and then loses what it keeps in memory for longer than AGE_SECONDS.
"""

from collections import deque
from typing import Final, Generic, TypeVar

Position = TypeVar("Position")

AGE_SECONDS: Final = 10.0
# A receive buffer of Linux begins with 128 KiB (tcp_rmem), and takes them without its window getting smaller.
MARGIN_OCTETS: Final = 128 * 1024


class SentWindow(Generic[Position]):
    """What one connection has carried, as long as it is in doubt. A position is where the stream goes on after it."""

    def __init__(self, start: Position) -> None:
        self._after = start
        self._batches: deque[tuple[Position, int, float]] = deque()
        self._octets = 0

    def note(self, after: Position, octets: int, now: float) -> None:
        """A batch of `octets` is about to be written; once it is, the stream goes on at `after`."""
        self._batches.append((self._after, octets, now))
        self._octets += octets
        self._after = after

    def settle(self, *, unread: int, now: float) -> None:
        """Takes out of doubt what has to be; only while the connection works, for only then `unread` is known."""
        while self._batches:
            _, octets, written = self._batches[0]
            if now - written < AGE_SECONDS or self._octets - octets < MARGIN_OCTETS + unread:
                return
            self._batches.popleft()
            self._octets -= octets

    def settle_all(self) -> None:
        """The collector has read to the end."""
        self._batches.clear()
        self._octets = 0

    @property
    def safe(self) -> Position:
        """From here on everything is sent again when the connection breaks."""
        return self._batches[0][0] if self._batches else self._after
