"""Exported VMs in the exchange folder: rows that follow it, and their deletion. Only workers reach the folder."""

from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction

from encryption.adapters import bundle_files
from encryption.adapters.bundle_files import BundleFileError
from encryption.engine import bundle as engine
from encryption.engine.bundle import BadBundle, Manifest
from encryption.models import Bundle
from encryption.services import messages
from inventory import events, jobs
from inventory.authorize import SYSTEM, VIEW_ALL, Actor, authorize
from inventory.errors import Conflict, NotFound, Unavailable
from inventory.jobs import Progress
from inventory.models import LIVE_STATUSES, Job, Severity, TargetKind
from inventory.services.listings import FIRST, Listing, Paging, listed

DELETE: Final = jobs.register(jobs.JobKind("encryption.delete_bundle", "Delete exported VM"))
MANAGE: Final = "encryption.manage_bundles"
LOOK: Final = "encryption.look_for_bundles"


def exchange() -> Path:
    return Path(settings.EXCHANGE_DIR)


def bundles(*, actor: Actor, paging: Paging = FIRST) -> Listing[Bundle]:
    """The latest first, as workers last saw them."""
    authorize(actor, VIEW_ALL)
    return listed(Bundle.objects.all(), paging)


def usable(*, actor: Actor) -> list[Bundle]:
    """Those that can be imported."""
    authorize(actor, VIEW_ALL)
    return list(Bundle.objects.filter(state=Bundle.State.COMPLETE)[: bundle_files.MOST])


def bundle(bundle_id: UUID, *, actor: Actor) -> Bundle:
    authorize(actor, VIEW_ALL)
    found = Bundle.objects.filter(pk=bundle_id).first()
    if found is None:
        raise NotFound("bundle_not_found", f"there is no exported VM {bundle_id}")
    return found


@transaction.atomic
def request_look(*, actor: Actor) -> None:
    """A worker looks into the exchange folder soon: for bundles that were put there by hand."""
    authorize(actor, MANAGE)
    transaction.on_commit(partial(messages.send, LOOK))


@transaction.atomic
def delete_bundle(*, bundle_id: UUID, actor: Actor) -> Job:
    """Starts the job that deletes the bundle's folder. Raises NotFound, Refused, Conflict `target_busy`."""
    authorize(actor, MANAGE)
    found = bundle(bundle_id, actor=actor)
    if found.state == Bundle.State.WRITING and _is_being_written(found):
        raise Conflict("target_busy", f"{found} is being written", hint="cancel its export in Recent Tasks")
    job = jobs.start(DELETE, target=found, actor=actor)
    events.record(
        "bundle.deletion_requested", f"Deletion of exported VM {found} requested", target=found, actor=actor, job=job
    )
    return job


def run_delete_bundle(job: Job, progress: Progress) -> None:
    """Worker side of `delete_bundle`. NOT reached: copies that somebody made of the folder."""
    progress.step("deleting")
    try:
        bundle_files.remove(exchange(), job.target_name)
    except BundleFileError as exc:
        raise Unavailable("exchange_error", str(exc), hint="look at the exchange folder") from exc
    with transaction.atomic():
        if Bundle.objects.filter(pk=job.target_id).delete()[0]:
            events.record(
                "bundle.deleted", f"Exported VM {job.target_name} deleted",
                target=events.Subject(TargetKind.BUNDLE, job.target_id, job.target_name), actor=job.actor, job=job,
                severity=Severity.WARNING,
            )  # fmt: skip


def look() -> int:
    """Brings the rows in line with the folder; how many bundles there are. NOT checked here: the files' digests."""
    try:
        there = bundle_files.names(exchange())
    except BundleFileError:
        return 0
    for row in Bundle.objects.exclude(folder__in=there):
        if row.state != Bundle.State.WRITING or not _is_being_written(row):
            row.delete()
    for name in there:
        note(name)
    return len(there)


def note(name: str, *, job: Job | None = None) -> Bundle:
    """Writes the row of one bundle anew, from its manifest."""
    before = Bundle.objects.filter(folder=name).first()
    try:
        row, _ = Bundle.objects.update_or_create(folder=name, defaults=_facts(read_manifest(name)))
    except (BadBundle, BundleFileError) as exc:
        told = {"state": Bundle.State.UNUSABLE, "reason": str(exc)[:500]}
        row, _ = Bundle.objects.update_or_create(folder=name, defaults=told)
    if before is None:
        bad = row.state == Bundle.State.UNUSABLE
        events.record(
            "bundle.found",
            f"Exported VM {name} found in the exchange folder" + (f": {row.reason}" if bad else ""),
            target=row, actor=SYSTEM, severity=Severity.WARNING if bad else Severity.INFO, job=job,
        )  # fmt: skip
    return row


def read_manifest(name: str) -> Manifest:
    """Raises BadBundle, BundleFileError."""
    return engine.from_json(bundle_files.manifest(exchange(), name))


def _facts(found: Manifest) -> dict[str, object]:
    keys = found.keys
    return {
        "state": Bundle.State.COMPLETE,
        "reason": "",
        "vm_name": found.vm_name,
        "vm_uuid": found.vm_uuid,
        "size_bytes": min(found.size, 2**63 - 1),
        "is_clear": found.is_clear,
        "made_at": found.made_at,
        "made_by": found.made_by[:150],
        "console": found.console,
        "kms_cluster": keys.cluster if keys else None,
        "kms_cluster_name": keys.cluster_name if keys else "",
        "key_id": keys.key_id if keys else "",
    }


def _is_being_written(row: Bundle) -> bool:
    writers = Job.objects.filter(kind="encryption.export_vm", status__in=LIVE_STATUSES)
    return writers.filter(checkpoint__bundle=row.folder).exists()
