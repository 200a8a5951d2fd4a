"""Is a VM what its storage policies say? Expectation and observation in, findings out; pure and total.

Observed are headers of files, the flags of the vTPM's state and the definition, never what this console remembers of
its own writing. Whatever could not be read is a finding of its own, and makes the answer "not known", never
"compliant".

NOT shown by a header: that the data behind it are encrypted under its key (LUKS1 headers are not authenticated), nor
that the definition is the one a running QEMU was started with where libvirt itself lies.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from encryption.engine import luks_header, vtpm_state
from encryption.engine.metadata import ProtectedVm, WrappedKey

HEAD_BYTES: Final = luks_header.HEADER_BYTES
_QCOW2_MAGIC: Final = b"QFI\xfb"
_LUKS_MAGIC: Final = b"LUKS\xba\xbe"
_QCOW2_LUKS: Final = 2  # crypt_method in the header, qcow2 specification
NVRAM: Final = "nvram"
VTPM: Final = "vtpm"


class State(StrEnum):
    COMPLIANT = "compliant"
    NONCOMPLIANT = "noncompliant"
    UNKNOWN = "unknown"


class Header(StrEnum):
    """What the first bytes of a part show."""

    ENCRYPTED = "encrypted"
    WEAK = "weak"  # encrypted, but not as this console does it
    PLAIN = "plain"
    ABSENT = "absent"  # no such file
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class SeenHeader:
    """`told`: what was read, for people; never content of the file."""

    header: Header
    told: str


@dataclass(frozen=True, slots=True)
class ObservedPart:
    """A disk (by target), NVRAM or vTPM state. `secret`: what the definition opens it with; `next_secret`: that of the
    next start, which differs only for a running VM."""

    name: str
    path: str
    seen: SeenHeader
    secret: UUID | None
    next_secret: UUID | None
    next_path: str


@dataclass(frozen=True, slots=True)
class ObservedVm:
    """`metadata` None: the definition carries no element of ours, or, with `metadata_problem`, one that is no good."""

    parts: tuple[ObservedPart, ...]
    metadata: ProtectedVm | None
    metadata_problem: str
    dumps_core: bool
    has_managed_save: bool
    memory_snapshot_count: int


@dataclass(frozen=True, slots=True)
class ExpectedPart:
    """`policy` empty: none was ever assigned. `secret`: the one this console holds, wrapped, for the part."""

    name: str
    policy: str
    encrypts: bool
    secret: UUID | None


@dataclass(frozen=True, slots=True)
class ExpectedVm:
    """Of a protected VM. `parts` may name disks that are not there any more; `metadata` is made of the rows."""

    home_policy: str
    parts: tuple[ExpectedPart, ...]
    metadata: ProtectedVm | None


@dataclass(frozen=True, slots=True)
class Finding:
    """`part` is a disk's target, `nvram`, `vtpm`, or `vm` for the definition as a whole."""

    code: str
    part: str
    expected: str
    observed: str
    evidence: str
    remedy: str
    is_unknown: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """A line about one part, good or bad."""

    part: str
    state: Header
    evidence: str


@dataclass(frozen=True, slots=True)
class Result:
    state: State
    findings: tuple[Finding, ...]
    observations: tuple[Observation, ...]


_APPLY: Final = "apply its VM Options again"
_RESTORE: Final = "bring back the definition that this console made, or apply its VM Options again"


def look_at_image(head: bytes) -> SeenHeader:
    """The first HEAD_BYTES bytes of a disk image or NVRAM file (fewer only where the file is shorter)."""
    if head.startswith(_LUKS_MAGIC):
        return _look_at_luks(head)
    if head.startswith(_QCOW2_MAGIC):
        method = struct.unpack_from(">I", head, 32)[0] if len(head) >= 36 else 0
        if method == _QCOW2_LUKS:
            return SeenHeader(Header.WEAK, "a qcow2 image with LUKS inside, whose cipher is not looked at")
        return SeenHeader(Header.PLAIN, "a qcow2 image without encryption")
    if len(head) >= 512 and head[510:512] == b"\x55\xaa":
        return SeenHeader(Header.PLAIN, "a boot sector in clear, no LUKS header")
    if head[40:44] == b"_FVH":
        return SeenHeader(Header.PLAIN, "a firmware variable store in clear, no LUKS header")
    return SeenHeader(Header.PLAIN, "no LUKS header")


def _look_at_luks(head: bytes) -> SeenHeader:
    try:
        header = luks_header.parse(head)
    except luks_header.LuksError as exc:
        return SeenHeader(Header.WEAK, f"a LUKS header that is not as this console makes it: {exc}")
    active = sum(slot.active for slot in header.keyslots)
    told = (
        f"LUKS1 header {header.uuid}, aes-xts-plain64, {luks_header.VOLUME_KEY_BYTES * 8}-bit volume key, "
        f"{header.hash_name}, {active} of {len(header.keyslots)} keyslots in use"
    )
    return SeenHeader(Header.ENCRYPTED if active else Header.WEAK, told)


def look_at_vtpm(head: bytes) -> SeenHeader:
    """The first bytes of `tpm2-00.permall`."""
    try:
        state = vtpm_state.parse(head[: vtpm_state.HEADER_BYTES])
    except vtpm_state.BadState as exc:
        return SeenHeader(Header.UNREADABLE, str(exc))
    if not state.encrypted:
        return SeenHeader(Header.PLAIN, "the state's header says: not encrypted")
    told = f"the state's header says: encrypted, {state.key_bits}-bit key"
    return SeenHeader(Header.ENCRYPTED if state.key_bits == 256 else Header.WEAK, told)


def assess(expected: ExpectedVm, observed: ObservedVm) -> Result:
    """All findings, in the order of the parts; of one part the first that matters."""
    wanted = {part.name: part for part in expected.parts}
    findings: list[Finding] = []
    for part in observed.parts:
        rule = wanted.get(part.name) or ExpectedPart(part.name, "", encrypts=False, secret=None)
        findings += _part(rule, part)
    findings += _gone(expected, observed)
    findings += _whole(expected, observed)
    observations = tuple(Observation(part.name, part.seen.header, _evidence(part)) for part in observed.parts)
    bad = [finding for finding in findings if not finding.is_unknown]
    state = State.NONCOMPLIANT if bad else State.UNKNOWN if findings else State.COMPLIANT
    return Result(state, tuple(findings), observations)


def _part(rule: ExpectedPart, part: ObservedPart) -> Iterable[Finding]:
    if part.seen.header is Header.UNREADABLE:
        yield Finding(
            "not_readable", part.name, _wanted(rule), "not known", _evidence(part),
            "see why the host does not give out the file's header, then check again", is_unknown=True,
        )  # fmt: skip
    if part.secret is not None and part.secret != rule.secret:
        yield Finding(
            "secret_unknown", part.name, _wanted(rule), f"opened with secret {part.secret}", _evidence(part),
            "this console holds no key for it: attach what it encrypted, or import that VM's keys",
        )  # fmt: skip
    elif rule.encrypts:
        yield from _must_be_encrypted(rule, part)
    elif rule.policy:
        if part.secret is not None:
            yield Finding(
                "encrypted_against_policy", part.name, _wanted(rule), "encrypted", _evidence(part),
                f"{_APPLY}, with the policy that is wanted",
            )  # fmt: skip
    elif part.secret is None:
        yield Finding(
            "disk_plain_unknown", part.name, "a storage policy", "a disk without one, not encrypted", _evidence(part),
            "it was added outside this console: choose a policy for it in VM Options, or detach it",
        )  # fmt: skip
    if (part.next_secret, part.next_path) != (part.secret, part.path):
        yield Finding(
            "definition_differs", part.name, f"the next start opens {part.path} as the running VM does",
            f"it opens {part.next_path or 'nothing'} {_with(part.next_secret)}",
            f"{part.name}: running {_with(part.secret)}, defined {_with(part.next_secret)}", _RESTORE,
        )  # fmt: skip


def _must_be_encrypted(rule: ExpectedPart, part: ObservedPart) -> Iterable[Finding]:
    """Its secret, where the definition names one, is ours."""
    header, wanted, evidence = part.seen.header, _wanted(rule), _evidence(part)
    plain_code = {NVRAM: "nvram_plain", VTPM: "vtpm_plain"}.get(part.name, "disk_plain")
    if part.secret is None:
        if header in (Header.ENCRYPTED, Header.WEAK):
            yield Finding(
                "definition_differs", part.name, wanted, "encrypted, but the definition does not open it", evidence,
                _RESTORE,
            )  # fmt: skip
        elif header is not Header.UNREADABLE:
            yield Finding(
                plain_code, part.name, wanted, "in clear" if header is Header.PLAIN else "no file", evidence, _APPLY
            )
    elif header is Header.WEAK:
        yield Finding(
            "header_weak", part.name, wanted, "encrypted otherwise", evidence,
            "restore the image, or decrypt and encrypt it by VM Options",
        )  # fmt: skip
    elif header is Header.PLAIN:
        yield Finding(
            plain_code if part.name == VTPM else "header_missing", part.name, wanted, "in clear", evidence,
            "the file was replaced: bring back the encrypted one, or apply VM Options again without and then with it",
        )  # fmt: skip
    elif header is Header.ABSENT and part.name != VTPM:  # swtpm makes the state, encrypted, at the first start
        yield Finding(
            "file_missing", part.name, wanted, "no file", evidence, "bring the file back", is_unknown=True
        )  # fmt: skip


def _gone(expected: ExpectedVm, observed: ObservedVm) -> Iterable[Finding]:
    """Parts that must be encrypted and that the VM no longer has. A detached disk is nobody's breach."""
    there = {part.name for part in observed.parts}
    for rule in expected.parts:
        if rule.name in (NVRAM, VTPM) and rule.secret is not None and rule.name not in there:
            yield Finding(
                "definition_differs", rule.name, _wanted(rule), "not in the definition",
                f"the definition has no {_words(rule.name)}, and a key for it is held", _RESTORE,
            )  # fmt: skip


def _whole(expected: ExpectedVm, observed: ObservedVm) -> Iterable[Finding]:
    told = _metadata_difference(expected.metadata, observed)
    if told:
        yield Finding(
            "metadata_differs", "vm", "the wrapped keys in its definition", told, told,
            f"{_APPLY}, or recrypt it: both write the keys into the definition again",
        )  # fmt: skip
    if observed.dumps_core:
        yield Finding(
            "dump_core_on", "vm", "dumpCore off", "guest memory is part of a core dump",
            "the definition's <memory> has no dumpCore='off'", _APPLY,
        )  # fmt: skip
    if observed.has_managed_save:
        yield Finding(
            "managed_save_present", "vm", "no guest memory in clear", "a managed save",
            "libvirt reports a managed save, which holds guest memory in clear", "discard the saved state by Actions",
        )  # fmt: skip
    if observed.memory_snapshot_count:
        count = observed.memory_snapshot_count
        yield Finding(
            "memory_snapshot", "vm", "no guest memory in clear", f"{count} snapshots with memory",
            f"libvirt reports {count} snapshots with guest memory in clear", "delete them on the host",
        )  # fmt: skip


def _metadata_difference(wanted: ProtectedVm | None, observed: ObservedVm) -> str:
    """Names of policy and key provider may change; what is needed to open the VM may not."""
    if wanted is None:  # this console has no key for the VM, so there is nothing to compare with
        return ""
    if observed.metadata_problem:
        return f"the element is no good: {observed.metadata_problem}"
    found = observed.metadata
    if found is None:
        return "the element is missing"
    if wanted.kms_cluster != found.kms_cluster:
        return f"it names key provider {found.kms_cluster}, not {wanted.kms_cluster}"
    if wanted.kek_id != found.kek_id:
        return f"it names key {found.kek_id}, not {wanted.kek_id}"
    ours, theirs = _by_part(wanted.secrets), _by_part(found.secrets)
    other = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return f"its wrapped keys differ for {', '.join(other)}" if other else ""


def _by_part(keys: Iterable[WrappedKey]) -> dict[str, tuple[UUID, bytes, str]]:
    return {key.target: (key.secret_uuid, key.wrapped, key.kek_id) for key in keys}


def _wanted(rule: ExpectedPart) -> str:
    if not rule.policy:
        return "a part that this console has encrypted" if rule.encrypts else "no policy"
    return f"{'encrypted' if rule.encrypts else 'not encrypted'} by {rule.policy}"


def _words(name: str) -> str:
    return {NVRAM: "NVRAM", VTPM: "vTPM"}.get(name, name)


def _with(secret: UUID | None) -> str:
    return f"with secret {secret}" if secret is not None else "without encryption"


def _evidence(part: ObservedPart) -> str:
    where = part.path or "no path in the definition"
    return f"{_words(part.name)}: {where}: {part.seen.told}; the definition opens it {_with(part.secret)}"
