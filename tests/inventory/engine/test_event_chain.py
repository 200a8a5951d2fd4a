"""The chain of events: whatever is done to its rows is found, and named."""

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inventory.engine.event_chain import START, Damage, Finding, Recorded, Verifier, digest, encoding, sealed, verify

BEGIN: Final = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ROWS: Final = 12


def event(number: int) -> Recorded:
    return Recorded(
        id=100 + number,
        time=BEGIN + timedelta(seconds=number),
        kind="vm.powered_on",
        severity="info",
        outcome="success",
        reason="",
        target_kind="vm",
        target_id=UUID(int=number),
        target_name=f"vm-{number}",
        actor="alice",
        source_address="192.0.2.1",
        message=f"vm-{number} was powered on",
        data={"host": "kvm-a", "parts": ["vda"]},
        job_id=None,
        plan_digest="",
    )


def chain(count: int = ROWS) -> list[Recorded]:
    rows = [event(number) for number in range(1, count + 1)]
    seals = sealed(rows, after=0, previous=START)
    return [replace(row, sequence=at, digest=seal) for row, (_, at, seal) in zip(rows, seals, strict=True)]


WHOLE: Final = chain()


def renumbered(rows: Sequence[Recorded]) -> list[Recorded]:
    return [replace(row, sequence=place) for place, row in enumerate(rows, 1)]


def test_a_whole_chain_has_no_findings() -> None:
    assert verify(WHOLE, expected=ROWS) == ()
    assert verify([]) == ()


def test_the_encoding_is_fixed() -> None:
    """Old digests must be checkable for good, so a change of the encoding is a change of its name."""
    assert encoding(event(1), 1) == (
        b'["bartizan-event-1",1,101,"2026-01-02T03:04:06.678901+00:00","vm.powered_on","info","success","","vm",'
        b'"00000000-0000-0000-0000-000000000001","vm-1","alice","192.0.2.1","vm-1 was powered on",'
        b'{"host":"kvm-a","parts":["vda"]},null,""]'
    )
    assert WHOLE[0].digest == "7adfe469f89075bfa3df798173fe5e48876f4749ee8b550929924e26d8884869"
    assert WHOLE[1].digest == digest(WHOLE[0].digest, WHOLE[1], 2)


def test_the_time_zone_of_a_row_does_not_matter() -> None:
    moved = replace(WHOLE[3], time=WHOLE[3].time.astimezone(timezone(timedelta(hours=5))))
    assert encoding(moved, 4) == encoding(WHOLE[3], 4)


CHANGES: Final[dict[str, st.SearchStrategy[Any]]] = {
    "id": st.integers(1, 10**6),
    "time": st.datetimes(timezones=st.just(UTC), min_value=datetime(2020, 1, 1)),  # noqa: DTZ001
    "target_id": st.none() | st.uuids(),
    "job_id": st.none() | st.uuids(),
    "data": st.dictionaries(st.text(max_size=3), st.none() | st.booleans() | st.integers() | st.text(max_size=3)),
    "digest": st.text("0123456789abcdef", min_size=64, max_size=64) | st.text(max_size=4),
}
COLUMNS: Final = [field.name for field in fields(Recorded) if field.name != "sequence"]


@given(column=st.sampled_from(COLUMNS), place=st.integers(0, ROWS - 1), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_altered_column_of_any_row_is_found(column: str, place: int, data: st.DataObject) -> None:
    value = data.draw(
        CHANGES.get(column, st.text(max_size=12)).filter(lambda new: new != getattr(WHOLE[place], column))
    )
    rows = list(WHOLE)
    rows[place] = replace(rows[place], **{column: value})
    assert verify(rows, expected=ROWS) == (Finding(Damage.ALTERED, place + 1, place + 1),)


@given(first=st.integers(1, ROWS), count=st.integers(1, ROWS))
@settings(max_examples=40, deadline=None)
def test_missing_rows_are_found(first: int, count: int) -> None:
    last = min(ROWS, first + count - 1)
    rows = [row for row in WHOLE if not first <= row.sequence <= last]
    damage = Damage.TRUNCATED if last == ROWS else Damage.MISSING
    assert verify(rows, expected=ROWS) == (Finding(damage, first, last),)


@given(first=st.integers(1, ROWS), count=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_rows_put_in_between_are_found_though_the_rest_was_numbered_anew(first: int, count: int) -> None:
    forged = [replace(event(50 + number), digest=f"{number:064x}") for number in range(count)]
    rows = renumbered([*WHOLE[: first - 1], *forged, *WHOLE[first - 1 :]])
    assert verify(rows, expected=ROWS + count) == (Finding(Damage.INSERTED, first, first + count - 1),)


@given(first=st.integers(1, ROWS))
@settings(max_examples=ROWS, deadline=None)
def test_a_forged_row_that_fits_where_it_stands_is_found_by_the_next_one(first: int) -> None:
    before = WHOLE[first - 2].digest if first > 1 else START
    forged = replace(event(50), digest=digest(before, event(50), first))
    assert verify(renumbered([*WHOLE[: first - 1], forged, *WHOLE[first - 1 :]]))


def test_a_number_that_comes_twice_is_found() -> None:
    rows = [*WHOLE[:5], replace(event(77), sequence=5, digest=WHOLE[4].digest), *WHOLE[5:]]
    assert verify(rows, expected=ROWS) == (Finding(Damage.INSERTED, 5, 5),)


@given(places=st.lists(st.integers(0, ROWS - 1), min_size=2, max_size=2, unique=True))
@settings(max_examples=30, deadline=None)
def test_rows_in_each_others_places_are_found(places: list[int]) -> None:
    one, other = places
    rows = list(WHOLE)
    rows[one] = replace(WHOLE[other], sequence=one + 1)
    rows[other] = replace(WHOLE[one], sequence=other + 1)
    found = verify(rows, expected=ROWS)
    named = {
        at for finding in found if finding.damage == Damage.REORDERED for at in range(finding.first, finding.last + 1)
    }
    assert {one + 1, other + 1} <= named


@given(order=st.permutations(range(ROWS)).filter(lambda order: order != list(range(ROWS))))
@settings(max_examples=30, deadline=None)
def test_any_other_order_is_found(order: list[int]) -> None:
    assert verify(renumbered([WHOLE[place] for place in order]), expected=ROWS)


def test_a_rebuilt_chain_fits_and_differs_from_a_known_digest() -> None:
    """What the chain alone cannot prove, and why checkpoints are signed."""
    forged = [event(number) for number in range(1, ROWS + 1)]
    forged[3] = replace(forged[3], actor="mallory")
    rebuilt = [
        replace(row, sequence=at, digest=seal)
        for row, (_, at, seal) in zip(forged, sealed(forged, after=0, previous=START), strict=True)
    ]
    walk = Verifier(marks=[3, ROWS])
    for row in rebuilt:
        walk.add(row)
    walk.end(ROWS)
    assert walk.findings == ()
    assert walk.digest_at[3] == WHOLE[2].digest
    assert walk.digest_at[ROWS] != WHOLE[-1].digest


def test_a_walk_begins_behind_a_known_event() -> None:
    walk = Verifier(after=5, previous=WHOLE[4].digest)
    for row in WHOLE[5:]:
        walk.add(row)
    walk.end(ROWS)
    assert (walk.findings, walk.count, walk.last) == ((), ROWS - 5, ROWS)


def test_many_altered_neighbours_are_one_finding() -> None:
    long = chain(300)
    rows = [replace(row, actor="mallory") if 20 <= row.sequence <= 250 else row for row in long]
    assert verify(rows, expected=300) == (Finding(Damage.ALTERED, 20, 250),)


@pytest.mark.parametrize(
    ("finding", "text"),
    [
        (Finding(Damage.ALTERED, 4, 4), "event 4 was altered after it was sealed"),
        (Finding(Damage.MISSING, 4, 6), "events 4 to 6 are missing"),
        (Finding(Damage.TRUNCATED, 9, 9), "event 9 is missing at the end"),
    ],
)
def test_findings_have_words(finding: Finding, text: str) -> None:
    assert finding.text == text
