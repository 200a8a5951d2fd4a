"""Hard disks of a VM: added, attached, detached, and detached ones destroyed. Asked for here, done by disk_jobs.py.

Rules (vSphere's): no encrypted disk on a plain VM; a plain disk is not attached under an encrypting policy, it is
attached without and encrypted then; a new disk under an encrypting policy is born encrypted; a disk that is detached
forgets its policy, and its wrapped key is kept.
"""

import posixpath
import re
import string
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

from django.db import transaction

from encryption.engine import convert
from encryption.models import DiskPolicy, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from inventory import events, jobs
from inventory.authorize import VIEW, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Datastore, Disk, Host, Job, PowerState, VirtualMachine
from inventory.services.virtual_machines import vm_of

ADD: Final = jobs.register(jobs.JobKind("encryption.add_disk", "Add hard disk", queue="crypto"))
ATTACH: Final = jobs.register(jobs.JobKind("encryption.attach_disk", "Attach hard disk", queue="crypto"))
DETACH: Final = jobs.register(jobs.JobKind("encryption.detach_disk", "Detach hard disk", queue="crypto"))
DESTROY: Final = jobs.register(jobs.JobKind("encryption.destroy_disk", "Destroy detached disk", queue="crypto"))
FORMATS: Final = ("raw", "qcow2")
FOLDER_KINDS: Final = ("dir", "fs", "netfs")
MOST_BYTES: Final = convert.MAX_DISK_BYTES
SECTOR: Final = 512


@dataclass(frozen=True, slots=True)
class VmDisks:
    """What the page shows: the VM's hard disks with their policies, detached ones, and the choices there are."""

    vm: VirtualMachine
    disks: tuple[tuple[Disk, StoragePolicy | None], ...]
    detached: tuple[WrappedSecret, ...]
    datastores: tuple[Datastore, ...]
    policies: tuple[StoragePolicy, ...]
    is_encrypted: bool
    why_not: str


def vm_disks(*, vm_id: UUID, actor: Actor) -> VmDisks:
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    policies = {
        one.target: one.policy for one in DiskPolicy.objects.filter(virtual_machine=vm).select_related("policy")
    }
    try:
        refuse_unready(vm)
        why_not = ""
    except Conflict as exc:
        why_not = exc.message
    return VmDisks(
        vm=vm,
        disks=tuple((disk, policies.get(disk.target)) for disk in vm.disks.filter(device="disk")),
        detached=tuple(vm.wrapped_secrets.filter(stage=Stage.DETACHED).select_related("key").defer("wrapped")),
        datastores=tuple(_stores(vm.host)),
        policies=tuple(StoragePolicy.objects.all()),
        is_encrypted=is_encrypted(vm),
        why_not=why_not,
    )


@transaction.atomic
def add_disk(
    *, vm_id: UUID, size_bytes: int, datastore_id: UUID, image_format: str, policy_id: UUID, actor: Actor
) -> Job:
    """A new, empty disk. Under an encrypting policy it is a LUKS image from its first byte.

    Raises NotFound, Refused, Invalid (`size_invalid`, `format_invalid`, `policy_not_found`), Conflict
    (`vm_not_encrypted`, `space_missing`, `datastore_unfit` and those of `refuse_unready`).
    """
    vm = vm_of(vm_id)
    authorize(actor, ADD.name, vm)
    policy = policy_of(policy_id)
    check_size(size_bytes)
    if image_format not in FORMATS or (policy.encrypts and image_format != "raw"):
        hint = "an encrypted disk is a raw LUKS image: choose raw" if policy.encrypts else "one of raw, qcow2"
        raise Invalid("format_invalid", f"a disk under {policy} cannot be {image_format[:20]}", hint=hint)
    refuse_unready(vm)
    refuse_policy(vm, policy)
    store = Datastore.objects.filter(pk=datastore_id, host=vm.host).first()
    if store is None:
        raise NotFound("datastore_not_found", f"{vm.host} has no datastore {datastore_id}")
    if store not in _stores(vm.host):
        raise Conflict("datastore_unfit", f"{store} is not active, or holds no files", hint="choose another datastore")
    if size_bytes > store.available_bytes:
        raise Conflict(
            "space_missing", f"{store} has {store.available_bytes >> 20} MiB free, {size_bytes >> 20} MiB are wanted",
            hint="free space there, or choose another datastore",
        )  # fmt: skip
    target = free_target(vm)
    ending = "luks" if policy.encrypts else image_format
    stem = re.sub(r"[^A-Za-z0-9_.-]", "-", vm.name)[:80]
    path = posixpath.join(store.path, f"{stem}-{target}-{uuid4().hex[:8]}.{ending}")
    params = {
        "target": target, "path": path, "size": size_bytes, "format": image_format, "policy": str(policy.pk),
        "secret": str(uuid4()) if policy.encrypts else "",
    }  # fmt: skip
    return _start(ADD, vm, actor, f"A disk of {size_bytes >> 20} MiB requested for {vm}", params)


@transaction.atomic
def attach_disk(*, vm_id: UUID, path: str, policy_id: UUID, actor: Actor) -> Job:
    """An image that is there already. A detached encrypted disk opens with the key that was kept.

    Raises NotFound, Refused, Invalid (`path_invalid`, `policy_not_found`), Conflict (`disk_in_use`,
    `encrypted_disk_on_plain_vm`, `plain_disk_under_encrypting_policy` and those of `refuse_unready`).
    """
    vm = vm_of(vm_id)
    authorize(actor, ATTACH.name, vm)
    policy = policy_of(policy_id)
    path = path.strip()
    check_path(vm.host, path)
    refuse_unready(vm)
    refuse_kind(vm, policy, path, is_encrypted_disk=detached_at(vm.host, path) is not None)
    refuse_user(path)
    params = {"target": free_target(vm), "path": path, "policy": str(policy.pk)}
    return _start(ATTACH, vm, actor, f"{path} is to be attached to {vm}", params)


@transaction.atomic
def detach_disk(*, vm_id: UUID, target: str, actor: Actor) -> Job:
    """The file stays. Raises NotFound, Refused, Conflict (`disk_unknown` and those of `refuse_unready`)."""
    vm = vm_of(vm_id)
    authorize(actor, DETACH.name, vm)
    if not vm.disks.filter(target=target, device="disk").exists():
        raise Conflict("disk_unknown", f"{vm} has no hard disk {target[:32]}", hint="choose among the disks it has")
    refuse_unready(vm)
    return _start(DETACH, vm, actor, f"{target} is to be detached from {vm}", {"target": target})


@transaction.atomic
def destroy_detached_disk(*, secret_uuid: UUID, confirm: str, actor: Actor) -> Job:
    """The image and the only key to it. `confirm` repeats the file's name.

    Raises NotFound, Refused, Invalid (`confirmation_mismatch`), Conflict (`host_disconnected`, `target_busy`).
    """
    row = detached_disk(secret_uuid=secret_uuid, actor=actor)
    vm = row.virtual_machine
    authorize(actor, DESTROY.name, vm)
    if vm.host.state != Host.State.CONNECTED:
        raise Conflict("host_disconnected", f"{vm.host} is not connected", hint="connect the host first")
    if confirm.strip() != posixpath.basename(row.path):
        raise Invalid("confirmation_mismatch", f"that is not the name of {row.path}", hint="type it as it is shown")
    return _start(DESTROY, vm, actor, f"Destruction of {row.path}, detached from {vm}, requested",
                  {"secret": str(row.secret_uuid)}, rule=DESTROY.name)  # fmt: skip


def detached_disk(*, secret_uuid: UUID, actor: Actor) -> WrappedSecret:
    rows = WrappedSecret.objects.filter(stage=Stage.DETACHED)
    found = rows.select_related("virtual_machine__host__cluster", "key__cluster").filter(pk=secret_uuid).first()
    if found is None:
        raise NotFound("disk_not_found", f"there is no detached disk {secret_uuid}")
    authorize(actor, VIEW, found.virtual_machine)
    return found


def _start(
    kind: jobs.JobKind, vm: VirtualMachine, actor: Actor, text: str, params: dict[str, Any], rule: str = ""
) -> Job:
    job = jobs.start(kind, target=vm, actor=actor, params=params, rule=rule, right=kind.name)
    events.record(f"vm.{kind.name.partition('.')[2]}_requested", text, target=vm, actor=actor, job=job)
    return job


# What the worker asks again


def refuse_unready(vm: VirtualMachine) -> None:
    """Raises Conflict: `vm_gone`, `vm_transient`, `host_disconnected`, `vm_running`, `managed_save_present`,
    `snapshots_present`."""
    if not vm.is_present:
        raise Conflict("vm_gone", f"{vm} is no longer on its host", hint="refresh the host")
    if not vm.is_persistent:
        raise Conflict("vm_transient", f"{vm} has no persistent definition", hint="define it on its host first")
    if vm.host.state != Host.State.CONNECTED:
        raise Conflict("host_disconnected", f"{vm.host}, the host of {vm}, is not connected", hint="connect it first")
    if vm.power_state not in (PowerState.OFF, PowerState.CRASHED):
        raise Conflict("vm_running", f"{vm} is not powered off", hint="shut it down; its disks change only while it is")
    if vm.has_managed_save:
        raise Conflict(
            "managed_save_present", f"{vm} has a saved state, which fits its present disks only",
            hint="start it, so that it resumes, and shut it down; or discard the saved state (Actions)",
        )  # fmt: skip
    if vm.snapshot_count:
        raise Conflict(
            "snapshots_present", f"{vm} has {vm.snapshot_count} snapshots, which fit its present disks only",
            hint="delete the snapshots on its host (virsh snapshot-delete), then refresh the host",
        )  # fmt: skip


def refuse_policy(vm: VirtualMachine, policy: StoragePolicy) -> None:
    if policy.encrypts and not is_encrypted(vm):
        raise Conflict(
            "vm_not_encrypted", f"{vm} is not encrypted, so none of its disks can be",
            hint="choose an encrypting policy for the VM itself in VM Options first",
        )  # fmt: skip


def refuse_kind(vm: VirtualMachine, policy: StoragePolicy, path: str, *, is_encrypted_disk: bool) -> None:
    """Raises Conflict where the disk does not fit the VM or the policy."""
    if is_encrypted_disk and not is_encrypted(vm):
        raise Conflict(
            "encrypted_disk_on_plain_vm", f"{path} is encrypted, and {vm} is not",
            hint="choose an encrypting policy for the VM itself in VM Options first",
        )  # fmt: skip
    if policy.encrypts and not is_encrypted_disk:
        raise Conflict(
            "plain_disk_under_encrypting_policy", f"{path} is not encrypted, and {policy} wants it so",
            hint="attach it without encryption, then change its policy in VM Options, which encrypts it",
        )  # fmt: skip
    if is_encrypted_disk and not policy.encrypts:
        raise Conflict(
            "encrypted_disk_under_plain_policy", f"{path} is encrypted, and {policy} wants it plain",
            hint="attach it under an encrypting policy, then change its policy in VM Options, which decrypts it",
        )  # fmt: skip


def check_size(size_bytes: int) -> None:
    """Raises Invalid `size_invalid`."""
    if size_bytes <= 0 or size_bytes % SECTOR or size_bytes > MOST_BYTES:
        raise Invalid("size_invalid", f"a disk has 512 to {MOST_BYTES} bytes, in whole sectors of 512")


def check_path(host: Host, path: str) -> None:
    """Of an image on a datastore of the host. Raises Invalid `path_invalid`."""
    if not path.isprintable() or posixpath.normpath(path) != path or not _is_on_datastore(host, path):
        raise Invalid(
            "path_invalid", f"{path[:200]!r} is no file on a datastore of {host}",
            hint="give the whole path of an image below the folder of one of its datastores",
        )  # fmt: skip


def refuse_user(path: str) -> None:
    other = Disk.objects.filter(source=path).select_related("virtual_machine").first()
    if other is not None:
        raise Conflict(
            "disk_in_use", f"{path} is {other.target} of {other.virtual_machine}", hint="detach it there first"
        )


def is_encrypted(vm: VirtualMachine) -> bool:
    return VmSecurity.objects.filter(virtual_machine=vm, key__isnull=False, policy__encrypts=True).exists()


def detached_at(host: Host, path: str) -> WrappedSecret | None:
    rows = WrappedSecret.objects.filter(purpose=Purpose.DISK, stage=Stage.DETACHED, path=path)
    return rows.filter(virtual_machine__host=host).select_related("virtual_machine", "key__cluster").first()


def policy_of(policy_id: UUID) -> StoragePolicy:
    found = StoragePolicy.objects.filter(pk=policy_id).first()
    if found is None:
        raise Invalid("policy_not_found", f"there is no storage policy {policy_id}", hint="choose one from the list")
    return found


def free_target(vm: VirtualMachine) -> str:
    taken = set(vm.disks.values_list("target", flat=True))
    for letter in string.ascii_lowercase:
        if f"vd{letter}" not in taken:
            return f"vd{letter}"
    raise Conflict("too_many_disks", f"{vm} has a disk behind each letter", hint="detach one first")


def _stores(host: Host) -> list[Datastore]:
    return list(host.datastores.filter(is_active=True, kind__in=FOLDER_KINDS).exclude(path=""))


def _is_on_datastore(host: Host, path: str) -> bool:
    return any(path.startswith(store.path.rstrip("/") + "/") for store in _stores(host))
