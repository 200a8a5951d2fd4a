"""The manifest of an exported VM: what is in the folder, with digests, and where its keys are.

`manifest.json` lists every other file of the folder. Nobody vouches for a bundle: it is parsed strictly, counts and
sizes are capped before anything is opened, and a name is a plain file name. NOT shown by digests: who made the bundle.
Whoever can change a file can change its digest too; they tell damage, and an encrypted disk of another key does not
open.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

FORMAT: Final = "bartizan-vm-bundle"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
DEFINITION: Final = "definition.xml"
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_FILES: Final = 512
MAX_FILE_BYTES: Final = 1 << 50
MAX_DEFINITION_BYTES: Final = 4 << 20
MAX_TEXT: Final = 255

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", re.ASCII)
_DIGEST: Final = re.compile("[0-9a-f]{64}", re.ASCII)
_TARGET: Final = re.compile("[a-z][a-z0-9]{0,30}", re.ASCII)


class BadBundle(Exception):
    """Not a bundle that this version of Bartizan writes. The text says what is wrong, and quotes little."""


class Role(StrEnum):
    DEFINITION = "definition"
    DISK = "disk"
    NVRAM = "nvram"
    VTPM = "vtpm"
    KERNEL = "kernel"
    INITRD = "initrd"
    DTB = "dtb"


# What the guest wrote. Boot files come from the host.
GUEST_DATA: Final = frozenset({Role.DISK, Role.NVRAM, Role.VTPM})


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file of the folder. `target`: the disk's name in the VM; `sha256` in lower-case hexadecimal."""

    name: str
    role: Role
    target: str
    size: int
    sha256: str
    is_encrypted: bool

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == MANIFEST:
            raise BadBundle("a file of it has a name that is not allowed")
        if (self.role is Role.DISK) != bool(self.target) or (self.target and not _TARGET.fullmatch(self.target)):
            raise BadBundle(f"{self.name} does not say which disk it is")
        if (self.role is Role.DEFINITION) != (self.name == DEFINITION):
            raise BadBundle("its definition has another name")
        limit = MAX_DEFINITION_BYTES if self.role is Role.DEFINITION else MAX_FILE_BYTES
        if not 0 <= self.size <= limit:
            raise BadBundle(f"{self.name} has an impossible size")
        if not _DIGEST.fullmatch(self.sha256):
            raise BadBundle(f"the digest of {self.name} is malformed")
        if self.is_encrypted and self.role not in GUEST_DATA:
            raise BadBundle(f"{self.name} cannot be encrypted")


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where the KEK is: the key provider's identity and name, and the key's ID there."""

    cluster: UUID
    cluster_name: str
    key_id: str

    def __post_init__(self) -> None:
        _check_text(self.cluster_name, "key provider")
        _check_text(self.key_id, "key ID")


@dataclass(frozen=True, slots=True)
class Manifest:
    """`is_clear`: some of the guest's data are not encrypted. `keys` None: nothing is."""

    vm_uuid: UUID
    vm_name: str
    console: str
    made_at: datetime
    made_by: str
    is_clear: bool
    keys: KeyPlace | None
    files: tuple[BundleFile, ...]

    def __post_init__(self) -> None:
        for text, what in ((self.vm_name, "VM name"), (self.console, "console"), (self.made_by, "user")):
            _check_text(text, what)
        if self.made_at.tzinfo is None:
            raise BadBundle("its date has no time zone")
        if not 0 < len(self.files) <= MAX_FILES:
            raise BadBundle("it has too many files, or none")
        # Case folded: two names that one file system keeps apart are one file on another.
        if len({file.name.casefold() for file in self.files}) != len(self.files):
            raise BadBundle("two of its files have the same name")
        if len({(file.role, file.target) for file in self.files}) != len(self.files):
            raise BadBundle("two of its files are the same part")
        if Role.DEFINITION not in {file.role for file in self.files}:
            raise BadBundle("it has no definition")
        in_clear = any(file.role in GUEST_DATA and not file.is_encrypted for file in self.files)
        if in_clear != self.is_clear:
            raise BadBundle("it contradicts itself about what is in clear")
        if any(file.is_encrypted for file in self.files) != (self.keys is not None):
            raise BadBundle("it contradicts itself about its keys")

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def file(self, role: Role, target: str = "") -> BundleFile | None:
        return next((file for file in self.files if (file.role, file.target) == (role, target)), None)


def to_json(manifest: Manifest) -> bytes:
    """What `manifest.json` holds. Raises BadBundle where it would be too long."""
    keys = manifest.keys
    told = {
        "format": FORMAT,
        "version": VERSION,
        "vm": {"uuid": str(manifest.vm_uuid), "name": manifest.vm_name},
        "console": manifest.console,
        "made_at": manifest.made_at.isoformat(),
        "made_by": manifest.made_by,
        "in_clear": manifest.is_clear,
        "keys": None
        if keys is None
        else {"kms_cluster": str(keys.cluster), "kms_cluster_name": keys.cluster_name, "key_id": keys.key_id},
        "files": [
            {
                "name": file.name,
                "role": file.role.value,
                "target": file.target,
                "size": file.size,
                "sha256": file.sha256,
                "encrypted": file.is_encrypted,
            }
            for file in manifest.files
        ],
    }
    data = (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()
    if len(data) > MAX_MANIFEST_BYTES:
        raise BadBundle("the manifest is too long")
    return data


def from_json(data: bytes) -> Manifest:
    """Reads a manifest; everything unknown in it is refused. Raises BadBundle."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BadBundle("the manifest is too long")
    try:
        found: object = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise BadBundle("the manifest is not JSON") from exc
    root = _object(
        found, {"format", "version", "vm", "console", "made_at", "made_by", "in_clear", "keys", "files"}, "manifest"
    )
    if root["format"] != FORMAT:
        raise BadBundle("it is not an exported VM")
    if type(root["version"]) is not int or root["version"] != VERSION:
        raise BadBundle("it is of another version")
    vm = _object(root["vm"], {"uuid", "name"}, "VM")
    files = root["files"]
    if not isinstance(files, list) or len(files) > MAX_FILES:
        raise BadBundle("it has too many files, or none")
    return Manifest(
        vm_uuid=_uuid(vm["uuid"]),
        vm_name=_text(vm["name"]),
        console=_text(root["console"]),
        made_at=_time(root["made_at"]),
        made_by=_text(root["made_by"]),
        is_clear=_flag(root["in_clear"]),
        keys=None if root["keys"] is None else _keys(root["keys"]),
        files=tuple(_file(one) for one in files),
    )


def _keys(found: object) -> KeyPlace:
    keys = _object(found, {"kms_cluster", "kms_cluster_name", "key_id"}, "keys")
    return KeyPlace(_uuid(keys["kms_cluster"]), _text(keys["kms_cluster_name"]), _text(keys["key_id"]))


def _file(found: object) -> BundleFile:
    file = _object(found, {"name", "role", "target", "size", "sha256", "encrypted"}, "file")
    try:
        role = Role(_text(file["role"]))
    except ValueError as exc:
        raise BadBundle("a file of it has an unknown role") from exc
    size = file["size"]
    if type(size) is not int:
        raise BadBundle("a file of it has no size")
    return BundleFile(
        name=_text(file["name"]),
        role=role,
        target=_text(file["target"]),
        size=size,
        sha256=_text(file["sha256"]),
        is_encrypted=_flag(file["encrypted"]),
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _object(found: object, names: set[str], what: str) -> dict[str, object]:
    if not isinstance(found, dict) or found.keys() != names:
        raise BadBundle(f"the {what} in it has missing or unknown entries")
    return found


def _text(found: object) -> str:
    if not isinstance(found, str):
        raise BadBundle("a text in it is none")
    return found


def _flag(found: object) -> bool:
    if not isinstance(found, bool):
        raise BadBundle("a yes or no in it is neither")
    return found


def _uuid(found: object) -> UUID:
    text = _text(found)
    try:
        value = UUID(text)
    except ValueError as exc:
        raise BadBundle("a UUID in it is malformed") from exc
    if str(value) != text:
        raise BadBundle("a UUID in it is malformed")
    return value


def _time(found: object) -> datetime:
    try:
        return datetime.fromisoformat(_text(found))
    except ValueError as exc:
        raise BadBundle("its date is malformed") from exc


def _check_text(text: str, what: str) -> None:
    if not 0 < len(text) <= MAX_TEXT or not text.isprintable():
        raise BadBundle(f"its {what} is empty, too long, or not printable")


def refuse_backing(head: bytes) -> None:
    """Raises BadBundle unless `head`, the first 104 bytes of an image, is that of a qcow2 that stands alone.

    A backing file or an external data file named in the header is opened by QEMU, wherever it is (qcow2 specification,
    header: backing_file_offset at 8, incompatible_features at 72, of which bit 2 is the external data file).
    """
    if len(head) < 104 or head[:4] != b"QFI\xfb":
        raise BadBundle("an image is not qcow2 as it claims")
    version = int.from_bytes(head[4:8], "big")
    if version not in (2, 3):
        raise BadBundle("an image is of an unknown version of qcow2")
    if head[8:16] != bytes(8):
        raise BadBundle("an image needs another one behind it")
    if (
        version == 3 and int.from_bytes(head[72:80], "big") & ~0b11001
    ):  # dirty, compression type, extended L2 entries are fine
        raise BadBundle("an image keeps its data elsewhere, or is damaged")
