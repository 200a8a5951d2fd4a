"""Was Secure Boot on, and whose signatures were used? Concluded from PCR 7 of a replayed log, and nothing else.

Event types are not covered by digests, so they are never trusted here. The steps (PFP 1.06, sections 3.3.4.8, 10.4.8):

1. The *first* event whose digest is that of a separator ends the firmware's part, whatever type it is labelled with:
   behind it the operating system can extend PCR 7 with anything, also with a second "SecureBoot is on".
2. Before it, each event must hash to its data, and be a UEFI variable or plain text. One that does not could be any
   variable, a "SecureBoot is off" among them: then nothing is concluded.
3. Variables are known by vendor GUID and name, which the digest covers. SecureBoot is on where its content is 01, and
   each time that it was measured; a variable measured as absent (no content) means neither on nor off.
4. PK without content is setup mode, in which anybody may enrol keys. It contradicts SecureBoot = 1.
5. Behind the separator only authorities may follow, each hashing to its data. What does not could hide a signer.
   Policy variables and further separators there are forgeries.
6. MokSBState = 1 is shim with its validation off: firmware checked shim, and shim checked nothing.

NOT checked: what the databases should hold and who may sign (reference.py), and whether firmware tells the truth.
"""

from dataclasses import dataclass

from attestation.engine.boot import uefi
from attestation.engine.boot.authorities import (
    Authority,
    MalformedSignatureList,
    SignatureDatabase,
    authority,
    signature_database,
)
from attestation.engine.boot.event_types import EventType, type_name
from attestation.engine.boot.replay import Coverage, MeasuredEvent, ReplayedLog
from attestation.engine.findings import Finding, FindingCode, Severity
from attestation.engine.tpm.algorithms import HashAlg

SECURE_BOOT_PCR = 7

# PFP 1.06 section 10.4.1: 0 or -1 when the firmware's part ended well, 1 after an error.
_SEPARATORS = (bytes(4), b"\xff\xff\xff\xff")
_ERROR_SEPARATOR = b"\x01\0\0\0"

_DATABASES = {
    (uefi.GLOBAL_VARIABLE, "PK"),
    (uefi.GLOBAL_VARIABLE, "KEK"),
    (uefi.IMAGE_SECURITY_DATABASE, "db"),
    (uefi.IMAGE_SECURITY_DATABASE, "dbx"),
}
_SECURE_BOOT = (uefi.GLOBAL_VARIABLE, "SecureBoot")
_SHIM_STATE = frozenset({"MokSBState", "MokSBStateRT"})


@dataclass(frozen=True, slots=True)
class SecureBoot:
    """`enabled`, `setup_mode` and `shim_validates` are None where the log does not tell, or tells two things.

    `complete`: the firmware's part of PCR 7 was closed by a separator. `problems` are the reasons for doubt, as
    findings of severity error; without any, `enabled` may be relied on as far as the replay was proven.
    `databases` holds PK, KEK, db and dbx, those that were measured.
    """

    enabled: bool | None
    setup_mode: bool | None
    shim_validates: bool | None
    complete: bool
    databases: dict[str, SignatureDatabase]
    authorities: tuple[Authority, ...]
    sbat_level: str
    problems: tuple[Finding, ...]

    @property
    def signers(self) -> tuple[Authority, ...]:
        return tuple(found for found in self.authorities if found.is_signer)


def secure_boot(log: ReplayedLog) -> SecureBoot:
    """Steps as above. Says nothing (enabled None) where PCR 7 was not quoted or not extended."""
    events = log.of_pcr(SECURE_BOOT_PCR)
    problems: list[Finding] = []
    before, after, complete = _split(events, log.bank, problems)
    switches, databases, early = _firmware_part(before, problems)
    if len(set(switches)) > 1:
        problems.append(_unknown("the SecureBoot variable was measured more than once, with different contents"))
    enabled = switches[0] if switches and not problems else None
    setup_mode = not databases["PK"].size if "PK" in databases else None
    if enabled and setup_mode:
        enabled = None
        problems.append(_unknown("the log says that Secure Boot is on, and that there is no platform key"))
    if events and not complete:
        problems.append(_unknown("PCR 7 has no separator: the firmware's measurements are cut short"))
    authorities = (*early, *_loader_part(after, log.bank, problems))
    return SecureBoot(
        enabled=enabled,
        setup_mode=setup_mode,
        shim_validates=_shim_validates(authorities),
        complete=complete,
        databases=databases,
        authorities=authorities,
        sbat_level=next((_text(found.content) for found in authorities if found.variable == "SbatLevel"), ""),
        problems=tuple(problems),
    )


def findings(state: SecureBoot, *, required: bool) -> tuple[Finding, ...]:
    """What a report says about `state`. `required`: the reference asks for Secure Boot, so "off" is an error."""
    off = Severity.ERROR if required else Severity.WARNING
    found = list(state.problems)
    if state.enabled is False:
        found.append(
            Finding(
                FindingCode.SECURE_BOOT_OFF,
                off,
                "the host booted with Secure Boot off",
                "turn on Secure Boot in the firmware's setup and reboot the host",
                pcr=SECURE_BOOT_PCR,
                expected="on",
                observed="off",
            )
        )
    elif state.enabled is None and not state.problems:
        found.append(_unknown("the log does not say whether Secure Boot is on", off))
    if state.setup_mode:
        found.append(
            Finding(
                FindingCode.SETUP_MODE,
                off,
                "the firmware is in setup mode: no platform key, anybody may enrol keys",
                "enrol the vendor's keys in the firmware's setup",
                pcr=SECURE_BOOT_PCR,
                expected="a platform key (PK)",
                observed="none",
            )
        )
    if state.shim_validates is False:
        found.append(
            Finding(
                FindingCode.SHIM_VALIDATION_OFF,
                off,
                "shim's validation is off (MokSBState), so it starts unsigned loaders and kernels",
                "run mokutil --enable-validation on the host and reboot it",
                pcr=SECURE_BOOT_PCR,
                event=next(found.event for found in state.authorities if found.variable in _SHIM_STATE),
                expected="on",
                observed="off",
            )
        )
    return tuple(found)


def _split(
    events: tuple[MeasuredEvent, ...], bank: HashAlg, problems: list[Finding]
) -> tuple[tuple[MeasuredEvent, ...], tuple[MeasuredEvent, ...], bool]:
    good, bad = _separator_digests(bank)
    for place, event in enumerate(events):
        if event.digest in good or event.digest == bad:
            if event.coverage is not Coverage.WHOLE:
                problems.append(_forged(event, "as its digest is that of a separator, and its data are not"))
            if event.digest == bad:
                problems.append(_unknown("the firmware closed PCR 7 with an error", event=event.number))
            return events[:place], events[place + 1 :], True
    return events, (), False


def _separator_digests(bank: HashAlg) -> tuple[frozenset[bytes], bytes]:
    return frozenset(map(bank.digest, _SEPARATORS)), bank.digest(_ERROR_SEPARATOR)


def _firmware_part(
    events: tuple[MeasuredEvent, ...], problems: list[Finding]
) -> tuple[list[bool | None], dict[str, SignatureDatabase], list[Authority]]:
    switches: list[bool | None] = []
    databases: dict[str, SignatureDatabase] = {}
    authorities: list[Authority] = []
    for event in events:
        variable = _whole_variable(event)
        if variable is None:
            if not event.is_plain_text:
                problems.append(_forged(event, "and so could hide that Secure Boot is off"))
            continue
        key = (variable.vendor, variable.name)
        if key == _SECURE_BOOT:
            switches.append({b"\1": True, b"\0": False}.get(variable.content))
        elif key in _DATABASES:
            try:
                databases[variable.name] = signature_database(variable.content)
            except MalformedSignatureList:
                problems.append(_forged(event, f"as {variable.name} is not a list of signatures"))
        elif event.type == EventType.EFI_VARIABLE_AUTHORITY:
            # Option ROMs and drivers that firmware verified before it closed its part.
            authorities.append(authority(event.number, event.pcr, variable))
    return switches, databases, authorities


def _loader_part(events: tuple[MeasuredEvent, ...], bank: HashAlg, problems: list[Finding]) -> list[Authority]:
    good, bad = _separator_digests(bank)
    authorities: list[Authority] = []
    for event in events:
        variable = _whole_variable(event)
        if event.digest in good or event.digest == bad or (variable and variable.vendor == uefi.GLOBAL_VARIABLE):
            problems.append(_forged(event, "as firmware measures such things only before the first separator"))
        elif variable is not None:
            authorities.append(authority(event.number, event.pcr, variable))
        elif not event.is_plain_text:
            problems.append(_forged(event, "and so could hide whose signature let something run"))
    return authorities


def _whole_variable(event: MeasuredEvent) -> uefi.Variable | None:
    if event.coverage is not Coverage.WHOLE:
        return None
    try:
        return uefi.variable(event.covered)
    except uefi.MalformedEventData:
        return None


def _shim_validates(authorities: tuple[Authority, ...]) -> bool | None:
    """None without any trace of shim. shim measures MokSBState only where the variable exists."""
    if any(found.variable in _SHIM_STATE and found.content.strip(b"\0") for found in authorities):
        return False
    return True if any(found.vendor == uefi.SHIM_LOCK for found in authorities) else None


def _text(content: bytes) -> str:
    return uefi.printable(content.decode("ascii", "replace").rstrip("\0\n").replace("\n", " "))


def _unknown(message: str, severity: Severity = Severity.ERROR, event: int | None = None) -> Finding:
    return Finding(
        FindingCode.SECURE_BOOT_UNKNOWN,
        severity,
        message,
        "look at the events of PCR 7; update the firmware if it does not measure its Secure Boot state",
        pcr=SECURE_BOOT_PCR,
        event=event,
        expected="on",
        observed="unknown",
    )


def _forged(event: MeasuredEvent, why: str) -> Finding:
    return Finding(
        FindingCode.EVENT_DATA_FORGED,
        Severity.ERROR,
        f"event {event.number} of PCR {event.pcr} cannot be taken at its word, {why}",
        "treat the host as compromised until it is known who changed the log or extended the register",
        pcr=event.pcr,
        event=event.number,
        expected="an event whose data hash to its digest",
        observed=type_name(event.type),
    )
