"""Reference values as JSON: one canonical text for equal values, and a strict reader for files from anywhere.

{"format": "bartizan-reference", "version": 1, "secure_boot": true,
 "authorities": [{"sha256": hex, "name": text}] | null,
 "components": [{"kind": "driver"|"image"|"file", "digest": "sha256:hex", "name": text}] | null,
 "pin_configuration": false, "command_lines": [pattern] | null,
 "revocations": {"minimum": number, "required": [hex]},
 "ima": {"allowed": {path: ["sha256:hex"]}, "excluded": [pattern], "keys": [base64 of DER],
         "tolerate_violations": true} | null}

Every field must be there and no other; digests in lower case. Canonical: keys and sets sorted, no spaces, UTF-8.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, NoReturn, TypeVar

from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestation.engine import reference
from attestation.engine.boot.components import ComponentKind
from attestation.engine.errors import Malformed
from attestation.engine.glob import Glob
from attestation.engine.reference import (
    AllowedAuthority,
    AllowedComponent,
    ImaReference,
    ReferenceValues,
    Revocations,
)
from attestation.engine.tpm.algorithms import HashAlg
from inventory.engine.crypto_policy import UNSUPPORTED

FORMAT = "bartizan-reference"
VERSION = 1
# An allowlist of a million files with SHA-256 digests.
MAX_BYTES = 192 << 20

_HEX_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"(sha1|sha256|sha384|sha512):([0-9a-f]+)")

T = TypeVar("T")


class MalformedReference(Malformed):
    what: ClassVar[str] = "reference values"


def to_json(values: ReferenceValues) -> bytes:
    """Canonical, so that equal values are equal bytes. Names count here, although they do not count as equality."""
    revocations = values.revocations
    document = {
        "format": FORMAT,
        "version": VERSION,
        "secure_boot": values.secure_boot,
        "authorities": None if values.authorities is None else _authorities(values.authorities),
        "components": None if values.components is None else _components(values.components),
        "pin_configuration": values.pin_configuration,
        "command_lines": None if values.command_lines is None else list(values.command_lines),
        "revocations": {"minimum": revocations.minimum, "required": sorted(revocations.required)},
        "ima": None if values.ima is None else _ima(values.ima),
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def _authorities(values: Iterable[AllowedAuthority]) -> list[dict[str, str]]:
    return [{"sha256": each.sha256, "name": each.name} for each in sorted(values, key=lambda each: each.sha256)]


def _components(values: Iterable[AllowedComponent]) -> list[dict[str, str]]:
    return [
        {"kind": each.kind.value, "digest": f"{each.bank.label}:{each.digest}", "name": each.name}
        for each in sorted(values, key=lambda each: (each.kind, each.bank, each.digest))
    ]


def _ima(values: ImaReference) -> dict[str, object]:
    return {
        "allowed": {path: sorted(digests) for path, digests in values.allowed.items()},
        "excluded": list(values.excluded),
        "keys": [base64.b64encode(key).decode("ascii") for key in values.keys],
        "tolerate_violations": values.tolerate_violations,
    }


def from_json(text: bytes) -> ReferenceValues:
    """Raises MalformedReference with the field that is wrong, BadPattern for a pattern that cannot be compiled."""
    if len(text) > MAX_BYTES:
        raise MalformedReference(f"at most {MAX_BYTES} bytes", offset=MAX_BYTES)
    try:
        document: object = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except MalformedReference:
        raise
    except UnicodeDecodeError as exc:
        raise MalformedReference("UTF-8", offset=exc.start) from exc
    except (ValueError, RecursionError) as exc:
        # The text may hold anything; where it breaks off is no help against a file that was not made here.
        raise MalformedReference("JSON") from exc
    fields = _object(document, "the document", _FIELDS)
    if fields["format"] != FORMAT or fields["version"] != VERSION or fields["version"] is True:
        raise MalformedReference(f'format "{FORMAT}" of version {VERSION}')
    revocations = _object(fields["revocations"], "revocations", ("minimum", "required"))
    return ReferenceValues(
        secure_boot=_bool(fields["secure_boot"], "secure_boot"),
        authorities=_optional(
            fields["authorities"],
            lambda each: _set(each, "authorities", reference.MAX_AUTHORITIES, _read_authority),
        ),
        components=_optional(
            fields["components"],
            lambda each: _set(each, "components", reference.MAX_COMPONENTS, _read_component),
        ),
        pin_configuration=_bool(fields["pin_configuration"], "pin_configuration"),
        command_lines=_optional(
            fields["command_lines"],
            lambda each: tuple(_list(each, "command_lines", reference.MAX_COMMAND_LINES, _pattern(" "))),
        ),
        revocations=Revocations(
            _count(revocations["minimum"], "revocations.minimum"),
            _set(revocations["required"], "revocations.required", reference.MAX_COMPONENTS, _sha256),
        ),
        ima=_optional(fields["ima"], _read_ima),
    )


_FIELDS = (
    "format",
    "version",
    "secure_boot",
    "authorities",
    "components",
    "pin_configuration",
    "command_lines",
    "revocations",
    "ima",
)


def _read_authority(value: object, name: str) -> AllowedAuthority:
    fields = _object(value, name, ("sha256", "name"))
    return AllowedAuthority(_sha256(fields["sha256"], f"{name}.sha256"), _text(fields["name"], f"{name}.name"))


def _read_component(value: object, name: str) -> AllowedComponent:
    fields = _object(value, name, ("kind", "digest", "name"))
    try:
        kind = ComponentKind(_text(fields["kind"], f"{name}.kind"))
    except ValueError as exc:
        raise MalformedReference(f"{name}.kind as one of {', '.join(ComponentKind)}") from exc
    bank, _, digest = _digest(fields["digest"], f"{name}.digest").partition(":")
    return AllowedComponent(kind, HashAlg.of_label(bank), digest, _text(fields["name"], f"{name}.name"))


def _read_ima(value: object) -> ImaReference:
    fields = _object(value, "ima", ("allowed", "excluded", "keys", "tolerate_violations"))
    allowed = fields["allowed"]
    if not isinstance(allowed, dict) or len(allowed) > reference.MAX_ALLOWED_FILES:
        raise MalformedReference(f"ima.allowed as an object of at most {reference.MAX_ALLOWED_FILES} paths")
    return ImaReference(
        allowed={
            _text(path, "ima.allowed"): _set(digests, "ima.allowed", reference.MAX_COMPONENTS, _digest)
            for path, digests in allowed.items()
        },
        excluded=tuple(_list(fields["excluded"], "ima.excluded", reference.MAX_EXCLUDES, _pattern("/"))),
        keys=tuple(_list(fields["keys"], "ima.keys", reference.MAX_KEYS, _key)),
        tolerate_violations=_bool(fields["tolerate_violations"], "ima.tolerate_violations"),
    )


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedReference("each name once in an object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise MalformedReference(f"numbers without {name}")


def _object(value: object, name: str, fields: tuple[str, ...]) -> Mapping[str, object]:
    if not isinstance(value, dict) or value.keys() != set(fields):
        raise MalformedReference(f"{name} as an object with exactly {', '.join(fields)}")
    return value


def _optional(value: object, read: Callable[[object], T]) -> T | None:
    return None if value is None else read(value)


def _list(value: object, name: str, most: int, read: Callable[[object, str], T]) -> list[T]:
    if not isinstance(value, list) or len(value) > most:
        raise MalformedReference(f"{name} as a list of at most {most}")
    return [read(each, f"{name}[{place}]") for place, each in enumerate(value)]


def _set(value: object, name: str, most: int, read: Callable[[object, str], T]) -> frozenset[T]:
    found = _list(value, name, most, read)
    unique = frozenset(found)
    if len(unique) != len(found):
        raise MalformedReference(f"{name} without repetitions")
    return unique


def _bool(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise MalformedReference(f"{name} as true or false")
    return value


def _count(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= reference.MAX_COMPONENTS:
        raise MalformedReference(f"{name} as a number from 0 to {reference.MAX_COMPONENTS}")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or len(value) > reference.MAX_NAME or not _is_encodable(value):
        raise MalformedReference(f"{name} as a text of at most {reference.MAX_NAME} characters")
    return value


def _is_encodable(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _sha256(value: object, name: str) -> str:
    if not isinstance(value, str) or not _HEX_SHA256.fullmatch(value):
        raise MalformedReference(f"{name} as 64 lower-case hexadecimal digits")
    return value


def _digest(value: object, name: str) -> str:
    found = _DIGEST.fullmatch(value) if isinstance(value, str) else None
    if found is None or len(found[2]) != 2 * HashAlg.of_label(found[1]).size:
        raise MalformedReference(f"{name} as a hash's name, a colon and its hexadecimal digits")
    return found[0]


def _pattern(separator: str) -> Callable[[object, str], str]:
    def read(value: object, name: str) -> str:
        return Glob(_text(value, name), separator=separator).pattern

    return read


def _key(value: object, name: str) -> bytes:
    try:
        key = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
        load_der_public_key(key)
    except (binascii.Error, ValueError, TypeError, *UNSUPPORTED) as exc:
        raise MalformedReference(f"{name} as base64 of a DER public key") from exc
    return key
