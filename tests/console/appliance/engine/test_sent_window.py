"""What is sent again: never less than what may lie unread, and what was settled no more."""

from random import Random

import pytest

from console.appliance.engine.sent_window import AGE_SECONDS, MARGIN_OCTETS, SentWindow

LATER = AGE_SECONDS + 1


def test_a_new_connection_goes_on_at_its_start() -> None:
    assert SentWindow(7).safe == 7


def test_what_is_about_to_be_written_is_in_doubt_at_once() -> None:
    window = SentWindow(0)
    window.note(5, 10, now=0)
    assert window.safe == 0


def test_age_alone_settles_nothing() -> None:
    window = SentWindow(0)
    window.note(5, 10, now=0)
    window.settle(unread=0, now=1_000_000)
    assert window.safe == 0


def test_octets_alone_settle_nothing() -> None:
    window = SentWindow(0)
    window.note(1, 10, now=0)
    window.note(2, MARGIN_OCTETS, now=0)
    window.settle(unread=0, now=AGE_SECONDS - 0.01)
    assert window.safe == 0
    window.settle(unread=0, now=AGE_SECONDS)
    assert window.safe == 1


def test_what_lies_unread_comes_on_top_of_the_margin() -> None:
    window = SentWindow(0)
    window.note(1, 10, now=0)
    window.note(2, MARGIN_OCTETS + 99, now=0)
    window.settle(unread=100, now=LATER)
    assert window.safe == 0
    window.settle(unread=99, now=LATER)
    assert window.safe == 1


def test_a_collector_that_has_read_to_the_end() -> None:
    window = SentWindow(0)
    window.note(1, 10, now=0)
    window.settle_all()
    assert window.safe == 1


@pytest.mark.parametrize("seed", range(5))
def test_at_least_the_margin_and_the_unread_are_kept(seed: int) -> None:
    random = Random(seed)
    window, now, sizes = SentWindow(0), 0.0, [0]
    settled = 0
    for number in range(1, 300):
        now += random.choice((0.0, 0.5, 3.0))
        unread = random.choice((0, 1000, 300_000))
        before = window.safe
        sizes.append(random.choice((0, 500, 90_000)))
        window.note(number, sizes[-1], now)
        window.settle(unread=unread, now=now)
        assert window.safe >= before
        if window.safe > before:
            settled += 1
            assert sum(sizes[window.safe + 1 :]) >= MARGIN_OCTETS + unread
    assert settled
