"""PCR banks, values, selections and their digest (TPM 2.0 Library, part 2, TPML_PCR_SELECTION; part 3, TPM2_Quote)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.reader import MalformedTpmStructure, Reader

PCR_COUNT = 24
# TPML_PCR_SELECTION holds one entry for each hash algorithm that a TPM implements; 16 is what tpm2-tss allows.
MAX_BANKS = 16
_BITMAP_BYTES = PCR_COUNT // 8
# PC Client platforms: 17 to 22 stand at all ones until a dynamic launch, the others start at zero.
_DYNAMIC = range(17, 23)

PcrValues: TypeAlias = Mapping[HashAlg, Mapping[int, bytes]]
"""Bank to index to value; each value has the bank's size."""
_NOTHING: Mapping[int, bytes] = {}


def initial_value(bank: HashAlg, pcr: int) -> bytes:
    """What a PCR holds before anything is measured (PC Client Platform TPM Profile, section 4.6.2).

    PCR 0 may start otherwise: an event log tells so with a StartupLocality event.
    """
    return (b"\xff" if pcr in _DYNAMIC else b"\x00") * bank.size


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """Which PCRs of which banks, banks in the order of the structure, indexes ascending: the order of the digest.

    A bank without indexes stands for one that the TPM has switched off: it clears what was asked of such a bank.
    """

    banks: tuple[tuple[HashAlg, tuple[int, ...]], ...]

    @classmethod
    def of(cls, bank: HashAlg, *pcrs: int) -> "PcrSelection":
        """A selection in one bank."""
        return cls(((bank, tuple(sorted(set(pcrs)))),))

    def __iter__(self) -> Iterator[tuple[HashAlg, int]]:
        for bank, pcrs in self.banks:
            for pcr in pcrs:
                yield bank, pcr

    def pcrs_of(self, bank: HashAlg) -> frozenset[int]:
        """All PCRs selected in a bank."""
        return frozenset(pcr for each, pcrs in self.banks if each is bank for pcr in pcrs)

    def digest(self, alg: HashAlg, values: PcrValues) -> bytes | None:
        """H_alg over the selected values, or None when one of them is not among `values`, or has not its bank's size.

        The size matters: values that were cut at other places would have the same digest. `alg` is the hash of the
        signature scheme, which may be another than that of the bank.
        """
        picked: list[bytes] = []
        for bank, pcrs in self.banks:
            of_bank, size = values.get(bank, _NOTHING), bank.size
            for pcr in pcrs:
                value = of_bank.get(pcr)
                if value is None or len(value) != size:
                    return None
                picked.append(value)
        return alg.digest(b"".join(picked))

    def pick(self, values: PcrValues) -> PcrValues:
        """The selected ones of `values`, and no others."""
        picked = {
            bank: {pcr: of_bank[pcr] for pcr in pcrs if pcr in of_bank}
            for bank, pcrs in self.banks
            if (of_bank := values.get(bank))
        }
        return {bank: of_bank for bank, of_bank in picked.items() if of_bank}


def read_selection(reader: Reader) -> PcrSelection:
    """Read a TPML_PCR_SELECTION: u32 count, then for each bank u16 hash, u8 size, bitmap (bit i of byte j = PCR 8j+i).

    Raises:
        MalformedTpmStructure: too many banks, an unknown hash, a bitmap of more than 24 PCRs, or one bank twice.
    """
    start = reader.offset
    count = reader.u32("the number of PCR banks")
    if count > MAX_BANKS:
        raise MalformedTpmStructure(f"at most {MAX_BANKS} PCR banks", offset=start)
    banks: list[tuple[HashAlg, tuple[int, ...]]] = []
    seen: set[HashAlg] = set()
    for _ in range(count):
        start = reader.offset
        number = reader.u16("a bank's hash algorithm")
        try:
            bank = HashAlg(number)
        except ValueError:
            raise MalformedTpmStructure("a known hash algorithm of a PCR bank", offset=start) from None
        if bank in seen:
            raise MalformedTpmStructure("each PCR bank once", offset=start)
        seen.add(bank)
        size = reader.u8("the size of a PCR bitmap")
        if size > _BITMAP_BYTES:
            raise MalformedTpmStructure(f"a PCR bitmap of at most {_BITMAP_BYTES} bytes", offset=start)
        banks.append((bank, _indexes(int.from_bytes(reader.take(size, "a PCR bitmap"), "little"))))
    return PcrSelection(tuple(banks))


def _indexes(bitmap: int) -> tuple[int, ...]:
    return tuple(pcr for pcr in range(PCR_COUNT) if bitmap >> pcr & 1)
