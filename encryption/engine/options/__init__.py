"""VM Options: what is, what is wanted, and the plan from the one to the other. Pure."""

from encryption.engine.options.advance import PlannedStep, State, states
from encryption.engine.options.controls import obstacles
from encryption.engine.options.creation import creation_effects, creation_obstacles, plan_creation
from encryption.engine.options.digest import Approved, differences
from encryption.engine.options.effects import Effect, effects
from encryption.engine.options.encryption import host_copies, kept_states
from encryption.engine.options.hardware import HostAbilities, VmHardware
from encryption.engine.options.keys import CODES as KEY_CODES
from encryption.engine.options.plan import plan
from encryption.engine.options.state import (
    Assignment,
    CurrentDisk,
    CurrentVm,
    DesiredVm,
    KeyProvider,
    KeyState,
    Vmotion,
)
from encryption.engine.options.steps import HARDWARE, Finding, How, Plan, Step, StepKind, gigabytes

__all__ = [
    "HARDWARE",
    "KEY_CODES",
    "Approved",
    "Assignment",
    "CurrentDisk",
    "CurrentVm",
    "DesiredVm",
    "Effect",
    "Finding",
    "HostAbilities",
    "How",
    "KeyProvider",
    "KeyState",
    "Plan",
    "PlannedStep",
    "State",
    "Step",
    "StepKind",
    "VmHardware",
    "Vmotion",
    "creation_effects",
    "creation_obstacles",
    "differences",
    "effects",
    "gigabytes",
    "host_copies",
    "kept_states",
    "obstacles",
    "plan",
    "plan_creation",
    "states",
]
