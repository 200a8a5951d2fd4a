"""Rotation of the LUKS passphrases of a powered-off VM: a new data key in a new keyslot of each image; the volume key
and the data stay. vTPM state is no part of it: swtpm encrypts it under the passphrase itself.

Order of writes: each new data key stands wrapped in the database; its keyslot is added and synced; the definition is
switched in one piece; only then the old keyslots are destroyed, and their rows go. At every point of a crash the
definition names a secret that opens the image.
"""

from typing import Final
from uuid import UUID

from django.db import transaction

from encryption.engine.recrypt import NVRAM, Way
from encryption.models import Purpose, Stage
from encryption.services import change as changes
from encryption.services import keyslots, recrypt, recrypt_ways, replacement
from encryption.services.change import Change
from encryption.services.options import refuse
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict
from inventory.jobs import Progress
from inventory.models import Job
from inventory.services.virtual_machines import vm_of

ROTATE: Final = jobs.register(jobs.JobKind("encryption.rotate_passphrases", "Rotate LUKS passphrases", queue="crypto"))


@transaction.atomic
def rotate_passphrases(*, vm_id: UUID, actor: Actor) -> Job:
    """A new passphrase for every LUKS image of a powered-off VM.

    Raises NotFound, Refused, Conflict with the first refusal of the plan, `change_unfinished` or `target_busy`.
    """
    vm = vm_of(vm_id)
    authorize(actor, recrypt.ACTION, vm)
    plan = recrypt_ways.plan_of(vm, Way.PASSPHRASES)
    refuse(vm, plan)
    recrypt_ways.refuse_unfinished(vm)
    job = jobs.start(ROTATE, target=vm, actor=actor)
    events.record(
        "vm.passphrase_rotation_requested", f"New LUKS passphrases requested for {vm}", target=vm, actor=actor, job=job,
        steps=[step.text for step in plan.steps],
    )  # fmt: skip
    return job


def run_rotate_passphrases(job: Job, progress: Progress) -> None:
    """Worker side of `rotate_passphrases`."""
    with replacement.replacing(job, progress, _begin) as change:
        _switch_keyslots(change)
        _finish(change)


def _begin(change: Change) -> None:
    vm = change.vm
    refuse(vm, recrypt_ways.plan_of(vm, Way.PASSPHRASES))
    disks = change.vm.wrapped_secrets.filter(purpose=Purpose.DISK).values_list("target", flat=True)
    attached = {disk.target for disk in change.facts.disks if disk.is_encrypted}
    parts = (attached & set(disks)) | {NVRAM}
    replacement.begin(change, frozenset(parts), recrypt.keyed_vm(vm).key, in_place=True)


def _switch_keyslots(change: Change) -> None:
    rows = change.rows(Stage.ENCRYPTING)
    if rows:
        change.progress.step("adding keyslots")
        with keyslots.added(rows, change.facts, change.files, change.progress):
            change.look()
            if change.facts.power != "off":
                raise Conflict(
                    "vm_started_meanwhile", f"{change.vm} was started on its host meanwhile", hint="shut it down first"
                )
            change.progress.step("switching the definition")
            changes.switch_definition(change)
    change.progress.step("destroying the old keyslots")
    changes.destroy_originals(change)


def _finish(change: Change) -> None:
    vm = change.vm
    parts = [row.part for row in change.rows(Stage.IN_USE) if row.purpose != Purpose.VTPM]
    events.record(
        "vm.passphrases_rotated", f"{vm} has new LUKS passphrases: {', '.join(parts)}", target=vm,
        actor=change.job.actor, job=change.job, parts=parts,
    )  # fmt: skip
