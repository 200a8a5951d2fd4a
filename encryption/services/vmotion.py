"""Encrypted vMotion as it is set for a VM. What it means for a move: engine/migration.py."""

from typing import Final
from uuid import UUID

from django.db import transaction

from encryption.engine.migration import Mode
from encryption.models import EncryptedVmotion, Stage, VmMigration
from inventory import events
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, Invalid
from inventory.models import VirtualMachine
from inventory.services.virtual_machines import vm_of

ACTION: Final = "encryption.set_encrypted_vmotion"
FIXED: Final = "an encrypted VM always migrates encrypted: its disks would travel decrypted otherwise"


def is_encrypted(vm: VirtualMachine) -> bool:
    """Whether any part of it is, by this console's keys or by others."""
    return (
        vm.is_nvram_encrypted
        or vm.is_tpm_encrypted
        or vm.disks.filter(is_encrypted=True).exists()
        or vm.wrapped_secrets.exclude(stage=Stage.DETACHED).exists()
    )


def chosen_mode(vm: VirtualMachine) -> Mode:
    """As it was set; *opportunistic* where nobody has."""
    row = VmMigration.objects.filter(virtual_machine=vm).first()
    return Mode.OPPORTUNISTIC if row is None else Mode(row.encrypted)


def effective_mode(vm: VirtualMachine) -> Mode:
    return Mode.REQUIRED if is_encrypted(vm) else chosen_mode(vm)


@transaction.atomic
def set_encrypted_vmotion(*, vm_id: UUID, mode: str, actor: Actor) -> VmMigration:
    """Raises NotFound, Refused, Invalid `mode_unknown`, Conflict `encrypted_vmotion_fixed`."""
    vm = vm_of(vm_id)
    authorize(actor, ACTION, vm)
    if mode not in EncryptedVmotion.values:
        raise Invalid(
            "mode_unknown", f"there is no mode {mode[:20]} of encrypted vMotion",
            hint=f"choose one of {', '.join(EncryptedVmotion.values)}",
        )  # fmt: skip
    if mode != EncryptedVmotion.REQUIRED and is_encrypted(vm):
        raise Conflict(
            "encrypted_vmotion_fixed", f"encrypted vMotion of {vm} is fixed: {FIXED}", hint="decrypt it first"
        )
    before = chosen_mode(vm)
    row, _ = VmMigration.objects.update_or_create(virtual_machine=vm, defaults={"encrypted": mode})
    if before.value != mode:
        events.record(
            "vm.encrypted_vmotion_changed", f"Encrypted vMotion of {vm}: {EncryptedVmotion(mode).label}", target=vm,
            actor=actor, before=before.value, after=mode,
        )  # fmt: skip
    return row


def keep_required(vm: VirtualMachine) -> None:
    """When a VM has been encrypted: it stays *required* after its decryption, until somebody changes it."""
    VmMigration.objects.update_or_create(virtual_machine=vm, defaults={"encrypted": EncryptedVmotion.REQUIRED})
