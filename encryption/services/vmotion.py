"""Encrypted vMotion as it is set for a VM. What it means for a move: engine/migration.py."""

from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, Q

from encryption.engine.migration import Mode
from encryption.models import EncryptedVmotion, Stage, VmMigration, VmSecurity, WrappedSecret
from inventory import events
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict
from inventory.models import Disk, Job, VirtualMachine
from inventory.services.virtual_machines import vm_of

ACTION: Final = "encryption.set_encrypted_vmotion"
FIXED: Final = "an encrypted VM always migrates encrypted: its disks would travel decrypted otherwise"


def is_encrypted(vm: VirtualMachine) -> bool:
    """Whether any part of it is, by this console's keys or by others. One query."""
    own = Q(is_nvram_encrypted=True) | Q(is_tpm_encrypted=True)
    disks = Exists(Disk.objects.filter(virtual_machine=vm, is_encrypted=True))
    secrets = Exists(WrappedSecret.objects.filter(virtual_machine=vm).exclude(stage=Stage.DETACHED))
    key = Exists(VmSecurity.objects.filter(virtual_machine=vm, key__isnull=False))
    return VirtualMachine.objects.filter(own | Q(disks) | Q(secrets) | Q(key), pk=vm.pk).exists()


def chosen_mode(vm: VirtualMachine) -> Mode:
    """As it was set; *opportunistic* where nobody has."""
    row = VmMigration.objects.filter(virtual_machine=vm).first()
    return Mode.OPPORTUNISTIC if row is None else Mode(row.encrypted)


def effective_mode(vm: VirtualMachine) -> Mode:
    return Mode.REQUIRED if is_encrypted(vm) else chosen_mode(vm)


@transaction.atomic
def set_encrypted_vmotion(*, vm_id: UUID, mode: EncryptedVmotion, actor: Actor) -> VmMigration:
    """Raises NotFound, Refused, Conflict `encrypted_vmotion_fixed`."""
    vm = vm_of(vm_id)
    authorize(actor, ACTION, vm)
    if mode != EncryptedVmotion.REQUIRED and is_encrypted(vm):
        raise Conflict(
            "encrypted_vmotion_fixed", f"encrypted vMotion of {vm} is fixed: {FIXED}", hint="decrypt it first"
        )
    return write_mode(vm, mode, actor=actor)


def write_mode(
    vm: VirtualMachine, mode: EncryptedVmotion, *, actor: Actor | str, job: Job | None = None
) -> VmMigration:
    """Whoever asked for it, and however: one event, where it is another mode than before. In a transaction."""
    before = chosen_mode(vm)
    row, _ = VmMigration.objects.update_or_create(virtual_machine=vm, defaults={"encrypted": mode})
    if before.value != mode:
        events.record(
            "vm.encrypted_vmotion_changed", f"Encrypted vMotion of {vm}: {mode.label}", target=vm, actor=actor, job=job,
            before=before.value, after=mode.value,
        )  # fmt: skip
    return row


def keep_required(vm: VirtualMachine) -> None:
    """When a VM has been encrypted: it stays *required* after its decryption, until somebody changes it."""
    VmMigration.objects.update_or_create(virtual_machine=vm, defaults={"encrypted": EncryptedVmotion.REQUIRED})
