"""Reference values as lines of text, for people who edit them; and back to the JSON that is kept.

One authority a line: SHA-256, then its name. One component: kind, digest, name. One file: digest, path. A part that is
switched off is not looked at.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from attestation.engine.reference import ReferenceValues
from attestation.engine.reference_json import to_json
from attestation.models import ReferenceSet
from inventory.errors import Invalid


@dataclass(frozen=True, slots=True)
class ReferenceLines:
    """The fields of the page. None: that part is not looked at."""

    secure_boot: bool
    authorities: str | None
    components: str | None
    pin_configuration: bool
    command_lines: str | None
    dbx_minimum: int
    dbx_required: str
    ima_files: str | None
    ima_excluded: str = ""
    tolerate_violations: bool = True


def lines_of(row: ReferenceSet | None) -> ReferenceLines:
    """Without a row: nothing is looked at but Secure Boot."""
    document: dict[str, Any] = json.loads(to_json(ReferenceValues()) if row is None else row.body)
    ima = document["ima"]
    return ReferenceLines(
        secure_boot=document["secure_boot"],
        authorities=_text(document["authorities"], lambda each: f"{each['sha256']} {each['name']}"),
        components=_text(document["components"], lambda each: f"{each['kind']} {each['digest']} {each['name']}"),
        pin_configuration=document["pin_configuration"],
        command_lines=_text(document["command_lines"], str),
        dbx_minimum=document["revocations"]["minimum"],
        dbx_required="\n".join(document["revocations"]["required"]),
        ima_files=None
        if ima is None
        else "\n".join(f"{digest} {path}" for path in sorted(ima["allowed"]) for digest in ima["allowed"][path]),
        ima_excluded="" if ima is None else "\n".join(ima["excluded"]),
        tolerate_violations=True if ima is None else ima["tolerate_violations"],
    )


def body_of(lines: ReferenceLines, kept: ReferenceSet | None) -> str:
    """The JSON, not yet checked but for its lines. `kept`: the version whose keys of signed files stay, which the page
    does not edit. Raises Invalid `references_malformed` with the line."""
    old_ima = None if kept is None else json.loads(kept.body)["ima"]
    document = {
        "format": "bartizan-reference",
        "version": 1,
        "secure_boot": lines.secure_boot,
        "authorities": None
        if lines.authorities is None
        else [{"sha256": one, "name": name} for one, name in _split(lines.authorities, 1, "authorities")],
        "components": None
        if lines.components is None
        else [
            {"kind": kind, "digest": digest, "name": name}
            for kind, digest, name in _split(lines.components, 2, "components")
        ],
        "pin_configuration": lines.pin_configuration,
        "command_lines": None if lines.command_lines is None else _lines(lines.command_lines),
        "revocations": {"minimum": lines.dbx_minimum, "required": _lines(lines.dbx_required)},
        "ima": None if lines.ima_files is None else _ima(lines, old_ima),
    }
    return json.dumps(document)


def _ima(lines: ReferenceLines, old: dict[str, Any] | None) -> dict[str, Any]:
    allowed: dict[str, list[str]] = {}
    for digest, path in _split(lines.ima_files or "", 1, "approved files"):
        allowed.setdefault(path, []).append(digest)
    return {
        "allowed": allowed,
        "excluded": _lines(lines.ima_excluded),
        "keys": [] if old is None else old["keys"],
        "tolerate_violations": lines.tolerate_violations,
    }


def _text(values: Iterable[Any] | None, show: Any) -> str | None:
    return None if values is None else "\n".join(map(show, values))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _split(text: str, words: int, what: str) -> list[list[str]]:
    """Each line as `words` words and a rest, which may be empty but for files."""
    found = []
    for number, line in enumerate(_lines(text), 1):
        parts = line.split(None, words)
        if len(parts) < words or (what == "approved files" and len(parts) < 2):
            raise Invalid(
                "references_malformed", f"line {number} of {what} is too short", hint="see the help below the field"
            )
        found.append(parts if len(parts) == words + 1 else [*parts, ""])
    return found
