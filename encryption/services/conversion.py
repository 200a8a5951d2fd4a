"""Apply, the worker side of VM Options: the job that encrypts and decrypts a VM.

Order of writes, so that a kill at any point loses nothing:

1. the KEK is made at the KMS, and every data key stands wrapped in the database, before a byte is encrypted under it;
2. each copy is written beside its original (`offline.py`, `host_storage.py`, `live.py`), synced and verified;
3. the definition is switched, for a powered-off VM in one piece, for a running one disk by disk at the pivot;
4. only then the originals are overwritten and deleted, and the rows of restored parts go.

Virtual hardware (vTPM, Secure Boot, VBS) is changed in the same switch: its modules put their edits of the definition
into `Change.edits` before 3, and destroy what is no longer needed after 4.

A job that runs again looks at the rows' stages and the host (`change.settle`), plans anew, and does what is left.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from django.db import transaction

from encryption.engine.options import HARDWARE, KEY_CODES, StepKind
from encryption.models import EncryptedVmotion, Key, Stage, VmSecurity
from encryption.services import boot_security, compliance, host_storage, live, offline, vmotion, vtpm_device, write_back
from encryption.services import change as changes
from encryption.services.change import Change
from encryption.services.key_access import make_key, new_key_name
from encryption.services.options import (
    Wish,
    check_approved,
    kms_cluster_of,
    plan_from_wish,
    policy_of,
    record_disk_policies,
    refuse,
)
from inventory import events
from inventory.errors import Conflict, NotFound, ServiceError
from inventory.jobs import Cancelled, Progress
from inventory.models import Job, Severity, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import HypervisorError

_HARDWARE_ALONE: Final = frozenset(
    kind.value for kind in {*HARDWARE, StepKind.WRAP_SECRETS, StepKind.SWITCH_DEFINITION, StepKind.SET_MIGRATION}
)


def apply_options(job: Job, progress: Progress) -> None:
    """The work of an `encryption.apply_options` job."""
    with changing(job, progress, lambda vm: Wish.from_params(job.params), _begin) as change:
        plan = plan_from_wish(change.vm, change.wish)
        refuse(change.vm, plan, but_for=KEY_CODES)
        check_power(change)
        _carry_out(change, frozenset(step.kind for step in plan.steps))


@contextmanager
def changing(
    job: Job,
    progress: Progress,
    wish: Callable[[VirtualMachine], Wish],
    begin: Callable[[Change], None] = lambda change: None,
) -> Iterator[Change]:
    """One run of a job that changes a VM's encryption, with what an earlier run did settled. Where the block fails,
    what is not switched is given up, and the VM is as its rows and its host then say.

    `begin` may refuse, before anything is touched.
    """
    vm = VirtualMachine.objects.select_related("host").filter(pk=job.target_id).first()
    if vm is None:
        raise NotFound("vm_not_found", f"{job.target_name} is no longer in the inventory")
    progress.step("looking at the virtual machine")
    with connections.open_host(vm.host) as hypervisor:
        sync.refresh_virtual_machine(vm, hypervisor)
        change = Change(job, progress, vm, wish(vm), hypervisor, hypervisor.virtual_machine(vm.uuid))
        begin(change)
        try:
            is_settled = changes.settle(change)
            vtpm_device.settle(change)
            if is_settled:  # it takes time, and the host is asked to stop copies
                sync.refresh_virtual_machine(vm, hypervisor)
            yield change
        except (Cancelled, ServiceError, HypervisorError):
            _give_up(change)
            raise
        finally:
            sync.refresh_virtual_machine(vm, hypervisor)
            compliance.after_apply(vm, hypervisor, job)


def _begin(change: Change) -> None:
    """Once a job, however often it is run: afterwards the plan is another one, as a part of it has been done."""
    if not change.job.checkpoint.get("begun"):
        check_approved(change.vm, change.wish, change.job.params)
        change.progress.checkpoint(begun=True)


def check_power(change: Change) -> None:
    if change.facts.power not in {"off", "on", "paused"}:
        raise Conflict("vm_crashed", f"{change.vm} is {change.facts.power}", hint="power it off, then apply again")


def _carry_out(change: Change, kinds: frozenset[StepKind]) -> None:
    """`kinds`: of the plan's steps, as the host and the rows are now."""
    policy = policy_of(change.wish)
    changes.destroy_originals(change)  # of a change that was interrupted: its rows would stand in the way
    if change.facts.tpm is None:
        vtpm_device.finish(change)
    vtpm_device.begin(change)
    boot_security.begin(change, kinds)
    if policy.encrypts:
        key = _key(change)
        changes.begin_encryption(change, key)
    changes.begin_decryption(change)
    convert(change)
    vtpm_device.finish(change)
    if kinds & HARDWARE:
        _check_carried_out(change)
    _finish(change)


def _check_carried_out(change: Change) -> None:
    """What the host reports afterwards has the last word on virtual hardware. Raises Conflict `not_carried_out`."""
    left = [step.text for step in plan_from_wish(change.vm, change.wish).steps if step.kind in HARDWARE]
    if left:
        raise Conflict(
            "not_carried_out", f"{change.vm}: its host does not report what was set: {'; '.join(left)}",
            hint="look at the VM's definition on its host, then apply again",
        )  # fmt: skip


def convert(change: Change) -> None:
    """Every part that has begun: its copy is written, the definition switched, the original destroyed."""
    if not change.files.are_reached:
        write_back.begun(change.progress)
    if change.facts.power == "off":
        way = offline if change.files.are_reached else host_storage
        with way.converted_parts(change):
            change.progress.step("switching the definition")
            changes.switch_definition(change)
    else:
        live.convert_disks(change)
        change.progress.step("switching the definition")
        changes.switch_definition(change)
    sync.refresh_virtual_machine(change.vm, change.hypervisor)
    change.progress.step("destroying the originals")
    changes.destroy_originals(change)


def _key(change: Change) -> Key:
    """The VM's KEK: the one it has, or a new one. `VmSecurity` names it before any secret is wrapped under it."""
    vm = change.vm
    security = VmSecurity.objects.select_related("key__cluster").filter(virtual_machine=vm).first()
    if security is not None and security.key is not None:
        key = security.key
    else:
        change.progress.step("creating a key at the key provider")
        key = make_key(kms_cluster_of(vm, change.wish), vm, name=new_key_name(vm, change.job.pk), job=change.job)
    policy = policy_of(change.wish)
    vm.security, _ = VmSecurity.objects.update_or_create(virtual_machine=vm, defaults={"policy": policy, "key": key})
    return key


def _finish(change: Change) -> None:
    vm, policy = change.vm, policy_of(change.wish)
    vtpm_device.record(change)
    boot_security.record(change)
    parts = [row.part for row in change.rows(Stage.IN_USE)]
    with transaction.atomic():
        record_disk_policies(vm, change.wish)
        if not policy.encrypts and change.wish.encrypted_vmotion is not None:
            mode = EncryptedVmotion(change.wish.encrypted_vmotion.value)
            vmotion.write_mode(vm, mode, actor=change.job.actor, job=change.job)
        if policy.encrypts:
            vmotion.keep_required(vm)
        if policy.encrypts and not _is_hardware_alone(change):
            events.record_once(
                "vm.encrypted", f"{vm} is encrypted by {policy}: {', '.join(parts) or 'no part yet'}", target=vm,
                job=change.job, policy=policy.name, parts=parts, plan_digest=_digest(change),
            )  # fmt: skip
        elif not policy.encrypts and VmSecurity.objects.filter(virtual_machine=vm).delete()[0]:
            events.record_once(
                "vm.decrypted", f"{vm} is decrypted", target=vm, job=change.job, severity=Severity.WARNING,
                policy=policy.name, plan_digest=_digest(change),
            )  # fmt: skip
        else:
            events.record_once(
                "vm.options_changed", f"Options of {vm} are changed", target=vm, job=change.job,
                plan_digest=_digest(change),
            )  # fmt: skip


def _is_hardware_alone(change: Change) -> bool:
    """Whether the approved plan left the encryption of an encrypted VM as it was. A job of an older version, which
    carries no plan, is taken for one that did not."""
    kinds = {step["kind"] for step in change.job.params.get("plan", {}).get("steps", [])}
    return bool(kinds) and kinds <= _HARDWARE_ALONE


def _digest(change: Change) -> str:
    """Of the plan that was approved; a job of an older version carries none."""
    return str(change.job.params.get("plan", {}).get("digest", ""))


def _give_up(change: Change) -> None:
    """Cancelled or refused by the outside. The VM's policy and key go only if this job brought them and no part needs
    them."""
    changes.give_up(change)
    vtpm_device.give_up(change)
    boot_security.give_up(change)
    security = VmSecurity.objects.select_related("key__cluster").filter(virtual_machine=change.vm).first()
    if security is None or security.key is None or change.rows():
        return
    if security.key.name == new_key_name(change.vm, change.job.pk):
        # The key is left at the KMS: to destroy it is for ever, and only a person knows whether a backup of the
        # datastore has caught a copy that was half written under it.
        with transaction.atomic():
            security.delete()
            events.record_once(
                "key.unused",
                f"Key {security.key} protects nothing: the change of {change.vm} that it was made for was given up; "
                "destroy it under Key Providers if it is not wanted",
                target=security.key.cluster, job=change.job, key_id=security.key.key_id,
            )  # fmt: skip
