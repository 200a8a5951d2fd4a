"""Worker steps of VM Options that switch Secure Boot and VBS: edits of the definition, in the one switch of a change.

UEFI variables that a guest has written are never touched. Those that nothing was ever written to (none yet, or byte
by byte the template that the definition names) come anew from the template of the firmware with Secure Boot, so that
keys are enrolled in them. They are written before the definition is switched: firmware without Secure Boot takes no
notice of keys.
"""

import posixpath
from functools import partial
from typing import Final

from encryption.adapters import image_files
from encryption.adapters.image_files import ImageFileError
from encryption.engine.options import StepKind
from encryption.services.change import Change
from encryption.services.options import plan_from_wish
from inventory import events
from inventory.errors import Conflict
from inventory.models import Severity
from inventory.services.connections import HypervisorError
from inventory.services.definitions import nvram_template, set_secure_boot, set_vbs, unset_vbs

_DONE: Final = "boot_security"
_RENEWED: Final = "renews_variables"
_EVENTS: Final = {
    "vm.vbs_set": (
        "{vm} has what virtualization-based security (VBS) needs; it is switched on in the guest",
        Severity.INFO,
    ),
    "vm.vbs_unset": ("What virtualization-based security (VBS) brought to {vm} was taken away", Severity.WARNING),
    "vm.secure_boot_on": ("Secure Boot of {vm} was switched on", Severity.INFO),
    "vm.secure_boot_off": ("Secure Boot of {vm} was switched off", Severity.WARNING),
}


def begin(change: Change) -> None:
    """Before parts begin: what is wanted, as edits; what they will have done, in the job's checkpoint."""
    kinds = {step.kind for step in plan_from_wish(change.vm, change.wish).steps}
    host = change.vm.host.known_abilities
    done = []
    if StepKind.UNSET_VBS in kinds:
        change.edits.append(unset_vbs)
        done.append("vm.vbs_unset")
    turns_on = StepKind.SET_FIRMWARE in kinds and not change.vm.has_secure_boot
    if StepKind.SET_FIRMWARE in kinds:
        change.edits.append(partial(set_secure_boot, is_on=turns_on, host=host))
        done.append("vm.secure_boot_on" if turns_on else "vm.secure_boot_off")
    if StepKind.SET_VBS in kinds:
        change.edits.append(partial(set_vbs, host=host))
        done.append("vm.vbs_set")
    if not done:
        return
    change.progress.checkpoint(**{_DONE: done})
    if turns_on:
        _renew_variables(change, _template(host.secure_loader))


def record(change: Change) -> None:
    """The events of what this job has done, once the definition has been switched."""
    for kind in change.progress.job.checkpoint.get(_DONE, []):
        text, severity = _EVENTS[kind]
        events.record_once(
            kind, text.format(vm=change.vm), target=change.vm, job=change.job, severity=severity,
            variables_renewed=bool(change.progress.job.checkpoint.get(_RENEWED)),
        )  # fmt: skip


def _renew_variables(change: Change, template: str) -> None:
    path = change.facts.nvram_path
    if not path or change.facts.nvram_secret_uuid is not None:
        return
    hypervisor = change.hypervisor
    try:
        content = hypervisor.read_file(template, offset=0, length=image_files.MAX_TEMPLATE + 1)
        image_files.check_variable_store(template, content)
        if not change.files.exist(path):
            change.files.copy_variable_store(template, path)
        elif change.progress.job.checkpoint.get(_RENEWED) or _is_untouched(change, path, len(content)):
            change.progress.checkpoint(**{_RENEWED: True})  # before the write: a torn one is no template any more
            hypervisor.overwrite_file(path, content)
    except (HypervisorError, ImageFileError) as exc:
        raise Conflict(
            "variables_not_made", f"{change.vm}: its UEFI variables cannot be made anew: {exc}",
            hint=f"look at {path} and at {template} on {change.vm.host}",
        ) from exc  # fmt: skip


def _is_untouched(change: Change, path: str, size: int) -> bool:
    before = nvram_template(change.hypervisor.definition(change.vm.uuid))
    if not before or change.hypervisor.file_size(path) != size:
        return False
    now = change.hypervisor.read_file(path, offset=0, length=size)
    return now == change.hypervisor.read_file(before, offset=0, length=size + 1)


def _template(loader: str) -> str:
    """The variables that belong to a firmware file: OVMF's packages name them alike (CODE and VARS)."""
    folder, name = posixpath.split(loader)
    return posixpath.join(folder, name.replace("CODE", "VARS"))
