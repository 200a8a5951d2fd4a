"""Reference values against boots: what they were taken from passes, and each change has its own finding."""

from dataclasses import replace

import pytest

from attestation.engine import baseline
from attestation.engine.boot import eventlog, replay
from attestation.engine.boot.check import MAX_FINDINGS_OF_A_KIND, BootReference
from attestation.engine.boot.components import Boot, ComponentKind, observe
from attestation.engine.boot.event_types import EventType
from attestation.engine.boot.uefi import IMAGE_SECURITY_DATABASE
from attestation.engine.findings import Finding, FindingCode, Severity, Verdict, verdict_of
from attestation.engine.reference import AllowedComponent, ReferenceValues, Revocations
from attestation.engine.tpm.algorithms import HashAlg
from tests.attestation.engine.boot.logs import (
    SHA256,
    Record,
    best_bank,
    extended,
    firmware_part,
    logs_of,
    measured_variable,
    parsed,
    separator,
    written,
)
from tests.attestation.recorded import Entry

PK = parsed(logs_of("replays")[0]).events[3].data[38:]
CERTIFICATE = b"\x30\x82" + (300).to_bytes(2, "big") + bytes(300)
KERNEL, INITRD = b"kernel 6.1", b"initrd 6.1"


def boot_records(
    *,
    secure_boot: bytes = b"\1",
    signer: bytes = CERTIFICATE,
    loader: bytes = b"grub",
    arguments: bytes = b"root=UUID=0a1b2c3d-0000-1111-2222-333344445555 ro quiet",
    kernel: bytes = KERNEL,
    initrd: bytes = INITRD,
    initrd_name: bytes = b"/initrd.img-6.1",
    version: bytes = b"6.1",
) -> list[Record]:
    line = b"/vmlinuz-" + version + b" " + arguments
    return [
        *firmware_part(secure_boot=secure_boot, pk=PK),
        separator(7),
        measured_variable(
            "db", bytes(16) + signer, vendor=IMAGE_SECURITY_DATABASE, kind=EventType.EFI_VARIABLE_AUTHORITY
        ),
        Record(4, EventType.EFI_BOOT_SERVICES_APPLICATION, bytes(32), loader),
        separator(4),
        Record(8, EventType.IPL, b"grub_cmd: linux " + line + b"\0", b"linux " + line),
        Record(9, EventType.IPL, b"/grub/grubenv\0", b"boot_success=1"),
        Record(9, EventType.IPL, b"/vmlinuz-" + version + b"\0", kernel),
        Record(8, EventType.IPL, b"kernel_cmdline: " + line + b"\0", line),
        Record(8, EventType.IPL, b"grub_cmd: initrd " + initrd_name + b"\0", b"initrd " + initrd_name),
        Record(9, EventType.IPL, initrd_name + b"\0", initrd),
    ]


def booted(records: list[Record], truth: list[Record] | None = None) -> Boot:
    quoted = extended(records if truth is None else truth)
    return observe(replay.replay(eventlog.parse(written(records)), bank=SHA256, quoted=quoted))


GOOD = baseline.baseline(booted(boot_records()))


def findings(boot: Boot, values: ReferenceValues = GOOD) -> tuple[Finding, ...]:
    return BootReference(values).check(boot)


def codes(boot: Boot, values: ReferenceValues = GOOD) -> list[FindingCode]:
    return [finding.code for finding in findings(boot, values)]


PROVEN = [
    entry
    for entry in logs_of("replays")
    if not entry.name.startswith("go-eventlog/") and entry.pcrs[best_bank(parsed(entry))]
]


@pytest.mark.parametrize("entry", PROVEN, ids=[entry.name for entry in PROVEN])
def test_a_real_boot_passes_its_own_baseline(entry: Entry) -> None:
    log = parsed(entry)
    bank = best_bank(log)
    boot = observe(replay.replay(log, bank=bank, quoted=entry.pcrs[bank]))
    try:
        values = baseline.baseline(boot)
    except baseline.NotTrustworthy:
        assert not boot.secure_boot.complete
        return
    found = findings(boot, values)
    assert verdict_of(found) is not Verdict.FAILED
    allowed = {FindingCode.SECURE_BOOT_OFF, FindingCode.SETUP_MODE, FindingCode.SECURE_BOOT_UNKNOWN}
    if entry.facts["secure_boot"]:
        allowed = set()
    assert {finding.code for finding in found if finding.code is not FindingCode.EVENT_DATA_FORGED} <= allowed
    assert [f.event for f in found if f.code is FindingCode.EVENT_DATA_FORGED] == entry.facts.get(
        "digest_mismatch_events", []
    )


def test_the_same_boot_and_a_harmlessly_different_one_pass() -> None:
    assert findings(booted(boot_records())) == ()
    other_disk = b"root=UUID=ffffffff-aaaa-bbbb-cccc-dddddddddddd ro quiet"
    records = boot_records(arguments=other_disk)
    records[-5] = records[-5]._replace(hashed=b"boot_success=0")
    assert findings(booted(records)) == ()


def test_host_b_against_host_a() -> None:
    """The same disk with Secure Boot off, and another GRUB command."""
    a, b = (entry for entry in logs_of("replays") if "secureboot-o" in entry.name and "/" in entry.name)
    boots = [observe(replay.replay(parsed(e), bank=SHA256, quoted=e.pcrs[SHA256])) for e in (a, b)]
    found = findings(boots[1], baseline.baseline(boots[0]))
    assert {finding.code for finding in found} == {
        FindingCode.SECURE_BOOT_OFF,
        FindingCode.SETUP_MODE,
        FindingCode.DBX_OUTDATED,
    }
    assert verdict_of(found) is Verdict.FAILED


def test_secure_boot_off() -> None:
    assert codes(booted(boot_records(secure_boot=b"\0"))) == [FindingCode.SECURE_BOOT_OFF]


def test_an_unknown_signer() -> None:
    (finding,) = findings(booted(boot_records(signer=CERTIFICATE[:-1] + b"x")))
    assert (finding.code, finding.severity, finding.pcr, finding.event) == (
        FindingCode.UNKNOWN_SIGNER,
        Severity.ERROR,
        7,
        7,
    )


def test_another_boot_loader() -> None:
    (finding,) = findings(booted(boot_records(loader=b"an older grub")))
    assert (finding.code, finding.severity, finding.pcr, finding.event) == (
        FindingCode.UNKNOWN_COMPONENT,
        Severity.ERROR,
        4,
        8,
    )
    assert finding.observed == f"sha256:{SHA256.digest(b'an older grub').hex()}"


def test_an_update_names_the_component_and_can_be_accepted() -> None:
    updated = booted(
        boot_records(kernel=b"kernel 6.2", initrd=b"initrd 6.2", initrd_name=b"/initrd.img-6.2", version=b"6.2")
    )
    found = findings(updated)
    assert [finding.message for finding in found] == [
        "/vmlinuz-6.2 has changed since the baseline (was /vmlinuz-6.1)",
        "/initrd.img-6.2 has changed since the baseline (was /initrd.img-6.1)",
    ]
    assert [finding.expected for finding in found] == [
        f"sha256:{SHA256.digest(KERNEL).hex()}",
        f"sha256:{SHA256.digest(INITRD).hex()}",
    ]
    accepted = baseline.accept(GOOD, updated, components=frozenset(f.event for f in found if f.event is not None))
    assert findings(updated, accepted) == ()
    assert findings(booted(boot_records()), accepted) == ()


def test_an_initrd_under_the_name_of_configuration() -> None:
    """Labels of PCR 9 are free; the number of files that GRUB was told to load is not."""
    truth = boot_records(initrd=b"evil", initrd_name=b"/initrd.img-6.1")
    renamed = [*truth[:-1], truth[-1]._replace(data=b"/grub/grub.cfg\0")]
    (finding,) = findings(booted(renamed, truth))
    assert (finding.code, finding.pcr) == (FindingCode.UNKNOWN_COMPONENT, 9)
    assert "GRUB loaded 2 kernel and initrd files, and 1 of" in finding.message


def test_configuration_can_be_pinned() -> None:
    strict = replace(GOOD, pin_configuration=True)
    assert codes(booted(boot_records()), strict) == [FindingCode.UNKNOWN_COMPONENT]


@pytest.mark.parametrize(
    "arguments", [b"root=UUID=0a1b2c3d-0000-1111-2222-333344445555 ro quiet init=/bin/sh", b"ro quiet", b""]
)
def test_another_command_line(arguments: bytes) -> None:
    (finding,) = findings(booted(boot_records(arguments=arguments)))
    assert (finding.code, finding.pcr) == (FindingCode.COMMAND_LINE_CHANGED, 8)
    assert finding.observed == f"/vmlinuz-6.1 {arguments.decode()}"
    assert finding.expected == "* root=UUID=* ro quiet"


def test_nothing_can_be_put_before_the_arguments() -> None:
    evil = b"init=/bin/sh root=UUID=0a1b2c3d-0000-1111-2222-333344445555 ro quiet"
    assert codes(booted(boot_records(arguments=evil))) == [FindingCode.COMMAND_LINE_CHANGED]


def test_an_unmeasured_command_line() -> None:
    records = [record for record in boot_records() if record.pcr != 8]
    assert FindingCode.COMMAND_LINE_CHANGED in codes(booted(records))


def test_a_command_line_cannot_be_hidden_as_something_unreadable() -> None:
    evil = Record(8, EventType.IPL, b"kernel_cmdline: /vmlinuz init=/bin/sh\0", b"/vmlinuz init=/bin/sh")
    hidden = Record(8, EventType.IPL, b"anything", b"/vmlinuz init=/bin/sh")
    (finding,) = findings(booted([*boot_records(), hidden], [*boot_records(), evil]))
    assert (finding.code, finding.severity) == (FindingCode.EVENT_DATA_FORGED, Severity.ERROR)
    (finding,) = findings(booted([*boot_records(), hidden]), replace(GOOD, command_lines=None))
    assert finding.severity is Severity.WARNING


def test_many_command_lines_are_one_finding() -> None:
    more = [Record(8, EventType.IPL, b"kernel_cmdline: /x\0", b"/x")] * 17
    (finding,) = findings(booted([*boot_records(), *more]))
    assert "18 command lines" in finding.message


@pytest.mark.parametrize("revocations", [Revocations(minimum=1), Revocations(required=frozenset({"00" * 32}))])
def test_an_old_revocation_list(revocations: Revocations) -> None:
    assert codes(booted(boot_records()), replace(GOOD, revocations=revocations)) == [FindingCode.DBX_OUTDATED]


def test_a_reference_of_another_bank() -> None:
    other = frozenset({AllowedComponent(ComponentKind.IMAGE, HashAlg.SHA1, "00" * 20, "x")})
    assert codes(booted(boot_records()), replace(GOOD, components=other)) == [FindingCode.BANK_INACTIVE]


def test_parts_that_are_none_are_not_looked_at() -> None:
    values = ReferenceValues(secure_boot=False)
    strange = booted(boot_records(signer=CERTIFICATE[:-1] + b"x", loader=b"x", arguments=b"x", kernel=b"x"))
    assert findings(strange, values) == ()


def test_an_option_rom_is_a_warning() -> None:
    card = Record(2, EventType.EFI_BOOT_SERVICES_DRIVER, bytes(32), b"another card")
    (finding,) = findings(booted([*boot_records(), card]))
    assert (finding.code, finding.severity) == (FindingCode.UNKNOWN_COMPONENT, Severity.WARNING)


def test_findings_of_a_kind_are_capped() -> None:
    images = [Record(4, EventType.EFI_BOOT_SERVICES_APPLICATION, bytes(32), b"%d" % n) for n in range(150)]
    found = findings(booted([*boot_records(), *images]))
    assert len(found) == MAX_FINDINGS_OF_A_KIND + 1
    assert found[-1].message == "50 more of these are left out"


def test_many_warnings_hide_no_error() -> None:
    """Whoever is root can extend PCR 2 and 8 as often as they like."""
    drivers = [Record(2, EventType.EFI_BOOT_SERVICES_DRIVER, bytes(32), b"%d" % n) for n in range(150)]
    texts = [Record(8, EventType.IPL, b"anything", b"%d" % n) for n in range(150)]
    image = Record(4, EventType.EFI_BOOT_SERVICES_APPLICATION, bytes(32), b"evil")
    edited = Record(5, EventType.EFI_ACTION, b"data", b"other")
    values = replace(GOOD, command_lines=None)
    found = findings(booted([*boot_records(), *drivers, *texts, image, edited]), values)
    errors = [(finding.code, finding.pcr) for finding in found if finding.severity is Severity.ERROR]
    assert errors == [(FindingCode.EVENT_DATA_FORGED, 5), (FindingCode.UNKNOWN_COMPONENT, 4)]
    assert len(found) == 2 * (MAX_FINDINGS_OF_A_KIND + 1)


def test_an_unproven_or_edited_boot_is_no_baseline() -> None:
    unproven = observe(replay.replay_unproven(eventlog.parse(written(boot_records())), bank=SHA256))
    with pytest.raises(baseline.NotTrustworthy, match="no quote"):
        baseline.baseline(unproven)
    with pytest.raises(baseline.NotTrustworthy, match="no quote"):
        baseline.accept(GOOD, unproven)
    edited = booted([*boot_records(), Record(5, EventType.EFI_ACTION, b"data", b"other")])
    with pytest.raises(baseline.NotTrustworthy, match="cannot be taken at their word"):
        baseline.baseline(edited)


def test_signers_and_command_lines_can_be_accepted() -> None:
    changed = booted(boot_records(signer=CERTIFICATE[:-1] + b"x", arguments=b"ro debug"))
    found = findings(changed)
    assert [finding.code for finding in found] == [FindingCode.UNKNOWN_SIGNER, FindingCode.COMMAND_LINE_CHANGED]
    events = [finding.event for finding in found if finding.event is not None]
    accepted = baseline.accept(GOOD, changed, authorities=frozenset(events[:1]), command_lines=frozenset(events[1:]))
    assert findings(changed, accepted) == ()
    assert accepted.command_lines == ("* root=UUID=* ro quiet", "* ro debug")
    with pytest.raises(KeyError):
        baseline.accept(GOOD, changed, components=frozenset({0}))
