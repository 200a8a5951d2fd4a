"""Plaintext that encrypted VMs left on a host: which of the files found there is one, whose, and what shows it.

Pure: files come in with their first bytes, findings go out. A file that any known definition uses is never one, with
one exception that is shown and not destroyed: the plain backing file of a disk of an encrypted VM.

What a name or a content cannot show is not found: a copy under another name, in another format, compressed, or on
another host. SAME_SIZE is a suspicion and says so.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from encryption.engine import vtpm_state

HEAD_BYTES: Final = 8192
_LUKS: Final = b"LUKS\xba\xbe"  # of version 1 and 2


class Kind(StrEnum):
    ORIGINAL = "original"
    PLAIN_COPY = "plain_copy"
    BACKING_FILE = "backing_file"
    SAVED_STATE = "saved_state"
    CORE_DUMP = "core_dump"
    NVRAM_COPY = "nvram_copy"
    VTPM_STATE = "vtpm_state"
    HALF_WRITTEN = "half_written"
    SAME_SIZE = "same_size"


MEMORY: Final = frozenset({Kind.SAVED_STATE, Kind.CORE_DUMP})


class Content(StrEnum):
    """What the first bytes of a file are."""

    EMPTY = "empty"
    LUKS = "a LUKS image"
    QCOW2 = "a qcow2 image"
    DISK = "a disk with a partition table"
    SAVED_STATE = "a saved state of libvirt, guest memory in it"
    MEMORY_STREAM = "a memory stream of QEMU"
    CORE_DUMP = "a core dump"
    VARIABLES = "UEFI variables"
    PLAIN_TPM = "vTPM state that is not encrypted"
    OTHER = "something else"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A regular file on the host. `capacity` is what a guest sees of an image; `head` its first HEAD_BYTES."""

    path: str
    size: int
    capacity: int = 0
    backing: str = ""
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class KnownVm:
    """A VM of the host, or of one that shares its storage, with what leads from a file to it.

    `encrypted`: its encrypted files; `plain_paths`: what those were made from; `half_written`: targets of changes that
    no job is working on; `sizes`: of its encrypted disks. All empty for one that is not protected.
    """

    id: UUID
    uuid: UUID
    name: str
    is_protected: bool
    has_encrypted_tpm: bool = False
    encrypted: frozenset[str] = frozenset()
    plain_paths: frozenset[str] = frozenset()
    half_written: frozenset[str] = frozenset()
    sizes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding:
    """`vm_id` None: whose it was is not known."""

    path: str
    kind: Kind
    size: int
    vm_id: UUID | None
    evidence: tuple[str, ...]


def content_of(head: bytes, path: str = "") -> Content:
    """NOT told apart: an image without a partition table from any other data."""
    if head.startswith(_LUKS):
        return Content.LUKS
    if head.startswith(b"QFI\xfb"):
        # QEMU's docs/interop/qcow2.txt: crypt_method is the big-endian word at byte 32; 2 is LUKS.
        return Content.LUKS if head[32:36] == b"\0\0\0\2" else Content.QCOW2
    if head.startswith((b"LibvirtQemudSave", b"LibvirtQemudPart")):
        return Content.SAVED_STATE
    if head.startswith(b"QEVM"):
        return Content.MEMORY_STREAM
    if head.startswith((b"KDUMP   ", b"makedumpfile")) or (head[:4] == b"\x7fELF" and head[16:18] == b"\x04\x00"):
        return Content.CORE_DUMP
    if head[40:44] == b"_FVH":
        return Content.VARIABLES
    if posixpath.basename(path).endswith(".permall"):
        try:
            return Content.OTHER if vtpm_state.parse(head).encrypted else Content.PLAIN_TPM
        except vtpm_state.BadState:
            return Content.OTHER
    if head[510:512] == b"\x55\xaa" or head[512:520] == b"EFI PART" or head[1080:1082] == b"\x53\xef":
        return Content.DISK
    return Content.OTHER if any(head) else Content.EMPTY


def classify(files: Iterable[FoundFile], vms: Iterable[KnownVm], used: frozenset[str]) -> tuple[Finding, ...]:
    """Findings by path. `used`: every file and folder that a definition, a backing chain or a live job uses."""
    known = _Known.of(vms)
    listed = sorted({file.path: file for file in files}.values(), key=lambda file: file.path)
    backing = _plain_backing(listed, known)
    found = []
    for file in listed:
        if file.path in backing:
            found.append(backing[file.path])
        elif not _is_used(file.path, used) and file.size > 0:
            finding = _finding(file, known)
            if finding is not None:
                found.append(finding)
    return tuple(found)


def backing_chain(files: Iterable[FoundFile], used: frozenset[str]) -> frozenset[str]:
    """`used`, and every file below one of them in a chain of backing files."""
    below = {file.path: file.backing for file in files if file.backing}
    found = set(used)
    for path in used:
        while (path := below.get(path, "")) and path not in found:
            found.add(path)
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class _Known:
    protected: tuple[KnownVm, ...]
    by_uuid: Mapping[UUID, KnownVm]
    by_encrypted: Mapping[str, KnownVm]
    by_plain: Mapping[str, KnownVm]
    by_half: Mapping[str, KnownVm]
    by_size: Mapping[int, KnownVm]
    by_stem: Mapping[tuple[str, str], KnownVm]
    by_name: Mapping[str, KnownVm]

    @classmethod
    def of(cls, vms: Iterable[KnownVm]) -> "_Known":
        listed = tuple(vms)
        protected = tuple(vm for vm in listed if vm.is_protected)
        by_stem = {
            (posixpath.dirname(path), _stem(path)): vm for vm in protected for path in vm.encrypted | vm.plain_paths
        }
        return cls(
            protected=protected,
            by_uuid={vm.uuid: vm for vm in listed},
            by_encrypted={path: vm for vm in protected for path in vm.encrypted},
            by_plain={path: vm for vm in protected for path in vm.plain_paths},
            by_half={path: vm for vm in protected for path in vm.half_written},
            by_size={size: vm for vm in protected for size in vm.sizes if size},
            by_stem=by_stem,
            by_name={vm.name: vm for vm in protected},
        )


# What this product and people put behind a name: vda-1a2b3c4d.luks, vda-plain-1a2b3c4d.raw, vda.raw.bak
_OURS: Final = re.compile(r"-(plain-)?[0-9a-f]{8}$")
_BEHIND: Final = "-._ ("


def _stem(path: str) -> str:
    return _OURS.sub("", posixpath.splitext(posixpath.basename(path))[0])


def _is_used(path: str, used: frozenset[str]) -> bool:
    """Itself, or a folder above it: vTPM state is used by folder."""
    while len(path) > 1:
        if path in used:
            return True
        path = posixpath.dirname(path)
    return False


def _finding(file: FoundFile, known: _Known) -> Finding | None:
    content = content_of(file.head, file.path)
    if (vm := known.by_half.get(file.path)) is not None:
        return _made(file, Kind.HALF_WRITTEN, vm, "the target of a change of encryption that nobody works on", content)
    if content is Content.LUKS:
        return None
    if (vm := known.by_plain.get(file.path)) is not None:
        return _made(file, Kind.ORIGINAL, vm, "the encrypted part was made from this file", content)
    if content in (Content.SAVED_STATE, Content.MEMORY_STREAM, Content.CORE_DUMP):
        return _memory(file, known, content)
    if content is Content.PLAIN_TPM:
        return _vtpm(file, known)
    if content is Content.VARIABLES:
        vm = _named(file, known)
        return None if vm is None else _made(file, Kind.NVRAM_COPY, vm, f"named after {vm.name}", content)
    if content not in (Content.QCOW2, Content.DISK):
        return None
    vm = _beside(file, known)
    if vm is not None:
        return _made(file, Kind.PLAIN_COPY, vm, f"lies beside a file of {vm.name}, with its name", content)
    vm = _named(file, known)
    if vm is not None:
        return _made(file, Kind.PLAIN_COPY, vm, f"named after {vm.name}", content)
    vm = known.by_size.get(file.capacity) or known.by_size.get(-(-file.capacity // 512) * 512)
    if vm is None:
        return None
    why = f"exactly as large ({file.capacity} bytes) as an encrypted disk of {vm.name}, which may be chance: look first"
    return _made(file, Kind.SAME_SIZE, vm, why, content)


def _memory(file: FoundFile, known: _Known, content: Content) -> Finding | None:
    """Of a plain VM it is nobody's concern here; one that cannot be told is shown while there are protected VMs."""
    kind = Kind.SAVED_STATE if content is Content.SAVED_STATE else Kind.CORE_DUMP
    named = re.search(rb"<uuid>([0-9a-fA-F-]{36})</uuid>", file.head)
    if named is not None:
        uuid = UUID(named[1].decode()) if _is_uuid(named[1]) else None
        vm = known.by_uuid.get(uuid) if uuid is not None else None
        if vm is not None:
            return _made(file, kind, vm, "its header names the VM's UUID", content) if vm.is_protected else None
    vm = _named(file, known)
    if vm is not None:
        return _made(file, kind, vm, f"named after {vm.name}", content)
    if not known.protected:
        return None
    return Finding(file.path, kind, file.size, None, (f"it is {content}", "whose is not known"))


def _vtpm(file: FoundFile, known: _Known) -> Finding | None:
    """<base>/<VM uuid>/tpm2.../tpm2-00.permall"""
    folder = posixpath.dirname(file.path)
    owner = posixpath.basename(posixpath.dirname(folder))
    if not _is_uuid(owner.encode()):
        return None
    vm = known.by_uuid.get(UUID(owner))
    told = f"it is {Content.PLAIN_TPM}"
    if vm is None:
        return Finding(file.path, Kind.VTPM_STATE, file.size, None, (told, f"no VM has the UUID {owner} any more"))
    if not vm.has_encrypted_tpm:
        return None
    return Finding(file.path, Kind.VTPM_STATE, file.size, vm.id, (told, f"the vTPM of {vm.name} is encrypted"))


def _plain_backing(files: list[FoundFile], known: _Known) -> dict[str, Finding]:
    by_path = {file.path: file for file in files}
    found: dict[str, Finding] = {}
    for file in files:
        vm = known.by_encrypted.get(file.path)
        below = by_path.get(file.backing)
        if vm is None or below is None or content_of(below.head, below.path) is Content.LUKS:
            continue
        evidence = (f"backing file of {file.path}, a disk of {vm.name}", "in use: it is not destroyed while it is")
        found[below.path] = Finding(below.path, Kind.BACKING_FILE, below.size, vm.id, evidence)
    return found


def _beside(file: FoundFile, known: _Known) -> KnownVm | None:
    """The protected VM that has a file of the same stem in the same folder."""
    folder, name = posixpath.split(file.path)
    return next((vm for start in _starts(name) if (vm := known.by_stem.get((folder, start))) is not None), None)


def _named(file: FoundFile, known: _Known) -> KnownVm | None:
    """The protected VM with the longest name that the file's name begins with, as a word."""
    starts = _starts(posixpath.basename(file.path))
    return next((vm for start in starts if (vm := known.by_name.get(start)) is not None), None)


def _starts(name: str) -> Iterator[str]:
    """`name` and what stands in front of each of its separators, the longest first."""
    for length in range(len(name), 0, -1):
        if length == len(name) or name[length] in _BEHIND:
            yield name[:length]


def _made(file: FoundFile, kind: Kind, vm: KnownVm, why: str, content: Content) -> Finding:
    return Finding(file.path, kind, file.size, vm.id, (why, f"its first bytes: {content}"))


def _is_uuid(text: bytes) -> bool:
    return re.fullmatch(rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text) is not None
