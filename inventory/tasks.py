"""Celery's entry points: each names a service function and nothing more."""

from celery import shared_task

from inventory import jobs
from inventory.services import approvals, checkpoints, console, event_chain, hosts, housekeeping, power, saved_state


@shared_task(name="inventory.connect_host")
def connect_host(job_id: str) -> None:
    jobs.run(job_id, hosts.run_connect_host)


@shared_task(name="inventory.refresh_host")
def refresh_host(job_id: str) -> None:
    jobs.run(job_id, hosts.run_connect_host)


@shared_task(name="inventory.power_on")
def power_on(job_id: str) -> None:
    jobs.run(job_id, power.run_power_on)


@shared_task(name="inventory.shut_down")
def shut_down(job_id: str) -> None:
    jobs.run(job_id, power.run_shut_down)


@shared_task(name="inventory.power_off")
def power_off(job_id: str) -> None:
    jobs.run(job_id, power.run_power_off)


@shared_task(name="inventory.reboot")
def reboot(job_id: str) -> None:
    jobs.run(job_id, power.run_reboot)


@shared_task(name="inventory.discard_saved_state")
def discard_saved_state(job_id: str) -> None:
    jobs.run(job_id, saved_state.run_discard_saved_state)


@shared_task(name="inventory.switch_off_two_person_rule")
def switch_off_two_person_rule(job_id: str) -> None:
    jobs.run(job_id, approvals.run_switch_off)


@shared_task(name="inventory.read_console")
def read_console(vm_id: str) -> None:
    console.read_console(vm_id)


@shared_task(name="inventory.resume_interrupted_jobs")
def resume_interrupted_jobs() -> None:
    jobs.resume_interrupted()


@shared_task(name="inventory.seal_events")
def seal_events() -> None:
    event_chain.seal()


@shared_task(name="inventory.sign_checkpoint")
def sign_checkpoint() -> None:
    checkpoints.sign_if_due()


@shared_task(name="inventory.sign_checkpoint_now")
def sign_checkpoint_now() -> None:
    checkpoints.sign_asked()


@shared_task(name="inventory.prune")
def prune() -> None:
    housekeeping.prune_jobs()
    housekeeping.prune_alarms()
