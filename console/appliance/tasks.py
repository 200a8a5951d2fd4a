"""Celery's entry points for the jobs of the appliance. Arguments are ids and nothing else."""

from celery import shared_task

from console.appliance.services import syslog_links
from inventory import jobs


@shared_task(name="console.send_syslog_test")
def send_syslog_test(job_id: str) -> None:
    jobs.run(job_id, syslog_links.send_test)


@shared_task(name="console.take_syslog_client_key")
def take_syslog_client_key(job_id: str) -> None:
    jobs.run(job_id, syslog_links.take_client_key)
