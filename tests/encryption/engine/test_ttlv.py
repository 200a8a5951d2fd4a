"""TTLV, against PyKMIP's encoder and against hostile bytes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmip.core import enums, primitives
from kmip.core.utils import BytearrayStream

from encryption.engine.ttlv import MAX_DEPTH, Item, TtlvError, parse

TAG = enums.Tags.CRYPTOGRAPHIC_LENGTH


def encoded(value: primitives.Base) -> bytes:
    stream = BytearrayStream()
    value.write(stream)
    return bytes(stream.buffer)


def structure(content: bytes) -> bytes:
    return b"\x42\x00\x7b\x01" + len(content).to_bytes(4, "big") + content


@given(st.integers(-(2**31), 2**31 - 1))
def test_integer_as_pykmip_writes_it(number: int) -> None:
    assert parse(encoded(primitives.Integer(number, TAG))).number == number


@given(st.binary(max_size=40))
def test_bytes_as_pykmip_writes_them(octets: bytes) -> None:
    item = parse(encoded(primitives.ByteString(octets, TAG)))
    assert item.octets == octets
    assert item.tag == TAG.value


def test_text_date_boolean_and_enumeration() -> None:
    assert parse(encoded(primitives.TextString("abc", TAG))).text == "abc"
    assert parse(encoded(primitives.DateTime(86400, TAG))).time == datetime(1970, 1, 2, tzinfo=UTC)
    assert parse(encoded(primitives.Boolean(True, TAG))).value is True
    assert parse(encoded(primitives.Enumeration(enums.State, enums.State.ACTIVE, TAG))).number == 2


def test_text_beyond_ascii() -> None:
    text = "größe".encode()
    raw = b"\x42\x00\x55\x07" + len(text).to_bytes(4, "big") + text.ljust(8, b"\x00")
    assert parse(raw).text == "größe"


def test_structure_finds_its_items() -> None:
    item = parse(structure(encoded(primitives.Integer(1, TAG)) + encoded(primitives.Integer(2, TAG))))
    assert [child.number for child in item.all(TAG.value)] == [1, 2]
    assert item.get(TAG.value).number == 1
    assert item.find(0x420001) is None
    with pytest.raises(TtlvError, match="is missing"):
        item.get(0x420001)


def test_a_value_of_another_type_is_refused() -> None:
    item = parse(encoded(primitives.ByteString(b"secret!!", TAG)))
    for read in (lambda: item.number, lambda: item.text, lambda: item.time, lambda: item.get(1)):
        with pytest.raises(TtlvError):
            read()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x42\x00\x7b",
        b"\x42\x00\x7b\x63\x00\x00\x00\x00",  # unknown type
        b"\x42\x00\x7b\x08\x00\x00\x00\x09" + bytes(9),  # padding missing
        b"\x42\x00\x7b\x02\x00\x00\x00\x08" + bytes(8),  # an integer of eight bytes
        b"\x42\x00\x7b\x06\x00\x00\x00\x08" + bytes(7) + b"\x02",  # neither true nor false
        b"\x42\x00\x7b\x09\x00\x00\x00\x08\x7f" + bytes(7),  # a date long after the year 9999
        b"\x42\x00\x55\x07\x00\x00\x00\x01\xff" + bytes(7),  # not UTF-8
        structure(b"") * 2,  # two items
        structure(b"\x42"),
    ],
)
def test_malformed(raw: bytes) -> None:
    with pytest.raises(TtlvError):
        parse(raw)


def test_nesting_is_bounded() -> None:
    raw = b""
    for _ in range(MAX_DEPTH + 2):
        raw = structure(raw)
    with pytest.raises(TtlvError, match="too deep"):
        parse(raw)


@given(st.binary(max_size=300))
def test_hostile_bytes_parse_or_are_refused(raw: bytes) -> None:
    for message in (raw, structure(raw)):
        try:
            item = parse(message)
        except TtlvError as exc:
            assert exc.__cause__ is None or isinstance(exc.__cause__, OverflowError)
        else:
            assert isinstance(item, Item)


def test_repr_hides_the_value() -> None:
    assert "secret" not in repr(parse(encoded(primitives.ByteString(b"secret!!", TAG))))
