"""Worker steps of VM Options that switch Secure Boot and VBS: edits of the definition, in the one switch of a change.

The UEFI variables are switched before the definition is, and back again where that never happens.
"""

from collections.abc import Collection
from typing import Final

from encryption.engine.options import StepKind
from encryption.services import boot_variables
from encryption.services.change import Change
from encryption.services.switching import SECURE_BOOT, boot_edits, variables_template
from inventory import events
from inventory.models import Severity

_DONE: Final = "boot_security"
_EVENTS: Final = {
    "vm.vbs_set": (
        "{vm} has what virtualization-based security (VBS) needs; it is switched on in the guest",
        Severity.INFO,
    ),
    "vm.vbs_unset": ("What virtualization-based security (VBS) brought to {vm} was taken away", Severity.WARNING),
    "vm.secure_boot_on": ("Secure Boot of {vm} was switched on", Severity.INFO),
    "vm.secure_boot_off": ("Secure Boot of {vm} was switched off", Severity.WARNING),
}


def begin(change: Change, kinds: Collection[StepKind]) -> None:
    """Before parts begin: what is wanted, as edits; what they will have done, in the job's checkpoint. `kinds`: of the
    plan's steps."""
    host = change.vm.host.known_abilities
    wanted = boot_edits(kinds, change.vm)
    change.edits += [edit for _, edit in wanted]
    done = [kind for kind, _ in wanted]
    if not done:
        return
    change.progress.checkpoint(**{_DONE: done})
    if StepKind.SET_FIRMWARE in kinds:
        turns_on = not change.vm.has_secure_boot
        boot_variables.switch(change, is_on=turns_on, template=variables_template(host.secure_loader))


def record(change: Change) -> None:
    """The events of what this job has done, once the definition has been switched."""
    for kind in change.progress.job.checkpoint.get(_DONE, []):
        text, severity = _EVENTS[kind]
        events.record_once(
            kind, text.format(vm=change.vm), target=change.vm, job=change.job, severity=severity,
            keys_enrolled=boot_variables.has_enrolled(change),
        )  # fmt: skip


def give_up(change: Change) -> None:
    """What is switched stays so; where the definition is not, the variables are put back."""
    done = change.progress.job.checkpoint.get(_DONE, [])
    wanted = next((is_on for is_on, kind in SECURE_BOOT.items() if kind in done), None)
    if wanted is not None and change.facts.has_secure_boot != wanted:
        boot_variables.put_back(change)
