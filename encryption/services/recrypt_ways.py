"""The ways of giving a VM new keys, as people are shown them: recrypt.py, passphrases.py, deep_recrypt.py do them."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from encryption.engine.options import gigabytes
from encryption.engine.recrypt import HOME, encrypted_parts, plan
from encryption.engine.recrypt import Way as Way  # the choice that delivery code shows
from encryption.models import Stage
from encryption.services.current_vm import observe
from encryption.services.options import Plan
from inventory.authorize import VIEW, Actor, authorize
from inventory.errors import Conflict
from inventory.models import VirtualMachine
from inventory.services.virtual_machines import vm_of


@dataclass(frozen=True, slots=True)
class Recryptable:
    """What of a VM can get new volume keys: each part's name and what people call it; `home` are those that a running
    VM holds open."""

    parts: Mapping[str, str]
    home: frozenset[str]
    is_running: bool

    @property
    def suggested(self) -> frozenset[str]:
        """All of them, or what can be done while the VM runs."""
        return frozenset(self.parts) - (self.home if self.is_running else frozenset())


def recryptable(*, vm_id: UUID, actor: Actor) -> Recryptable:
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    current = observe(vm)
    parts = encrypted_parts(current)
    labels = {name: HOME.get(name) or f"{name} ({gigabytes(size)})" for name, size in parts.items()}
    return Recryptable(labels, frozenset(parts) & frozenset(HOME), current.is_running)


def plan_recrypt(*, vm_id: UUID, way: Way, actor: Actor, parts: frozenset[str] | None = None) -> Plan:
    """What would be done, from what is known now. Changes nothing. `parts`: for new volume keys; None: all."""
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    return plan_of(vm, way, parts_of(vm) if parts is None else parts)


def plan_of(vm: VirtualMachine, way: Way, parts: frozenset[str] = frozenset()) -> Plan:
    return plan(observe(vm), way, parts)


def parts_of(vm: VirtualMachine) -> frozenset[str]:
    """What of the VM can get new volume keys: disks by target, "nvram", "vtpm"."""
    return frozenset(encrypted_parts(observe(vm)))


def refuse_unfinished(vm: VirtualMachine) -> None:
    """Raises Conflict `change_unfinished` where VM Options were half applied. What another recrypt left is settled by
    the next one."""
    rows = vm.wrapped_secrets.exclude(stage__in=[Stage.IN_USE, Stage.REPLACED]).filter(replaces=None)
    if rows.exists():
        raise Conflict(
            "change_unfinished", f"an encryption change of {vm} is not finished", hint="apply it again first"
        )
