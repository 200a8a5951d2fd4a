"""The plan of a VM that is made anew: what forbids it is what the same wish would be refused of a powered-off VM with
empty disks; what is done is less, for nothing is converted: each part is encrypted from its first byte.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from encryption.engine.options import vbs
from encryption.engine.options.controls import SECURE_BOOT, VBS, VTPM
from encryption.engine.options.effects import Effect
from encryption.engine.options.plan import plan
from encryption.engine.options.state import CurrentVm, DesiredVm, KeyProvider
from encryption.engine.options.steps import Finding, How, Plan, Step, StepKind, gigabytes

_OF_CONVERSIONS: Final = frozenset({"space_needed", "overwrite_limits", "format_changes", "host_copies"})
_KEPT: Final = frozenset(
    {StepKind.CREATE_KEY, StepKind.WRAP_SECRETS, StepKind.ADD_VTPM, StepKind.SET_VBS, StepKind.SET_MIGRATION}
)
_UNDO: Final = "remove the VM and its files on the host"
# Of a guest that is there more is said, which fits none that is made.
_TPM_NEEDS_UEFI: Final = Finding("vtpm_needs_uefi", "BIOS firmware was chosen, and a TPM 2.0 needs UEFI", "choose UEFI")


def plan_creation(blank: CurrentVm, desired: DesiredVm, *, hardware: str) -> Plan:
    """`blank`: the VM as it would be, with nothing of its wishes; `hardware`: its CPUs and memory, for people."""
    checked = plan(blank, desired)
    kept = {step.kind: step for step in checked.steps if step.kind in _KEPT}
    steps = [kept[kind] for kind in (StepKind.CREATE_KEY, StepKind.WRAP_SECRETS) if kind in kept]
    steps += _parts(blank, desired)
    steps += [kept[kind] for kind in (StepKind.ADD_VTPM, StepKind.SET_VBS) if kind in kept]
    firmware = _firmware(blank, desired)
    steps.append(
        Step(StepKind.DEFINE, "", How.LIBVIRT, f"Define {blank.name}: {hardware}, {firmware}; it stays off", undo=_UNDO)
    )
    steps += [kept[kind] for kind in (StepKind.SET_MIGRATION,) if kind in kept]
    warnings = tuple(one for one in checked.warnings if one.code not in _OF_CONVERSIONS)
    refusals = tuple(_TPM_NEEDS_UEFI if one.code == _TPM_NEEDS_UEFI.code else one for one in checked.refusals)
    return Plan(tuple(steps), warnings, (*_refusals(blank, desired), *refusals))


def _parts(blank: CurrentVm, desired: DesiredVm) -> Iterable[Step]:
    for disk in blank.disks:
        size = gigabytes(disk.size)
        if disk.target in desired.encrypted_disks:
            text = (
                f"Make {disk.target}, {size}: a LUKS image, encrypted from the first byte: aes-xts-plain64, 512-bit key"
            )
        else:
            text = f"Make {disk.target}, {size}: an empty raw image, not encrypted"
        yield Step(StepKind.MAKE_DISK, disk.target, How.STORAGE_API, text, disk.size, undo=_UNDO)
    if blank.is_uefi and desired.encrypt_home:
        text = "Make the UEFI variables from the firmware's template, in a LUKS image"
        yield Step(StepKind.MAKE_NVRAM, "", How.ENGINE, text, undo=_UNDO)


def _firmware(blank: CurrentVm, desired: DesiredVm) -> str:
    if not blank.is_uefi:
        return "BIOS"
    return "UEFI with Secure Boot" if vbs.wants_secure_boot(blank, desired) else "UEFI"


def _refusals(blank: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
    if not blank.host.is_known:
        yield Finding("host_not_asked", "What the host can give is not known yet", "refresh the host, then try again")
    if not blank.is_uefi and (desired.secure_boot or desired.vbs):
        yield Finding(
            "secure_boot_needs_uefi", "BIOS firmware was chosen, and Secure Boot and VBS need UEFI", "choose UEFI"
        )
    if not blank.host.is_known:
        return
    if blank.host.q35 is False:
        yield Finding("q35_not_on_host", "The host's QEMU has no q35 machine", "use a newer QEMU, or another host")
    if blank.is_uefi and not vbs.wants_secure_boot(blank, desired) and blank.host.plain_uefi is False:
        yield Finding(
            "plain_uefi_not_on_host",
            "The host has no UEFI firmware without Secure Boot",
            "switch Secure Boot on, or install the firmware on the host and refresh it",
        )
    if desired.encrypt_home and not (blank.is_uefi or desired.encrypted_disks or desired.vtpm):
        yield Finding(
            "nothing_to_encrypt",
            f"Nothing of {blank.name} would be encrypted: with BIOS there are no variables, and no disk was chosen",
            "choose an encrypting policy for a disk, or UEFI; or none for the VM home",
        )


def creation_obstacles(blank: CurrentVm, *, key_provider: KeyProvider) -> dict[str, tuple[Finding, ...]]:
    """By control of the form: what its being switched on alone would be refused for. Empty: it can be used."""
    nothing = DesiredVm(False, frozenset(), key_provider=key_provider)
    anyway = {one.code for one in plan_creation(blank, nothing, hardware="").refusals}
    tried = {
        VTPM: replace(nothing, vtpm=True, encrypt_home=True),
        SECURE_BOOT: replace(nothing, secure_boot=True),
        VBS: replace(nothing, vbs=True),
    }
    return {
        control: tuple(one for one in plan_creation(blank, desired, hardware="").refusals if one.code not in anyway)
        for control, desired in tried.items()
    }


def creation_effects(made: Plan, *, host: str, key_provider: str) -> tuple[Effect, ...]:
    """What it means for those who wait for it."""
    parts = [step.target or "NVRAM" for step in made.steps if step.kind is StepKind.MAKE_NVRAM or "LUKS" in step.text]
    if any(step.kind is StepKind.ADD_VTPM for step in made.steps):
        parts.append("vTPM state")
    keys = "none"
    if parts:
        keys = (
            f"a key encryption key at {key_provider or 'the key provider'}; a data key each for "
            f"{', '.join(dict.fromkeys(parts))}, kept wrapped by this console"
        )
    held = f"on {host}: in memory for the moment of each start, and QEMU while the VM runs" if parts else "none"
    return (
        Effect("Space", f"up to {gigabytes(made.new_bytes)} as the guest fills its disks"),
        Effect("Keys to be made", keys),
        Effect("Hosts that hold keys", held),
    )
