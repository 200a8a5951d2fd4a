"""Worker side of disks.py. Order of writes, so that a kill at any point loses nothing and can be repeated:

- add: the wrapped key (DETACHED), the file, the definition with the disk and its key in the metadata, the row IN_USE;
- attach: the definition, the row IN_USE;
- detach: the row DETACHED with the place of its file, the definition.

A job that runs again looks at the definition first. A DETACHED row of a disk that the definition opens is only behind.
"""

from collections.abc import Callable
from uuid import UUID

from django.db import transaction

from encryption.adapters import image_files, qemu_img
from encryption.adapters.image_files import ImageFileError
from encryption.adapters.qemu_img import QemuImgFailed
from encryption.engine import keywrap, luks
from encryption.engine.image import whole_sectors
from encryption.engine.leftovers import HEAD_BYTES, Content, content_of
from encryption.engine.secret import Secret
from encryption.models import (
    OPENED_BY_SECRET,
    DiskPolicy,
    Purpose,
    Stage,
    StoragePolicy,
    VmSecurity,
    WrappedSecret,
)
from encryption.services import disks, vm_metadata
from encryption.services.change import DATA_KEY_BYTES
from encryption.services.key_access import fetched_key
from encryption.services.parts import opens, path_in
from encryption.services.release import open_secrets
from inventory import events
from inventory.errors import Conflict, ServiceError
from inventory.jobs import Cancelled, Progress
from inventory.models import Job, Severity, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import Hypervisor, HypervisorError, reaches_files
from inventory.services.definitions import add_disk, names_path, remove_disk, set_metadata
from inventory.services.virtual_machines import vm_of


def run_add_disk(job: Job, progress: Progress) -> None:
    """The work of `encryption.add_disk`. Given up, neither file nor key is left."""
    vm = vm_of(job.target_id)
    target, path, policy = job.params["target"], job.params["path"], disks.policy_of(UUID(job.params["policy"]))
    progress.step("looking at the virtual machine")
    with connections.open_host(vm.host) as hypervisor:
        sync.refresh_virtual_machine(vm, hypervisor)
        if not _has(hypervisor, vm, target, path):
            disks.refuse_unready(vm)
            disks.refuse_policy(vm, policy)
            row: WrappedSecret | None = None
            try:
                progress.step("making the image")
                hypervisor.delete_file(path, wipe=False)  # of an earlier run of this job: the name is its own
                row = _make(vm, hypervisor, job) if policy.encrypts else None
                if row is None:
                    _make_plain(vm, hypervisor, job)
                progress.step("adding it to the virtual machine")
                _define(vm, hypervisor, target, path, job.params["format"], row)
            except (Cancelled, ServiceError, HypervisorError):
                if not _has(hypervisor, vm, target, path):
                    hypervisor.delete_file(path, wipe=False)
                    if policy.encrypts:
                        WrappedSecret.objects.filter(pk=job.params["secret"], stage=Stage.DETACHED).delete()
                raise
        sync.refresh_virtual_machine(vm, hypervisor)
    _settle(vm, job, target, policy, f"{target} added to {vm}", "vm.disk_added", path)


def _make(vm: VirtualMachine, hypervisor: Hypervisor, job: Job) -> WrappedSecret:
    """Key first: what is not in the database wrapped must not be a LUKS header's only key."""
    security = VmSecurity.objects.select_related("key__cluster").get(virtual_machine=vm)
    if security.key is None:
        raise Conflict("vm_not_encrypted", f"{vm} is not encrypted", hint="encrypt the VM itself first")
    size, path = int(job.params["size"]), job.params["path"]
    row = (
        WrappedSecret.objects.filter(pk=job.params["secret"]).select_related("key__cluster", "virtual_machine").first()
    )
    if row is None:
        with fetched_key(security.key) as kek:
            wrapped = keywrap.wrap(kek, Secret.generate(DATA_KEY_BYTES))
            row = WrappedSecret.objects.create(
                secret_uuid=UUID(job.params["secret"]), virtual_machine=vm, purpose=Purpose.DISK,
                target=job.params["target"], key=security.key, wrapped=wrapped,
                path=path, plain_format="raw", size_bytes=size, stage=Stage.DETACHED, job_id=job.pk,
            )  # fmt: skip
    (opened,) = open_secrets([row])
    header = luks.create(opened.passphrase).header_bytes
    hypervisor.create_file(path, size=len(header) + whole_sectors(size), head=header)
    return row


def _make_plain(vm: VirtualMachine, hypervisor: Hypervisor, job: Job) -> None:
    size, path = int(job.params["size"]), job.params["path"]
    if job.params["format"] == "raw":
        hypervisor.create_file(path, size=size)
        return
    if not reaches_files(vm.host):
        raise Conflict(
            "files_not_reachable", f"no worker of this console reaches {path}",
            hint="choose the format raw, which the host makes itself",
        )  # fmt: skip
    try:
        image_files.create(path, like=path.rpartition("/")[0])
        qemu_img.create_qcow2(path, size)
    except (ImageFileError, QemuImgFailed) as exc:
        raise Conflict("disk_not_made", f"{vm}: {exc}", hint="look at the datastore, then try again") from exc


def run_attach_disk(job: Job, progress: Progress) -> None:
    """The work of `encryption.attach_disk`. What the file is, its first bytes say; what opens it, a detached row."""
    vm = vm_of(job.target_id)
    target, path, policy = job.params["target"], job.params["path"], disks.policy_of(UUID(job.params["policy"]))
    progress.step("looking at the virtual machine")
    with connections.open_host(vm.host) as hypervisor:
        sync.refresh_virtual_machine(vm, hypervisor)
        if not _has(hypervisor, vm, target, path):
            disks.refuse_unready(vm)
            progress.step("looking at the image")
            content = _content(hypervisor, path)
            row = disks.detached_at(vm.host, path) if content is Content.LUKS else None
            disks.refuse_kind(vm, policy, path, is_encrypted_disk=content is Content.LUKS)
            if content is Content.LUKS and row is None:
                raise Conflict(
                    "foreign_disk", f"{path} is encrypted, and this console has no key for it",
                    hint="attach it to the VM it belongs to on its host, or import that VM",
                )  # fmt: skip
            _refuse_used(vm, hypervisor, path)
            progress.step("adding it to the virtual machine")
            if row is not None:
                row.virtual_machine, row.target, row.job_id = vm, target, job.pk
                row.save(update_fields=["virtual_machine", "target", "job_id"])
            _define(vm, hypervisor, target, path, "qcow2" if content is Content.QCOW2 else "raw", row)
        sync.refresh_virtual_machine(vm, hypervisor)
    _settle(vm, job, target, policy, f"{path} attached to {vm} as {target}", "vm.disk_attached", path)


def _content(hypervisor: Hypervisor, path: str) -> Content:
    facts = hypervisor.file_facts(path)
    if facts is None or not facts.is_regular:
        raise Conflict("image_missing", f"there is no image file {path}", hint="give the path of an image on the host")
    if facts.size == 0:
        raise Conflict("image_empty", f"{path} is empty", hint="give the path of an image on the host")
    return content_of(hypervisor.read_file(path, offset=0, length=HEAD_BYTES))


def _refuse_used(vm: VirtualMachine, hypervisor: Hypervisor, path: str) -> None:
    """By rows for all hosts, by definitions as they are now for this one."""
    disks.refuse_user(path)
    for facts in hypervisor.virtual_machines():
        for text in (hypervisor.definition(facts.uuid), hypervisor.live_definition(facts.uuid)):
            if text is not None and names_path(text, path):
                raise Conflict("disk_in_use", f"{path} is used by {facts.name}", hint="detach it there first")


def run_detach_disk(job: Job, progress: Progress) -> None:
    """The work of `encryption.detach_disk`. The file stays, and so does the wrapped key of an encrypted one."""
    vm, target = vm_of(job.target_id), job.params["target"]
    progress.step("looking at the virtual machine")
    with connections.open_host(vm.host) as hypervisor:
        sync.refresh_virtual_machine(vm, hypervisor)
        facts = hypervisor.virtual_machine(vm.uuid)
        disk = next((one for one in facts.disks if one.target == target), None)
        if disk is not None:
            disks.refuse_unready(vm)
            for row in vm.wrapped_secrets.filter(purpose=Purpose.DISK, target=target):
                if row.stage not in (Stage.IN_USE, Stage.DETACHED):
                    raise Conflict(
                        "change_unfinished", f"{vm}: a change of the encryption of {target} was interrupted",
                        hint="apply its VM Options again, then detach it",
                    )  # fmt: skip
                if opens(facts, row):
                    row.path, row.stage, row.job_id = path_in(facts, row), Stage.DETACHED, job.pk
                    row.save(update_fields=["path", "stage", "job_id"])
            progress.step("taking it out of the virtual machine")
            _redefine(vm, hypervisor, lambda xml: remove_disk(xml, target), None)
        sync.refresh_virtual_machine(vm, hypervisor)
    events.record_once("vm.disk_detached", f"{target} detached from {vm}; its file stays", target=vm, job=job,
                       disk=target)  # fmt: skip


def run_destroy_disk(job: Job, progress: Progress) -> None:
    """The work of `encryption.destroy_disk`: the image, then the key. Refused where any definition has it."""
    vm = vm_of(job.target_id)
    row = WrappedSecret.objects.filter(pk=job.params["secret"]).first()
    if row is None:
        return  # an earlier run of this job has done it
    if row.stage != Stage.DETACHED:
        raise Conflict("disk_in_use", f"{row.path} is no detached disk of {vm} any more", hint="look at its hard disks")
    progress.step("destroying the detached disk")
    with connections.open_host(vm.host) as hypervisor:
        _refuse_used(vm, hypervisor, row.path)
        if not reaches_files(vm.host):
            hypervisor.delete_file(row.path, wipe=True)
        else:
            try:
                image_files.destroy(row.path)
            except ImageFileError as exc:
                raise Conflict("file_not_destroyed", f"{vm}: {exc}", hint="see who uses it, then try again") from exc
    with transaction.atomic():
        row.delete()
        events.record(
            "vm.disk_destroyed", f"{row.path}, detached from {vm}, was destroyed with its key", target=vm,
            actor=job.actor, job=job, severity=Severity.WARNING, path=row.path,
        )  # fmt: skip


def _has(hypervisor: Hypervisor, vm: VirtualMachine, target: str, path: str) -> bool:
    disks_of = hypervisor.virtual_machine(vm.uuid).disks
    return any(disk.target == target and disk.source == path for disk in disks_of)


def _define(
    vm: VirtualMachine, hypervisor: Hypervisor, target: str, path: str, image_format: str, row: WrappedSecret | None
) -> None:
    secret_uuid = None if row is None else row.secret_uuid

    def edit(xml: str) -> str:
        return add_disk(xml, target, path=path, format=image_format, secret_uuid=secret_uuid)

    _redefine(vm, hypervisor, edit, row)


def _redefine(
    vm: VirtualMachine, hypervisor: Hypervisor, edit: Callable[[str], str], new: WrappedSecret | None
) -> None:
    """One definition with the edit, and the keys of what it then opens in the metadata of a VM that is ours."""
    security = VmSecurity.objects.select_related("policy", "key__cluster").filter(virtual_machine=vm).first()

    def whole(xml: str) -> str:
        xml = edit(xml)
        if security is None or security.key is None:
            return xml
        rows = vm.wrapped_secrets.filter(stage__in=[Stage.ENCRYPTING, *OPENED_BY_SECRET]).select_related("key")
        listed = [*rows, *([new] if new is not None else [])]
        element = vm_metadata.element(vm, security.policy, security.key, listed)
        return set_metadata(xml, vm_metadata.NAMESPACE, element)

    hypervisor.redefine(vm.uuid, whole)


def _settle(
    vm: VirtualMachine, job: Job, target: str, policy: StoragePolicy, message: str, kind: str, path: str
) -> None:
    """The definition has the disk: its row and its policy follow."""
    with transaction.atomic():
        vm.wrapped_secrets.filter(purpose=Purpose.DISK, target=target, path=path, stage=Stage.DETACHED).update(
            stage=Stage.IN_USE, job_id=None
        )
        if disks.is_encrypted(vm):
            DiskPolicy.objects.update_or_create(virtual_machine=vm, target=target, defaults={"policy": policy})
        events.record_once(kind, message, target=vm, job=job, disk=target, path=path, policy=policy.name)
