"""What a guest printed on its serial port, made fit for a page: text only, no terminal commands.

A guest is not trusted: escape sequences, other control characters and direction overrides are dropped, not passed on.
"""

import re
from typing import Final

# ECMA-48: CSI and OSC sequences, then any other escape of two or three characters.
_ESCAPES: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]?|\x9b[0-?]*[ -/]*[@-~]"
)
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def clean(raw: bytes, *, is_tail: bool = False) -> str:
    """UTF-8 text with plain line ends; `is_tail`: the first line is cut somewhere, so drop it if more follow."""
    text = raw.decode("utf-8", errors="replace")
    text = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROLS.sub("", text)
    if is_tail:
        head, newline, rest = text.partition("\n")
        text = rest if newline else head
    return text
