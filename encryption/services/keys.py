"""Keys at the key providers, web side: what each protects and when it was used, and asking a worker to end one.

A key that something hangs on is never destroyed, and is revoked only where it is compromised: KMIP still gives out a
revoked key, so that its VMs can be brought under another one.
"""

from typing import Final
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Prefetch, Q, QuerySet

from encryption.engine.key_server import RevocationReason
from encryption.models import Key, VmSecurity, WrappedSecret
from encryption.services import messages, rotation
from encryption.services.key_providers import READ, cluster
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import LIVE_STATUSES, Event, Job, TargetKind
from inventory.services.listings import FIRST, Listing, Paging, listed

REFRESH: Final = jobs.register(jobs.JobKind("encryption.refresh_keys", "Refresh keys", queue=messages.QUEUE))
REVOKE: Final = jobs.register(jobs.JobKind("encryption.revoke_key", "Revoke key", queue=messages.QUEUE))
DESTROY: Final = jobs.register(jobs.JobKind("encryption.destroy_key", "Destroy key", queue=messages.QUEUE))
MANAGE: Final = "encryption.manage_keys"
ADOPT: Final = jobs.register(jobs.JobKind("encryption.adopt_key", "Add existing key", queue=messages.QUEUE))
MAX_IDENTIFIER: Final = 255
REASONS: Final = tuple(reason.value for reason in RevocationReason)
ENDED: Final = (Key.State.DESTROYED, Key.State.MISSING)
HISTORY: Final = 50


def keys(*, cluster_id: UUID, actor: Actor, paging: Paging = FIRST) -> Listing[Key]:
    """The cluster's keys, the newest first, with the VMs whose secrets each wraps; the wrapped secrets stay behind."""
    owner = cluster(cluster_id, actor=actor)
    return listed(_with_secrets(owner.keys.all()), paging)


def key(key_id: UUID, *, actor: Actor) -> Key:
    """`key_id` is the row's id, not the KMIP identifier."""
    authorize(actor, READ)
    found = _with_secrets(Key.objects.select_related("cluster").filter(pk=key_id)).first()
    if found is None:
        raise NotFound("key_not_found", f"there is no key {key_id}")
    return found


def history(found: Key) -> list[Event]:
    """The latest events about the key, and of its sending to hosts for the VMs it protects now: who used it when.

    Reads of the key alone (for a recrypt, a conversion) are told by the key's last use and by the tasks."""
    vms = {secret.virtual_machine_id for secret in found.wrapped_secrets.all()}
    mine = Q(data__key_id=found.key_id) | Q(data__old_key_id=found.key_id)
    sent = Q(kind="key.released", target_kind=TargetKind.VIRTUAL_MACHINE, target_id__in=vms)
    return list(Event.objects.filter(mine | sent).order_by("-id")[:HISTORY])


@transaction.atomic
def request_refresh(*, cluster_id: UUID, actor: Actor) -> Job:
    """A worker asks the KMS for the state of every key, and counts what else it finds there."""
    authorize(actor, MANAGE)
    return jobs.start(REFRESH, target=cluster(cluster_id, actor=actor), actor=actor)


@transaction.atomic
def adopt(*, cluster_id: UUID, wanted: str, actor: Actor) -> Job:
    """A worker looks for a key that is at the KMS and not in our list, such as an earlier console's, and lists it.

    `wanted`: its identifier there, or its name. Nothing at the KMS is changed by that.
    """
    authorize(actor, MANAGE)
    owner, wanted = cluster(cluster_id, actor=actor), wanted.strip()
    if not 0 < len(wanted) <= MAX_IDENTIFIER or not wanted.isprintable():
        raise Invalid(
            "key_identifier_invalid", "that is no identifier or name of a key",
            hint=f"1 to {MAX_IDENTIFIER} printable characters, as the KMS shows them",
        )  # fmt: skip
    if owner.keys.filter(key_id=wanted).exists():
        raise Conflict("key_known", f"key {wanted} of {owner} is in the list already")
    return jobs.start(ADOPT, target=owner, actor=actor, params={"wanted": wanted})


@transaction.atomic
def revoke(*, key_id: UUID, reason: str, actor: Actor) -> Job:
    """Out of use at the KMS, for good: as good as destroyed, so the same two-person rule holds. `reason` is one of
    REASONS."""
    authorize(actor, MANAGE)
    found = key(key_id, actor=actor)
    if reason not in REASONS:
        raise Invalid("reason_invalid", f"{reason[:40]!r} is no reason", hint=f"one of {', '.join(REASONS)}")
    if reason != RevocationReason.KEY_COMPROMISE:
        refuse_in_use(found)
    if found.state in ENDED:
        raise Conflict("key_ended", f"key {found} is {found.get_state_display().lower()}")
    params = {"key": str(found.pk), "reason": reason}
    job = jobs.start(REVOKE, target=found.cluster, actor=actor, params=params, rule=DESTROY.name, right=MANAGE)
    events.record(
        "key.revoke_requested", f"Key {found} of {found.cluster} is to be revoked ({reason.replace('_', ' ')})",
        target=found.cluster, actor=actor, job=job, key_id=found.key_id,
    )  # fmt: skip
    return job


@transaction.atomic
def destroy(*, key_id: UUID, confirm: str, actor: Actor) -> Job:
    """Destroys an unused key at the KMS, for ever. `confirm` must repeat its identifier there."""
    authorize(actor, MANAGE)
    found = key(key_id, actor=actor)
    refuse_in_use(found)
    if found.state == Key.State.DESTROYED:
        raise Conflict("key_ended", f"key {found} is destroyed already")
    if confirm.strip() != found.key_id:
        raise Invalid("confirmation_mismatch", f"that is not the ID of key {found}", hint="type it as it is shown")
    params = {"key": str(found.pk)}
    job = jobs.start(DESTROY, target=found.cluster, actor=actor, params=params, rule=DESTROY.name, right=MANAGE)
    events.record(
        "key.destroy_requested", f"Key {found} of {found.cluster} is to be destroyed", target=found.cluster,
        actor=actor, job=job, key_id=found.key_id,
    )  # fmt: skip
    return job


def refuse_in_use(found: Key) -> None:
    """Raises Conflict `key_in_use` where secrets are wrapped under the key, or a VM or a running change has it."""
    row = WrappedSecret.objects.filter(key=found).select_related("virtual_machine").defer("wrapped").first()
    security = found.virtual_machines.select_related("virtual_machine").first()
    if row is not None or security is not None:
        user = str(row) if row is not None else str(security)
        raise Conflict("key_in_use", f"key {found} is in use: {user}", hint="decrypt or recrypt that VM first")
    if _is_being_used(found):
        raise Conflict("key_in_use", f"key {found} is in use by a task that made it", hint="wait for its end")


def _is_being_used(found: Key) -> bool:
    """Its name ends with the job that made it (key_access.new_key_name): one that lives may be about to use it."""
    try:
        return Job.objects.filter(pk=found.name.rpartition("/")[2], status__in=LIVE_STATUSES).exists()
    except ValidationError:  # no identifier at all
        return False


def _with_secrets(rows: QuerySet[Key]) -> QuerySet[Key]:
    secrets = WrappedSecret.objects.select_related("virtual_machine").defer("wrapped")
    users = rotation.with_policies(VmSecurity.objects.all())
    return rows.prefetch_related(Prefetch("wrapped_secrets", secrets), Prefetch("virtual_machines", users))
