"""Reference values out of a boot that somebody trusts, and the acceptance of what an update changed."""

import re
from dataclasses import replace

from attestation.engine.boot.authorities import Authority
from attestation.engine.boot.components import Boot, Component
from attestation.engine.findings import Severity
from attestation.engine.glob import escaped
from attestation.engine.reference import (
    AllowedAuthority,
    AllowedComponent,
    ImaReference,
    ReferenceValues,
    Revocations,
)

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class NotTrustworthy(ValueError):
    """A boot that must not become a baseline: not proven by a quote, or its log is edited."""


def baseline(boot: Boot, *, ima: ImaReference | None = None) -> ReferenceValues:
    """ "Trust this boot". Raises NotTrustworthy where no quote stands behind it, or events are forged.

    Command lines become patterns: any kernel file, any UUID (each host's disks have their own), the rest as it was.
    Secure Boot is required from then on if it was on. Of dbx the number of hashes becomes the minimum.
    """
    if not boot.is_proven:
        raise NotTrustworthy("no quote proves this boot")
    if any(problem.severity is Severity.ERROR for problem in (*boot.problems, *boot.secure_boot.problems)):
        raise NotTrustworthy("events of this boot cannot be taken at their word")
    dbx = boot.secure_boot.databases.get("dbx")
    return ReferenceValues(
        secure_boot=boot.secure_boot.enabled is True,
        authorities=frozenset(map(_authority, boot.secure_boot.signers)),
        components=frozenset(_component(boot, each) for each in boot.components if not each.is_configuration),
        command_lines=tuple(sorted({command_line_pattern(line.text) for line in boot.command_lines})),
        revocations=Revocations(minimum=len(dbx.hashes) if dbx else 0),
        ima=ima,
    )


def accept(
    values: ReferenceValues,
    boot: Boot,
    *,
    components: frozenset[int] = frozenset(),
    authorities: frozenset[int] = frozenset(),
    command_lines: frozenset[int] = frozenset(),
) -> ReferenceValues:
    """`values` and what the events of these numbers show, as findings name them. The old ones stay allowed.

    Raises NotTrustworthy where no quote proves the boot, KeyError for a number that shows nothing of that sort.
    """
    if not boot.is_proven:
        raise NotTrustworthy("no quote proves this boot")
    by_event = {each.event: each for each in boot.components}
    signers = {each.event: each for each in boot.secure_boot.signers}
    lines = {each.event: each for each in boot.command_lines}
    new_components = {_component(boot, by_event[event]) for event in components}
    new_authorities = {_authority(signers[event]) for event in authorities}
    new_lines = {command_line_pattern(lines[event].text) for event in command_lines}
    return replace(
        values,
        components=values.components | new_components if values.components is not None else None,
        authorities=values.authorities | new_authorities if values.authorities is not None else None,
        command_lines=(
            (*values.command_lines, *sorted(new_lines.difference(values.command_lines)))
            if values.command_lines is not None
            else None
        ),
    )


def command_line_pattern(text: str) -> str:
    """The kernel's path and every UUID as *, which stays inside a word; everything else literally."""
    kernel, space, arguments = text.partition(" ")
    pattern = "".join("*" if place % 2 else escaped(part) for place, part in enumerate(_split_keeping(arguments)))
    return ("*" if kernel else "") + space + pattern


def _split_keeping(text: str) -> list[str]:
    """Text between UUIDs at even places, UUIDs at odd ones."""
    parts: list[str] = []
    at = 0
    for found in _UUID.finditer(text):
        parts += [text[at : found.start()], found.group()]
        at = found.end()
    return [*parts, text[at:]]


def _authority(found: Authority) -> AllowedAuthority:
    if found.certificate is not None:
        return AllowedAuthority(found.certificate.sha256, found.certificate.subject)
    return AllowedAuthority(found.image_sha256, f"image hash in {found.variable}")


def _component(boot: Boot, component: Component) -> AllowedComponent:
    return AllowedComponent(component.kind, boot.bank, component.digest.hex(), component.name)
