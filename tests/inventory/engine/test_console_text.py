"""Serial output made fit for a page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory.engine.console_text import clean


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        (b"\x1b[2J\x1b[1;31mred\x1b[0m plain", "red plain"),
        (b"\x1b]0;window title\x07text", "text"),
        (b"\x1b(Btext\x1b7\x1b8", "text"),
        (b"bell\x07 back\x08 nul\x00", "bell back nul"),
        ("r\u202eevil".encode(), "revil"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"<script>", "<script>"),
    ],
)
def test_clean(raw: bytes, text: str) -> None:
    assert clean(raw) == text


def test_a_tail_loses_its_cut_first_line() -> None:
    assert clean(b"ut off\nwhole\n", is_tail=True) == "whole\n"
    assert clean(b"one long line", is_tail=True) == "one long line"


@given(st.binary(max_size=400))
def test_no_control_character_passes(raw: bytes) -> None:
    assert all(char in "\n\t" or ord(char) >= 32 for char in clean(raw))
    assert "\x1b" not in clean(raw)
