"""Which step of its plan a job is at, told from the words that the worker reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self, TypedDict

from encryption.engine.options.steps import Step, StepKind


class State(StrEnum):
    DONE = "done"
    DOING = "doing"
    WAITING = "waiting"
    FAILED = "failed"


class StepParams(TypedDict):
    kind: str
    target: str
    text: str


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """As a job keeps it."""

    kind: str
    target: str
    text: str

    @classmethod
    def of(cls, step: Step) -> Self:
        return cls(step.kind.value, step.target, step.text)

    @classmethod
    def from_params(cls, found: StepParams) -> Self:
        return cls(found["kind"], found["target"], found["text"])

    def as_params(self) -> StepParams:
        return {"kind": self.kind, "target": self.target, "text": self.text}


_DISKS = {StepKind.ENCRYPT_DISK.value, StepKind.DECRYPT_DISK.value, StepKind.MAKE_DISK.value}
_PARTS = {
    StepKind.ENCRYPT_NVRAM.value: "NVRAM",
    StepKind.DECRYPT_NVRAM.value: "NVRAM",
    StepKind.MAKE_NVRAM.value: "NVRAM",
    StepKind.ENCRYPT_VTPM.value: "vTPM state",
    StepKind.DECRYPT_VTPM.value: "vTPM state",
}
_WORDS = {
    StepKind.CREATE_KEY.value: ("creating a key",),
    StepKind.SWITCH_DEFINITION.value: ("switching the definition",),
    StepKind.REMOVE_VTPM.value: ("destroying the vTPM",),
    StepKind.DESTROY_ORIGINALS.value: ("destroying the originals",),
}


def position(steps: Sequence[PlannedStep], reported: str) -> int:
    """The index of the step that is being done; -1 while none of them is known to be (the job looks around)."""
    words = f" {reported.replace('the vTPM state', 'vTPM state')} "
    for index, step in enumerate(steps):
        if any(reported.startswith(told) for told in _WORDS.get(step.kind, ())):
            return index
        part = step.target if step.kind in _DISKS else _PARTS.get(step.kind)
        if part and f" {part} " in words:
            return index
    return -1


def states(steps: Sequence[PlannedStep], reported: str, *, is_live: bool, has_succeeded: bool) -> tuple[State, ...]:
    """One for each step. Of a job that failed: the step it was at is the one that failed."""
    if has_succeeded:
        return tuple(State.DONE for _ in steps)
    at = position(steps, reported)
    here = State.DOING if is_live else State.FAILED
    return tuple(State.DONE if index < at else here if index == at else State.WAITING for index in range(len(steps)))
