"""Every kind of job has its task, and the schedule names tasks that exist."""

import importlib
from datetime import timedelta

import pytest
from celery import current_app
from django.conf import settings
from django.utils import timezone

from inventory import jobs
from inventory.models import Event, Host, Job, JobStatus
from inventory.services import console, housekeeping

for module in ("inventory.tasks", "attestation.tasks", "encryption.tasks"):
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name != module:
            raise


def test_every_job_kind_of_the_inventory_names_a_registered_task() -> None:
    kinds = [name for name in jobs.KINDS if name.startswith("inventory.")]
    assert len(kinds) == 8
    assert set(kinds) <= set(current_app.tasks)


def test_the_schedule_and_the_console_name_registered_tasks() -> None:
    assert {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()} <= set(current_app.tasks)
    assert console.TASK in current_app.tasks


@pytest.mark.django_db
def test_old_ended_jobs_go_and_their_events_stay(host: Host) -> None:
    def make(status: JobStatus, age_days: int) -> Job:
        at = timezone.now() - timedelta(days=age_days)
        job = Job.objects.create(
            kind="tests.job", target_kind="host", target_id=host.pk, target_name="kvm-a", actor="alice", status=status,
            ended_at=None if status == JobStatus.RUNNING else at,
        )  # fmt: skip
        Event.objects.create(kind="job.x", target_kind="host", target_name="kvm-a", actor="alice", message="m", job=job)
        return job

    old, young, live = make(JobStatus.FAILED, 91), make(JobStatus.SUCCEEDED, 89), make(JobStatus.RUNNING, 200)
    assert housekeeping.prune_jobs() == 1
    assert set(Job.objects.all()) == {young, live}
    assert old not in Job.objects.all()
    assert Event.objects.count() == 3
