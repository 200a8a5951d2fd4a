"""What a plan means for those who wait for it: downtime, space, keys, and who will hold them."""

from collections.abc import Iterable
from dataclasses import dataclass

from encryption.engine.options.state import CurrentVm, DesiredVm
from encryption.engine.options.steps import How, Plan, Step, StepKind, gigabytes

_NEED_SECRET = {
    StepKind.ENCRYPT_DISK: "",
    StepKind.ENCRYPT_NVRAM: "NVRAM",
    StepKind.ENCRYPT_VTPM: "vTPM state",
    StepKind.ADD_VTPM: "vTPM state",
}


@dataclass(frozen=True, slots=True)
class Effect:
    label: str
    text: str


def effects(current: CurrentVm, desired: DesiredVm, plan: Plan, *, host: str, key_provider: str) -> tuple[Effect, ...]:
    """`key_provider` empty: there is none. Empty for a plan that does nothing."""
    if not plan.steps:
        return ()
    return (
        Effect("Downtime", _downtime(current, plan)),
        Effect("Space", _space(plan)),
        Effect("Keys to be made", _keys(plan, key_provider)),
        Effect("Hosts that hold keys", _hosts(current, desired, plan, host)),
    )


def _downtime(current: CurrentVm, plan: Plan) -> str:
    if all(step.kind in {StepKind.ASSIGN_POLICY, StepKind.SET_MIGRATION} for step in plan.steps):
        return "none"
    if current.is_running:
        return "none: the VM runs on while its disks are copied"
    size = plan.new_bytes
    return f"the VM stays off until {gigabytes(size)} are copied" if size else "the VM stays off for seconds"


def _space(plan: Plan) -> str:
    if not plan.new_bytes:
        return "none to speak of"
    return f"{gigabytes(plan.new_bytes)} beside the originals until those are deleted"


def _keys(plan: Plan, key_provider: str) -> str:
    parts = list(_parts(plan.steps))
    found = []
    if any(step.kind is StepKind.CREATE_KEY for step in plan.steps):
        found.append(f"a key encryption key at {key_provider or 'the key provider'}")
    if parts:
        found.append(f"a data key each for {', '.join(parts)}, kept wrapped by this console")
    return "; ".join(found) or "none"


def _parts(steps: Iterable[Step]) -> Iterable[str]:
    for step in steps:
        if step.kind in _NEED_SECRET:
            yield _NEED_SECRET[step.kind] or step.target


def _hosts(current: CurrentVm, desired: DesiredVm, plan: Plan, host: str) -> str:
    copies = any(step.how in {How.BLOCK_COPY, How.STORAGE_API} for step in plan.steps)
    if desired.encrypt_home:
        now = "while it copies, then " if copies else ""
        return f"on {host}: {now}in memory for the moment of each start, and QEMU while the VM runs"
    if copies and current.has_key:
        return f"on {host}: while it copies, none afterwards"
    return "none"
