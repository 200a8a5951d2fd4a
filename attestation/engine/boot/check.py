"""A boot against reference values: findings, each with what to do. An empty answer means that all of it is approved."""

import re
from collections.abc import Iterable
from dataclasses import replace

from attestation.engine.boot import secure_boot
from attestation.engine.boot.authorities import Authority
from attestation.engine.boot.components import Boot, CommandLine, Component, ComponentKind
from attestation.engine.findings import Finding, FindingCode, Severity
from attestation.engine.glob import Glob
from attestation.engine.reference import AllowedComponent, ReferenceValues

# A host that boots something else altogether must not fill the report.
MAX_FINDINGS_OF_A_KIND = 100
# A kernel has one, with a hypervisor and modules below it some; the bound keeps hostile logs cheap.
MAX_COMMAND_LINES = 16

_ARTICLES = {ComponentKind.DRIVER: "a", ComponentKind.IMAGE: "an", ComponentKind.FILE: "a"}
_VERSION = re.compile(r"[0-9]+")


class BootReference:
    """Reference values with their patterns compiled and their digests in sets: make one, check many boots with it."""

    def __init__(self, values: ReferenceValues) -> None:
        self.values = values
        self._authorities = None if values.authorities is None else {each.sha256 for each in values.authorities}
        self._components = None if values.components is None else {_key(each) for each in values.components}
        self._by_stem: dict[tuple[ComponentKind, str], list[AllowedComponent]] = {}
        for each in values.components or ():
            self._by_stem.setdefault((each.kind, _stem(each.name)), []).append(each)
        patterns = values.command_lines
        self._command_lines = None if patterns is None else [Glob(each, separator=" ") for each in patterns]

    def check(self, boot: Boot) -> tuple[Finding, ...]:
        return (
            *_capped(map(self._weighed, boot.problems)),
            *_capped(secure_boot.findings(boot.secure_boot, required=self.values.secure_boot)),
            *self._signers(boot),
            *self._revocations(boot),
            *self._changed_components(boot),
            *self._changed_command_lines(boot),
        )

    def _weighed(self, problem: Finding) -> Finding:
        """An event of PCR 8 that cannot be read could be a command line: where these are pinned, that is an error."""
        if problem.pcr == 8 and self._command_lines:
            return replace(problem, severity=Severity.ERROR)
        return problem

    def _signers(self, boot: Boot) -> Iterable[Finding]:
        if self._authorities is None:
            return
        unknown = {found.sha256: found for found in reversed(boot.secure_boot.signers)}
        for sha256 in unknown.keys() & self._authorities:
            del unknown[sha256]
        # Certificates are decoded for the report only, so the rest is only counted.
        first = sorted(unknown.values(), key=lambda found: found.event)[:MAX_FINDINGS_OF_A_KIND]
        yield from _with_rest([_unknown_signer(found) for found in first], len(unknown))

    def _revocations(self, boot: Boot) -> Iterable[Finding]:
        wanted = self.values.revocations
        if not wanted.minimum and not wanted.required:
            return
        dbx = boot.secure_boot.databases.get("dbx")
        hashes = dbx.hashes if dbx else frozenset()
        missing = sum(bytes.fromhex(each) not in hashes for each in wanted.required)
        if len(hashes) < wanted.minimum or missing:
            yield Finding(
                FindingCode.DBX_OUTDATED,
                Severity.ERROR,
                f"the revocation list (dbx) is too old: {len(hashes)} hashes"
                + (f", {missing} are missing" if missing else ""),
                "update dbx on the host (fwupdmgr update) and reboot it",
                pcr=secure_boot.SECURE_BOOT_PCR,
                expected=f"at least {wanted.minimum} hashes",
                observed=f"{len(hashes)} hashes",
            )

    def _changed_components(self, boot: Boot) -> Iterable[Finding]:
        if self._components is None or self.values.components is None:
            return
        if self.values.components and all(each.bank is not boot.bank for each in self.values.components):
            yield _other_bank(boot, self.values.components)
            return
        unknown = [each for each in boot.components if self.is_pinned(each) and not self._knows(boot, each)]
        # Drivers last: however many somebody extends PCR 2 with, they push no image out of the report.
        unknown.sort(key=lambda each: each.kind is ComponentKind.DRIVER)
        # Each costs a look through the reference values for what it replaced, so the rest is only counted.
        told = [self._unknown(boot, component) for component in unknown[:MAX_FINDINGS_OF_A_KIND]]
        yield from _with_rest(told, len(unknown))
        known_files = sum(
            each.kind is ComponentKind.FILE and self._knows(boot, each) and not each.is_configuration
            for each in boot.components
        )
        named = boot.loaded_files
        if named > known_files and not any(each.kind is ComponentKind.FILE for each in unknown):
            yield Finding(
                FindingCode.UNKNOWN_COMPONENT,
                Severity.ERROR,
                f"GRUB loaded {named} kernel and initrd files, and {known_files} of the measured files are known",
                "look at the files of PCR 9: one may stand there under a name of GRUB's configuration",
                pcr=9,
                expected=f"{named} known files",
                observed=f"{known_files}",
            )

    def is_pinned(self, component: Component) -> bool:
        return self.values.pin_configuration or not component.is_configuration

    def _knows(self, boot: Boot, component: Component) -> bool:
        allowed = self._components
        return allowed is not None and (component.kind, boot.bank, component.digest.hex()) in allowed

    def _unknown(self, boot: Boot, component: Component) -> Finding:
        replaced = self.replaced_by(component)
        name = component.name or f"{_ARTICLES[component.kind]} {component.kind} without a name"
        what = f"{name} is not a known component"
        if replaced:
            before = f" (was {replaced.name})" if replaced.name != name else ""
            what = f"{name} has changed since the baseline{before}"
        return Finding(
            FindingCode.UNKNOWN_COMPONENT,
            # Firmware verifies option ROMs against db; cards are swapped more often than they are weapons.
            Severity.WARNING if component.kind is ComponentKind.DRIVER else Severity.ERROR,
            what,
            "accept it into the reference values if it was updated on purpose; else restore the host",
            pcr=component.pcr,
            event=component.event,
            expected=f"{replaced.bank.label}:{replaced.digest}" if replaced else "a known digest",
            observed=f"{boot.bank.label}:{component.digest.hex()}",
        )

    def replaced_by(self, component: Component) -> AllowedComponent | None:
        """The known component whose place `component` has taken, by name with its version left out; for people only."""
        if not component.name:
            return None
        same = self._by_stem.get((component.kind, _stem(component.name)), [])
        return max(same, key=lambda each: (each.name == component.name, each.name, each.digest), default=None)

    def _changed_command_lines(self, boot: Boot) -> Iterable[Finding]:
        if self._command_lines is None:
            return
        if len(boot.command_lines) > MAX_COMMAND_LINES:
            yield _too_many_lines(boot)
            return
        for line in boot.command_lines:
            if not any(pattern.matches(line.text) for pattern in self._command_lines):
                yield _changed_line(line, self.values.command_lines or ())
        if not boot.command_lines and self._command_lines:
            yield Finding(
                FindingCode.COMMAND_LINE_CHANGED,
                Severity.ERROR,
                "no command line of a kernel was measured, although the reference values have one",
                "look at how the host boots: a boot loader that does not measure command lines, or an edited log",
                pcr=8,
                expected=(self.values.command_lines or ("",))[0],
                observed="none",
            )


def _unknown_signer(found: Authority) -> Finding:
    name = (found.certificate.subject if found.certificate else "") or f"the hash {found.sha256}"
    return Finding(
        FindingCode.UNKNOWN_SIGNER,
        Severity.ERROR,
        f"something ran with the signature of {name} (from {found.variable}), which is not allowed",
        "allow this authority if you trust all it signs, else remove its key from the host and reboot it",
        pcr=found.pcr,
        event=found.event,
        expected="an allowed authority",
        observed=found.sha256,
    )


def _changed_line(line: CommandLine, patterns: tuple[str, ...]) -> Finding:
    return Finding(
        FindingCode.COMMAND_LINE_CHANGED,
        Severity.ERROR,
        "the kernel's command line is not an allowed one",
        "accept it into the reference values if it was changed on purpose; else restore the boot loader's settings",
        pcr=line.pcr,
        event=line.event,
        expected=patterns[0] if len(patterns) == 1 else f"one of {len(patterns)} patterns",
        observed=line.text,
    )


def _too_many_lines(boot: Boot) -> Finding:
    return Finding(
        FindingCode.COMMAND_LINE_CHANGED,
        Severity.ERROR,
        f"the log has {len(boot.command_lines)} command lines, more than any boot has",
        "treat the log as forged until it is known what wrote these lines",
        pcr=boot.command_lines[0].pcr,
        event=boot.command_lines[0].event,
        expected=f"at most {MAX_COMMAND_LINES}",
        observed=str(len(boot.command_lines)),
    )


def _other_bank(boot: Boot, components: frozenset[AllowedComponent]) -> Finding:
    banks = ", ".join(sorted({each.bank.label for each in components}))
    return Finding(
        FindingCode.BANK_INACTIVE,
        Severity.ERROR,
        f"the reference values hold {banks} digests, and the host's evidence is of the {boot.bank.label} bank",
        f"switch on the host's {banks} bank, or make a new baseline",
        expected=banks,
        observed=boot.bank.label,
    )


def _capped(found: Iterable[Finding]) -> list[Finding]:
    findings = sorted(found, key=lambda each: each.severity is not Severity.ERROR)
    return _with_rest(findings[:MAX_FINDINGS_OF_A_KIND], len(findings))


def _with_rest(told: list[Finding], count: int) -> list[Finding]:
    """`told` are the gravest of `count` findings of a kind: none that is left out is graver than the last of them."""
    if count <= len(told):
        return told
    last = told[-1]
    rest = f"{count - len(told)} more of these are left out"
    return [*told, Finding(last.code, last.severity, rest, last.remedy, pcr=last.pcr)]


def _key(each: AllowedComponent) -> tuple[ComponentKind, object, str]:
    return each.kind, each.bank, each.digest


def _stem(name: str) -> str:
    return _VERSION.sub("#", name)
