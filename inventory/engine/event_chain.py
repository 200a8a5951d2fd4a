"""The history as a chain: what makes any change of a sealed event show.

    digest(n) = SHA-256(digest(n - 1) || encoding(n)),  digest(0) = 32 zero bytes

`encoding` is the canonical JSON of every column that is shown, exported or sent, the sequence among them. `verify`
walks the chain in order and

1. looks for numbers that lack or come twice,
2. computes each digest anew from the row and the digest of the row before,
3. says of rows that do not fit whether they stand in another's place,
4. compares the end with where it is known to have been.

NOT proven by it alone: that nobody rebuilt the whole chain from some row on. For that a digest must be known from
elsewhere: the signed checkpoints (services/checkpoints.py). Nor that an event was true when it was sealed.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

FORMAT: Final = "bartizan-event-1"
START: Final = "00" * 32
"""The digest before the first event."""
LOOKED_AT_CLOSELY: Final = 24
"""So many rows that do not fit are compared with each other's places; the work grows with the cube."""

JsonValue = str | int | float | bool | None | Sequence["JsonValue"] | Mapping[str, "JsonValue"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event as its row has it. `time` is aware; `sequence` 0 and `digest` empty while it is not sealed."""

    id: int
    time: datetime
    kind: str
    severity: str
    outcome: str
    reason: str
    target_kind: str
    target_id: UUID | None
    target_name: str
    actor: str
    source_address: str
    message: str
    data: JsonValue
    job_id: UUID | None
    plan_digest: str
    sequence: int = 0
    digest: str = ""


class Damage(StrEnum):
    ALTERED = "altered"
    MISSING = "missing"
    INSERTED = "inserted"
    REORDERED = "reordered"
    TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the events numbered `first` to `last`."""

    damage: Damage
    first: int
    last: int

    @property
    def text(self) -> str:
        if self.first == self.last:
            return f"event {self.first} {_WORDS[self.damage][0]}"
        return f"events {self.first} to {self.last} {_WORDS[self.damage][1]}"


_WORDS: Final[Mapping[Damage, tuple[str, str]]] = {
    Damage.ALTERED: ("was altered after it was sealed", "were altered after they were sealed"),
    Damage.MISSING: ("is missing", "are missing"),
    Damage.INSERTED: ("was never sealed under this number", "were never sealed under these numbers"),
    Damage.REORDERED: ("stands in another's place", "stand in each other's places"),
    Damage.TRUNCATED: ("is missing at the end", "are missing at the end"),
}


def encoding(event: Recorded, sequence: int) -> bytes:
    """What is hashed of `event` as the `sequence`-th of the history."""
    shown: list[JsonValue] = [
        FORMAT,
        sequence,
        event.id,
        event.time.astimezone(UTC).isoformat(timespec="microseconds"),
        event.kind,
        event.severity,
        event.outcome,
        event.reason,
        event.target_kind,
        None if event.target_id is None else str(event.target_id),
        event.target_name,
        event.actor,
        event.source_address,
        event.message,
        event.data,
        None if event.job_id is None else str(event.job_id),
        event.plan_digest,
    ]
    return json.dumps(shown, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def digest(previous: str, event: Recorded, sequence: int) -> str:
    """The `sequence`-th digest, hexadecimal, after the digest `previous`. Raises ValueError where that is none."""
    return hashlib.sha256(bytes.fromhex(previous) + encoding(event, sequence)).hexdigest()


def sealed(events: Iterable[Recorded], *, after: int, previous: str) -> Iterator[tuple[int, int, str]]:
    """(id, sequence, digest) of each event, in the order given, behind the `after`-th, whose digest is `previous`."""
    for sequence, event in enumerate(events, after + 1):
        previous = digest(previous, event, sequence)
        yield event.id, sequence, previous


class Verifier:
    """One walk over the chain. `add` each sealed row in the order of its sequence, then read `findings`.

    `digest_at` keeps the digests of the sequences named in `marks`, as the rows have them, to be compared with
    checkpoints. Starts behind the `after`-th event, whose digest is known to be `previous`.
    """

    def __init__(self, *, after: int = 0, previous: str = START, marks: Iterable[int] = ()) -> None:
        self._stored, self._computed = previous, previous
        self._fitted, self._shift = (after, previous), 0
        self.last = after
        self.count = 0
        self.digest_at: dict[int, str] = {}
        self._marks = frozenset(marks)
        self._found: list[Finding] = []
        self._unfit: list[tuple[Recorded, str]] = []

    def add(self, event: Recorded) -> None:
        self.count += 1
        if event.sequence <= self.last:
            self._found.append(Finding(Damage.INSERTED, event.sequence, event.sequence))
            return
        place, before = event.sequence - self._shift, self._stored
        if event.sequence > self.last + 1:
            # The digest before this row is gone with its row, so whether this row fits cannot be said: the gap is told.
            self._found.append(Finding(Damage.MISSING, self.last + 1, event.sequence - 1))
            computed = event.digest if _is_digest(event.digest) else digest(before, event, place)
        else:
            computed = digest(before, event, place)
            if computed != event.digest and before != self._computed:
                # Of the row before only the digest may have been changed; then this one fits what it should have been.
                computed = digest(self._computed, event, place)
        if computed != event.digest and self._continues(event):
            computed = event.digest
        if computed == event.digest:
            self._fitted = (event.sequence - self._shift, event.digest)
        else:
            self._unfit.append((event, before))
        self._computed = computed
        self._stored = event.digest if _is_digest(event.digest) else computed
        self.last = event.sequence
        if event.sequence in self._marks:
            self.digest_at[event.sequence] = event.digest

    def _continues(self, event: Recorded) -> bool:
        """Whether it goes on where the last row ended that fitted: what stands between was put in, and the rest of the
        rows numbered anew. Not so where one of those between would fit behind it: then they stand in each other's
        places."""
        place, previous = self._fitted
        if digest(previous, event, place + 1) != event.digest:
            return False
        first = place + self._shift + 1
        between = [row for row, _ in self._unfit if row.sequence >= first][-LOOKED_AT_CLOSELY:]
        if any(digest(event.digest, row, place + 2) == row.digest for row in between):
            return False
        self._unfit = [(row, before) for row, before in self._unfit if row.sequence < first]
        self._found.append(Finding(Damage.INSERTED, first, event.sequence - 1))
        self._shift = event.sequence - place - 1
        return True

    def end(self, expected: int = 0) -> None:
        """No more rows come; `expected`: how far the history is known to have come."""
        if expected > self.last:
            self._found.append(Finding(Damage.TRUNCATED, self.last + 1, expected))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """By place; neighbours with the same damage are one finding."""
        return _merged([*self._found, *_looked_at(self._unfit)])


def verify(events: Iterable[Recorded], *, expected: int = 0) -> tuple[Finding, ...]:
    """What is wrong with the whole history, its sealed rows given in the order of their sequence."""
    walk = Verifier()
    for event in events:
        walk.add(event)
    walk.end(expected)
    return walk.findings


def _is_digest(text: str) -> bool:
    if len(text) != len(START):
        return False
    try:
        bytes.fromhex(text)
    except ValueError:
        return False
    return True


def _looked_at(unfit: Sequence[tuple[Recorded, str]]) -> Iterator[Finding]:
    """Of rows that do not follow the row before them: which were altered, and which are whole but stand elsewhere. One
    that fits its own place behind another of them is in order itself."""
    few = len(unfit) <= LOOKED_AT_CLOSELY
    places = {row.sequence for row, _ in unfit}
    known = {before for _, before in unfit} | {row.digest for row, _ in unfit if _is_digest(row.digest)}
    for row, _ in unfit:
        fitting = (
            [place for place in places for previous in known if digest(previous, row, place) == row.digest]
            if few
            else []
        )
        if row.sequence in fitting:
            continue
        damage = Damage.REORDERED if fitting else Damage.ALTERED
        yield Finding(damage, row.sequence, row.sequence)


def _merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    found: list[Finding] = []
    for one in sorted(findings, key=lambda finding: (finding.first, finding.damage)):
        if found and found[-1].damage == one.damage and one.first <= found[-1].last + 1:
            found[-1] = Finding(one.damage, found[-1].first, max(found[-1].last, one.last))
        else:
            found.append(one)
    return tuple(found)
