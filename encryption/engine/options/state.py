"""A VM as it is and as it shall be."""

from dataclasses import dataclass, field
from enum import StrEnum

from encryption.engine.options.hardware import HostAbilities, VmHardware


class Vmotion(StrEnum):
    """Whether a migration's traffic is encrypted: never, where both hosts can, or always."""

    DISABLED = "disabled"
    OPPORTUNISTIC = "opportunistic"
    REQUIRED = "required"


class KeyProvider(StrEnum):
    """As it was last seen. CONNECTED: one of its servers answers. UNKNOWN: nobody has looked yet."""

    NONE = "none"
    CONNECTED = "connected"
    UNREACHABLE = "unreachable"
    UNTRUSTED = "untrusted"
    UNKNOWN = "unknown"


class KeyState(StrEnum):
    """Of the VM's own key (KEK). LOCKED: the VM's keys could not be had when they were last asked for."""

    NONE = "none"
    ACTIVE = "active"
    NOT_ACTIVE = "not_active"
    MISSING = "missing"
    LOCKED = "locked"


@dataclass(frozen=True, slots=True)
class CurrentDisk:
    """A disk as last observed. `size` is the virtual size in bytes; `shared_with` names other VMs that use its file."""

    target: str
    device: str
    format: str
    source: str
    size: int
    is_encrypted: bool
    is_read_only: bool
    is_ours: bool
    shared_with: tuple[str, ...] = ()
    is_blank: bool = False  # proven: nothing has ever been written to it

    @property
    def is_hard_disk(self) -> bool:
        """One that a policy can be chosen for."""
        return self.device == "disk" and not self.is_read_only


@dataclass(frozen=True, slots=True)
class CurrentVm:
    """A VM as last observed. `is_ours` of a part: its secret is one that this console holds, wrapped."""

    name: str
    is_present: bool
    is_persistent: bool
    is_running: bool
    files_reachable: bool
    nvram_path: str
    is_nvram_encrypted: bool
    has_tpm: bool
    is_tpm_encrypted: bool
    tpm_state_known: bool
    home_is_ours: bool
    disks: tuple[CurrentDisk, ...]
    has_key: bool
    leftovers: tuple[str, ...] = ()  # files that an interrupted change has not destroyed yet
    has_managed_save: bool = False
    snapshot_count: int = 0
    memory_snapshot_count: int = 0  # of those, with guest memory in them
    firmware: str = "uefi"  # or "bios"
    has_secure_boot: bool = False
    hardware: VmHardware = field(default_factory=VmHardware)
    host: HostAbilities = field(default_factory=HostAbilities)
    encrypted_vmotion: Vmotion = Vmotion.OPPORTUNISTIC
    key_state: KeyState = KeyState.NONE
    lock_reason: str = ""

    @property
    def is_uefi(self) -> bool:
        return self.firmware == "uefi"

    @property
    def is_encrypted(self) -> bool:
        """Whether any part of it is, by this console's keys or by others."""
        parts = (self.is_nvram_encrypted, self.is_tpm_encrypted, *(disk.is_encrypted for disk in self.disks))
        return self.has_key or any(parts)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A storage policy that a part does not have yet. `target` is a disk's, empty for the home."""

    target: str
    policy: str
    encrypts: bool


@dataclass(frozen=True, slots=True)
class DesiredVm:
    """What is wanted: `encrypt_home`, and which disks (by target) shall be encrypted.

    `key_provider`: the one that the VM's key is of, or would be. `assignments` are told as steps where they go with no
    conversion. `known_disks`: all that the wish names. `home_is_for_vtpm`: nothing but the vTPM asks for the home's
    encryption. vTPM, Secure Boot, VBS and Encrypted vMotion: None is "as it is"; what is wanted and so already is no
    step, so a plan can be made again after a crash.
    """

    encrypt_home: bool
    encrypted_disks: frozenset[str]
    key_provider: KeyProvider = KeyProvider.CONNECTED
    assignments: tuple[Assignment, ...] = ()
    known_disks: frozenset[str] = frozenset()
    home_is_for_vtpm: bool = False
    vtpm: bool | None = None
    secure_boot: bool | None = None
    vbs: bool | None = None
    encrypted_vmotion: Vmotion | None = None
