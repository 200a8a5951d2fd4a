"""What the three ways of recrypting a VM do, and what forbids them. Pure, like `options.plan`, whose shapes it uses.

| way | new | the VM | space |
| --- | --- | --- | --- |
| KEY | key encryption key; data keys are wrapped anew | may run | none |
| PASSPHRASES | data key and passphrase of each LUKS image; its volume key and data stay | powered off | none |
| VOLUME_KEYS | all of them: each part is copied under a new volume key | disks may run, the home not | a copy |

NOT checked here: free space, free keyslots, whether files exist, whether the KMS answers.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from encryption.engine.options import (
    CurrentDisk,
    CurrentVm,
    Finding,
    How,
    Plan,
    Step,
    StepKind,
    gigabytes,
    host_copies,
    kept_states,
)

NVRAM: Final = "nvram"
VTPM: Final = "vtpm"
HOME: Final = {NVRAM: "NVRAM", VTPM: "vTPM state"}


class Way(StrEnum):
    KEY = "key"
    PASSPHRASES = "passphrases"
    VOLUME_KEYS = "volume_keys"


def encrypted_parts(current: CurrentVm) -> dict[str, int]:
    """What can get new volume keys, with its bytes: disks by target, then "nvram" and "vtpm" (0 bytes: not known)."""
    found = {disk.target: disk.size for disk in _disks(current)}
    if current.is_nvram_encrypted:
        found[NVRAM] = 0
    if current.has_tpm and current.is_tpm_encrypted:
        found[VTPM] = 0
    return found


def plan(current: CurrentVm, way: Way, parts: frozenset[str]) -> Plan:
    """`parts` counts for VOLUME_KEYS alone. Steps in the order in which they are done."""
    refusals = list(_refusals(current))
    if way is Way.KEY:
        steps, warnings = [_new_key(), _wrap("Wrap its data keys under the new key", How.KMS), _metadata()], ()
        return Plan(tuple(steps), warnings, tuple(refusals))
    if way is Way.PASSPHRASES:
        refusals += _passphrase_refusals(current)
        return Plan(tuple(_passphrase_steps(current)), tuple(_passphrase_warnings(current)), tuple(refusals))
    refusals += _volume_key_refusals(current, parts)
    return Plan(tuple(_volume_key_steps(current, parts)), tuple(_volume_key_warnings(current, parts)), tuple(refusals))


def _disks(current: CurrentVm) -> list[CurrentDisk]:
    return [disk for disk in current.disks if disk.device == "disk" and disk.is_encrypted and not disk.is_read_only]


def _refusals(current: CurrentVm) -> Iterable[Finding]:
    name = current.name
    if not current.is_present:
        yield Finding("vm_gone", f"{name} is no longer on its host", "refresh the host")
    if not current.is_persistent:
        yield Finding("vm_transient", f"{name} has no persistent definition", "define it on its host first")
    if not current.has_key:
        yield Finding("not_encrypted", f"{name} is not encrypted", "encrypt it by its VM Options")


def _foreign(current: CurrentVm, disks: Iterable[CurrentDisk], *, home: bool) -> Iterable[Finding]:
    for disk in disks:
        if not disk.is_ours:
            yield Finding(
                "foreign_disk",
                f"{disk.target} was encrypted outside this console, which has no key for it",
                "import its keys first",
            )
        if disk.shared_with:
            yield Finding(
                "disk_shared", f"{disk.target} is also a disk of {', '.join(disk.shared_with)}", "detach it there first"
            )
        if disk.source.startswith("/dev/"):
            yield Finding(
                "disk_is_device", f"{disk.target} is the device {disk.source}", "only disks in files can be converted"
            )
    if home and not current.home_is_ours:
        yield Finding(
            "foreign_home",
            "The home was encrypted outside this console, which has no key for it",
            "import its keys first",
        )


def _passphrase_refusals(current: CurrentVm) -> Iterable[Finding]:
    if current.is_running:
        yield Finding(
            "vm_running",
            f"{current.name} is running, and QEMU has its images open; changing their keyslots through QEMU's monitor "
            "would mark the VM as tainted",
            "shut it down; or choose new volume keys, which disks can get while it runs",
        )
    if not _disks(current) and not current.is_nvram_encrypted:
        yield Finding(
            "nothing_to_recrypt",
            f"{current.name} has no LUKS image, so no passphrase; vTPM state has no keyslots",
            "choose new volume keys",
        )
    yield from _foreign(current, _disks(current), home=current.is_nvram_encrypted)
    yield from kept_states(current)


def _passphrase_steps(current: CurrentVm) -> Iterable[Step]:
    yield _wrap("Draw a new data key for each LUKS image and keep it wrapped under the VM's key", How.KMS)
    names = [disk.target for disk in _disks(current)] + (["NVRAM"] if current.is_nvram_encrypted else [])
    how = How.ENGINE if current.files_reachable else How.STORAGE_API
    for name in names:
        yield Step(StepKind.ADD_KEYSLOT, name, how, f"Add a keyslot for the new passphrase to {name}")
    yield Step(StepKind.SWITCH_DEFINITION, "", How.LIBVIRT, "Switch the VM's definition to the new secrets")
    for name in names:
        yield Step(StepKind.REMOVE_KEYSLOT, name, how, f"Destroy the keyslot of the old passphrase of {name}")


def _passphrase_warnings(current: CurrentVm) -> Iterable[Finding]:
    yield Finding(
        "volume_keys_stay",
        "The volume keys stay: whoever has an older copy of an image's header and its old passphrase still opens the "
        "data",
        "choose new volume keys if that may be so",
    )
    if not current.files_reachable:
        yield Finding(
            "host_writes",
            f"No worker reaches the files of {current.name}: the keyslots are written through its host, which cannot "
            "be told to sync them; so the old ones are destroyed after a wait",
            "run a worker on that host if this matters",
        )
    if current.has_tpm and current.is_tpm_encrypted:
        yield Finding("vtpm_left_out", "The vTPM state has no keyslots and keeps its key", "choose new volume keys")


def _volume_key_refusals(current: CurrentVm, parts: frozenset[str]) -> Iterable[Finding]:
    known = encrypted_parts(current)
    for part in sorted(parts - set(known)):
        yield Finding("part_unknown", f"{current.name} has no encrypted part {part}", f"one of {', '.join(known)}")
    if not parts:
        yield Finding("nothing_to_recrypt", f"No encrypted part of {current.name} was chosen", "choose at least one")
    home = sorted(HOME[part] for part in parts & set(HOME))
    if home and current.is_running:
        yield Finding(
            "home_in_use",
            f"{current.name} is running, and its home files ({' and '.join(home)}) are open",
            "choose its disks alone, which can be done while it runs; or shut it down",
        )
    if VTPM in parts and not current.tpm_state_known:
        yield Finding(
            "vtpm_state_unknown",
            "Where the host keeps vTPM state is not known",
            "set the vTPM state folder of the host (Configure)",
        )
    yield from _foreign(current, (disk for disk in _disks(current) if disk.target in parts), home=bool(home))
    yield from kept_states(current)


def _volume_key_steps(current: CurrentVm, parts: frozenset[str]) -> Iterable[Step]:
    yield _new_key()
    yield _wrap("Wrap all data keys under it, and draw a new one for each chosen part", How.KMS)
    manner, how = "while the VM is off", How.ENGINE
    if current.is_running:
        manner, how = "while the VM runs", How.BLOCK_COPY
    elif not current.files_reachable:
        manner, how = "while the VM is off, by its host", How.STORAGE_API
    for disk in _disks(current):
        if disk.target in parts:
            text = f"Copy {disk.target} into a LUKS image with a new volume key {manner}"
            yield Step(StepKind.RECRYPT_DISK, disk.target, how, text, disk.size)
    if NVRAM in parts:
        text = "Copy the NVRAM into a LUKS image with a new volume key"
        yield Step(StepKind.RECRYPT_NVRAM, "", How.ENGINE, text)
    if VTPM in parts:
        yield Step(StepKind.RECRYPT_VTPM, "", How.SWTPM, "Write the state of the vTPM under a new key")
    yield Step(
        StepKind.SWITCH_DEFINITION, "", How.LIBVIRT, "Switch the VM's definition to the copies and the new secrets"
    )
    yield Step(StepKind.DESTROY_ORIGINALS, "", How.FILES, "Overwrite and delete the images under the old keys")


def _volume_key_warnings(current: CurrentVm, parts: frozenset[str]) -> Iterable[Finding]:
    size = sum(disk.size for disk in _disks(current) if disk.target in parts)
    if size:
        yield Finding("space_needed", f"{gigabytes(size)} of free space are needed until the old images are deleted")
    if not current.is_running and not current.files_reachable and parts:
        yield host_copies(current)
    left = [HOME.get(part, part) for part in encrypted_parts(current) if part not in parts]
    if left:
        yield Finding("parts_left_out", f"{', '.join(left)}: volume key and data key stay as they are")
    yield Finding(
        "overwrite_limits",
        "Overwriting does not reach copies that storage keeps itself (SSD spare blocks, copy-on-write, backups)",
        "discard or destroy those by the storage's own means",
    )


def _new_key() -> Step:
    return Step(StepKind.CREATE_KEY, "", How.KMS, "Create and activate a 256-bit AES key at the key provider")


def _wrap(text: str, how: How) -> Step:
    return Step(StepKind.WRAP_SECRETS, "", how, text)


def _metadata() -> Step:
    return Step(StepKind.SWITCH_DEFINITION, "", How.LIBVIRT, "Write the wrapped keys into the VM's definition")
