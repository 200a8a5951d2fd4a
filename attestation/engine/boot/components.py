"""What booted, as a replayed log shows it: images (PCR 2 and 4), files that GRUB read (PCR 9), command lines (PCR 8).

Digests are what counts. Names (device paths, file names) are what the log says and nothing vouches for them, so no
rule here lets an event off because of its name or type:

- whatever extends PCR 4 and is no separator and no plain text that hashes to its digest is an image (an image's own
  bytes could stand in the log as data of another type, and hash to its digest);
- whatever extends PCR 9 is a file;
- a command line is any text of PCR 8 that GRUB's label calls one, and any text that begins like a path: GRUB's digest
  does not cover its labels, and no GRUB command begins so.

NOT checked: the order of events of different PCRs, which no quote vouches for. Of files with a name like GRUB's
configuration the name decides whether they are pinned (`Component.is_configuration`): who rewrites grub.cfg and the log
could pass an initrd off as one. `Boot.loaded_files`, which counts what `linux` and `initrd` lines name, makes that
harder and not impossible; a reference that pins configuration too closes it, and breaks with each new grubenv.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from attestation.engine.boot import uefi
from attestation.engine.boot.event_types import IMAGE_TYPES, VARIABLE_TYPES, EventType, type_name
from attestation.engine.boot.replay import Coverage, MeasuredEvent, ReplayedLog
from attestation.engine.boot.secure_boot import SecureBoot, secure_boot
from attestation.engine.findings import Finding, FindingCode, Severity
from attestation.engine.tpm.algorithms import HashAlg

_DRIVER_PCR, _IMAGE_PCR, _TEXT_PCR, _FILE_PCR, _STUB_TEXT_PCR = 2, 4, 8, 9, 12
_COMMAND_LINE_LABELS = (b"kernel_cmdline: ", b"grub_kernel_cmdline ", b"module_cmdline: ")
_GRUB_LABELS = (*_COMMAND_LINE_LABELS, b"grub_cmd: ", b"grub_cmd ")
_PATH_LIKE = re.compile(r"[/(0-9+]")
_ONE_FILE = frozenset({"linux", "linuxefi", "linux16"})
_MANY_FILES = frozenset({"initrd", "initrdefi", "initrd16"})
_LOADERS = ("linux", "initrd")
_CONFIGURATION = (".cfg", ".conf", ".mod", ".lst", ".pf2", ".png", ".firstboot", "/grubenv", "/grub.cfg.sig")
# grub.cfg by host: grub.cfg-01-0c:c4:7a:ff:60:1c, as PXE writes it.
_PXE_CONFIGURATION = re.compile(r"/grub\.cfg-[0-9A-Za-z:.-]+")
# Types for which the profile (PFP 1.06, table 14) fixes what is hashed, and 20 kinds of real machines keep to it.
_DATA_ARE_HASHED = frozenset(
    {
        EventType.SEPARATOR.value,
        EventType.ACTION.value,
        EventType.EFI_ACTION.value,
        EventType.S_CRTM_VERSION.value,
        EventType.EFI_GPT_EVENT.value,
        *VARIABLE_TYPES,
    }
)
# Windows' tagged events (SIPA: three flag bits, then a class and a number) hash whole. Those of Linux' EFI stub and
# systemd, whose tags are random numbers, hash a file.
_WINDOWS_TAG_BITS = 0x1FFFFFFF
_WINDOWS_TAGS = range(0x10001, 0x100000)


class ComponentKind(StrEnum):
    DRIVER = "driver"
    """An option ROM or driver that firmware ran."""
    IMAGE = "image"
    """A UEFI application: boot loader, kernel. The digest is its Authenticode hash, as signers sign it."""
    FILE = "file"
    """A file that GRUB read: kernel, initrd, configuration. The digest is over its bytes."""


@dataclass(frozen=True, slots=True)
class Component:
    """`digest` is proven, raw, of the log's bank; `name` is only what the log says, safe to show."""

    event: int
    pcr: int
    kind: ComponentKind
    digest: bytes
    name: str

    @property
    def is_configuration(self) -> bool:
        """By its name, one of GRUB's own files, which change with settings and boots."""
        named = "/" + self.name
        return self.kind is ComponentKind.FILE and (
            named.endswith(_CONFIGURATION) or _PXE_CONFIGURATION.search(named) is not None
        )


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Kernel's path and arguments, as the boot loader measured them."""

    event: int
    pcr: int
    text: str


@dataclass(frozen=True, slots=True)
class Boot:
    """All that a log tells of one boot. `proven` as in ReplayedLog; False when no quote stood behind it.

    `loaded_files` is how many files GRUB's linux and initrd lines name. `problems` are events whose data do not hash
    to their digest although they must, and the doubts about Secure Boot.
    """

    bank: HashAlg
    is_proven: bool
    secure_boot: SecureBoot
    components: tuple[Component, ...]
    command_lines: tuple[CommandLine, ...]
    loaded_files: int
    problems: tuple[Finding, ...]


def observe(log: ReplayedLog) -> Boot:
    """Only what the quote covers, where there was one."""
    state = secure_boot(log)
    separator = log.bank.digest(bytes(4))
    images = [
        _component(event, ComponentKind.DRIVER if pcr == _DRIVER_PCR else ComponentKind.IMAGE)
        for pcr in (_DRIVER_PCR, _IMAGE_PCR)
        for event in log.of_pcr(pcr)
        if event.digest != separator and not event.is_plain_text
    ]
    files = [_component(event, ComponentKind.FILE) for event in log.of_pcr(_FILE_PCR) if event.digest != separator]
    texts = [
        (event, text)
        for pcr in (_TEXT_PCR, _STUB_TEXT_PCR)
        for event in log.of_pcr(pcr)
        if (text := _text(event)) is not None
    ]
    return Boot(
        bank=log.bank,
        is_proven=log.proven is not None,
        secure_boot=state,
        components=(*images, *files),
        command_lines=tuple(
            CommandLine(event.number, event.pcr, text) for event, text in texts if _is_command_line(event, text)
        ),
        loaded_files=sum(_files_named(text) for _, text in texts),
        problems=tuple(problem for event in log.events if (problem := _forgery(event)) is not None),
    )


def _component(event: MeasuredEvent, kind: ComponentKind) -> Component:
    name = ""
    if kind is ComponentKind.FILE:
        # Linux' EFI stub: a tag, a size, then what it measured (an initrd, its load options).
        raw = event.data[8:] if event.type == EventType.EVENT_TAG else event.data
        name = uefi.printable(raw.removesuffix(b"\0").decode("utf-8", "replace"))
    elif event.type in IMAGE_TYPES:
        try:
            name = uefi.image(event.data).path
        except uefi.MalformedEventData:
            name = ""
    return Component(event.number, event.pcr, kind, event.digest, name)


def _text(event: MeasuredEvent) -> str | None:
    """GRUB's text, or UTF-16 as systemd-stub writes it; None for anything else."""
    if event.coverage is Coverage.TEXT:
        return event.covered.removesuffix(b"\0").decode("utf-8", "replace")
    if event.coverage is Coverage.WHOLE and event.type == EventType.IPL:
        if event.covered.endswith(b"\0\0") and len(event.covered) % 2 == 0:
            return uefi.utf16(event.covered).rstrip("\0")
        return event.covered.removesuffix(b"\0").decode("utf-8", "replace")
    return None


def _is_command_line(event: MeasuredEvent, text: str) -> bool:
    if event.coverage is Coverage.WHOLE or event.data.startswith(_COMMAND_LINE_LABELS):
        return True
    return _PATH_LIKE.match(text) is not None


def _files_named(text: str) -> int:
    if not text.lstrip().startswith(_LOADERS):
        return 0  # as nearly all of a log's commands
    command, *arguments = text.split() or [""]
    if command in _ONE_FILE:
        return 1
    return sum(not word.startswith("-") for word in arguments) if command in _MANY_FILES else 0


def _forgery(event: MeasuredEvent) -> Finding | None:
    if event.coverage is not Coverage.NONE or event.pcr == 7:
        return None  # PCR 7 is secure_boot's matter.
    tag = int.from_bytes(event.data[:4], "little") & _WINDOWS_TAG_BITS
    windows = event.type == EventType.EVENT_TAG and tag in _WINDOWS_TAGS
    grub = event.pcr == _TEXT_PCR and event.type == EventType.IPL and event.data.startswith(_GRUB_LABELS)
    if windows or grub or event.type in _DATA_ARE_HASHED:
        return _forged(event, Severity.ERROR, "the log was edited: the data are not what was measured")
    if event.pcr == _TEXT_PCR:
        # systemd-boot before 252 logs a text that is not what it hashes; nothing was necessarily edited.
        return _forged(event, Severity.WARNING, "the text cannot be taken at its word: something else was measured")
    return None


def _forged(event: MeasuredEvent, severity: Severity, why: str) -> Finding:
    return Finding(
        FindingCode.EVENT_DATA_FORGED,
        severity,
        f"event {event.number} of PCR {event.pcr} ({type_name(event.type)}): {why}",
        "find out who changed the log on the host; with an old boot loader, update it",
        pcr=event.pcr,
        event=event.number,
        expected="data that hash to the digest",
        observed=event.digest.hex(),
    )
