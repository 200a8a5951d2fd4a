"""The difference that a plan makes to a VM's definition, shown before anything is begun.

The last definition that the VM's host reported goes through the same edits that the worker does. What cannot be known
before (the UUIDs of new secrets, and the digits of them that are in names of new files; the ID of a new key) is named
in braces. NOT known here either: whether a decrypted disk finds its old name still free.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from uuid import UUID

from encryption.engine.options import Plan, Step, StepKind
from encryption.models import Key, KmsCluster, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from encryption.services import vm_metadata
from encryption.services.switching import Edit, SwitchedPart, boot_edits, switched
from inventory.errors import ServiceError
from inventory.models import VirtualMachine
from inventory.services.connections import HypervisorError
from inventory.services.definitions import add_tpm, difference, remove_tpm, stored_definition

_ENCRYPTING: Final = {
    StepKind.ENCRYPT_DISK: Purpose.DISK,
    StepKind.ENCRYPT_NVRAM: Purpose.NVRAM,
    StepKind.ENCRYPT_VTPM: Purpose.VTPM,
    StepKind.ADD_VTPM: Purpose.VTPM,
}
_DECRYPTING: Final = {
    StepKind.DECRYPT_DISK: Purpose.DISK,
    StepKind.DECRYPT_NVRAM: Purpose.NVRAM,
    StepKind.DECRYPT_VTPM: Purpose.VTPM,
}
_OF_CONSOLE: Final = frozenset({StepKind.SET_MIGRATION, StepKind.DESTROY_ORIGINALS})
_NAMESPACE: Final = UUID("6f1c8a52-53e2-4f0c-8f60-4b4d0d0a7c11")


@dataclass(frozen=True, slots=True)
class DefinitionChange:
    """`lines` of a unified diff; none: the definition stays as it is, or `note` says why it cannot be shown."""

    lines: tuple[str, ...] = ()
    note: str = ""

    @property
    def marked(self) -> tuple[tuple[str, str], ...]:
        """Each line with what it is: "place", "added", "removed", "same"."""
        kinds = {"@": "place", "+": "added", "-": "removed"}
        return tuple((kinds.get(line[:1], "same"), line) for line in self.lines)


def preview(vm: VirtualMachine, plan: Plan, *, policy: StoragePolicy, provider: KmsCluster | None) -> DefinitionChange:
    """Of a plan that may be applied. `provider`: where a new key would be made."""
    if all(step.kind in _OF_CONSOLE for step in plan.steps):
        return DefinitionChange()
    before = stored_definition(vm)
    if not before:
        return DefinitionChange(note="the VM's definition is not known here yet: refresh its host, then look again")
    new = {(purpose, step.target): _placeholder(purpose, step.target) for purpose, step in _of(plan, _ENCRYPTING)}
    names = {str(one): f"{{new secret of {target or purpose.label}}}" for (purpose, target), one in new.items()}
    names |= {one.hex[:8]: "{8 digits}" for one in new.values()}
    try:
        parts = _parts(vm, plan, new)
        element = _element(vm, parts, policy, provider)
        after = switched(before, edits=_edits(vm, plan.steps), parts=parts, element=element)
        return DefinitionChange(difference(before, after, names))
    except HypervisorError as exc:
        hint = f" ({exc.hint})" if exc.hint else ""
        return DefinitionChange(note=f"the difference cannot be shown: {exc.message}{hint}")
    except ServiceError as exc:
        return DefinitionChange(note=f"the difference cannot be shown: {exc.message}")


def _of(plan: Plan, kinds: dict[StepKind, Purpose]) -> list[tuple[Purpose, Step]]:
    return [(kinds[step.kind], step) for step in plan.steps if step.kind in kinds]


def _placeholder(purpose: Purpose, target: str) -> UUID:
    return uuid.uuid5(_NAMESPACE, f"{purpose.value} {target}")


def _edits(vm: VirtualMachine, steps: Sequence[Step]) -> list[Edit]:
    kinds = {step.kind for step in steps}
    found: list[Edit] = [add_tpm] if StepKind.ADD_VTPM in kinds else []
    if StepKind.REMOVE_VTPM in kinds:
        found.append(remove_tpm)
    return [*found, *(edit for _, edit in boot_edits(kinds, vm))]


def _parts(vm: VirtualMachine, plan: Plan, new: dict[tuple[Purpose, str], UUID]) -> list[SwitchedPart]:
    sources = dict(vm.disks.values_list("target", "source")) | {"": vm.nvram_path}
    found = [
        SwitchedPart(purpose, target, _beside(sources.get(target, ""), f"-{secret.hex[:8]}.luks"), "raw", secret)
        for (purpose, target), secret in new.items()
    ]
    held = {(row.purpose, row.target): row for row in vm.wrapped_secrets.exclude(stage=Stage.DETACHED).defer("wrapped")}
    for purpose, step in _of(plan, _DECRYPTING):
        row = held[purpose, step.target]
        path = row.plain_path or _beside(row.path, f"-plain-{row.secret_uuid.hex[:8]}.{row.plain_format}")
        found.append(SwitchedPart(purpose, step.target, path, row.plain_format or "raw", None))
    return found


def _beside(path: str, ending: str) -> str:
    pure = PurePosixPath(path)
    return str(pure.with_name(pure.stem + ending)) if pure.name else path


def _element(
    vm: VirtualMachine, parts: Sequence[SwitchedPart], policy: StoragePolicy, provider: KmsCluster | None
) -> str | None:
    security = VmSecurity.objects.select_related("key__cluster").filter(virtual_machine=vm).first()
    key = security.key if security is not None else None
    if key is None and provider is not None:
        key = Key(cluster=provider, key_id="{ID of the new key}")
    if not policy.encrypts or key is None:
        return None
    plain = {(part.purpose, part.target) for part in parts if part.secret_uuid is None}
    rows = [
        row
        for row in vm.wrapped_secrets.filter(stage__in=[Stage.SWITCHED, Stage.IN_USE]).select_related("key")
        if (row.purpose, row.target) not in plain
    ]
    disks = {disk.target: disk for disk in vm.disks.all()}
    new = [
        WrappedSecret(
            secret_uuid=part.secret_uuid, virtual_machine=vm, purpose=part.purpose, target=part.target, key=key,
            wrapped=b"?", plain_format=disks[part.target].format if part.target else "raw",
            size_bytes=disks[part.target].capacity_bytes if part.target else 0,
        )
        for part in parts
        if part.secret_uuid is not None
    ]  # fmt: skip
    return vm_metadata.element(vm, policy, key, [*rows, *new])
