"""Celery's entry points for the jobs and the schedule of this app. Arguments are ids and nothing else."""

from uuid import UUID

from celery import shared_task

from attestation.models import VerdictReason
from attestation.services import hosts, schedule, verifier
from inventory import jobs


@shared_task(name="attestation.attest_host")
def attest_host(job_id: str) -> None:
    jobs.run(job_id, hosts.run_attest_host)


@shared_task(name="attestation.attest_hosts")
def attest_hosts(host_ids: list[str], reason: str) -> None:
    verifier.attest_hosts([UUID(each) for each in host_ids], reason=VerdictReason(reason))


@shared_task(name="attestation.attest_due")
def attest_due() -> None:
    schedule.attest_due()


@shared_task(name="attestation.prune")
def prune() -> None:
    hosts.prune()
