"""Celery's entry points for the jobs of this app. The argument is the job's id and nothing else."""

from celery import shared_task

from encryption.services import conversion, key_access
from inventory import jobs


@shared_task(name="encryption.create_client_key")
def create_client_key(job_id: str) -> None:
    jobs.run(job_id, key_access.create_client_key)


@shared_task(name="encryption.check_key_provider")
def check_key_provider(job_id: str) -> None:
    jobs.run(job_id, key_access.check_key_provider)


@shared_task(name="encryption.apply_options")
def apply_options(job_id: str) -> None:
    jobs.run(job_id, conversion.apply_options)
