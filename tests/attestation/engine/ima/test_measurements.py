"""Measurement lists: templates, replay against PCR 10, going on from a state, hostile lines."""

import contextlib
import hashlib
import struct
from binascii import hexlify

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.engine.ima.measurements import (
    ImaMismatch,
    ImaState,
    MalformedList,
    Measurements,
    UntrustedList,
    parse,
    replay,
)
from attestation.engine.tpm.algorithms import HashAlg
from tests.attestation.recorded import Entry, entries

SHA256 = HashAlg.SHA256
HOSTS = [entry for entry in entries() if entry.name.startswith(("a-secureboot-on", "b-secureboot-off"))]
HASH = hexlify(hashlib.sha256(b"content").digest())
ZEROS = b"0" * 40


def line(path: bytes, *, template: bytes = b"ima-ng", digest: bytes = b"sha256:" + HASH, more: bytes = b"") -> bytes:
    return b"10 " + b"ab" * 20 + b" " + template + b" " + digest + b" " + path + more


def field(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def extended(*template_data: bytes, bank: HashAlg = SHA256) -> bytes:
    """PCR 10 after these, by the definition."""
    value = bytes(bank.size)
    for data in template_data:
        value = bank.digest(value + bank.digest(data))
    return value


def ng(path: bytes) -> bytes:
    return field(b"sha256:\0" + hashlib.sha256(b"content").digest()) + field(path + b"\0")


def replayed(text: bytes, quoted: bytes | None = None, state: ImaState | None = None) -> Measurements:
    state = state or ImaState.at_boot(SHA256)
    return replay(parse(text, first_line=state.lines), state=state, quoted=quoted)


@pytest.mark.parametrize("bank", [HashAlg.SHA1, HashAlg.SHA256])
@pytest.mark.parametrize("entry", HOSTS, ids=["a", "b"])
def test_real_lists_replay(entry: Entry, bank: HashAlg) -> None:
    text = entry.read(entry.name.replace("eventlog.bin", "ima_ascii.txt"))
    measured = replay(parse(text), state=ImaState.at_boot(bank), quoted=entry.pcrs[bank][10])
    assert (measured.paths, measured.state.lines, measured.pending) == ([b"boot_aggregate"], 1, 0)
    assert measured.is_proven
    aggregate = hashlib.sha256(b"".join(entry.pcrs[SHA256][pcr] for pcr in range(10))).hexdigest()
    assert measured.boot_aggregate == f"sha256:{aggregate}".encode()


@pytest.mark.parametrize("entry", HOSTS, ids=["a", "b"])
def test_every_byte_of_a_real_line_counts(entry: Entry) -> None:
    """All but the hash column, which nothing is read from, and the space at the end of a line without signature."""
    text = entry.read(entry.name.replace("eventlog.bin", "ima_ascii.txt"))
    column = range(3, 43)
    for at in range(len(text.rstrip())):
        changed = bytearray(text)
        changed[at] ^= 0x01
        if at in column:
            continue
        with pytest.raises((MalformedList, ImaMismatch)):
            replay(parse(bytes(changed)), state=ImaState.at_boot(SHA256), quoted=entry.pcrs[SHA256][10])


SIGNATURE = b"\x03\x02\x04"
SHA1 = hexlify(hashlib.sha1(b"content", usedforsecurity=False).digest())


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (line(b"/bin/x"), ng(b"/bin/x")),
        (line(b"/" + b"x" * 2_000), ng(b"/" + b"x" * 2_000)),
        (line(b"/bin/x", template=b"ima-sig", more=b" "), ng(b"/bin/x") + field(b"")),
        (line(b"/bin/x", template=b"ima-sig", more=b" 030204"), ng(b"/bin/x") + field(SIGNATURE)),
        (line(b".ima", template=b"ima-buf", more=b" 030204"), ng(b".ima") + field(SIGNATURE)),
        (
            line(b"/bin/x", template=b"ima", digest=SHA1),
            hashlib.sha1(b"content", usedforsecurity=False).digest() + b"/bin/x".ljust(256, b"\0"),
        ),
        (
            line(b"/bin/x", template=b"ima-ngv2", digest=b"verity:sha256:" + HASH),
            field(b"verity:sha256:\0" + hashlib.sha256(b"content").digest()) + field(b"/bin/x\0"),
        ),
        (
            line(b"/bin/x", template=b"ima-sigv2", digest=b"ima:sha256:" + HASH, more=b" "),
            field(b"ima:sha256:\0" + hashlib.sha256(b"content").digest()) + field(b"/bin/x\0") + field(b""),
        ),
    ],
    ids=["ng", "long", "sig none", "sig", "buf", "ima", "ngv2", "sigv2"],
)
@pytest.mark.parametrize("bank", list(HashAlg))
def test_each_template_extends_its_data(text: bytes, data: bytes, bank: HashAlg) -> None:
    quoted = extended(data, bank=bank)
    measured = replay(parse(text + b"\n"), state=ImaState.at_boot(bank), quoted=quoted)
    assert measured.state == ImaState(bank, 1, quoted)


def test_columns() -> None:
    text = b"\n".join(
        [
            line(b"boot_aggregate"),
            line(b"/bin/x", template=b"ima-sig", more=b" 030204"),
            line(b".ima", template=b"ima-buf", more=b" 00"),
            b"10 " + ZEROS + b" ima-ng sha256:" + b"00" * 32 + b" /open",
        ]
    )
    measured = replayed(text)
    assert measured.paths == [b"boot_aggregate", b"/bin/x", b".ima", b"/open"]
    assert measured.digests[0] == measured.boot_aggregate == b"sha256:" + HASH
    assert measured.signatures == {1: SIGNATURE}
    assert (measured.buffers, measured.violations) == (frozenset({2}), (3,))
    assert not measured.is_proven


def test_a_violation_extends_ones() -> None:
    text = b"10 " + ZEROS + b" ima-ng sha256:" + b"00" * 32 + b" /open"
    measured = replayed(text, hashlib.sha256(bytes(32) + b"\xff" * 32).digest())
    assert (measured.violations, measured.state.lines) == ((0,), 1)
    with pytest.raises(ImaMismatch):
        replayed(text, extended(field(b"sha256:\0" + bytes(32)) + field(b"/open\0")))


PATHS = [b"boot_aggregate", b"/a", b"/b", b"/c", b"/d"]
TEXT = b"\n".join(map(line, PATHS)) + b"\n"


def test_the_quote_may_be_older_than_the_list() -> None:
    measured = replayed(TEXT, extended(*map(ng, PATHS[:3])))
    assert (measured.paths, measured.pending, measured.state.lines) == (PATHS[:3], 2, 3)


def test_polls_go_on_where_the_last_one_stopped() -> None:
    """Three polls: the last lines come again when the quote did not cover them; no new line; the rest."""
    first = replayed(TEXT, extended(*map(ng, PATHS[:3])))
    rest = b"\n".join(map(line, PATHS[3:]))
    same = replayed(rest, extended(*map(ng, PATHS[:3])), first.state)
    assert (same.paths, same.pending, same.state) == ([], 2, first.state)
    nothing = replayed(b"", extended(*map(ng, PATHS[:3])), first.state)
    assert nothing.state == first.state
    last = replayed(rest, extended(*map(ng, PATHS)), first.state)
    assert (last.first_line, last.paths, last.state.lines) == (3, PATHS[3:], 5)
    assert last.boot_aggregate is None
    assert last.state == replayed(TEXT, extended(*map(ng, PATHS))).state


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"\n".join(map(line, [PATHS[0], *PATHS[2:]])), id="a line removed"),
        pytest.param(b"\n".join(map(line, [PATHS[0], PATHS[2], PATHS[1], *PATHS[3:]])), id="reordered"),
        pytest.param(TEXT.replace(b"/b", b"/x"), id="another path"),
        pytest.param(TEXT.replace(HASH[:8], b"00000000", 1), id="another digest"),
        pytest.param(TEXT[: TEXT.index(b"/d") - 120], id="cut"),
        pytest.param(b"", id="empty"),
        pytest.param(TEXT.replace(b"ab" * 20, ZEROS, 1), id="called a violation"),
    ],
)
def test_another_list_does_not_replay(text: bytes) -> None:
    try:
        with pytest.raises(ImaMismatch):
            replayed(text, extended(*map(ng, PATHS)))
    except MalformedList:
        assert not text.endswith(b"/c")


def test_a_list_must_go_on_from_its_state() -> None:
    with pytest.raises(ValueError, match="from line 1 does not go on from line 0"):
        replay(parse(TEXT, first_line=1), state=ImaState.at_boot(SHA256), quoted=None)
    with pytest.raises(ValueError, match="a quoted value has 32 bytes"):
        replayed(TEXT, bytes(20))


def test_measurements_are_made_by_replay_alone() -> None:
    with pytest.raises(TypeError, match="come from replay"):
        Measurements(0, [], [], {}, (), frozenset(), 0, ImaState.at_boot(SHA256), True, object())


@pytest.mark.parametrize(
    "text",
    [
        b"x",
        b"10",
        b"\n",
        line(b"/x").replace(b"10 ", b"11 ", 1),
        line(b"/x").replace(b"ab" * 20, b"ab" * 19),
        line(b"/x", template=b"evm-sig"),
        line(b"/x", digest=b"sha256:" + HASH[:-2]),
        line(b"/x", digest=b"sha256:" + b"zz" * 32),
        line(b"/x", digest=b"crc32:00000000"),
        line(b"/x", digest=HASH),
        line(b"/x", digest=b"verity:sha256:" + HASH),
        line(b"/x", template=b"ima-ngv2"),
        line(b"/x", template=b"ima-sig"),
        line(b"/x", template=b"ima-sig", more=b" 0"),
        line(b"/x", template=b"ima", digest=b"sha256:" + HASH),
        line(b"x" * 256, template=b"ima", digest=SHA1),
        line(b""),
        line(b"x" * (129 << 10)),
    ],
)
@pytest.mark.parametrize("before", [b"", line(b"/good") + b"\n"], ids=["first", "second"])
def test_what_is_no_line_is_malformed(text: bytes, before: bytes) -> None:
    with pytest.raises(MalformedList, match=f"in line {before.count(10)} at byte {len(before)}"):
        replayed(before + text + b"\n")


def test_lists_are_bounded() -> None:
    with pytest.raises(MalformedList, match="at most 500000 lines"):
        parse(b"\n" * 500_001)
    with pytest.raises(MalformedList, match="bytes"):
        parse(bytes((64 << 20) + 1))


@given(st.binary(max_size=200))
def test_any_bytes(text: bytes) -> None:
    for hostile in (text, line(text), line(text, template=b"ima-sig"), b"10 " + ZEROS + b" ima-buf " + text):
        with contextlib.suppress(MalformedList):
            replayed(hostile)


def test_lists_of_spaces_are_malformed_at_once() -> None:
    with pytest.raises(MalformedList, match="in line 0 at byte 0"):
        replay(UntrustedList(0, [b" " * (120 << 10)] * 500), state=ImaState.at_boot(SHA256), quoted=None)
