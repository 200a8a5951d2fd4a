"""Reference values (RATS, RFC 9334): what the evidence of good hosts looks like. Data, their diff; no verdicts here.

Each part can be None: then it is not looked at. What is deliberately not part of it: PCR values of firmware (0 to 3, 5,
6), which differ with shapes, slots and settings; PCR 14 (MOK lists, whose order is arbitrary); GRUB's commands.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from attestation.engine.boot.components import ComponentKind
from attestation.engine.tpm.algorithms import HashAlg

# An allowlist of a whole distribution has about 150,000 files.
MAX_AUTHORITIES = 1_000
MAX_COMPONENTS = 10_000
MAX_COMMAND_LINES = 1_000
MAX_ALLOWED_FILES = 1_000_000
MAX_EXCLUDES = 1_000
MAX_KEYS = 100
MAX_NAME = 4_096


@dataclass(frozen=True, slots=True)
class AllowedAuthority:
    """`sha256`: of a certificate's DER encoding, or of an image that a database allows by hash; lower-case hex.

    `name` is for people: a certificate's subject. Nothing is compared with it.
    """

    sha256: str
    name: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class AllowedComponent:
    """`digest`: lower-case hex, of `bank`. `name` is for people, and to tell which component an update replaced."""

    kind: ComponentKind
    bank: HashAlg
    digest: str
    name: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Revocations:
    """dbx: it must hold at least `minimum` hashes, and each of `required` (lower-case hex)."""

    minimum: int = 0
    required: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ImaReference:
    """`allowed`: path to digests as "sha256:<hex>". `excluded`: patterns of paths (glob.py, separator /) not looked at.

    `keys`: DER SubjectPublicKeyInfo; a file with a signature by one of them is approved. `tolerate_violations`: files
    that changed while they were open are a warning, not an error.
    """

    allowed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    keys: tuple[bytes, ...] = ()
    tolerate_violations: bool = True


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """`command_lines`: patterns (glob.py, separator space) of what PCR 8 holds: kernel's path, then its arguments."""

    secure_boot: bool = True
    authorities: frozenset[AllowedAuthority] | None = None
    components: frozenset[AllowedComponent] | None = None
    pin_configuration: bool = False
    command_lines: tuple[str, ...] | None = None
    revocations: Revocations = Revocations()
    ima: ImaReference | None = None


class ChangeKind(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a diff. `part` is the field's name, `subject` what changed; `before` and `after` are texts."""

    kind: ChangeKind
    part: str
    subject: str
    before: str = ""
    after: str = ""


def diff(before: ReferenceValues, after: ReferenceValues) -> tuple[Change, ...]:
    """What turns `before` into `after`, in a stable order. A part that is None shows as "not checked"."""
    changes = [
        Change(ChangeKind.CHANGED, part, part, old, new)
        for part, old, new in (
            ("secure_boot", _required(before.secure_boot), _required(after.secure_boot)),
            ("authorities", _checked(before.authorities), _checked(after.authorities)),
            ("components", _checked(before.components), _checked(after.components)),
            ("pin_configuration", _yes(before.pin_configuration), _yes(after.pin_configuration)),
            ("command_lines", _checked(before.command_lines), _checked(after.command_lines)),
            ("revocations", str(before.revocations.minimum), str(after.revocations.minimum)),
            ("ima", _checked(before.ima), _checked(after.ima)),
        )
        if old != new
    ]
    changes += _added_and_removed("authorities", _authority_lines(before), _authority_lines(after))
    changes += _added_and_removed("components", _component_lines(before), _component_lines(after))
    changes += _added_and_removed("command_lines", _lines(before.command_lines), _lines(after.command_lines))
    changes += _added_and_removed(
        "revocations", _lines(before.revocations.required), _lines(after.revocations.required)
    )
    changes += _ima_changes(before.ima or ImaReference(), after.ima or ImaReference())
    return tuple(changes)


def _ima_changes(before: ImaReference, after: ImaReference) -> list[Change]:
    changes = []
    for path in sorted(before.allowed.keys() | after.allowed.keys()):
        old, new = before.allowed.get(path), after.allowed.get(path)
        if old != new:
            kind = ChangeKind.ADDED if old is None else ChangeKind.REMOVED if new is None else ChangeKind.CHANGED
            changes.append(Change(kind, "ima.allowed", path, _joined(old or ()), _joined(new or ())))
    changes += _added_and_removed("ima.excluded", _lines(before.excluded), _lines(after.excluded))
    changes += _added_and_removed(
        "ima.keys", _lines(key.hex() for key in before.keys), _lines(key.hex() for key in after.keys)
    )
    if before.tolerate_violations != after.tolerate_violations:
        part = "ima.tolerate_violations"
        old_text, new_text = _yes(before.tolerate_violations), _yes(after.tolerate_violations)
        changes.append(Change(ChangeKind.CHANGED, part, part, old_text, new_text))
    return changes


def _added_and_removed(part: str, before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    removed = sorted(before.keys() - after.keys())
    added = sorted(after.keys() - before.keys())
    return [Change(ChangeKind.REMOVED, part, before[key], before=key) for key in removed] + [
        Change(ChangeKind.ADDED, part, after[key], after=key) for key in added
    ]


def _authority_lines(values: ReferenceValues) -> dict[str, str]:
    return {each.sha256: each.name for each in values.authorities or ()}


def _component_lines(values: ReferenceValues) -> dict[str, str]:
    components = values.components or ()
    return {f"{each.kind} {each.bank.label}:{each.digest}": each.name for each in components}


def _lines(values: Iterable[str] | None) -> dict[str, str]:
    return {value: value for value in values or ()}


def _joined(values: Iterable[str]) -> str:
    return ", ".join(sorted(values))


def _checked(part: object) -> str:
    return "not checked" if part is None else "checked"


def _required(value: bool) -> str:
    return "required" if value else "not required"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
