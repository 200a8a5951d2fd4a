"""TPMS_ATTEST: what a TPM signs about itself (TPM 2.0 Library, part 2, section 10.12.12). Only quotes are read here."""

from dataclasses import dataclass, field
from typing import ClassVar

from attestation.engine.tpm.pcrs import PcrSelection, read_selection
from attestation.engine.tpm.reader import MalformedTpmStructure, Reader

# TPM_GENERATED_VALUE, "\xffTCG": a restricted key signs nothing from outside that starts so.
MAGIC = 0xFF544347
ATTEST_QUOTE = 0x8018
MAX_ATTEST_BYTES = 2048
_MAX_NAME_BYTES = 2 + 64
_MAX_EXTRA_BYTES = 2 + 64


class MalformedQuote(MalformedTpmStructure):
    """No quote."""

    what: ClassVar[str] = "quote"


@dataclass(frozen=True, slots=True)
class ClockInfo:
    """TPMS_CLOCK_INFO: milliseconds of power since the TPM was cleared; TPM resets and restarts since then.

    Not `safe` means that the clock may have been ahead of this before a loss of power.
    """

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True)
class UntrustedQuote:
    """A quote as it came. Nothing is proven: any program can write one. `quote.verify` makes a VerifiedQuote of it.

    `raw` is what the signature is over. `extra_data` is where the nonce stands.
    """

    raw: bytes = field(repr=False)
    qualified_signer: bytes
    extra_data: bytes
    clock: ClockInfo
    firmware_version: int
    selection: PcrSelection
    pcr_digest: bytes


def parse_quote(data: bytes) -> UntrustedQuote:
    """Read a TPMS_ATTEST of type quote; nothing may follow it.

    Raises:
        MalformedQuote: anything else, among it what is attested but no quote.
    """
    if len(data) > MAX_ATTEST_BYTES:
        raise MalformedQuote(f"at most {MAX_ATTEST_BYTES} bytes", offset=0)
    reader = Reader(data)
    try:
        if reader.u32("the magic number") != MAGIC:
            raise MalformedQuote("the magic number of what a TPM made itself", offset=0)
        if reader.u16("the type") != ATTEST_QUOTE:
            raise MalformedQuote("the type of a quote", offset=4)
        signer = reader.sized(_MAX_NAME_BYTES, "the signer's qualified name")
        extra_data = reader.sized(_MAX_EXTRA_BYTES, "extra data")
        clock = reader.u64("the clock")
        reset_count, restart_count = reader.u32("the reset count"), reader.u32("the restart count")
        start = reader.offset
        safe = reader.u8("the clock's safe flag")
        if safe > 1:
            raise MalformedQuote("0 or 1 as the clock's safe flag", offset=start)
        firmware_version = reader.u64("the firmware version")
        selection = read_selection(reader)
        pcr_digest = reader.sized(64, "the PCR digest")
        reader.end("the quote")
    except MalformedQuote:
        raise
    except MalformedTpmStructure as exc:
        raise MalformedQuote(exc.expected, offset=exc.offset) from None
    return UntrustedQuote(
        raw=data,
        qualified_signer=signer,
        extra_data=extra_data,
        clock=ClockInfo(clock, reset_count, restart_count, safe == 1),
        firmware_version=firmware_version,
        selection=selection,
        pcr_digest=pcr_digest,
    )
