"""Whatever is written is read again; whatever is not as it was written is not given out."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.backup import sealed_file
from console.backup.sealed_file import CHUNK, DoesNotOpen, NotSealed, SealedReader, SealedWriter

PASSPHRASE = "correct horse battery"
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIMULATED: a hundredth of the iterations."""
    monkeypatch.setattr(sealed_file, "ITERATIONS", 6000)


def sealed(clear: bytes) -> bytes:
    target = io.BytesIO()
    with SealedWriter(target, PASSPHRASE) as writer:
        for start in range(0, len(clear), 10_007):
            writer.write(clear[start : start + 10_007])
    return target.getvalue()


def opened(content: bytes, passphrase: str = PASSPHRASE) -> bytes:
    return SealedReader(io.BytesIO(content), passphrase).readall()


@pytest.mark.parametrize("size", SIZES)
def test_comes_back(size: int) -> None:
    clear = bytes(range(256)) * (size // 256 + 1)
    content = sealed(clear[:size])
    assert opened(content) == clear[:size]
    assert clear[:64] not in content


def test_never_twice_the_same() -> None:
    assert sealed(b"x") != sealed(b"x")


def test_another_passphrase() -> None:
    with pytest.raises(DoesNotOpen):
        opened(sealed(b"content"), "another horse entirely")


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    content = bytearray(_CONTENT())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises((DoesNotOpen, NotSealed)):
        opened(bytes(content))


@pytest.mark.parametrize("kept", [0, 10, 37, 38, 39, 38 + CHUNK, 38 + CHUNK + 16, 38 + 2 * (CHUNK + 16)])
def test_any_cut_is_noticed(kept: int) -> None:
    content = _CONTENT()
    assert len(content) > kept
    with pytest.raises((DoesNotOpen, NotSealed)):
        opened(content[:kept])


def test_chunks_in_another_order_or_added() -> None:
    content, size = _CONTENT(), CHUNK + 16
    first, second, rest = content[38 : 38 + size], content[38 + size : 38 + 2 * size], content[38 + 2 * size :]
    for changed in (second + first + rest, first + second + second + rest, first + rest, content[38:] + rest):
        with pytest.raises(DoesNotOpen):
            opened(content[:38] + changed)


def test_a_head_that_would_keep_us_at_work() -> None:
    content = bytearray(sealed(b"x"))
    content[34:38] = b"\xff" * 4
    with pytest.raises(NotSealed):
        opened(bytes(content))


_kept: list[bytes] = []


def _CONTENT() -> bytes:  # noqa: N802  three chunks, made once
    if not _kept:
        _kept.append(sealed(bytes(2 * CHUNK + 100)))
    return _kept[0]
