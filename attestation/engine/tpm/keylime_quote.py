"""The quote as Keylime's agents send it: `r<base64>:<base64>:<base64>`, TPMS_ATTEST, TPMT_SIGNATURE, PCR values.

NOT read: PCR 16, to which agents bind their transport key; nothing is sent to a host under that key.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import ClassVar

from attestation.engine.errors import Malformed
from attestation.engine.tpm.attest import UntrustedQuote, parse_quote
from attestation.engine.tpm.pcr_values import parse_dump
from attestation.engine.tpm.pcrs import PcrValues
from attestation.engine.tpm.signature import Signature, parse_signature

MAX_QUOTE_TEXT = 64 * 1024


class MalformedQuoteText(Malformed):
    """Not three parts of base64 behind an `r`."""

    what: ClassVar[str] = "quote text"


@dataclass(frozen=True, slots=True)
class QuoteText:
    """The three parts, parsed; none is trusted. `values` is empty where the agent sent no PCR."""

    quote: UntrustedQuote
    signature: Signature
    values: PcrValues


def parse_quote_text(text: str) -> QuoteText:
    """Read the `quote` field of an agent's answer.

    Raises:
        Malformed: the text or any part of it is not what it should be.
    """
    if len(text) > MAX_QUOTE_TEXT:
        raise MalformedQuoteText(f"at most {MAX_QUOTE_TEXT} characters", offset=0)
    parts = text[1:].split(":")
    if text[:1] != "r" or len(parts) != 3:
        raise MalformedQuoteText("r and three parts with colons between", offset=0)
    attest, signature, values = map(from_base64, parts)
    return QuoteText(parse_quote(attest), parse_signature(signature), parse_dump(values))


def from_base64(text: str) -> bytes:
    """Decode one field, strictly.

    Raises:
        MalformedQuoteText: not standard base64.
    """
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise MalformedQuoteText("standard base64") from None
