"""The log files of the supervised processes, read on from where a target stands, across their rotation.

`name.log` is written to; when it is full it becomes `name.log.1`, and so on until the oldest is deleted. A place is the
file's number (inode), an octet in it, and how the file begins: a number is given again after a deletion.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from console.appliance.engine.log_line import LogLine

CHUNK_OCTETS: Final = 256 * 1024
_START_OCTETS: Final = 64

Place = tuple[int, int, str]  # inode, offset, how the file begins (hexadecimal)


@dataclass(frozen=True, slots=True)
class LogPart:
    """What came next: at most one chunk of each log. `places` is where to go on, by log."""

    lines: tuple[LogLine, ...]
    places: Mapping[str, Place]


def ends(folder: Path) -> dict[str, Place]:
    """Where each log ends now: for a target that gets only what comes."""
    found = {}
    for name, path in _logs(folder):
        with path.open("rb") as opened:
            facts = os.fstat(opened.fileno())
            found[name] = facts.st_ino, facts.st_size, opened.read(_START_OCTETS).hex()
    return found


def read(folder: Path, places: Mapping[str, Place]) -> LogPart:
    """The lines after `places`; a log that is not in them is read from its beginning. Raises OSError."""
    lines: list[LogLine] = []
    after: dict[str, Place] = {}
    for name, path in _logs(folder):
        found, after[name] = _read_log(name, path, places.get(name))
        lines += found
    return LogPart(tuple(lines), after)


def _logs(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.glob("*.log")):
        if path.is_file() and not path.is_symlink():
            yield path.stem, path


def _read_log(name: str, path: Path, place: Place | None) -> tuple[list[LogLine], Place]:
    """One chunk. At the end of a file that was rotated, the next one's chunk."""
    files = _files(path)  # the oldest first
    lines: list[LogLine] = []
    index, offset = 0, 0
    if place is not None:
        index = next((number for number, file in enumerate(files) if _is_same(file, place)), -1)
        offset = place[1] if index >= 0 else 0
        if index < 0:
            index = 0
            lines.append(LogLine(name, f"{place[0]}:lost", f"WARNING lines of {path.name} were deleted unsent"))
    while True:
        is_last = index + 1 == len(files)
        found, reached = _whole_lines(name, files[index], offset, is_last=is_last)
        if found or is_last:
            return [*lines, *found], reached
        index, offset = index + 1, 0


def _files(path: Path) -> list[Path]:
    older = [file for file in path.parent.glob(f"{path.name}.*") if file.suffix[1:].isdigit()]
    return [*sorted(older, key=lambda file: -int(file.suffix[1:])), path]


def _is_same(file: Path, place: Place) -> bool:
    with file.open("rb") as opened:
        facts = os.fstat(opened.fileno())
        start = opened.read(_START_OCTETS).hex()
    return facts.st_ino == place[0] and facts.st_size >= place[1] and start.startswith(place[2])


def _whole_lines(name: str, file: Path, offset: int, *, is_last: bool) -> tuple[list[LogLine], Place]:
    """Up to the last end of a line. A line longer than a chunk is taken in pieces, and what a rotated file ends with
    counts as a line."""
    with file.open("rb") as opened:
        number = os.fstat(opened.fileno()).st_ino
        start = opened.read(_START_OCTETS).hex()
        opened.seek(offset)
        chunk = opened.read(CHUNK_OCTETS)
    end = chunk.rfind(b"\n") + 1
    if not end and (len(chunk) == CHUNK_OCTETS or not is_last):
        end = len(chunk)
    lines = []
    for raw in chunk[:end].splitlines(keepends=True):
        if text := raw.rstrip(b"\r\n"):
            lines.append(LogLine(name, f"{number}:{offset}", text.decode("utf-8", "replace")))
        offset += len(raw)
    return lines, (number, offset, start)
