"""Rules and steps of home and disks; for the rules see `plan.py`."""

from collections.abc import Iterable
from typing import Final

from encryption.engine.options.state import Assignment, CurrentDisk, CurrentVm, DesiredVm, KeyProvider
from encryption.engine.options.steps import Finding, How, Step, StepKind, gigabytes

_UNDO_HOME: Final = "choose a policy for the VM home that does not encrypt, once no disk is encrypted"
_UNDO_DECRYPTION: Final = "encrypt it again, under new keys; what was in clear meanwhile may have been read"


def hard_disks(current: CurrentVm) -> Iterable[CurrentDisk]:
    return (disk for disk in current.disks if disk.is_hard_disk)


def wish_refusals(current: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
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
    if desired.encrypt_home and desired.key_provider is KeyProvider.NONE:
        yield Finding("no_key_provider", "There is no key provider to take a key from", "add one under Key Providers")
    if desired.home_is_for_vtpm and not (current.has_tpm or desired.vtpm):
        yield Finding(
            "vtpm_home_without_vtpm",
            f"{current.name} has no vTPM that its home could be encrypted for",
            "choose another policy for the VM, or add a vTPM",
        )
    known = {disk.target for disk in hard_disks(current)}
    for target in sorted((desired.encrypted_disks | desired.known_disks) - known):
        yield Finding(
            "disk_unknown", f"{current.name} has no hard disk {target}", "choose among the disks that are shown"
        )


def state_refusals(
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
    has_tpm = current.has_tpm and desired.vtpm is not False
    if desired.encrypt_home and has_tpm and not current.is_tpm_encrypted and not current.tpm_state_known:
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


def home_steps(current: CurrentVm, desired: DesiredVm) -> list[Step]:
    steps: list[Step] = []
    has_tpm = current.has_tpm and desired.vtpm is not False  # what is removed is not converted before
    if desired.encrypt_home:
        if current.nvram_path and not current.is_nvram_encrypted:
            text = "Encrypt the NVRAM into a LUKS image"
            steps.append(Step(StepKind.ENCRYPT_NVRAM, "", How.ENGINE, text, undo=_UNDO_HOME))
        if has_tpm and not current.is_tpm_encrypted:
            text = "Encrypt the state of the vTPM"
            steps.append(Step(StepKind.ENCRYPT_VTPM, "", How.SWTPM, text, undo=_UNDO_HOME))
    else:
        if current.is_nvram_encrypted:
            steps.append(Step(StepKind.DECRYPT_NVRAM, "", How.ENGINE, "Decrypt the NVRAM", undo=_UNDO_DECRYPTION))
        if has_tpm and current.is_tpm_encrypted:
            text = "Decrypt the state of the vTPM"
            steps.append(Step(StepKind.DECRYPT_VTPM, "", How.SWTPM, text, undo=_UNDO_DECRYPTION))
    return steps


def disk_step(current: CurrentVm, disk: CurrentDisk, *, encrypt: bool) -> Step:
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
        undo = "choose a policy for it that does not encrypt: it is copied back"
        return Step(StepKind.ENCRYPT_DISK, disk.target, how, text, disk.size, undo)
    text = f"Decrypt {disk.target} {manner}"
    return Step(StepKind.DECRYPT_DISK, disk.target, how, text, disk.size, _UNDO_DECRYPTION)


def assign_step(assignment: Assignment) -> Step:
    part = assignment.target or "the VM home"
    state = "stays as it is" if assignment.target else "keeps its keys"
    return Step(
        StepKind.ASSIGN_POLICY, assignment.target, How.LIBVIRT, f"Assign {assignment.policy} to {part}, which {state}",
        undo="assign the earlier policy again",
    )  # fmt: skip


def destroy_step(text: str) -> Step:
    return Step(StepKind.DESTROY_ORIGINALS, "", How.FILES, text, undo="cannot be undone, and needs no undoing")


def host_copies(current: CurrentVm) -> Finding:
    return Finding(
        "host_copies",
        f"No worker reaches the files of {current.name}: its host copies the disks itself. A copy that is "
        "interrupted begins anew, the host holds the keys while it copies, and of originals with holes libvirt "
        "frees the space without overwriting it",
        "run a worker on that host if this matters",
    )


def warnings(current: CurrentVm, conversions: list[Step]) -> Iterable[Finding]:
    size = sum(step.size for step in conversions)
    if size:
        yield Finding("space_needed", f"{gigabytes(size)} of free space are needed until the originals are deleted")
    if any(step.how is How.STORAGE_API for step in conversions):
        yield host_copies(current)
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
