"""What booted, and how names, types and labels of a log are not believed."""

import pytest

from attestation.engine.boot import eventlog, replay
from attestation.engine.boot.components import Boot, ComponentKind, observe
from attestation.engine.boot.event_types import EventType
from attestation.engine.boot.replay import Coverage
from attestation.engine.findings import FindingCode, Severity
from attestation.engine.tpm.algorithms import HashAlg
from tests.attestation.engine.boot.logs import SHA256, Record, best_bank, extended, logs_of, parsed, separator, written
from tests.attestation.recorded import Entry

REPLAYING = [entry for entry in logs_of("replays") if not entry.name.startswith("go-eventlog/")]


def observed(records: list[Record], truth: list[Record] | None = None) -> Boot:
    quoted = extended(records if truth is None else truth)
    return observe(replay.replay(eventlog.parse(written(records)), bank=SHA256, quoted=quoted))


def grub(text: bytes, label: bytes = b"grub_cmd: ") -> Record:
    return Record(8, EventType.IPL, label + text + b"\0", text)


def file(name: bytes, content: bytes) -> Record:
    return Record(9, EventType.IPL, name + b"\0", content)


@pytest.mark.parametrize("entry", REPLAYING, ids=[entry.name for entry in REPLAYING])
def test_images_and_command_line_as_stated(entry: Entry) -> None:
    log = parsed(entry)
    bank = best_bank(log)
    boot = observe(replay.replay_unproven(log, bank=bank))
    facts = entry.facts["facts"]
    images = [each.digest.hex() for each in boot.components if each.kind is ComponentKind.IMAGE]
    assert images == facts[f"boot_app_digests_{bank.label}"]
    if "kernel_cmdline" in facts:
        assert [line.text for line in boot.command_lines] == [facts["kernel_cmdline"]]
    mismatched = [problem.event for problem in boot.problems if problem.pcr == 8]
    assert mismatched == entry.facts.get("digest_mismatch_events", [])
    assert [problem for problem in boot.problems if problem.severity is Severity.ERROR] == []


@pytest.mark.parametrize("entry", [e for e in REPLAYING if "upstream_efi_app_digests" in e.facts], ids=lambda e: e.name)
def test_images_of_every_bank_as_upstream_states(entry: Entry) -> None:
    log = parsed(entry)
    for label, digests in entry.facts["upstream_efi_app_digests"].items():
        boot = observe(replay.replay_unproven(log, bank=HashAlg.of_label(label)))
        assert [each.digest.hex() for each in boot.components if each.kind is ComponentKind.IMAGE] == digests


def test_host_a() -> None:
    (entry,) = [entry for entry in REPLAYING if entry.name.startswith("a-secureboot-on")]
    boot = observe(replay.replay(parsed(entry), bank=SHA256, quoted=entry.pcrs[SHA256]))
    assert boot.is_proven
    assert boot.loaded_files == 2
    assert [(each.kind, each.event, each.name.rpartition("\\")[2]) for each in boot.components] == [
        (ComponentKind.IMAGE, 24, "BOOTX64.EFI"),
        (ComponentKind.IMAGE, 30, "grubx64.efi"),
        (ComponentKind.IMAGE, 41, ""),
        (ComponentKind.IMAGE, 42, ""),
        (ComponentKind.FILE, 35, "(hd0,gpt1)/EFI/debian/grub.cfg"),
        (ComponentKind.FILE, 40, "/vmlinuz"),
        (ComponentKind.FILE, 45, "/initrd.img"),
    ]


def test_an_image_under_another_type_is_an_image() -> None:
    image = Record(4, EventType.EFI_BOOT_SERVICES_APPLICATION, bytes(32), b"MZ\x90\0 the image's hashed bytes")
    as_action = Record(4, EventType.EFI_ACTION, b"Calling EFI Application from Boot Option", b"MZ\x90\0 the image")
    # Its own bytes as data, which hash to the digest: still no text.
    with_own_bytes = Record(4, EventType.ACTION, b"MZ\x90\0 the image's hashed bytes")
    boot = observed([image, as_action, with_own_bytes, separator(4)])
    assert [each.digest for each in boot.components] == [image.digest, as_action.digest, with_own_bytes.digest]


def test_a_command_line_under_another_label_is_one() -> None:
    truth = [grub(b"linux /vmlinuz"), grub(b"/vmlinuz init=/bin/sh", b"kernel_cmdline: ")]
    relabelled = [truth[0], grub(b"/vmlinuz init=/bin/sh", b"grub_cmd: ")]
    for log in (truth, relabelled):
        assert [line.text for line in observed(log, truth).command_lines] == ["/vmlinuz init=/bin/sh"]


@pytest.mark.parametrize("kernel", [b"(hd0,gpt2)/vmlinuz ro", b"0+4096 ro", b"+1 ro"])
def test_each_form_of_a_kernels_path_is_known(kernel: bytes) -> None:
    assert len(observed([grub(kernel)]).command_lines) == 1


def test_a_command_line_of_systemd_stub() -> None:
    text = "root=/dev/vda2 ro\0".encode("utf-16-le")
    assert [line.text for line in observed([Record(12, EventType.IPL, text)]).command_lines] == ["root=/dev/vda2 ro"]


@pytest.mark.parametrize(
    ("texts", "files"),
    [
        ([b"linux /vmlinuz ro", b"initrd /initrd.img"], 2),
        ([b"linuxefi /vmlinuz ro", b"initrdefi /ucode.img /initrd.img"], 3),
        ([b"initrd  "], 0),
        ([b"set linux=1", b"menuentry 'x' {\n linux /vmlinuz\n}"], 0),
    ],
)
def test_files_that_grub_was_told_to_load(texts: list[bytes], files: int) -> None:
    assert observed([grub(text) for text in texts]).loaded_files == files


@pytest.mark.parametrize("name", [b"/boot/grub/grub.cfg", b"(hd0,gpt2)/grub2/grubenv", b"/fonts/x.pf2", b"grubenv"])
def test_names_of_grubs_own_files(name: bytes) -> None:
    (component,) = observed([file(name, b"content")]).components
    assert component.is_configuration


@pytest.mark.parametrize("name", [b"/boot/vmlinuz", b"/initrd.img", b"/grubenvoy", b"grub_linuxefi Initrd", b""])
def test_other_names(name: bytes) -> None:
    (component,) = observed([file(name, b"content")]).components
    assert not component.is_configuration


@pytest.mark.parametrize(
    "record",
    [
        Record(4, EventType.EFI_ACTION, b"Exit Boot Services Invocation", b"other"),
        Record(5, EventType.EFI_GPT_EVENT, b"EFI PART", b"other"),
        Record(1, EventType.EFI_VARIABLE_BOOT, b"no variable", b"other"),
        Record(0, EventType.SEPARATOR, bytes(4), b"other"),
        Record(8, EventType.IPL, b"grub_cmd: set a=b\0", b"set a=c"),
        Record(13, EventType.EVENT_TAG, b"\1\0\1\x40data", b"other"),
    ],
    ids=["action", "gpt", "variable", "separator", "grub", "windows"],
)
def test_edited_data_are_told(record: Record) -> None:
    (problem,) = observed([record]).problems
    assert (problem.code, problem.severity) == (FindingCode.EVENT_DATA_FORGED, Severity.ERROR)
    assert (problem.pcr, problem.event) == (record.pcr, 1)


@pytest.mark.parametrize(
    "record",
    [
        Record(0, EventType.EFI_PLATFORM_FIRMWARE_BLOB, bytes(16), b"the firmware"),
        Record(9, EventType.EVENT_TAG, b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0", b"the initrd"),
        Record(14, EventType.IPL, b"MokList\0", b"the list"),
    ],
    ids=["blob", "linux", "shim"],
)
def test_what_hashes_something_else_is_no_forgery(record: Record) -> None:
    assert observed([record]).problems == ()


def test_what_linux_loads_by_itself_is_named() -> None:
    (component,) = observed(
        [Record(9, EventType.EVENT_TAG, b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0", b"x")]
    ).components
    assert (component.kind, component.name) == (ComponentKind.FILE, "Linux initrd")


def test_only_quoted_registers_speak() -> None:
    records = [grub(b"/vmlinuz ro"), file(b"/vmlinuz", b"kernel"), separator(4)]
    quoted = {4: extended(records)[4]}
    boot = observe(replay.replay(eventlog.parse(written(records)), bank=SHA256, quoted=quoted))
    assert (boot.components, boot.command_lines, boot.loaded_files) == ((), (), 0)


@pytest.mark.parametrize("name", ["a-secureboot-on/eventlog.bin", "b-secureboot-off/eventlog.bin"])
def test_every_byte_that_was_measured_counts(name: str) -> None:
    """Whichever covered byte of an event's data changes, the event is named; or the log no longer parses."""
    (entry,) = [entry for entry in REPLAYING if entry.name == name]
    raw, quoted = entry.read(name), entry.pcrs[SHA256]
    log = parsed(entry)
    ends = [event.offset for event in log.events[1:]] + [len(raw)]
    for event in replay.replay(log, bank=SHA256, quoted=quoted).events:
        if event.coverage is Coverage.NONE or event.pcr == 7:
            continue
        first = len(event.data) - len(event.covered) if event.coverage is Coverage.CONTENT else 0
        for at in range(first, len(event.data), 1 if len(event.data) < 256 else 16):
            changed = bytearray(raw)
            changed[ends[event.number] - len(event.data) + at] ^= 0x01
            boot = observe(replay.replay(eventlog.parse(bytes(changed)), bank=SHA256, quoted=quoted))
            assert [problem.event for problem in boot.problems] == [event.number], f"byte {at}"
