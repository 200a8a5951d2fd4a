"""PCR values as tools write them: the dump of tpm2-tools, the text of `tpm2 pcrread`, and JSON.

None of it is trusted: values count once a quote's digest covers them. Only banks and indexes that are known are read.
"""

import json
import re
from typing import ClassVar

from attestation.engine.errors import Malformed
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.pcrs import MAX_BANKS, PCR_COUNT, PcrSelection, PcrValues

MAX_TEXT_BYTES = 64 * 1024
# The dump is C structures as they stand in memory, little-endian: TPML_PCR_SELECTION with 16 entries of 8 bytes; a
# count; that many TPML_DIGEST with 8 entries of 66 bytes.
_ENTRY_BYTES = 8
_SELECTION_BYTES = 4 + MAX_BANKS * _ENTRY_BYTES
_DIGESTS_PER_LIST = 8
_DIGEST_BYTES = 2 + 64
_LIST_BYTES = 4 + _DIGESTS_PER_LIST * _DIGEST_BYTES
_MAX_LISTS = MAX_BANKS * PCR_COUNT // _DIGESTS_PER_LIST
_BANK_LINE = re.compile(r"\s*(sha1|sha256|sha384|sha512)\s*:\s*")
_VALUE_LINE = re.compile(r"\s*([0-9]{1,2})\s*:\s*0x([0-9a-fA-F]{40,128})\s*")


class MalformedPcrValues(Malformed):
    """No PCR values."""

    what: ClassVar[str] = "PCR values"


def parse_values(data: bytes) -> PcrValues:
    """Read any of the three forms, by how it begins.

    Raises:
        MalformedPcrValues: it is none of them.
    """
    if data.lstrip()[:1] == b"{":
        return parse_json(data)
    if b":" in data[:64] and data[:64].isascii() and b"\0" not in data[:64]:
        return parse_pcrread(data)
    return parse_dump(data)


def parse_concatenated(data: bytes, selection: PcrSelection) -> PcrValues:
    """Read values that stand one behind the other in the order of a selection (`tpm2 quote -F values`).

    Raises:
        MalformedPcrValues: another number of bytes.
    """
    if len(data) != sum(bank.size for bank, _ in selection):
        raise MalformedPcrValues("the values of the quoted PCRs, one behind the other", offset=0)
    values: dict[HashAlg, dict[int, bytes]] = {}
    start = 0
    for bank, pcr in selection:
        values.setdefault(bank, {})[pcr] = data[start : start + bank.size]
        start += bank.size
    return values


def parse_dump(data: bytes) -> PcrValues:
    """Read the dump that `tpm2 quote -o` writes and Keylime's agents send (136 bytes and 532 for each 8 values).

    Raises:
        MalformedPcrValues: any field is out of bounds, values and selection differ in number, or bytes are left over.
    """
    selection = _dumped_selection(data)
    wanted = list(selection)
    start = _SELECTION_BYTES
    lists = _u32(data, start)
    if lists > _MAX_LISTS or len(data) != start + 4 + lists * _LIST_BYTES:
        raise MalformedPcrValues("as many lists of digests as there are bytes for", offset=start)
    values: dict[HashAlg, dict[int, bytes]] = {}
    done = 0
    for number in range(lists):
        start = _SELECTION_BYTES + 4 + number * _LIST_BYTES
        count = _u32(data, start)
        if count > _DIGESTS_PER_LIST or done + count > len(wanted):
            raise MalformedPcrValues("a digest for each selected PCR", offset=start)
        for position, (bank, pcr) in enumerate(wanted[done : done + count]):
            place = start + 4 + position * _DIGEST_BYTES
            if int.from_bytes(data[place : place + 2], "little") != bank.size:
                raise MalformedPcrValues(f"a {bank.label} digest", offset=place)
            values.setdefault(bank, {})[pcr] = data[place + 2 : place + 2 + bank.size]
        done += count
    if done != len(wanted):
        raise MalformedPcrValues("a digest for each selected PCR", offset=len(data))
    return values


def _dumped_selection(data: bytes) -> PcrSelection:
    if len(data) < _SELECTION_BYTES + 4:
        raise MalformedPcrValues(f"at least {_SELECTION_BYTES + 4} bytes", offset=0)
    count = _u32(data, 0)
    if count > MAX_BANKS:
        raise MalformedPcrValues(f"at most {MAX_BANKS} banks", offset=0)
    banks: dict[HashAlg, tuple[int, ...]] = {}
    for start in range(4, 4 + count * _ENTRY_BYTES, _ENTRY_BYTES):
        try:
            bank = HashAlg(int.from_bytes(data[start : start + 2], "little"))
        except ValueError:
            raise MalformedPcrValues("a known bank", offset=start) from None
        if bank in banks or data[start + 2] > PCR_COUNT // 8:
            raise MalformedPcrValues(f"each bank once, of {PCR_COUNT} PCRs", offset=start)
        bitmap = int.from_bytes(data[start + 3 : start + 3 + data[start + 2]], "little")
        banks[bank] = tuple(pcr for pcr in range(PCR_COUNT) if bitmap >> pcr & 1)
    return PcrSelection(tuple(banks.items()))


def _u32(data: bytes, start: int) -> int:
    return int.from_bytes(data[start : start + 4], "little")


def parse_pcrread(data: bytes) -> PcrValues:
    """Read what `tpm2 pcrread` prints: a line for each bank, below it a line `index: 0x...` for each PCR.

    Raises:
        MalformedPcrValues: a line of another form, an index or digest out of bounds, or no value at all.
    """
    try:
        text = _text(data).decode("ascii")
    except UnicodeDecodeError:
        raise MalformedPcrValues("the text of pcrread") from None
    values: dict[HashAlg, dict[int, bytes]] = {}
    bank: HashAlg | None = None
    for line in text.splitlines():
        if heading := _BANK_LINE.fullmatch(line):
            bank = HashAlg.of_label(heading[1])
        elif (row := _VALUE_LINE.fullmatch(line)) and bank is not None:
            _put(values, bank, row[1], row[2])
        elif line.strip():
            raise MalformedPcrValues("lines of banks and values")
    return _some(values)


def parse_json(data: bytes) -> PcrValues:
    """Read `{"sha256": {"0": "<hex>", ...}, ...}`.

    Raises:
        MalformedPcrValues: another form, an unknown bank, an index or digest out of bounds, or no value at all.
    """
    try:
        document: object = json.loads(_text(data))
    except (ValueError, RecursionError):
        raise MalformedPcrValues("JSON") from None
    if not isinstance(document, dict):
        raise MalformedPcrValues("an object of banks")
    values: dict[HashAlg, dict[int, bytes]] = {}
    for label, of_bank in document.items():
        try:
            bank = HashAlg.of_label(label)
        except KeyError:
            raise MalformedPcrValues("banks by the names sha1, sha256, sha384, sha512") from None
        if not isinstance(of_bank, dict):
            raise MalformedPcrValues("an object of values for each bank")
        for index, value in of_bank.items():
            if not isinstance(value, str):
                raise MalformedPcrValues("hexadecimal digits for each value")
            _put(values, bank, index, value)
    return _some(values)


def _text(data: bytes) -> bytes:
    if len(data) > MAX_TEXT_BYTES:
        raise MalformedPcrValues(f"at most {MAX_TEXT_BYTES} bytes", offset=0)
    return data


def _put(values: dict[HashAlg, dict[int, bytes]], bank: HashAlg, index: str, value: str) -> None:
    if not (index.isascii() and index.isdigit() and len(index) <= 2 and int(index) < PCR_COUNT):
        raise MalformedPcrValues(f"indexes below {PCR_COUNT}")
    try:
        digest = bytes.fromhex(value)
    except ValueError:
        raise MalformedPcrValues("hexadecimal digits for each value") from None
    if len(digest) != bank.size:
        raise MalformedPcrValues(f"{bank.label} digests of {bank.size} bytes")
    if values.setdefault(bank, {}).setdefault(int(index), digest) != digest:
        raise MalformedPcrValues("each PCR once")


def _some(values: dict[HashAlg, dict[int, bytes]]) -> PcrValues:
    if not any(values.values()):
        raise MalformedPcrValues("at least one value")
    return values
