"""Plan and apply, the first half: what has to be done to bring a VM's encryption from what is to what is wanted.

`plan` is pure and total: for any two states it answers with steps, warnings and refusals. A plan with a refusal must
not be applied. The worker plans again from fresh facts before it begins.

Rules (vSphere's, see docs/architecture.md):
1. the home (NVRAM, vTPM state) is encrypted before any disk, and no disk is encrypted on a VM with a plain home;
2. disks are decrypted before the home;
3. home files change only while the VM is powered off; disks change also while it runs, by a block copy.

NOT checked here: free space, whether files exist, whether the KMS answers. The worker checks those before it writes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


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
    ASSIGN_POLICY = "assign_policy"
    DESTROY_ORIGINALS = "destroy_originals"


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


@dataclass(frozen=True, slots=True)
class Assignment:
    """A storage policy that a part does not have yet. `target` is a disk's, empty for the home."""

    target: str
    policy: str
    encrypts: bool


@dataclass(frozen=True, slots=True)
class DesiredVm:
    """What is wanted: `encrypt_home`, and which disks (by target) shall be encrypted.

    `assignments` are told as steps where they go with no conversion. `known_disks`: all that the wish names.
    """

    encrypt_home: bool
    encrypted_disks: frozenset[str]
    has_key_provider: bool = True
    assignments: tuple[Assignment, ...] = ()
    known_disks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    kind: StepKind
    target: str
    how: How
    text: str
    size: int = 0


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


def plan(current: CurrentVm, desired: DesiredVm) -> Plan:
    """Steps in the order in which they are done; refusals in the order in which to solve them."""
    refusals = list(_refusals(current, desired))
    encrypting = [
        disk for disk in _hard_disks(current) if disk.target in desired.encrypted_disks and not disk.is_encrypted
    ]
    decrypting = [
        disk for disk in _hard_disks(current) if disk.target not in desired.encrypted_disks and disk.is_encrypted
    ]
    home = _home_steps(current, desired)
    refusals += _state_refusals(current, desired, encrypting, decrypting, home)
    conversions = [_disk_step(current, disk, encrypt=False) for disk in decrypting]
    conversions += home
    conversions += [_disk_step(current, disk, encrypt=True) for disk in encrypting]
    if not conversions and desired.encrypt_home == current.has_key:
        rest = [_assign_step(one) for one in desired.assignments]
        rest += [_destroy_step(f"Overwrite and delete {path}, left by an earlier change") for path in current.leftovers]
        return Plan(tuple(rest), (), tuple(refusals))
    return Plan(
        tuple(_surround(current, desired, conversions, encrypting)),
        tuple(_warnings(current, conversions)),
        tuple(refusals),
    )


def _hard_disks(current: CurrentVm) -> Iterable[CurrentDisk]:
    return (disk for disk in current.disks if disk.is_hard_disk)


def _refusals(current: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
    """What is wrong with the wish itself, whatever the VM does at the moment."""
    if not current.is_present:
        yield Finding(
            "vm_gone",
            f"{current.name} is no longer on its host",
            "refresh the host, or remove the VM from the inventory",
        )
    if not current.is_persistent:
        yield Finding("vm_transient", f"{current.name} has no persistent definition", "define it on its host first")
    if desired.encrypted_disks and not desired.encrypt_home:
        yield Finding(
            "home_not_encrypted",
            "A disk cannot be encrypted while the VM itself is not",
            "choose an encrypting policy for the VM as well",
        )
    if desired.encrypt_home and not desired.has_key_provider:
        yield Finding("no_key_provider", "There is no key provider to take a key from", "add one under Key Providers")
    known = {disk.target for disk in _hard_disks(current)}
    for target in sorted((desired.encrypted_disks | desired.known_disks) - known):
        yield Finding(
            "disk_unknown", f"{current.name} has no hard disk {target}", "choose among the disks that are shown"
        )


def _state_refusals(
    current: CurrentVm,
    desired: DesiredVm,
    encrypting: list[CurrentDisk],
    decrypting: list[CurrentDisk],
    home: list[Step],
) -> Iterable[Finding]:
    """What the VM's present state forbids."""
    if home and current.is_running:
        yield Finding(
            "home_in_use",
            f"{current.name} is running, and its home files ({_home_words(current)}) are open",
            "shut it down; disks can be changed while it runs once the home is encrypted",
        )
    if (current.is_nvram_encrypted or current.is_tpm_encrypted) and not current.home_is_ours:
        yield Finding(
            "foreign_home",
            "The home was encrypted outside this console, which has no key for it",
            "import its keys first",
        )
    if desired.encrypt_home and current.has_tpm and not current.is_tpm_encrypted and not current.tpm_state_known:
        yield Finding(
            "vtpm_state_unknown",
            "Where the host keeps vTPM state is not known",
            "set the vTPM state folder of the host (Configure)",
        )
    if home or encrypting or decrypting or desired.encrypt_home != current.has_key:
        yield from kept_states(current)
    for disk in [*encrypting, *decrypting]:
        if disk.shared_with:
            yield Finding(
                "disk_shared", f"{disk.target} is also a disk of {', '.join(disk.shared_with)}", "detach it there first"
            )
        if disk.source.startswith("/dev/"):
            yield Finding(
                "disk_is_device", f"{disk.target} is the device {disk.source}", "only disks in files can be converted"
            )
        if not disk.source:
            yield Finding("disk_without_file", f"{disk.target} is no file", "move it to a file on a datastore first")
    for disk in encrypting:
        if disk.format not in {"raw", "qcow2"}:
            yield Finding(
                "disk_format",
                f"{disk.target} has format {disk.format or 'unknown'}",
                "convert it to raw or qcow2 first",
            )
    for disk in decrypting:
        if not disk.is_ours:
            yield Finding(
                "foreign_disk",
                f"{disk.target} was encrypted outside this console, which has no key for it",
                "import its keys first",
            )


def kept_states(current: CurrentVm) -> Iterable[Finding]:
    """What libvirt keeps of the VM beside its files, and what no change of its encryption reaches: it would hold guest
    memory or disk content in clear, or open with keys that are no longer."""
    if current.has_managed_save:
        yield Finding(
            "managed_save_present",
            f"{current.name} has a saved state, and its guest memory lies in that in clear",
            "start it, so that it resumes, and shut it down; or discard the saved state (Actions)",
        )
    if current.snapshot_count:
        memory = f", {current.memory_snapshot_count} of them with guest memory" if current.memory_snapshot_count else ""
        yield Finding(
            "snapshots_present",
            f"{current.name} has {current.snapshot_count} snapshot{'s' * (current.snapshot_count != 1)}{memory}, "
            "which stay as they are",
            "delete the snapshots on its host (virsh snapshot-delete), then refresh the host",
        )


def _home_words(current: CurrentVm) -> str:
    words = (["NVRAM"] if current.nvram_path else []) + (["vTPM state"] if current.has_tpm else [])
    return " and ".join(words)


def _home_steps(current: CurrentVm, desired: DesiredVm) -> list[Step]:
    steps: list[Step] = []
    if desired.encrypt_home:
        if current.nvram_path and not current.is_nvram_encrypted:
            steps.append(Step(StepKind.ENCRYPT_NVRAM, "", How.ENGINE, "Encrypt the NVRAM into a LUKS image"))
        if current.has_tpm and not current.is_tpm_encrypted:
            steps.append(Step(StepKind.ENCRYPT_VTPM, "", How.SWTPM, "Encrypt the state of the vTPM"))
    else:
        if current.is_nvram_encrypted:
            steps.append(Step(StepKind.DECRYPT_NVRAM, "", How.ENGINE, "Decrypt the NVRAM"))
        if current.has_tpm and current.is_tpm_encrypted:
            steps.append(Step(StepKind.DECRYPT_VTPM, "", How.SWTPM, "Decrypt the state of the vTPM"))
    return steps


def _disk_step(current: CurrentVm, disk: CurrentDisk, *, encrypt: bool) -> Step:
    if current.is_running:
        how, manner = How.BLOCK_COPY, "while the VM runs"
    elif not current.files_reachable:
        how, manner = How.STORAGE_API, "while the VM is off, by its host"
    elif disk.format == "qcow2":
        how, manner = How.QEMU_IMG, "while the VM is off"
    else:
        how, manner = How.ENGINE, "while the VM is off"
    if encrypt:
        text = f"Encrypt {disk.target} ({disk.format}) into a LUKS image {manner}: aes-xts-plain64, 512-bit key"
        return Step(StepKind.ENCRYPT_DISK, disk.target, how, text, disk.size)
    return Step(StepKind.DECRYPT_DISK, disk.target, how, f"Decrypt {disk.target} {manner}", disk.size)


def _surround(
    current: CurrentVm, desired: DesiredVm, conversions: list[Step], encrypting: list[CurrentDisk]
) -> Iterable[Step]:
    makes_secrets = bool(encrypting) or any(
        step.kind in {StepKind.ENCRYPT_NVRAM, StepKind.ENCRYPT_VTPM} for step in conversions
    )
    if desired.encrypt_home and not current.has_key:
        yield Step(StepKind.CREATE_KEY, "", How.KMS, "Create and activate a 256-bit AES key at the key provider")
    if makes_secrets:
        yield Step(
            StepKind.WRAP_SECRETS, "", How.KMS, "Draw a data key for each part and keep it wrapped under that key"
        )
    yield from conversions
    converted = {step.target for step in conversions}
    yield from (_assign_step(one) for one in desired.assignments if one.target not in converted)
    what = (
        "to the encrypted parts, with the wrapped keys in its metadata"
        if desired.encrypt_home
        else "to the plain parts"
    )
    yield Step(StepKind.SWITCH_DEFINITION, "", How.LIBVIRT, f"Switch the VM's definition {what}")
    if conversions:
        old = "plain" if desired.encrypt_home else "encrypted"
        if any(step.kind is StepKind.DECRYPT_DISK for step in conversions) and desired.encrypt_home:
            old = "old"
        yield _destroy_step(f"Overwrite and delete the {old} originals")


def _assign_step(assignment: Assignment) -> Step:
    part = assignment.target or "the VM home"
    state = "stays as it is" if assignment.target else "keeps its keys"
    return Step(
        StepKind.ASSIGN_POLICY, assignment.target, How.LIBVIRT, f"Assign {assignment.policy} to {part}, which {state}"
    )


def _destroy_step(text: str) -> Step:
    return Step(StepKind.DESTROY_ORIGINALS, "", How.FILES, text)


def _warnings(current: CurrentVm, conversions: list[Step]) -> Iterable[Finding]:
    size = sum(step.size for step in conversions)
    if size:
        yield Finding("space_needed", f"{gigabytes(size)} of free space are needed until the originals are deleted")
    if any(step.how is How.STORAGE_API for step in conversions):
        yield Finding(
            "host_copies",
            f"No worker reaches the files of {current.name}: its host copies the disks itself. A copy that is "
            "interrupted begins anew, the host holds the keys while it copies, and of originals with holes libvirt "
            "frees the space without overwriting it",
            "run a worker on that host if this matters",
        )
    kinds = {step.kind for step in conversions}
    if kinds & {StepKind.ENCRYPT_DISK, StepKind.ENCRYPT_NVRAM, StepKind.ENCRYPT_VTPM}:
        yield Finding(
            "overwrite_limits",
            "Overwriting does not reach copies that storage keeps itself (SSD spare blocks, copy-on-write, backups)",
            "discard or destroy those by the storage's own means",
        )
    if kinds & {StepKind.DECRYPT_DISK, StepKind.DECRYPT_NVRAM, StepKind.DECRYPT_VTPM}:
        yield Finding("will_be_clear", "The decrypted parts will lie on the datastore in clear")
    if StepKind.ENCRYPT_DISK in kinds and any(disk.format == "qcow2" for disk in current.disks):
        yield Finding(
            "format_changes", "An encrypted disk is a raw LUKS image; decrypting it makes a qcow2 image again"
        )


def gigabytes(size: int) -> str:
    """For people: MiB below one GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
