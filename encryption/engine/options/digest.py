"""What somebody approved: the digest of a plan and of the definition it was made from."""

import hashlib
import json
from dataclasses import dataclass
from typing import Self, TypedDict

from encryption.engine.options import keys
from encryption.engine.options.advance import PlannedStep, StepParams
from encryption.engine.options.steps import Plan


class ApprovedParams(TypedDict):
    digest: str
    definition: str
    steps: list[StepParams]


@dataclass(frozen=True, slots=True)
class Approved:
    """As a job keeps it. `definition`: SHA-256 of the definition that the plan was made from."""

    digest: str
    definition: str
    steps: tuple[PlannedStep, ...]

    @classmethod
    def of(cls, plan: Plan, definition: str) -> Self:
        return cls(digest(plan, definition), definition, tuple(PlannedStep.of(step) for step in plan.steps))

    def as_params(self) -> ApprovedParams:
        return {"digest": self.digest, "definition": self.definition, "steps": [one.as_params() for one in self.steps]}

    @classmethod
    def from_params(cls, params: ApprovedParams) -> Self:
        steps = tuple(PlannedStep.from_params(one) for one in params["steps"])
        return cls(params["digest"], params["definition"], steps)


def digest(plan: Plan, definition: str) -> str:
    """SHA-256, hexadecimal, over the canonical JSON of steps, the codes of warnings and refusals, and the
    definition's digest. NOT covered: amounts, which are estimates from the last look (the worker checks the space), and
    how the key provider was last seen (the worker asks it).
    """
    shown = {
        "definition": definition,
        "steps": [[step.kind, step.target, step.how, step.text, step.undo] for step in plan.steps],
        "warnings": [one.code for one in plan.warnings if one.code not in keys.CODES],
        "refusals": [one.code for one in plan.refusals if one.code not in keys.CODES],
    }
    return hashlib.sha256(json.dumps(shown, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(approved: Approved, now: Approved) -> tuple[str, ...]:
    """What is another way than it was, for people; empty where nothing is."""
    if approved.digest == now.digest:
        return ()
    found = [f"no longer: {text}" for text in _missing(approved, now)]
    found += [f"new: {text}" for text in _missing(now, approved)]
    if approved.definition != now.definition:
        found.append("the VM's definition was changed")
    return tuple(found) or ("its order or its warnings have changed",)


def _missing(wanted: Approved, there: Approved) -> list[str]:
    known = {step.text for step in there.steps}
    return [step.text for step in wanted.steps if step.text not in known]
