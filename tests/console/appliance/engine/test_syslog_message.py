"""RFC 5424 as its examples and grammar have it, and the rule for long messages. Read back by a parser of its own."""

import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from console.appliance.engine.syslog_message import (
    MAX_OCTETS,
    Entry,
    Facility,
    Level,
    event_entry,
    octet_counted,
    written,
)
from inventory.engine.event_chain import Recorded

# RFC 5424 section 6, as far as we write it.
GRAMMAR = re.compile(
    rb"<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([!-~]{1,255}) ([!-~]{1,48}) - ([!-~]{1,32}) "
    rb'(\[bartizan@32473(?: [a-z_0-9]{1,32}="(?:\\["\\\]]|[^"\\\]])*")*\])(?: (.*))?',
    re.DOTALL,
)
PARAM = re.compile(r'([a-z_0-9]+)="((?:\\["\\\]]|[^"\\\]])*)"')
EVENT = Recorded(
    id=11, time=datetime(2026, 11, 23, 17, 20, 0, 1, tzinfo=UTC), kind="vm.powered_on", severity="warning",
    outcome="success", reason="", target_kind="vm", target_id=UUID(int=5), target_name="web", actor="alice",
    source_address="192.0.2.7", message="VM web powered on", data={"host": "kvm-a"}, job_id=None, plan_digest="",
    sequence=7, digest="ab" * 32,
)  # fmt: skip


def parsed(message: bytes) -> tuple[int, dict[str, str], str]:
    """PRI, the facts, and the text of one message, which has to fit the grammar."""
    found = GRAMMAR.fullmatch(message)
    assert found is not None, message
    facts = {name: re.sub(r'\\(["\\\]])', r"\1", value) for name, value in PARAM.findall(found[6].decode())}
    text = found[7] or b""
    # Section 6.4: UTF-8 begins with the byte order mark, and what does not is ASCII here.
    assert text.startswith(b"\xef\xbb\xbf") or text.isascii()
    return int(found[1]), facts, text.decode("utf-8-sig")


def entry(text: str, **facts: str) -> Entry:
    return Entry(Facility.AUDIT, Level.INFO, EVENT.time, "bartizan", "x", list(facts.items()) or [("id", "1")], text)


def test_an_event_octet_for_octet() -> None:
    (message,) = written(event_entry(EVENT), host="console.example")
    assert message == (
        b"<108>1 2026-11-23T17:20:00.000001Z console.example bartizan - vm.powered_on "
        b'[bartizan@32473 sequence="7" id="11" kind="vm.powered_on" severity="warning" outcome="success" '
        b'actor="alice" source_address="192.0.2.7" target_kind="vm" '
        b'target_id="00000000-0000-0000-0000-000000000005" target_name="web" data="{\\"host\\":\\"kvm-a\\"}" '
        b'digest="' + b"ab" * 32 + b'"] VM web powered on'
    )


def test_values_are_escaped_as_in_section_6_3_3() -> None:
    (message,) = written(entry("t", a='"', b="\\", c="]", d="\\]"), host="h")
    assert b'[bartizan@32473 a="\\"" b="\\\\" c="\\]" d="\\\\\\]"]' in message
    assert parsed(message)[1] == {"a": '"', "b": "\\", "c": "]", "d": "\\]"}


def test_a_time_of_another_zone_is_written_in_utc() -> None:
    there = datetime(2026, 11, 23, 18, 0, tzinfo=timezone(timedelta(hours=2)))
    assert b" 2026-11-23T16:00:00.000000Z " in written(replace(entry("t"), time=there), host="h")[0]


@pytest.mark.parametrize(("host", "field"), [("", b"-"), ("a b\n", b"a?b?"), ("é.example", b"?.example")])
def test_a_host_name_is_printable_ascii(host: str, field: bytes) -> None:
    assert written(entry("t"), host=host)[0].split(b" ")[2] == field


def test_a_text_cannot_pass_for_another_line() -> None:
    (message,) = written(entry("one\n<110>1 forged\x00\x7f\x85", a="x\ny"), host="h")
    assert message.count(b"\n") == 0 and b"\x00" not in message
    _, facts, text = parsed(message)
    assert (facts["a"], text) == ("x␊y", "one␊<110>1 forged␀␡�")


def test_an_empty_text_leaves_the_message_without_one() -> None:
    assert written(entry(""), host="h")[0].endswith(b'[bartizan@32473 id="1"]')


@pytest.mark.parametrize(("severity", "pri"), [("info", 110), ("warning", 108), ("error", 107), ("other", 110)])
def test_severities(severity: str, pri: int) -> None:
    assert parsed(written(event_entry(replace(EVENT, severity=severity)), host="h")[0])[0] == pri


def test_a_message_of_the_very_limit_is_whole_and_one_octet_more_is_not() -> None:
    free = MAX_OCTETS - len(written(entry("x"), host="h")[0]) + 1
    assert [len(one) for one in written(entry("x" * free), host="h")] == [MAX_OCTETS]
    assert len(written(entry("x" * (free + 1)), host="h")) == 2


def test_a_limit_without_place_for_a_parts_head() -> None:
    with pytest.raises(ValueError, match="leaves no place"):
        written(entry("x"), host="h", limit=1023)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.text(max_size=3000), name=st.text(max_size=300), host=st.text(max_size=300),
    data=st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=30), kind=st.text(max_size=80),
)  # fmt: skip
def test_no_message_is_too_long_and_nothing_is_lost(
    text: str, name: str, host: str, data: dict[str, str], kind: str
) -> None:
    found = event_entry(replace(EVENT, message=text, target_name=name, data=data, kind=kind))
    (whole,) = written(found, host=host, limit=10_000_000)
    messages = written(found, host=host)
    assert all(len(one) <= MAX_OCTETS for one in messages)
    if len(messages) == 1:
        assert messages == (whole,)
        assert parsed(whole)[1]["sequence"] == "7"
        return
    parts = [parsed(one) for one in messages]
    assert "".join(part for _, _, part in parts).encode() == whole
    for number, (pri, facts, _) in enumerate(parts, 1):
        assert pri == 108
        assert (facts["sequence"], facts["part"]) == ("7", str(number))
        assert facts["parts"] == str(len(parts))
        assert facts["sha256"] == hashlib.sha256(whole).hexdigest()


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5))
def test_octets_are_counted_as_in_rfc_6587(messages: list[bytes]) -> None:
    stream, found = octet_counted(messages), []
    while stream:
        length, _, rest = stream.partition(b" ")
        assert re.fullmatch(rb"[1-9]\d*", length)
        found.append(rest[: int(length)])
        stream = rest[int(length) :]
    assert found == messages
