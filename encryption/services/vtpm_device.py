"""Worker steps of VM Options that add or remove a VM's vTPM.

Added: its secret's row is there, wrapped, before the definition has the device, and the device comes with the secret,
so that swtpm, which makes the state at the first start, encrypts it from the first byte. It is made by the VM's host,
with certificates of that host's `swtpm-localca`.

Removed: the row is REMOVING, then the definition has no TPM, then the state is overwritten and deleted, with the
row. A vTPM with plain state has no row; the job's checkpoint stands in for it.
"""

from functools import partial
from typing import Final

from django.db import transaction

from encryption.adapters.image_files import ImageFileError
from encryption.models import Purpose, Stage, VtpmEndorsement, WrappedSecret
from encryption.services import vtpm_files
from encryption.services.change import Change, destroying
from encryption.services.parts import opens
from inventory import events
from inventory.errors import Conflict, Unavailable
from inventory.models import Severity
from inventory.services.definitions import add_tpm, remove_tpm

_PLAIN: Final = "removes_plain_vtpm"


def begin(change: Change) -> None:
    """Before parts begin: what is wanted of the vTPM, as an edit of the definition and as a row's stage."""
    if change.wish.vtpm is True and change.facts.tpm is None:
        _refuse_left_state(change)
        change.progress.checkpoint(adds_vtpm=True)
        change.edits.append(add_tpm)
    elif change.wish.vtpm is False and change.facts.tpm is not None:
        _begin_removal(change)
        change.edits.append(remove_tpm)


def _refuse_left_state(change: Change) -> None:
    """swtpm would go on with it, whatever it holds and however it is encrypted."""
    path = str(vtpm_files.folder(change.vm))
    try:
        is_left = change.files.read_tpm_state(path) is not None
    except (ImageFileError, OSError) as exc:
        raise Unavailable("datastore_error", f"{change.vm}: {exc}", hint="look at the vTPM state folder") from exc
    if is_left and not any(row.purpose == Purpose.VTPM for row in change.rows()):
        raise Conflict(
            "vtpm_state_left",
            f"{change.vm} has no vTPM, but state of an earlier one lies in {path}",
            hint="bring back the definition with that vTPM, or delete the folder if nobody needs it, then apply again",
        )


def _begin_removal(change: Change) -> None:
    rows = [row for row in change.rows(Stage.IN_USE, Stage.REMOVING) if row.purpose == Purpose.VTPM]
    for row in rows:
        if not opens(change.facts, row):
            raise Conflict(
                "part_replaced",
                f"{change.vm}: its vTPM is not the one that was encrypted, whose state is in {row.path}",
                hint="bring back the definition that this console made, then apply again",
            )
        row.stage, row.job_id = Stage.REMOVING, change.job.pk
        row.save(update_fields=["stage", "job_id"])
    if not rows:
        change.progress.checkpoint(**{_PLAIN: True})


def settle(change: Change) -> None:
    """A removal that another job began and did not switch is none any more."""
    for row in change.rows(Stage.REMOVING):
        if opens(change.facts, row) and row.job_id != change.job.pk:
            _take_back(row)


def give_up(change: Change) -> None:
    """What is switched stays so; its state waits, as a leftover, for the next change."""
    for row in change.rows(Stage.REMOVING):
        if opens(change.facts, row):
            _take_back(row)


def _take_back(row: WrappedSecret) -> None:
    row.stage, row.job_id = Stage.IN_USE, None
    row.save(update_fields=["stage", "job_id"])


def finish(change: Change) -> None:
    """Once the definition has no TPM: its state is destroyed. One that came back since is nobody's to destroy."""
    rows = change.rows(Stage.REMOVING)
    if not rows and not change.progress.job.checkpoint.get(_PLAIN):
        return
    if change.facts.tpm is not None:
        raise Conflict(
            "definition_changed",
            f"{change.vm}: its definition has a TPM again, so no state is destroyed",
            hint="bring back the definition that this console made, then apply again",
        )
    change.progress.step("destroying the vTPM's state")
    path = rows[0].path if rows else str(vtpm_files.folder(change.vm))
    destroying(change, partial(change.files.destroy_tpm_state, path))
    with transaction.atomic():
        for row in rows:
            row.delete()
        VtpmEndorsement.objects.filter(virtual_machine=change.vm).delete()
        events.record_once(
            "vm.vtpm_removed", f"The vTPM of {change.vm} was removed, and its state destroyed", target=change.vm,
            job=change.job, severity=Severity.WARNING, path=path,
        )  # fmt: skip


def record(change: Change) -> None:
    """The event of a vTPM that this job has added, once its row is in use."""
    added = change.progress.job.checkpoint.get("adds_vtpm")
    if added and change.facts.tpm is not None:
        events.record_once(
            "vm.vtpm_added", f"{change.vm} has a vTPM; its state will be encrypted from the first byte",
            target=change.vm, job=change.job, model=change.facts.tpm.model,
        )  # fmt: skip
