import copy
import dataclasses
import json
import pickle

import pytest

from encryption.engine import drbg
from encryption.engine.secret import Secret

MARK = b"marked-key-material"


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    key: Secret


def test_it_is_never_shown() -> None:
    secret = Secret(MARK)
    for shown in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>40}",
        format(secret, ">40"),
        repr(Holder(secret)),
    ):
        assert "marked" not in shown
        assert "redacted" in shown


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_cannot_be_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Secret(MARK), protocol)


def test_it_cannot_be_copied_out_of_a_dataclass() -> None:
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        dataclasses.asdict(Holder(Secret(MARK)))
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.copy(Secret(MARK))


def test_it_is_no_json() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps({"key": Secret(MARK)})


def test_it_has_no_other_way_to_its_bytes() -> None:
    secret = Secret(MARK)
    assert secret.reveal() == MARK
    assert not hasattr(secret, "__dict__")
    with pytest.raises(TypeError):
        bytes(secret)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        hash(secret)


def test_it_compares_by_value_with_secrets_only() -> None:
    assert Secret(MARK) == Secret(bytes(MARK))
    assert Secret(MARK) != Secret(MARK + b"x")
    assert Secret(MARK) != MARK


def test_it_refuses_empty_and_other_types() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        Secret(b"")
    with pytest.raises(TypeError, match="made of bytes"):
        Secret("text")  # type: ignore[arg-type]


def test_passphrase_text_is_lower_case_hexadecimal() -> None:
    assert Secret(bytes([0x00, 0xAB, 0xFF])).passphrase_text() == b"00abff"


@pytest.mark.parametrize("n_bytes", [1, 31, 32, 33, 64, 1000])
def test_generated_secrets_have_the_length_asked_for_and_differ(n_bytes: int) -> None:
    assert len(Secret.generate(n_bytes)) == n_bytes
    if n_bytes >= 31:
        assert Secret.generate(n_bytes) != Secret.generate(n_bytes)


def test_drawn_pieces_do_not_repeat() -> None:
    drawn = drbg.draw(32 * 100)
    assert len({drawn[start : start + 32] for start in range(0, len(drawn), 32)}) == 100
    with pytest.raises(ValueError, match="cannot draw"):
        drbg.draw(0)
