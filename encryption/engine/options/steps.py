"""What a plan is made of."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class How(StrEnum):
    """The way a step is done."""

    KMS = "KMS"
    ENGINE = "engine"
    QEMU_IMG = "qemu-img"
    BLOCK_COPY = "block copy"
    SWTPM = "swtpm"
    LIBVIRT = "libvirt"
    STORAGE_API = "host's storage"
    FILES = "files"
    CONSOLE = "this console"


class StepKind(StrEnum):
    CREATE_KEY = "create_key"
    WRAP_SECRETS = "wrap_secrets"
    ENCRYPT_DISK = "encrypt_disk"
    DECRYPT_DISK = "decrypt_disk"
    ENCRYPT_NVRAM = "encrypt_nvram"
    DECRYPT_NVRAM = "decrypt_nvram"
    ENCRYPT_VTPM = "encrypt_vtpm"
    DECRYPT_VTPM = "decrypt_vtpm"
    RECRYPT_DISK = "recrypt_disk"
    RECRYPT_NVRAM = "recrypt_nvram"
    RECRYPT_VTPM = "recrypt_vtpm"
    ADD_KEYSLOT = "add_keyslot"
    REMOVE_KEYSLOT = "remove_keyslot"
    SWITCH_DEFINITION = "switch_definition"
    SET_FIRMWARE = "set_firmware"
    SET_VBS = "set_vbs"
    UNSET_VBS = "unset_vbs"
    ADD_VTPM = "add_vtpm"
    REMOVE_VTPM = "remove_vtpm"
    MAKE_DISK = "make_disk"
    MAKE_NVRAM = "make_nvram"
    DEFINE = "define"
    ASSIGN_POLICY = "assign_policy"
    SET_MIGRATION = "set_migration"
    DESTROY_ORIGINALS = "destroy_originals"


HARDWARE: Final = frozenset(
    {StepKind.SET_FIRMWARE, StepKind.SET_VBS, StepKind.UNSET_VBS, StepKind.ADD_VTPM, StepKind.REMOVE_VTPM}
)


@dataclass(frozen=True, slots=True)
class Step:
    """`size`: bytes that are copied. `undo`: for people, how to go back once it is done; empty: nothing to go back to,
    or the step that undoes another one undoes it too."""

    kind: StepKind
    target: str
    how: How
    text: str
    size: int = 0
    undo: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A refusal or a warning: a stable code, what is the matter, what to do."""

    code: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    steps: tuple[Step, ...]
    warnings: tuple[Finding, ...]
    refusals: tuple[Finding, ...]

    @property
    def is_empty(self) -> bool:
        return not self.steps and not self.refusals

    @property
    def new_bytes(self) -> int:
        """Free space that the copies need while old and new stand beside each other."""
        return sum(step.size for step in self.steps)


def gigabytes(size: int) -> str:
    """For people: MiB below one GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
