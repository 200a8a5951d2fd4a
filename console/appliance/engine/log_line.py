"""Lines of the processes' own logs, as entries for log collectors. Their writers have several ways of writing one."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from console.appliance.engine.syslog_message import APP_NAME, Entry, Facility, Level

# "2026-11-23 17:20:00,123 WARNING ..." (our own), "[2026-11-23 17:20:00,123: INFO/MainProcess] ..." (Celery),
# "[2026-11-23 17:20:00 +0000] [17] [INFO] ..." (gunicorn). All processes write UTC.
_STAMP: Final = re.compile(r"\[?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:[.,](\d{1,6}))?")
_LEVEL: Final = re.compile(r"\b(CRITICAL|ERROR|WARNING)\b")
_LEVELS: Final = {"CRITICAL": Level.ERROR, "ERROR": Level.ERROR, "WARNING": Level.WARNING}
_LEVEL_WITHIN: Final = 80  # characters: further on it is a word of the text


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line without its end. `place` tells it from all others of its file: file number and octet."""

    log: str
    place: str
    text: str


def log_entry(line: LogLine, now: datetime) -> Entry:
    """`now` stands in for the time of a line that tells none (part of a traceback)."""
    level = _LEVEL.search(line.text[:_LEVEL_WITHIN])
    return Entry(
        Facility.DAEMON,
        _LEVELS[level[1]] if level else Level.INFO,
        _time(line.text) or now,
        f"{APP_NAME}-{line.log}",
        "log",
        [("log", line.log), ("place", line.place)],
        line.text,
        keys=2,
    )


def _time(text: str) -> datetime | None:
    found = _STAMP.match(text)
    if found is None:
        return None
    try:
        return datetime.strptime(f"{found[1]}.{found[2] or 0}", "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
    except ValueError:
        return None
