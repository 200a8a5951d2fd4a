"""The one switch of a VM's definition: what the worker does to it, and what a plan shows beforehand. Text in, text out.

Definitions and rows only: nothing here asks a host.
"""

import posixpath
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

from encryption.engine.options import StepKind
from encryption.models import Purpose, Stage, WrappedSecret
from encryption.services import vm_metadata
from inventory.models import VirtualMachine
from inventory.services.definitions import (
    set_disk,
    set_dump_core,
    set_metadata,
    set_nvram,
    set_secure_boot,
    set_tpm_secret,
    set_vbs,
    unset_vbs,
)

Edit = Callable[[str], str]
SECURE_BOOT: Final = {True: "vm.secure_boot_on", False: "vm.secure_boot_off"}


@dataclass(frozen=True, slots=True)
class SwitchedPart:
    """What the definition refers to afterwards. `secret_uuid` None: the part is plain."""

    purpose: Purpose
    target: str
    path: str
    format: str
    secret_uuid: UUID | None

    @classmethod
    def of(cls, row: WrappedSecret) -> "SwitchedPart":
        """Of a row that is ENCRYPTING or DECRYPTING."""
        encrypts = row.stage == Stage.ENCRYPTING
        return cls(
            Purpose(row.purpose), row.target, row.path if encrypts else row.plain_path,
            "raw" if encrypts else row.plain_format, row.secret_uuid if encrypts else None,
        )  # fmt: skip


def switched(xml: str, *, edits: Iterable[Edit], parts: Iterable[SwitchedPart], element: str | None) -> str:
    """Hardware first, then the parts, then the metadata (`element`, None: the VM is plain). Raises BadDefinition."""
    for edit in edits:
        xml = edit(xml)
    for part in parts:
        xml = _switch(xml, part)
    xml = set_metadata(xml, vm_metadata.NAMESPACE, element)
    return set_dump_core(xml, is_allowed=element is None)


def _switch(xml: str, part: SwitchedPart) -> str:
    if part.purpose == Purpose.NVRAM:
        return set_nvram(xml, path=part.path, secret_uuid=part.secret_uuid)
    if part.purpose == Purpose.VTPM:
        return set_tpm_secret(xml, part.secret_uuid)
    return set_disk(xml, part.target, path=part.path, format=part.format, secret_uuid=part.secret_uuid)


def boot_edits(kinds: Collection[StepKind], vm: VirtualMachine) -> list[tuple[str, Edit]]:
    """Secure Boot and VBS as the steps have them: the kind of the event of each, and the edit."""
    host = vm.host.known_abilities
    found: list[tuple[str, Edit]] = []
    if StepKind.UNSET_VBS in kinds:
        found.append(("vm.vbs_unset", unset_vbs))
    if StepKind.SET_FIRMWARE in kinds:
        is_on = not vm.has_secure_boot
        found.append((SECURE_BOOT[is_on], partial(set_secure_boot, is_on=is_on, host=host)))
    if StepKind.SET_VBS in kinds:
        found.append(("vm.vbs_set", partial(set_vbs, host=host)))
    return found


def variables_template(loader: str) -> str:
    """The variables that belong to a firmware file: OVMF's packages name them alike (CODE and VARS)."""
    folder, name = posixpath.split(loader)
    return posixpath.join(folder, name.replace("CODE", "VARS"))
