"""The vectors of the start-up tests: right, and missed when they are not met."""

import cryptography_vectors
import pytest

from encryption.engine import drbg, known_answers


@pytest.mark.parametrize("name", known_answers.POSITIVE)
def test_each_answer_is_met(name: str) -> None:
    known_answers.POSITIVE[name]()


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("HMAC/rfc-4231-sha256.txt", [known_answers.HMAC_SHA256_ANSWER]),
        ("HMAC/rfc-4231-sha384.txt", [known_answers.HMAC_SHA384_ANSWER]),
    ],
)
def test_answers_of_the_published_files(path: str, values: list[bytes]) -> None:
    with cryptography_vectors.open_vector_file(path, "r") as file:
        text = file.read().lower()
    assert text
    for value in values:
        assert value.hex() in text


@pytest.mark.parametrize(
    ("constant", "test"),
    [
        ("_GCM_ANSWER", "AES-256-GCM"),
        ("_KW_ANSWER", "AES-KW"),
        ("_KWP_ANSWER", "AES-KWP"),
        ("_AES_ANSWER", "AES-256-ECB"),
        ("SHA384_ABC", "SHA-2"),
        ("HMAC_SHA256_ANSWER", "HMAC-SHA-2"),
        ("PBKDF2_ANSWER", "PBKDF2-HMAC-SHA-256"),
    ],
)
def test_a_wrong_answer_is_noticed(monkeypatch: pytest.MonkeyPatch, constant: str, test: str) -> None:
    known = getattr(known_answers, constant)
    monkeypatch.setattr(known_answers, constant, known[:-1] + bytes([known[-1] ^ 1]))
    with pytest.raises((known_answers.WrongAnswer, *known_answers.FAILURES)):
        known_answers.POSITIVE[test]()


def test_a_generator_that_repeats_itself_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drbg, "draw", lambda n_bytes: bytes([7]) * n_bytes)
    with pytest.raises(known_answers.WrongAnswer, match="repeats"):
        known_answers.POSITIVE["DRBG"]()
