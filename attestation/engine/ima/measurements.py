"""IMA's measurement list in its ASCII form, as securityfs has it and Keylime's agents send it, line by line:

    10 <SHA-1 of the template data> <template> <fields>

Templates (Linux, Documentation/security/IMA-templates.rst): see templates.py. The hash column is not used: what extends
PCR 10 is the hash of the template data in the bank's own algorithm, and the data are put together again from the
fields. A violation (a file that changed while it was open) has zeros in that column, and extends ones.

`replay` goes on from a state, so each poll brings only new lines, and stops at the line whose value was quoted: list
and quote are not taken in one moment, and lines behind it stay for the next poll.

NOT checked: whether the kernel's IMA policy measures what matters. Lines say what was measured, not what ran.
"""

import hashlib
from binascii import Error as HexError
from binascii import unhexlify
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Protocol

from attestation.engine.errors import Malformed
from attestation.engine.ima import templates
from attestation.engine.tpm.algorithms import HashAlg

# A busy host's list grows past 100,000 lines; a longer one comes in pieces, each going on from the state before it.
MAX_LIST_BYTES = 64 << 20
MAX_LINES = 500_000
MAX_LINE_BYTES = 128 << 10

IMA_PCR = 10
BOOT_AGGREGATE = b"boot_aggregate"
_VIOLATION = b"0" * 40
# u32 lengths, little endian, for almost every path.
_LENGTHS = [size.to_bytes(4, "little") for size in range(1024)]
_MADE_HERE = object()


class _Digest(Protocol):
    def digest(self) -> bytes: ...


# HashAlg.digest would be a call more for each of two hashes a line.
_HASHES: Mapping[HashAlg, Callable[[bytes], _Digest]] = {
    HashAlg.SHA1: partial(hashlib.sha1, usedforsecurity=False),
    HashAlg.SHA256: hashlib.sha256,
    HashAlg.SHA384: hashlib.sha384,
    HashAlg.SHA512: hashlib.sha512,
}


class MalformedList(Malformed):
    """Not a measurement list. `offset` is that of the line, in bytes of the piece at hand."""

    what: ClassVar[str] = "IMA measurement list"


class ImaMismatch(Exception):
    """No line of the list, and not the state before it either, gives the quoted value of PCR 10."""

    def __init__(self, lines: int) -> None:
        super().__init__(f"the IMA list of {lines} lines does not give the quoted value of PCR {IMA_PCR}")
        self.lines = lines


@dataclass(frozen=True, slots=True)
class ImaState:
    """Where a replay stands: `lines` lines since boot give `value` in PCR 10 of `bank`. To be kept between polls."""

    bank: HashAlg
    lines: int
    value: bytes

    @classmethod
    def at_boot(cls, bank: HashAlg) -> "ImaState":
        """Before the first line."""
        return cls(bank, 0, bytes(bank.size))


@dataclass(frozen=True, slots=True)
class UntrustedList:
    """Lines that were split and not yet replayed. `first_line` is the number, from 0 at boot, of the first one."""

    first_line: int
    lines: list[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Measurements:
    """Lines that the quoted PCR 10 vouches for, in columns: entry i is line `first_line` + i since boot.

    `paths` are raw, with spaces as underscores, as the kernel writes them; `digests` are "sha256:<hex>" in ASCII;
    `signatures` (ima-sig) are raw, by entry. `violations` and `buffers` (keys, command lines, policies) name entries
    that measure no file. `pending` counts the lines behind the quoted value. `state` is where the next poll goes on.
    """

    first_line: int
    paths: list[bytes] = field(repr=False)
    digests: list[bytes] = field(repr=False)
    signatures: Mapping[int, bytes] = field(repr=False)
    violations: tuple[int, ...]
    buffers: frozenset[int] = field(repr=False)
    pending: int
    state: ImaState
    is_proven: bool
    _made_here: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._made_here is not _MADE_HERE:
            raise TypeError("measurements come from replay()")

    @property
    def boot_aggregate(self) -> bytes | None:
        """The digest of line 0, over PCR 0 to 9. None where this piece begins later, or line 0 is something else."""
        return self.digests[0] if self.paths and not self.first_line and self.paths[0] == BOOT_AGGREGATE else None


def parse(text: bytes, *, first_line: int = 0) -> UntrustedList:
    """Split into lines. An empty text is an empty list: nothing new since the last poll."""
    if len(text) > MAX_LIST_BYTES:
        raise MalformedList(f"at most {MAX_LIST_BYTES} bytes", offset=MAX_LIST_BYTES)
    if text.count(b"\n") > MAX_LINES:
        raise MalformedList(f"at most {MAX_LINES} lines")
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return UntrustedList(first_line, lines)


def replay(listed: UntrustedList, *, state: ImaState, quoted: bytes | None) -> Measurements:
    """Go on from `state` to the quoted value of PCR 10; with `quoted` None take every line, and prove nothing.

    Raises MalformedList for a line that cannot be read, ImaMismatch where no line gives the value, ValueError where the
    list does not begin where the state ended.
    """
    if listed.first_line != state.lines:
        raise ValueError(f"a list from line {listed.first_line} does not go on from line {state.lines}")
    if quoted is not None and len(quoted) != state.bank.size:
        raise ValueError(f"a quoted value has {state.bank.size} bytes")
    hashed = _HASHES[state.bank]
    violated = b"\xff" * state.bank.size
    value = state.value
    matched, matched_value = (0 if quoted == value else -1), value
    paths: list[bytes] = []
    digests: list[bytes] = []
    signatures: dict[int, bytes] = {}
    violations: list[int] = []
    buffers: list[int] = []
    prefixes: dict[bytes, tuple[bytes, int]] = {}
    lengths, longest = _LENGTHS, len(_LENGTHS) - 2
    for entry, line in enumerate(listed.lines):
        parts = line.split(b" ")
        # Almost all lines have these forms, and are read here in few steps; templates.py reads the others.
        no_signature = len(parts) == 6 and parts[2] == b"ima-sig" and not parts[5]
        plain = no_signature or (len(parts) == 5 and parts[2] == b"ima-ng")
        if plain and parts[0] == b"10" and 0 < len(parts[4]) <= longest:
            column, digest, path = parts[1], parts[3], parts[4]
            name, _, hexadecimal = digest.partition(b":")
            try:
                known = prefixes.get(name) or prefixes.setdefault(name, templates.digest_prefix(name))
                raw = unhexlify(hexadecimal)
            except (HexError, templates.Unreadable) as exc:
                raise _malformed("a digest of a known hash", listed, entry) from exc
            if len(raw) != known[1] or len(column) != len(_VIOLATION):
                raise _malformed("hashes of the right length", listed, entry)
            data = known[0] + raw + lengths[len(path) + 1] + path + (b"\0\0\0\0\0" if no_signature else b"\0")
        else:
            fields = _fields(parts, listed, entry)
            column, data, digest, path = parts[1], fields.data, fields.digest, fields.path
            if fields.signature:
                signatures[entry] = fields.signature
            if fields.is_buffer:
                buffers.append(entry)
        if column == _VIOLATION:
            violations.append(entry)
            value = hashed(value + violated).digest()
        else:
            value = hashed(value + hashed(data).digest()).digest()
        paths.append(path)
        digests.append(digest)
        if value == quoted:
            matched, matched_value = entry + 1, value
    if quoted is None:
        matched, matched_value = len(paths), value
    if matched < 0:
        raise ImaMismatch(state.lines + len(paths))
    return Measurements(
        first_line=state.lines,
        paths=paths[:matched],
        digests=digests[:matched],
        signatures={entry: each for entry, each in signatures.items() if entry < matched},
        violations=tuple(entry for entry in violations if entry < matched),
        buffers=frozenset(entry for entry in buffers if entry < matched),
        pending=len(paths) - matched,
        state=ImaState(state.bank, state.lines + matched, matched_value),
        is_proven=quoted is not None,
        _made_here=_MADE_HERE,
    )


def _fields(parts: list[bytes], listed: UntrustedList, entry: int) -> templates.Fields:
    if len(parts) < 5 or parts[0] != b"%d" % IMA_PCR or len(listed.lines[entry]) > MAX_LINE_BYTES:
        raise _malformed(f"PCR {IMA_PCR}, a hash, a template and its fields", listed, entry)
    if len(parts[1]) != len(_VIOLATION):
        raise _malformed("a template hash of 40 hexadecimal digits", listed, entry)
    try:
        return templates.read(parts[2], parts[3:])
    except templates.Unreadable as exc:
        raise _malformed("a known template with its fields", listed, entry) from exc


def _malformed(expected: str, listed: UntrustedList, entry: int) -> MalformedList:
    offset = sum(len(line) + 1 for line in listed.lines[:entry])
    return MalformedList(f"{expected} in line {listed.first_line + entry}", offset=offset)
