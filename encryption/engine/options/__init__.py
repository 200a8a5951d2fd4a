"""VM Options: what is, what is wanted, and the plan from the one to the other. Pure."""

from encryption.engine.options.encryption import host_copies, kept_states
from encryption.engine.options.hardware import HostAbilities, VmHardware
from encryption.engine.options.plan import plan
from encryption.engine.options.state import Assignment, CurrentDisk, CurrentVm, DesiredVm, Vmotion
from encryption.engine.options.steps import Finding, How, Plan, Step, StepKind, gigabytes

__all__ = [
    "Assignment",
    "CurrentDisk",
    "CurrentVm",
    "DesiredVm",
    "Finding",
    "HostAbilities",
    "How",
    "Plan",
    "Step",
    "StepKind",
    "VmHardware",
    "Vmotion",
    "gigabytes",
    "host_copies",
    "kept_states",
    "plan",
]
