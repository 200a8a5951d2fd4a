"""TOTP by the vectors of its RFCs, and keys that open for nothing but what they were sealed for."""

from datetime import UTC, datetime
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from console import totp_key
from encryption.engine.secret import Secret

RFC_KEY = Secret(b"12345678901234567890")  # RFC 6238, appendix B, SHA-1
# Its codes have 8 digits; ours are the last 6 of them (RFC 4226, 5.3: modulo a power of ten).
VECTORS = {
    59: "94287082",
    1111111109: "07081804",
    1111111111: "14050471",
    1234567890: "89005924",
    2000000000: "69279037",
    20000000000: "65353130",
}
SECRET_KEY = "s" * 50


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@pytest.mark.parametrize(("seconds", "code"), VECTORS.items())
def test_the_vectors_of_the_rfc(seconds: int, code: str) -> None:
    assert totp_key.matching_step(RFC_KEY, code[2:], now=at(seconds), after=-1) == seconds // 30


@pytest.mark.parametrize(("late", "is_taken"), [(-31, False), (-1, True), (0, True), (59, True), (60, False)])
def test_a_code_is_taken_one_step_early_and_late(late: int, is_taken: bool) -> None:
    """Of the step that begins at 1111111110."""
    found = totp_key.matching_step(RFC_KEY, VECTORS[1111111111][2:], now=at(1111111110 + late), after=-1)
    assert (found == 37037037) is is_taken


def test_a_step_that_is_over_is_not_taken_again() -> None:
    code, now = VECTORS[59][2:], at(59)
    assert totp_key.matching_step(RFC_KEY, code, now=now, after=0) == 1
    assert totp_key.matching_step(RFC_KEY, code, now=now, after=1) is None


@pytest.mark.parametrize("code", ["", "28708", "94287082", "28708x", "-87082", " 87082", "٢٨٧٠٨٢", "²87082"])
def test_what_is_no_code(code: str) -> None:
    assert totp_key.matching_step(RFC_KEY, code, now=at(59), after=-1) is None


def test_a_sealed_key_opens_for_its_purpose_alone() -> None:
    key = totp_key.generate()
    sealed = totp_key.seal(key, secret_key=SECRET_KEY, context=b"a")
    assert key.reveal() not in sealed
    assert totp_key.seal(key, secret_key=SECRET_KEY, context=b"a") != sealed
    assert totp_key.unseal(sealed, secret_key=SECRET_KEY, context=b"a") == key
    changed = bytes([sealed[0] ^ 1]) + sealed[1:]
    for text, secret_key, context in (
        (sealed, SECRET_KEY, b"b"), (sealed, "t" * 50, b"a"), (changed, SECRET_KEY, b"a"),
        (sealed[:-1], SECRET_KEY, b"a"), (sealed[:20], SECRET_KEY, b"a"), (b"", SECRET_KEY, b"a"),
    ):  # fmt: skip
        with pytest.raises(totp_key.DoesNotOpen):
            totp_key.unseal(text, secret_key=secret_key, context=context)


def test_the_uri_of_authenticators() -> None:
    uri = urlsplit(totp_key.uri_of(RFC_KEY, username="a:b c", place="console.example.org"))
    assert (uri.scheme, uri.netloc) == ("otpauth", "totp")
    assert unquote(uri.path) == "/Bartizan:a.b c@console.example.org"
    assert {name: value[0] for name, value in parse_qs(uri.query).items()} == {
        "secret": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "issuer": "Bartizan", "algorithm": "SHA1", "digits": "6",
        "period": "30",
    }  # fmt: skip
    assert "GEZDGNBV" not in repr(RFC_KEY)
