"""Progress of a long command: a bar on a terminal, a line for every tenth elsewhere."""

import time
from collections.abc import Callable
from typing import Protocol, final

_WIDTH = 30
_REDRAW_SECONDS = 0.1
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Output(Protocol):
    """Django's OutputWrapper, as far as it is used here."""

    def isatty(self) -> bool: ...

    def write(self, msg: str, style_func: Callable[[str], str], ending: str) -> None: ...


@final
class ProgressLine:
    """The `Report` of the recovery commands."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._is_terminal = output.isatty()
        self._step = ""
        self._total = 0
        self._began = 0.0
        self._first: int | None = None
        self._drawn_at = 0.0
        self._tenth = 0
        self._is_open = False

    def note(self, text: str) -> None:
        self.end()
        self._write(f"note: {text}\n")

    def step(self, name: str, total_bytes: int) -> None:
        self.end()
        self._step, self._total = name, total_bytes
        self._began, self._first = time.monotonic(), None
        self._drawn_at, self._tenth = 0.0, 0
        if not self._is_terminal:
            self._write(f"{name}: {in_words(total_bytes)}\n")

    def advance(self, done_bytes: int) -> None:
        if self._first is None:
            # A run that goes on is not credited with what an earlier one did.
            self._first = done_bytes
        if self._is_terminal:
            now = time.monotonic()
            if done_bytes < self._total and now - self._drawn_at < _REDRAW_SECONDS:
                return
            self._drawn_at = now
            self._write(f"\r{self._bar(done_bytes, now - self._began)}\x1b[K")
            self._is_open = True
        elif (tenth := 10 * done_bytes // max(self._total, 1)) > self._tenth:
            self._tenth = tenth
            self._write(f"{self._step}: {tenth * 10} % ({in_words(done_bytes)} of {in_words(self._total)})\n")

    def end(self) -> None:
        """Leave the line of the bar, if there is one."""
        if self._is_open:
            self._write("\n")
            self._is_open = False

    def _bar(self, done: int, seconds: float) -> str:
        filled = _WIDTH * done // max(self._total, 1)
        speed = (done - (self._first or 0)) / max(seconds, 0.001)
        return (
            f"{self._step} [{'#' * filled}{'.' * (_WIDTH - filled)}] {100 * done // max(self._total, 1):3d} %  "
            f"{in_words(done)} of {in_words(self._total)}  {in_words(round(speed))}/s"
        )

    def _write(self, text: str) -> None:
        self._output.write(printable(text), str, "")  # `str`: the error stream's colour is not for progress


def in_words(n_bytes: int) -> str:
    """As people read it: "512 B", "1.2 GiB"."""
    value = float(n_bytes)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{n_bytes} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("internal error: the last unit fits everything")


def printable(text: str) -> str:
    """File names may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
