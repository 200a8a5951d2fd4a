"""A change of VM Options as people see it: the plan before, and its steps while a worker goes through them."""

from dataclasses import dataclass

from encryption.engine import options
from encryption.engine.options import Approved, Effect, Finding, Plan, PlannedStep, State, Step, StepKind
from encryption.services.definition_preview import DefinitionChange
from inventory.models import Job, JobStatus, TargetKind, VirtualMachine


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """A plan with its digest, by which it is approved, and what it means."""

    plan: Plan
    digest: str
    effects: tuple[Effect, ...]
    definition: DefinitionChange | None = None  # None: not asked for, or nothing may be done

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.plan.steps

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return self.plan.warnings

    @property
    def refusals(self) -> tuple[Finding, ...]:
        return self.plan.refusals

    @property
    def can_be_undone(self) -> bool:
        """Whether any step says how."""
        return any(step.undo for step in self.steps)

    @property
    def removes_vtpm(self) -> bool:
        return any(step.kind is StepKind.REMOVE_VTPM for step in self.steps)


@dataclass(frozen=True, slots=True)
class PlanProgress:
    """A job that applies a plan, and how far each of its steps is."""

    job: Job
    steps: tuple[tuple[PlannedStep, State], ...]


def progress_of(vm: VirtualMachine, kind: str, *, is_live: bool = False) -> PlanProgress | None:
    """Of the VM's last job of that kind; `is_live`: only while it is at work."""
    found = Job.objects.filter(target_kind=TargetKind.VIRTUAL_MACHINE, target_id=vm.pk, kind=kind)
    job = found.order_by("-created_at").first()
    if job is None or "plan" not in job.params or (is_live and not job.is_live):
        return None
    steps = Approved.from_params(job.params["plan"]).steps
    succeeded = job.status == JobStatus.SUCCEEDED
    states = options.states(steps, job.step, is_live=job.is_live, has_succeeded=succeeded)
    return PlanProgress(job, tuple(zip(steps, states, strict=True)))
