"""Two-person approval: what waits until somebody else approves it, and the switches.

A job that needs it is written and waits; it keeps nobody from its target meanwhile. Who approves holds the right that
the operation itself needs, and is not who asked for it, who must hold it still. What is approved is the job as it was
asked for: the worker looks again whether the plan is the same. Off by default; to switch a rule off needs two, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Model
from django.utils import timezone

from inventory import events, jobs
from inventory.authorize import SYSTEM, VIEW_ALL, Actor, authorize, may
from inventory.errors import Conflict, NotFound, Refused
from inventory.jobs import JobKind, Progress
from inventory.models import Event, Job, JobStatus, Severity, TargetKind, TwoPersonRule
from inventory.services import activity
from inventory.services.listings import FIRST, Listing, Paging

CHANGE: Final = "inventory.change_two_person_rule"
SWITCH_OFF: Final = jobs.register(JobKind("inventory.switch_off_two_person_rule", "Switch off two-person approval"))
LASTS: Final = timedelta(days=7)
# Sorts of operations, by the name under which their services ask `jobs.needs_second_person`.
RULES: Final = {
    "encryption.decrypt_vm": "Decrypting VMs and disks, removing vTPMs",
    "encryption.destroy_key": "Revoking and destroying keys at the key provider",
    "encryption.destroy_disk": "Destroying detached disks, and leftover files of encrypted VMs",
    "attestation.edit_references": "Changing reference values of hosts",
}
events.register_target(TwoPersonRule, TargetKind.CONSOLE)


@dataclass(frozen=True, slots=True)
class Rule:
    action: str
    label: str
    is_on: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits, and what was recorded when it was asked for: lines for people."""

    job: Job
    lines: tuple[str, ...]


def rules(*, actor: Actor) -> tuple[Rule, ...]:
    authorize(actor, VIEW_ALL)
    on = set(TwoPersonRule.objects.filter(is_on=True).values_list("action", flat=True))
    return tuple(Rule(action, label, action in on) for action, label in RULES.items())


def waiting(*, actor: Actor, paging: Paging = FIRST) -> Listing[Job]:
    """Jobs that wait for a second person, of those that the actor may see, the newest first."""
    return activity.job_list(actor=actor, status=JobStatus.WAITING, paging=paging)


def waiting_job(*, job_id: UUID, actor: Actor) -> Waiting:
    """Raises NotFound, Conflict `job_not_waiting`."""
    job = activity.job(job_id=job_id, actor=actor)
    if job.status != JobStatus.WAITING:
        raise Conflict("job_not_waiting", f"{jobs.label(job)} of {job.target_name} does not wait for approval")
    told: list[str] = []
    for one in Event.objects.filter(job=job).order_by("id"):
        steps: Any = one.data.get("steps")
        told += [one.message, *(steps if isinstance(steps, list) else ())]
    return Waiting(job, tuple(str(line) for line in told))


def target_of(job: Job) -> Model | None:
    return events.target_of(job.target_kind, job.target_id)


def may_approve(job: Job, *, actor: Actor) -> bool:
    return (
        job.status == JobStatus.WAITING
        and job.actor != actor.username
        and may(actor, job.approval_right, target_of(job))
    )


@transaction.atomic
def approve_job(*, job_id: UUID, actor: Actor) -> Job:
    """The job begins, in the name of who asked for it.

    Raises NotFound, Refused (`not_permitted`, `second_person_needed`), Conflict (`job_not_waiting`, `target_busy`,
    `approval_expired`, `requester_lost_right`, `target_gone`).
    """
    job = waiting_job(job_id=job_id, actor=actor).job
    target = target_of(job)
    authorize(actor, job.approval_right, target)
    if target is None:
        raise Conflict("target_gone", f"{job.target_name} is no longer there", hint="cancel the task")
    if actor.username == job.actor:
        raise Refused(
            "second_person_needed", f"{job.actor} asked for {jobs.label(job)} of {job.target_name}: somebody else has "
            "to approve it", hint="ask a second person who holds the right",
        )  # fmt: skip
    if job.created_at < timezone.now() - LASTS:
        raise Conflict(
            "approval_expired", f"{jobs.label(job)} of {job.target_name} has waited for more than {LASTS.days} days",
            hint="cancel it, and ask for it anew",
        )  # fmt: skip
    requester = User.objects.filter(username=job.actor).first()
    if requester is None or not may(requester, job.approval_right, target):
        raise Conflict(
            "requester_lost_right", f"{job.actor}, who asked for it, may not do it any more", hint="cancel the task"
        )
    return jobs.release(job, actor=actor)


@transaction.atomic
def switch_on(*, action: str, actor: Actor) -> None:
    """At once. Raises NotFound `two_person_rule_not_found`."""
    authorize(actor, CHANGE)
    label = _label(action)
    rule, _ = TwoPersonRule.objects.get_or_create(action=action)
    if not rule.is_on:
        TwoPersonRule.objects.filter(pk=rule.pk).update(is_on=True)
        events.record("two_person.switched_on", f"Two-person approval is on: {label}", target=None, actor=actor,
                      severity=Severity.WARNING, rule=action)  # fmt: skip


@transaction.atomic
def switch_off(*, action: str, actor: Actor) -> Job:
    """Starts a job that itself waits for a second person. Raises NotFound, Conflict (`two_person_rule_off`,
    `approval_pending`)."""
    authorize(actor, CHANGE)
    rule = TwoPersonRule.objects.filter(action=action, is_on=True).first()
    if rule is None:
        raise Conflict("two_person_rule_off", f"two-person approval is off already: {_label(action)}")
    return jobs.start(SWITCH_OFF, target=rule, actor=actor, rule=action, right=CHANGE)


def run_switch_off(job: Job, progress: Progress) -> None:
    rule = TwoPersonRule.objects.filter(pk=job.target_id).first()
    if rule is not None:
        switch_off_now(action=rule.action, actor=job.actor, approved_by=job.approved_by)


@transaction.atomic
def switch_off_now(*, action: str, actor: str = SYSTEM.username, approved_by: str = "") -> None:
    """For the worker, and for the command line of an operator whom nobody can approve any more."""
    if TwoPersonRule.objects.filter(action=action, is_on=True).update(is_on=False):
        events.record("two_person.switched_off", f"Two-person approval is off: {_label(action)}", target=None,
                      actor=actor, severity=Severity.WARNING, rule=action, approved_by=approved_by)  # fmt: skip


def choices() -> Sequence[str]:
    return tuple(RULES)


def _label(action: str) -> str:
    label = RULES.get(action)
    if label is None:
        raise NotFound(
            "two_person_rule_not_found", f"there is no two-person rule {action[:60]}", hint=f"one of {', '.join(RULES)}"
        )
    return label
