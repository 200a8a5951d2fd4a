import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.engine.errors import Malformed
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.keylime_quote import QuoteText, parse_quote_text
from tests.attestation.recorded import HOST_A, entries
from tests.attestation.wire import dumped, quote_text

ENTRY_A = next(entry for entry in entries() if entry.name == "a-secureboot-on/eventlog.bin")
ATTEST, SIGNATURE = (HOST_A / "quote.attest").read_bytes(), (HOST_A / "quote.sig").read_bytes()
TEXT = quote_text(ATTEST, SIGNATURE, ENTRY_A.pcrs)
PEM = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END PUBLIC KEY-----\n"
AK = bytes.fromhex("0023 000b 00050072 0000 0010 0018 000b 0003 0010 0000 0000")


def test_the_three_parts_of_a_quote() -> None:
    parts = parse_quote_text(TEXT)
    assert parts.quote.raw == ATTEST and parts.signature.scheme.name == "RSASSA"
    assert parts.values == ENTRY_A.pcrs


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "r",
        "r::",
        TEXT[1:],
        "d" + TEXT[1:],
        TEXT + ":",
        TEXT.replace(":", "::", 1),
        TEXT.rsplit(":", 1)[0],
        TEXT + "\n",
        TEXT[:20] + "\u00e9" + TEXT[21:],
        "r" + "A" * 70_000,
        TEXT.replace(TEXT[1:5], "!!!!", 1),
    ],
)
def test_another_text_is_refused(wrong: str) -> None:
    with pytest.raises(Malformed):
        parse_quote_text(wrong)


@given(st.text(max_size=80), st.binary(max_size=80))
def test_no_text_crashes_the_parser(text: str, data: bytes) -> None:
    encoded = base64.b64encode(data).decode()
    for candidate in (text, f"r{encoded}:{encoded}:{encoded}", f"{TEXT[:-4]}{text}", f"r{text}{TEXT[1:]}"):
        try:
            assert isinstance(parse_quote_text(candidate), QuoteText)
        except Malformed as exc:
            assert str(exc).startswith("malformed ")


def test_the_dump_may_hold_more_than_the_quote() -> None:
    assert dumped(ENTRY_A.pcrs) != b"" and HashAlg.SHA1 in parse_quote_text(TEXT).values
