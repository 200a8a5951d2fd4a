"""Replay: a log's digests, extended in order, must give the PCR values that the TPM quoted.

    extend: PCR := H(PCR || digest), from zeros; PCR 0 from 00..0n where the log names start-up locality n

`replay` is the only way to a ReplayedLog that is proven. What it then says:

1. every digest of a *proven* PCR was extended, in this order, and no other;
2. an event's data was measured as far as its `coverage` says. The type and the PCR-to-PCR order are never covered:
   reading code must hold for every type that a liar could write there.

NOT said: that the firmware measured what it should. Who boots their own firmware writes every PCR; PCR 0 and the
TPM's place on the board are what speaks about that.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from attestation.engine.boot import uefi
from attestation.engine.boot.event_types import VARIABLE_TYPES, EventType
from attestation.engine.boot.eventlog import Event, UntrustedLog
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.pcrs import PcrValues

# Firmware, shim and GRUB extend these, and all they do is in the log. An empty log line-up must therefore mean an
# untouched register, whereas IMA (10) and systemd (11 to 13, 15) keep their own logs.
LOGGED_PCRS = frozenset({*range(10), 14})
# The operating system extends these on after boot, behind the boot log's back. systemd-stub, which logs EV_IPL events
# there, is followed by systemd-pcrphase and its kind; what other loaders log there (Windows) is complete.
_EXTENDED_LATER = frozenset({11, 12, 13, 15})
_IMA_PCR = 10
_IPL = EventType.IPL.value

_GRUB_PREFIXES = (b"grub_cmd: ", b"kernel_cmdline: ", b"module_cmdline: ", b"grub_kernel_cmdline ", b"grub_cmd ")


class Coverage(Enum):
    """How far a digest vouches for the event's data."""

    NONE = "none"
    """Hashes something that is not in the log (an image, a file), or the data was forged."""
    WHOLE = "whole"
    """The data, all of it that has a meaning."""
    CONTENT = "content"
    """A boot variable's content; not its name (EDK2 before 2023)."""
    TEXT = "text"
    """GRUB's text behind the label; not the label itself ("grub_cmd: ", "kernel_cmdline: ")."""


class MeasuredEvent(NamedTuple):
    """An event whose digest was extended. `covered` is the part of the data the digest vouches for, else empty."""

    number: int
    pcr: int
    type: int
    digest: bytes
    data: bytes
    coverage: Coverage
    covered: bytes

    @property
    def is_plain_text(self) -> bool:
        """Printable ASCII, measured as such. No image looks like that, and no UEFI variable: names are UTF-16."""
        text = self.covered.removesuffix(b"\0")
        return self.coverage is Coverage.WHOLE and text.isascii() and text.decode("ascii").isprintable()


@dataclass(frozen=True, slots=True)
class PcrMismatch:
    """`matching_event`: the number of the event up to which the log gives the quoted value, -1 for "before the first".

    None where no prefix does: an event was changed, removed or put in, or the log lacks its end.
    """

    pcr: int
    quoted: bytes
    replayed: bytes
    events: int
    matching_event: int | None


class ReplayError(Exception):
    """The log and the quoted values cannot both be right, or cannot be compared."""


class NoSuchBank(ReplayError):
    """The log has no digests of that bank."""

    def __init__(self, bank: HashAlg, banks: tuple[HashAlg, ...]) -> None:
        has = ", ".join(each.label for each in banks) or "banks of unknown hashes"
        super().__init__(f"the event log has no {bank.label} bank, only {has}")
        self.bank = bank
        self.banks = banks


class ReplayMismatch(ReplayError):
    def __init__(self, bank: HashAlg, mismatches: tuple[PcrMismatch, ...]) -> None:
        registers = ", ".join(str(mismatch.pcr) for mismatch in mismatches)
        super().__init__(f"the event log does not give the quoted {bank.label} values of PCR {registers}")
        self.bank = bank
        self.mismatches = mismatches


_MADE_HERE = object()


@dataclass(frozen=True, slots=True)
class ReplayedLog:
    """`proven`: PCRs that were quoted and agree. None: nothing was quoted, so all of it is only what the log claims.

    `events` are those that extend a PCR in this bank, without those of quoted PCRs that the operating system extended
    further. `extended_later` names those. `values` holds what the log gives, for each PCR it extends.
    """

    bank: HashAlg
    events: tuple[MeasuredEvent, ...]
    values: Mapping[int, bytes]
    proven: frozenset[int] | None
    extended_later: frozenset[int]
    event_count: int
    _by_pcr: Mapping[int, tuple[MeasuredEvent, ...]] = field(repr=False, compare=False)
    _made_here: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._made_here is not _MADE_HERE:
            raise TypeError("a ReplayedLog comes from replay() or replay_unproven()")

    def of_pcr(self, pcr: int) -> tuple[MeasuredEvent, ...]:
        """What PCR `pcr` was extended with; nothing where quoted values were given and this one was not among them."""
        if self.proven is not None and pcr not in self.proven:
            return ()
        return self._by_pcr.get(pcr, ())


def pcr_values(log: UntrustedLog) -> PcrValues:
    """What the log gives, of PCRs that it extends."""
    return {bank: _values(log, bank) for bank in log.banks}


def fullest_bank(log: UntrustedLog) -> HashAlg | None:
    """The bank that most events extend, of equals the strongest. None without a bank of a known hash."""
    extended = Counter(bank for event in log.events for bank in event.digests)
    return max(log.banks, key=lambda bank: (extended[bank], bank.size), default=None)


def replay(log: UntrustedLog, *, bank: HashAlg, quoted: Mapping[int, bytes]) -> ReplayedLog:
    """Compare with PCR values that a verified quote vouches for. Raises NoSuchBank, ReplayMismatch with each PCR.

    A quoted PCR the log does not extend must be untouched where LOGGED_PCRS has it; elsewhere it is left alone.
    """
    values = _values(log, bank)
    if not quoted:
        raise ValueError("replay needs quoted values; without a quote there is replay_unproven()")
    later = _extended_later(log, bank)
    mismatches = []
    proven = set()
    extended_later = set()
    for pcr in sorted(quoted):
        replayed = values.get(pcr)
        if replayed is None:
            untouched = start_value(log, bank, pcr)
            if pcr in LOGGED_PCRS and quoted[pcr] != untouched:
                mismatches.append(PcrMismatch(pcr, quoted[pcr], untouched, 0, None))
        elif replayed == quoted[pcr]:
            proven.add(pcr)
        elif pcr in later:
            extended_later.add(pcr)
        else:
            mismatches.append(_mismatch(log, bank, pcr, quoted[pcr], replayed))
    if mismatches:
        raise ReplayMismatch(bank, tuple(mismatches))
    return _replayed(log, bank, values, frozenset(proven), frozenset(extended_later))


def replay_unproven(log: UntrustedLog, *, bank: HashAlg) -> ReplayedLog:
    """Without a quote: what the log claims, marked as not proven. Raises NoSuchBank."""
    return _replayed(log, bank, _values(log, bank), None, frozenset())


def start_value(log: UntrustedLog, bank: HashAlg, pcr: int) -> bytes:
    """PFP 1.06 section 3.3.2: zeros; in PCR 0 the locality of TPM2_Startup as last byte."""
    return bytes(bank.size - 1) + bytes([log.startup_locality or 0]) if pcr == 0 else bytes(bank.size)


def _values(log: UntrustedLog, bank: HashAlg) -> dict[int, bytes]:
    if bank not in log.banks:
        raise NoSuchBank(bank, log.banks)
    function = bank.function
    values: dict[int, bytes] = {}
    for event in log.events:
        digest = event.digests.get(bank)
        if digest is not None:
            pcr = event.pcr
            before = values[pcr] if pcr in values else start_value(log, bank, pcr)
            values[pcr] = function(before + digest).digest()
    return values


def _extended_later(log: UntrustedLog, bank: HashAlg) -> frozenset[int]:
    stub = {event.pcr for event in log.events if event.type == _IPL and bank in event.digests}
    return frozenset({_IMA_PCR} | (stub & _EXTENDED_LATER))


def _mismatch(log: UntrustedLog, bank: HashAlg, pcr: int, quoted: bytes, replayed: bytes) -> PcrMismatch:
    value = start_value(log, bank, pcr)
    matching = -1 if value == quoted else None
    events = 0
    for event in log.events:
        digest = event.digests.get(bank)
        if digest is not None and event.pcr == pcr:
            events += 1
            value = bank.digest(value + digest)
            if value == quoted:
                matching = event.number
    return PcrMismatch(pcr, quoted, replayed, events, matching)


def _replayed(
    log: UntrustedLog,
    bank: HashAlg,
    values: Mapping[int, bytes],
    proven: frozenset[int] | None,
    extended_later: frozenset[int],
) -> ReplayedLog:
    measured = []
    by_pcr: dict[int, list[MeasuredEvent]] = {}
    for event in log.events:
        digest = event.digests.get(bank)
        if digest is not None and event.pcr not in extended_later:
            coverage, covered = _coverage(event, digest, bank)
            made = MeasuredEvent(event.number, event.pcr, event.type, digest, event.data, coverage, covered)
            measured.append(made)
            by_pcr.setdefault(event.pcr, []).append(made)
    of_pcr = {pcr: tuple(events) for pcr, events in by_pcr.items()}
    return ReplayedLog(
        bank, tuple(measured), values, proven, extended_later, len(log.events), of_pcr, _made_here=_MADE_HERE
    )


def _coverage(event: Event, digest: bytes, bank: HashAlg) -> tuple[Coverage, bytes]:
    """PFP 1.06 table 14 says for each type what is hashed; here the digest itself is asked, and the type only hints.

    A wrong hint can lose coverage, never gain it: whatever comes back as covered hashes to the digest.
    """
    data, function = event.data, bank.function
    if event.type == _IPL:
        # GRUB's label first: most of a log is such events, and their whole data hash to nothing.
        for prefix in _GRUB_PREFIXES:
            if data.startswith(prefix):
                # GRUB hashes without the NUL, RHEL 8's with it.
                labelled = data[len(prefix) :]
                body = labelled.removesuffix(b"\0")
                if function(body).digest() == digest or function(labelled).digest() == digest:
                    return Coverage.TEXT, body
                break
    if function(data).digest() == digest:
        return Coverage.WHOLE, data
    if event.type in VARIABLE_TYPES:
        return _variable_coverage(event, digest, bank)
    return Coverage.NONE, b""


def _variable_coverage(event: Event, digest: bytes, bank: HashAlg) -> tuple[Coverage, bytes]:
    data = event.data
    try:
        variable = uefi.variable(data)
    except uefi.MalformedEventData:
        return Coverage.NONE, b""
    # shim before 15.3 logged one byte more than it hashed, behind the structure: it means nothing.
    if variable.size < len(data) and bank.digest(data[:-1]) == digest:
        return Coverage.WHOLE, data[:-1]
    boot = event.type in (EventType.EFI_VARIABLE_BOOT, EventType.EFI_VARIABLE_BOOT2)
    if boot and bank.digest(variable.content) == digest:
        return Coverage.CONTENT, variable.content
    return Coverage.NONE, b""
