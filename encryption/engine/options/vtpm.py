"""The virtual TPM 2.0: added and removed. Its state is encrypted from the first byte, so it needs a key provider."""

from collections.abc import Iterable

from encryption.engine.options.state import CurrentVm, DesiredVm
from encryption.engine.options.steps import Finding, How, Step, StepKind


def adds(current: CurrentVm, desired: DesiredVm) -> bool:
    return desired.vtpm is True and not current.has_tpm


def removes(current: CurrentVm, desired: DesiredVm) -> bool:
    return desired.vtpm is False and current.has_tpm


def refusals(current: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
    """That a key provider is needed is said for the home, which a vTPM encrypts."""
    if not adds(current, desired) and not removes(current, desired):
        return
    if current.is_running:
        yield Finding(
            "vtpm_needs_power_off",
            f"{current.name} is running, and a vTPM cannot be {'added' if desired.vtpm else 'removed'} meanwhile",
            "shut it down first",
        )
    if not current.tpm_state_known:
        yield Finding(
            "vtpm_state_unknown",
            "Where the host keeps vTPM state is not known",
            "set the vTPM state folder of the host (Configure)",
        )
    if adds(current, desired) and not current.is_uefi:
        yield Finding(
            "vtpm_needs_uefi",
            f"{current.name} has BIOS firmware, and a TPM 2.0 needs UEFI",
            "convert the guest first (Windows: MBR2GPT), then change its firmware",
        )
    if adds(current, desired) and current.host.vtpm is False:
        yield Finding(
            "vtpm_not_on_host",
            "The host has no TPM emulator that libvirt could use",
            "install swtpm on the host, then refresh it; or move the VM",
        )


def steps(current: CurrentVm, desired: DesiredVm) -> Iterable[Step]:
    if adds(current, desired):
        yield Step(
            StepKind.ADD_VTPM, "", How.SWTPM,
            "Add a TPM 2.0 (tpm-crb), its state encrypted from the first byte: aes-256-cbc, 256-bit key",
            undo="remove it again; what the guest keeps in it is lost then",
        )  # fmt: skip
    elif removes(current, desired):
        yield Step(
            StepKind.REMOVE_VTPM, "", How.SWTPM, "Overwrite and delete the state of the vTPM, which is removed",
            undo="cannot be undone: a vTPM that is added again is another one",
        )  # fmt: skip


def warnings(current: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
    if adds(current, desired) and desired.home_is_for_vtpm:
        yield Finding(
            "home_for_vtpm",
            f"The home of {current.name} is encrypted because of the vTPM; its disks stay as they are",
        )
    if removes(current, desired):
        yield Finding(
            "vtpm_secrets_lost",
            "The guest loses all that only its TPM holds: BitLocker asks for the recovery key, Windows Hello PINs and "
            "passkeys, certificates and credentials bound to the TPM are gone",
            "have the recovery key at hand, or suspend BitLocker in the guest first",
        )
