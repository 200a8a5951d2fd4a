"""Encrypted vMotion: how a VM's migrations travel. An encrypted VM always travels encrypted.

Once required because of encryption it stays so after decryption until somebody changes it (vSphere's rule).
"""

from collections.abc import Iterable

from encryption.engine.options.state import CurrentVm, DesiredVm, Vmotion
from encryption.engine.options.steps import Finding, How, Step, StepKind


def wanted(current: CurrentVm, desired: DesiredVm) -> Vmotion:
    """After the change."""
    if desired.encrypt_home:
        return Vmotion.REQUIRED
    return current.encrypted_vmotion if desired.encrypted_vmotion is None else desired.encrypted_vmotion


def refusals(current: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
    if desired.encrypt_home and desired.encrypted_vmotion not in {None, Vmotion.REQUIRED}:
        yield Finding(
            "vmotion_fixed",
            f"{current.name} is or will be encrypted, and an encrypted VM always migrates encrypted",
            "leave Encrypted vMotion at required, or decrypt the VM",
        )


def steps(current: CurrentVm, desired: DesiredVm) -> Iterable[Step]:
    """What encryption itself sets is no step of its own."""
    mode = wanted(current, desired)
    if desired.encrypted_vmotion is not None and not desired.encrypt_home and mode != current.encrypted_vmotion:
        yield Step(
            StepKind.SET_MIGRATION, "", How.CONSOLE, f"Set Encrypted vMotion to {mode.value}",
            undo=f"set it to {current.encrypted_vmotion.value} again",
        )  # fmt: skip


def warnings(current: CurrentVm, desired: DesiredVm) -> Iterable[Finding]:
    if wanted(current, desired) is Vmotion.DISABLED != current.encrypted_vmotion:
        yield Finding("vmotion_clear", f"The memory of {current.name} will cross the network in clear when it migrates")
