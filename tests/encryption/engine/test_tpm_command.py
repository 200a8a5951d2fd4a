"""Answers of a TPM that lie, end too soon, or refuse."""

import struct

import pytest

from encryption.engine import tpm_command
from encryption.engine.tpm_command import BadAnswer, NvPublic, TpmRefused


def answer(code: int = 0, body: bytes = b"", *, tag: int = 0x8001) -> bytes:
    return struct.pack(">HII", tag, 10 + len(body), code) + body


def test_commands_as_the_specification_has_them() -> None:
    sent: list[bytes] = []

    def transmit(command: bytes) -> bytes:
        sent.append(command)
        return answer()

    tpm_command.startup(transmit)
    tpm_command.shutdown(transmit)
    assert [one.hex() for one in sent] == ["80010000000c000001440000", "80010000000c000001450000"]


def test_a_tpm_that_tests_itself_is_asked_again() -> None:
    answers = [answer(0x922), answer(0x922), answer()]
    tpm_command.startup(lambda _: answers.pop(0))
    assert not answers
    with pytest.raises(TpmRefused) as caught:
        tpm_command.startup(lambda _: answer(0x922))
    assert caught.value.code == 0x922


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        bytes(9),
        answer()[:-1] + b"\x00\x00",
        struct.pack(">HII", 0x8001, 99, 0),
        bytes(9000),
        answer(tag=0x8002),
    ],
)
def test_what_is_no_answer(bad: bytes) -> None:
    with pytest.raises(BadAnswer):
        tpm_command.startup(lambda _: bad)


@pytest.mark.parametrize(
    "body",
    [
        b"\x00",
        b"\x00\x00\x00\x00\x02\x00\x00\x00\x00",  # another capability
        b"\x00\x00\x00\x00\x01\x00\x00\x00\x05\x01\xc0\x00\x02",  # says five, gives one
        b"\x00\x00\x00\x00\x01\xff\xff\xff\xff",
    ],
)
def test_lists_that_lie(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        tpm_command.nv_indexes(lambda _: answer(body=body), 0)


def test_an_index_of_another_name_or_of_an_impossible_size() -> None:
    for index, size in ((0x01C00003, 4), (0x01C00002, 60_000)):
        area = struct.pack(">IHIHH", index, 11, 0, 0, size)
        body = len(area).to_bytes(2, "big") + area + b"\x00\x00"
        with pytest.raises(BadAnswer):
            tpm_command.nv_public(lambda _, body=body: answer(body=body), 0x01C00002)  # type: ignore[misc]


@pytest.mark.parametrize("parameters", [b"\x00\x03abc", b"\x00\x05abcde", b"\x00\x09abcd"])
def test_content_that_is_not_as_long_as_asked_for(parameters: bytes) -> None:
    body = len(parameters).to_bytes(4, "big") + parameters + b"\x00\x00\x01\x00\x00"
    with pytest.raises(BadAnswer):
        tpm_command.nv_read(lambda _: answer(body=body, tag=0x8002), NvPublic(0x01C00002, tpm_command.AUTHREAD, 4))


@pytest.mark.parametrize("public", [b"", b"\x00\x08" + bytes(40), b"\x00\x01" + bytes(6), b"\x00\x23" + bytes(8)])
def test_public_areas_that_are_none(public: bytes) -> None:
    with pytest.raises(BadAnswer):
        tpm_command.public_key_fields(public)
