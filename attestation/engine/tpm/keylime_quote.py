"""The quote as Keylime's agents send it: `r<base64>:<base64>:<base64>`, TPMS_ATTEST, TPMT_SIGNATURE, PCR values."""

import base64
import binascii
from dataclasses import dataclass
from typing import ClassVar

from attestation.engine.errors import Malformed
from attestation.engine.findings import Finding, FindingCode, Severity
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.attest import UntrustedQuote, parse_quote
from attestation.engine.tpm.pcr_values import parse_dump
from attestation.engine.tpm.pcrs import PcrValues
from attestation.engine.tpm.quote import VerifiedQuote
from attestation.engine.tpm.signature import Signature, parse_signature

MAX_QUOTE_TEXT = 64 * 1024
TRANSPORT_KEY_PCR = 16


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


def transport_key_findings(quote: VerifiedQuote, public_key: str, bank: HashAlg) -> tuple[Finding, ...]:
    """Does PCR 16 of the quote bind the agent's transport key: H(0...0 | H(PEM text, exactly as it was sent))?

    PCR 16 can be reset by anybody on the host; inside a quote it says that this host's TPM knew the key.
    """
    bound = bank.digest(bytes(bank.size) + bank.digest(public_key.encode()))
    quoted = (quote.pcrs or {}).get(bank, {}).get(TRANSPORT_KEY_PCR)
    if quoted == bound:
        return ()
    return (
        Finding(
            FindingCode.TRANSPORT_KEY_MISMATCH,
            Severity.ERROR,
            f"PCR {TRANSPORT_KEY_PCR} does not hold the transport key that the agent sent",
            "restart the agent; if it comes again, look at what stands between console and host",
            TRANSPORT_KEY_PCR,
            expected=bound.hex(),
            observed="" if quoted is None else quoted.hex(),
        ),
    )
