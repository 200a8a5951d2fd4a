"""Leftovers of encrypted VMs in clear on a host: found by a job, shown, and destroyed or kept by somebody.

The finder reads names, sizes and first bytes through libvirt. What the web process shows are rows; before anything is
destroyed a worker looks again (see leftover_files.py).
"""

from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from encryption.models import Leftover
from inventory import events, jobs
from inventory.alarms import clear_alarm, raise_alarm
from inventory.authorize import SYSTEM, VIEW, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound, ServiceError
from inventory.models import Datastore, Host, Job, Severity
from inventory.services.hosts import host_of
from inventory.services.listings import FIRST, Listing, Paging, listed

FIND: Final = jobs.register(jobs.JobKind("encryption.find_leftovers", "Find leftovers", queue="crypto"))
DESTROY: Final = jobs.register(jobs.JobKind("encryption.destroy_leftover", "Destroy leftover", queue="crypto"))
KEEP: Final = "encryption.keep_leftover"
DESTROY_DATA: Final = "encryption.destroy_disk"
"""The two-person rule that holds for detached disks holds for these files, too."""
ALARM: Final = "host.plaintext_leftovers"
MOST_REASON: Final = 300
_SHOWN: Final = 10


def leftovers_of_host(*, host_id: UUID, actor: Actor, paging: Paging = FIRST) -> Listing[Leftover]:
    """By path; kept ones too. Raises NotFound, Refused."""
    host = host_of(host_id)
    authorize(actor, VIEW, host)
    return listed(_rows().filter(host=host), paging)


def leftovers_of_datastore(*, datastore_id: UUID, actor: Actor, paging: Paging = FIRST) -> Listing[Leftover]:
    """Those below the datastore's folder."""
    found = Datastore.objects.select_related("host__cluster").filter(pk=datastore_id).first()
    if found is None:
        raise NotFound("datastore_not_found", f"there is no datastore {datastore_id}")
    authorize(actor, VIEW, found)
    below = found.path.rstrip("/") + "/"
    rows = _rows().filter(host=found.host_id, path__startswith=below) if found.path else Leftover.objects.none()
    return listed(rows, paging)


def leftover(*, leftover_id: UUID, actor: Actor) -> Leftover:
    found = _rows().filter(pk=leftover_id).first()
    if found is None:
        raise NotFound("leftover_not_found", f"there is no leftover {leftover_id}", hint="it may be gone already")
    authorize(actor, VIEW, found.host)
    return found


def _rows() -> QuerySet[Leftover]:
    return Leftover.objects.select_related("host__cluster", "virtual_machine")


@transaction.atomic
def find_leftovers(*, host_id: UUID, actor: Actor) -> Job:
    """Starts the job that looks through the host's folders. Raises NotFound, Refused, Conflict (`host_disconnected`,
    `target_busy`)."""
    host = host_of(host_id)
    authorize(actor, FIND.name, host)
    if host.state != Host.State.CONNECTED:
        raise Conflict("host_disconnected", f"{host} is not connected", hint="connect the host first")
    return jobs.start(FIND, target=host, actor=actor)


def find_all() -> int:
    """By schedule: a job for each connected host that has encrypted VMs, or had leftovers; how many were started."""
    started = 0
    wanted = Q(virtual_machines__security__isnull=False) | Q(leftovers__isnull=False)
    for host in Host.objects.filter(wanted, state=Host.State.CONNECTED).distinct():
        try:
            find_leftovers(host_id=host.pk, actor=SYSTEM)
            started += 1
        except ServiceError:  # busy or gone: the next day will do
            continue
    return started


@transaction.atomic
def destroy_leftover(*, leftover_id: UUID, confirm: str, actor: Actor) -> Job:
    """Starts the job that overwrites and deletes the file. `confirm` repeats the file's name.

    Raises NotFound, Refused, Invalid (`confirmation_mismatch`), Conflict (`leftover_in_use`, `leftover_kept`,
    `host_disconnected`, `target_busy`).
    """
    found = leftover(leftover_id=leftover_id, actor=actor)
    authorize(actor, DESTROY.name, found.host)
    if found.kind == Leftover.Kind.BACKING_FILE:
        raise Conflict(
            "leftover_in_use",
            f"{found.path} is the backing file of a disk in use",
            hint="flatten that disk (virsh blockpull), then look for leftovers again",
        )
    refuse_kept(found)
    if found.host.state != Host.State.CONNECTED:
        raise Conflict("host_disconnected", f"{found.host} is not connected", hint="connect the host first")
    if confirm.strip() != found.name:
        raise Invalid("confirmation_mismatch", f"that is not the name of {found.path}", hint="type it as it is shown")
    params = {"leftover": str(found.pk)}
    job = jobs.start(DESTROY, target=found.host, actor=actor, params=params, rule=DESTROY_DATA, right=DESTROY.name)
    events.record(
        "leftover.destroy_requested", f"Destruction of {found.path} on {found.host} requested", target=found.host,
        actor=actor, job=job, path=found.path,
    )  # fmt: skip
    return job


def refuse_kept(found: Leftover) -> None:
    """Raises Conflict `leftover_kept`."""
    if found.kept_at is not None:
        raise Conflict(
            "leftover_kept",
            f"{found.path} is kept by {found.kept_by}: {found.kept_reason}",
            hint="agree with them; a file that was deleted by hand leaves the list by itself",
        )


@transaction.atomic
def keep_leftover(*, leftover_id: UUID, reason: str, actor: Actor) -> Leftover:
    """Somebody answers for it: it is listed, and no alarm. Raises NotFound, Refused, Invalid (`reason_missing`)."""
    found = leftover(leftover_id=leftover_id, actor=actor)
    authorize(actor, KEEP, found.host)
    reason = " ".join(reason.split())
    if not reason or len(reason) > MOST_REASON:
        raise Invalid("reason_missing", f"why {found.path} is kept must be said in 1 to {MOST_REASON} characters")
    found.kept_at, found.kept_by, found.kept_reason = timezone.now(), actor.username, reason
    found.save(update_fields=["kept_at", "kept_by", "kept_reason"])
    events.record(
        "leftover.kept", f"{found.path} on {found.host} is kept in clear: {reason}", target=found.host, actor=actor,
        severity=Severity.WARNING, path=found.path,
    )  # fmt: skip
    review_alarm(found.host)
    return found


def review_alarm(host: Host) -> None:
    """The host's alarm, as the rows say now."""
    rows = Leftover.objects.filter(host=host, kept_at=None)
    if not (count := rows.count()):
        clear_alarm(ALARM, target=host)
        return
    evidence = [f"{row.path}: {row.get_kind_display()}" for row in rows[:_SHOWN]]
    if count > _SHOWN:
        evidence.append(f"and {count - _SHOWN} more")
    raise_alarm(
        ALARM, f"{host}: {count} file{'s' * (count != 1)} with data of encrypted VMs in clear", target=host,
        remedy="look at them under Monitor, Leftovers of the host; destroy them, or say why they are kept",
        evidence=evidence,
    )  # fmt: skip
