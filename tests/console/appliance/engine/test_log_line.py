"""Lines as the console's processes write them."""

from datetime import UTC, datetime

import pytest

from console.appliance.engine.log_line import LogLine, log_entry
from console.appliance.engine.syslog_message import Level

NOW = datetime(2026, 11, 23, 18, tzinfo=UTC)
THEN = datetime(2026, 11, 23, 17, 20, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "time", "level"),
    [
        ("2026-11-23 17:20:00,123 WARNING inventory x", THEN.replace(microsecond=123_000), Level.WARNING),
        ("[2026-11-23 17:20:00,123: ERROR/MainProcess] x", THEN.replace(microsecond=123_000), Level.ERROR),
        ("[2026-11-23 17:20:00 +0000] [17] [CRITICAL] x", THEN, Level.ERROR),
        ("2026-99-23 17:20:00,123 INFO x", NOW, Level.INFO),
        ('  File "x.py", line 3', NOW, Level.INFO),
        ("x" * 90 + " ERROR", NOW, Level.INFO),
        ("", NOW, Level.INFO),
    ],
    ids=["ours", "celery", "gunicorn", "no such day", "of a traceback", "a word of the text", "empty"],
)
def test_time_and_level(text: str, time: datetime, level: Level) -> None:
    entry = log_entry(LogLine("web", "7:0", text), NOW)
    assert (entry.time, entry.level, entry.text) == (time, level, text)
    assert (entry.app, list(entry.facts)) == ("bartizan-web", [("log", "web"), ("place", "7:0")])
