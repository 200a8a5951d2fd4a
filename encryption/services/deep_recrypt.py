"""Deep recrypt: every chosen part is copied under a new volume key, and all data keys are under a new KEK.

Order of writes: the VM gets a new KEK (`recrypt.renew_key`), so that no new data key is ever wrapped under the old
one; each new data key stands wrapped in the database; then as for any encryption (conversion.py), with the old
encrypted image as the original. Given up at any point before the switch, the VM is as it was, under the new KEK.
"""

from typing import Final
from uuid import UUID

from django.db import transaction

from encryption.engine.recrypt import Way
from encryption.services import conversion, recrypt, recrypt_ways, replacement
from encryption.services.change import Change
from encryption.services.options import refuse, verification
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.jobs import Progress
from inventory.models import Job
from inventory.services.virtual_machines import vm_of

DEEP: Final = jobs.register(jobs.JobKind("encryption.deep_recrypt_vm", "Recrypt VM (new volume keys)", queue="crypto"))


@transaction.atomic
def deep_recrypt_vm(
    *,
    vm_id: UUID,
    actor: Actor,
    parts: frozenset[str] | None = None,
    kms_cluster_id: UUID | None = None,
    full_verification: bool = False,
) -> Job:
    """New volume keys for these parts (disks by target, "nvram", "vtpm"; None: all that are encrypted).
    `full_verification`: each copy that is made while the VM is off is compared wholly.

    Raises NotFound, Refused, Conflict with the first refusal of the plan, `change_unfinished` or `target_busy`.
    """
    vm = vm_of(vm_id)
    authorize(actor, recrypt.ACTION, vm)
    chosen = recrypt_ways.parts_of(vm) if parts is None else parts
    plan = recrypt_ways.plan_of(vm, Way.VOLUME_KEYS, chosen)
    refuse(vm, plan)
    recrypt_ways.refuse_unfinished(vm)
    params = {
        "parts": sorted(chosen),
        "kms_cluster": str(recrypt.cluster_of(kms_cluster_id).pk) if kms_cluster_id else None,
        **verification(is_full=full_verification),
    }
    job = jobs.start(DEEP, target=vm, actor=actor, params=params)
    events.record(
        "vm.deep_recrypt_requested", f"New volume keys requested for {vm}", target=vm, actor=actor, job=job,
        parts=sorted(chosen), steps=[step.text for step in plan.steps],
    )  # fmt: skip
    return job


def run_deep_recrypt_vm(job: Job, progress: Progress) -> None:
    """Worker side of `deep_recrypt_vm`."""
    with replacement.replacing(job, progress, _begin) as change:
        conversion.convert(change)
        _finish(change)


def _begin(change: Change) -> None:
    vm, parts = change.vm, frozenset(change.job.params["parts"])
    refuse(vm, recrypt_ways.plan_of(vm, Way.VOLUME_KEYS, parts))
    chosen = change.job.params["kms_cluster"]
    change.progress.step("creating a key at the key provider")
    old = recrypt.keyed_vm(vm)
    keyed = recrypt.renew_key(old, recrypt.cluster_of(UUID(chosen)) if chosen else old.key.cluster, change.job)
    recrypt.write_metadata(keyed, change.hypervisor)
    change.look()
    replacement.begin(change, parts, keyed.key, in_place=False)


def _finish(change: Change) -> None:
    vm, parts = change.vm, change.job.params["parts"]
    events.record(
        "vm.recrypted_deep", f"{vm} has new volume keys: {', '.join(parts)}", target=vm, actor=change.job.actor,
        job=change.job, parts=parts, key_id=str(vm.security.key),
    )  # fmt: skip
