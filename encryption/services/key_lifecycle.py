"""Worker side of the life of keys at the KMS: their states read, revoked, destroyed."""

from collections.abc import Sequence

from django.db import transaction
from django.utils import timezone

from encryption.engine.key_server import (
    KeyAttributes,
    KeyNotFound,
    KeyServer,
    KeyState,
    NotPermitted,
    RevocationReason,
)
from encryption.models import Key, KmsCluster
from encryption.services import kms_alarms
from encryption.services.key_access import cluster_of, with_key_server
from encryption.services.keys import refuse_in_use
from inventory import events
from inventory.authorize import SYSTEM, Actor
from inventory.errors import Conflict, NotFound
from inventory.jobs import Progress
from inventory.models import Job, Severity

_BATCH = 100
_STATES = {
    KeyState.PRE_ACTIVE: Key.State.PRE_ACTIVE,
    KeyState.ACTIVE: Key.State.ACTIVE,
    KeyState.DEACTIVATED: Key.State.DEACTIVATED,
    KeyState.COMPROMISED: Key.State.COMPROMISED,
    KeyState.DESTROYED: Key.State.DESTROYED,
    KeyState.DESTROYED_COMPROMISED: Key.State.DESTROYED,
}


def refresh_keys(job: Job, progress: Progress) -> None:
    """Reads the state of every key of one provider, and counts keys there that this console does not know.

    Those are told and not adopted: they may protect VMs of another console.
    """
    cluster = cluster_of(job)
    known = list(cluster.keys.exclude(state=Key.State.DESTROYED))
    progress.step("asking for the states of the keys", total=len(known))
    for first in range(0, len(known), _BATCH):
        refresh_states(cluster, known[first : first + _BATCH], actor=job.actor)
        progress.advance(first)
    progress.step("looking for other keys")
    there = with_key_server(cluster, lambda server: server.locate())
    ours = set(cluster.keys.values_list("key_id", flat=True))
    unknown = sum(key_id not in ours for key_id in there)
    events.record(
        "kms.keys_refreshed",
        f"{cluster}: {len(known)} keys asked for; {unknown} more there that this console does not know",
        target=cluster, actor=job.actor, job=job, keys=len(known), unknown=unknown,
    )  # fmt: skip


def refresh_states(cluster: KmsCluster, rows: Sequence[Key], *, actor: Actor | str = SYSTEM) -> None:
    """Writes what the KMS says of these keys, over one connection."""
    if not rows:
        return

    def ask(server: KeyServer) -> list[KeyAttributes | KeyNotFound | NotPermitted]:
        return [_asked(server, row) for row in rows]

    for row, found in zip(rows, with_key_server(cluster, ask), strict=True):
        before, row.checked_at = row.state, timezone.now()
        if isinstance(found, KeyNotFound):
            row.state = Key.State.MISSING
        elif not isinstance(found, NotPermitted):  # one key that we may not ask about must not hide the others
            row.state = _STATES[found.state]
            if found.algorithm and found.length_bits:
                row.algorithm = f"{found.algorithm}-{found.length_bits}"[:20]
        row.save(update_fields=["state", "algorithm", "checked_at"])
        if row.state != before:
            _tell(row, actor)
    kms_alarms.review_keys(cluster)


def adopt_key(job: Job, progress: Progress) -> None:
    """Looks for the key by its identifier, then by its name, and lists it as what it is there."""
    cluster, wanted = cluster_of(job), str(job.params["wanted"])
    progress.step(f"looking for key {wanted}")

    def find(server: KeyServer) -> KeyAttributes:
        try:
            return server.attributes(wanted)
        except (KeyNotFound, NotPermitted):  # a name is no identifier, which some servers refuse to look at
            named = server.locate(name=wanted, maximum=2)
            if not named:
                raise
        if len(named) > 1:
            raise Conflict(
                "key_name_ambiguous", f"{cluster} has several keys named {wanted!r}", hint="give the identifier of one"
            )
        return server.attributes(named[0])

    found = with_key_server(cluster, find)
    if (found.algorithm, found.length_bits) != ("AES", 256):
        raise Conflict(
            "key_unfit", f"key {found.key_id} is {found.algorithm or 'of no algorithm'} {found.length_bits}",
            hint="only AES-256 keys wrap data keys here",
        )  # fmt: skip
    names = ", ".join(found.names)[:255]
    with transaction.atomic():
        row, created = Key.objects.get_or_create(
            cluster=cluster, key_id=found.key_id,
            defaults={"name": names, "state": _STATES[found.state], "is_foreign": True, "checked_at": timezone.now()},
        )  # fmt: skip
        if not created:
            raise Conflict("key_known", f"key {row} of {cluster} is in the list already")
        if found.created_at is not None:  # its age counts, not how long we have known it
            Key.objects.filter(pk=row.pk).update(created_at=found.created_at)
        events.record(
            "key.adopted", f"Key {row} of {cluster} added to the list ({names or 'without a name'})", target=cluster,
            actor=job.actor, job=job, key_id=row.key_id, name=names,
        )  # fmt: skip


def revoke_key(job: Job, progress: Progress) -> None:
    """Revokes at the KMS. Run again it finds the key revoked and is content."""
    row = _row(job)
    reason = RevocationReason(job.params["reason"])
    if reason is not RevocationReason.KEY_COMPROMISE:
        refuse_in_use(row)
    progress.step(f"revoking key {row}")

    def revoke(server: KeyServer) -> KeyState:
        if server.state(row.key_id) is KeyState.ACTIVE or reason is RevocationReason.KEY_COMPROMISE:
            server.revoke(row.key_id, reason, f"by {job.actor}")
        return server.state(row.key_id)

    row.state = _STATES[with_key_server(row.cluster, revoke)]
    row.checked_at = timezone.now()
    row.save(update_fields=["state", "checked_at"])
    _record(row, job, "key.revoked", f"Key {row} of {row.cluster} revoked ({reason.value.replace('_', ' ')})")


def destroy_key(job: Job, progress: Progress) -> None:
    """Destroys at the KMS, revoking first what is active. Whether it is in use is asked again right before."""
    row = _row(job)
    progress.step(f"destroying key {row}")

    def destroy(server: KeyServer) -> None:
        refuse_in_use(row)
        try:
            if server.state(row.key_id) is KeyState.ACTIVE:
                server.revoke(row.key_id, RevocationReason.CESSATION_OF_OPERATION, f"by {job.actor}")
            server.destroy(row.key_id)
        except KeyNotFound:
            return  # an earlier attempt, or somebody there, was first

    with_key_server(row.cluster, destroy)
    row.state, row.checked_at = Key.State.DESTROYED, timezone.now()
    row.save(update_fields=["state", "checked_at"])
    _record(row, job, "key.destroyed", f"Key {row} of {row.cluster} destroyed")


def _asked(server: KeyServer, row: Key) -> KeyAttributes | KeyNotFound | NotPermitted:
    try:
        return server.attributes(row.key_id)
    except (KeyNotFound, NotPermitted) as exc:
        return exc


def _tell(row: Key, actor: Actor | str) -> None:
    """A key that protects something and cannot be had for long any more is an alarm."""
    bad = row.state not in (Key.State.PRE_ACTIVE, Key.State.ACTIVE) and row.wrapped_secrets.exists()
    events.record(
        "key.state_changed",
        f"Key {row} of {row.cluster} is {row.get_state_display().lower()} now"
        + (", and VMs are encrypted under it" if bad else ""),
        target=row.cluster, actor=actor, severity=Severity.ERROR if bad else Severity.INFO,
        key_id=row.key_id, state=row.state,
    )  # fmt: skip


def _row(job: Job) -> Key:
    found = Key.objects.select_related("cluster").filter(pk=job.params["key"]).first()
    if found is None:
        raise NotFound("key_not_found", f"the key of {job.target_name} is gone")
    return found


def _record(row: Key, job: Job, kind: str, message: str) -> None:
    events.record(
        kind, message, target=row.cluster, actor=job.actor, job=job, severity=Severity.WARNING, key_id=row.key_id
    )
