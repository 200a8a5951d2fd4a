"""Worker side of new_vm.py. Order of writes, so that a kill at any point loses nothing and can be repeated:

1. the KEK is made at the KMS;
2. data keys are drawn, and wrapped under it, in this process only;
3. the files, each with its LUKS header first, under names with the job's number; nothing in them is worth keeping yet;
4. the definition, with the wrapped keys in its metadata: from now on the VM is there, and its keys with it;
5. rows from that metadata (adoption.py), policies, the event.

A job that runs again before 4 begins anew over its own leftovers, with other keys; after 4 it does 5.
"""

import posixpath
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import UUID

from django.db import transaction

from encryption.adapters import image_files
from encryption.adapters.image_files import ImageFileError
from encryption.engine import keywrap, luks
from encryption.engine import options as engine
from encryption.engine.convert import Conversion
from encryption.engine.image import ImageError, whole_sectors
from encryption.engine.options import KEY_CODES, Approved
from encryption.engine.secret import Secret
from encryption.models import EncryptedVmotion, Key, VmSecurity, WrappedSecret
from encryption.services import adoption, in_memory, new_vm, new_vm_definition, vm_files, vm_metadata, vmotion
from encryption.services import options as vm_options
from encryption.services.change import DATA_KEY_BYTES
from encryption.services.key_access import fetched_key, make_key, new_key_name
from encryption.services.new_vm import NewVm
from encryption.services.new_vm_definition import NVRAM, VTPM
from encryption.services.switching import variables_template
from inventory import events
from inventory.errors import Conflict
from inventory.jobs import Progress
from inventory.models import Datastore, Job, VirtualMachine
from inventory.services import connections
from inventory.services.connections import Hypervisor, HypervisorError


@dataclass(frozen=True, slots=True)
class _Creation:
    job: Job
    new: NewVm
    store: Datastore
    uuid: UUID
    files: dict[str, str]

    @property
    def folder(self) -> str:
        return posixpath.join(self.store.path, self.new.name)


def run_create_vm(job: Job, progress: Progress) -> None:
    """The work of `encryption.create_vm`."""
    new = NewVm.from_params(job.params)
    store = new_vm.checked_store(new)
    files = new_vm_definition.places(new, store, job.pk.hex[:8])
    wanted = _Creation(job, new, store, uuid.uuid5(job.pk, "create"), files)
    progress.checkpoint(uuid=str(wanted.uuid))  # adoption.py leaves it to this job
    progress.step("looking at the host")
    with connections.open_host(store.host) as hypervisor:
        if not vm_files.has_vm(hypervisor, wanted.uuid):
            _check(wanted)
            with ExitStack() as undo:
                xml = _made(wanted, hypervisor, progress, undo)
                progress.step("defining the virtual machine")
                hypervisor.define(xml)
                undo.pop_all()
        made = adoption.taken_in(store.host, wanted.uuid, hypervisor, job=job)
    _finish(wanted, made)


def _check(wanted: _Creation) -> None:
    """Whether the plan is still the one that was approved, before anything is made."""
    new, host = wanted.new, wanted.store.host
    vm_files.refuse_name(host, new.name)
    made = new_vm.plan_of(new, host)
    new_vm.refuse(new, made, but_for=KEY_CODES)
    told = engine.differences(Approved.from_params(wanted.job.params["plan"]), Approved.of(made, ""))
    if told:
        raise Conflict(
            "plan_outdated", f"the plan of {new.name} is another one by now: {'; '.join(told)}"[:900],
            hint="nothing was made; look at the new plan, then create",
        )  # fmt: skip


def _made(wanted: _Creation, hypervisor: Hypervisor, progress: Progress, undo: ExitStack) -> str:
    """Makes the files and gives the definition. `undo` takes everything back."""
    new, host = wanted.new, wanted.store.host
    if any(one.name == new.name for one in hypervisor.virtual_machines()):
        raise Conflict("name_taken", f"there is a VM {new.name} on {host} already", hint="choose another name")
    needed = sum(disk.size_bytes for disk in new.disks)
    vm_files.check_space(hypervisor, wanted.store.path, needed, new.name)
    parts = new_vm_definition.secret_parts(new)
    element, keys = _keys(wanted, parts, progress, undo) if parts else (None, {})
    secrets = {part: secret for part, (secret, _) in keys.items()}
    xml = new_vm_definition.definition(
        new, host, wanted.uuid, files=wanted.files, secrets=secrets, element=element
    )  # refused, if at all, before the first byte
    hypervisor.make_folder(wanted.folder)
    undo.callback(hypervisor.remove_folder, wanted.folder)
    for target, disk in zip(new.targets, new.disks, strict=True):
        progress.step(f"making {target}")
        head = luks.create(_passphrase(keys[target][1])).header_bytes if target in keys else b""
        size = len(head) + whole_sectors(disk.size_bytes)
        _create(wanted.files[target], size, head, hypervisor, undo)
    if NVRAM in keys:
        progress.step("making NVRAM")
        image = _variables(wanted, hypervisor, _passphrase(keys[NVRAM][1]))
        _create(wanted.files[NVRAM], len(image), image, hypervisor, undo)
    return xml


def _create(path: str, size: int, head: bytes, hypervisor: Hypervisor, undo: ExitStack) -> None:
    hypervisor.delete_file(path, wipe=False)  # of an earlier run of this job: the name is its own
    undo.callback(hypervisor.delete_file, path, wipe=False)
    hypervisor.create_file(path, size=size, head=head)


def _passphrase(data_key: Secret) -> Secret:
    return Secret(data_key.passphrase_text())


def _keys(
    wanted: _Creation, parts: tuple[str, ...], progress: Progress, undo: ExitStack
) -> tuple[str | None, dict[str, tuple[UUID, Secret]]]:
    """The metadata's element, and by part the secret's UUID and the data key."""
    new, job = wanted.new, wanted.job
    progress.step("creating a key at the key provider")
    # Not a row: the KMS is told whose key it will be before that VM exists.
    named = VirtualMachine(host=wanted.store.host, uuid=wanted.uuid, name=new.name)
    provider = vm_options.kms_cluster_of(named, new.wish)
    key = make_key(provider, named, name=new_key_name(named, job.pk), job=job, about=wanted.store.host)
    undo.callback(_tell_unused, wanted, key)
    drawn = {part: (uuid.uuid4(), Secret.generate(DATA_KEY_BYTES)) for part in parts}
    rows = new_vm_definition.rows_of(new, named, key, {part: secret for part, (secret, _) in drawn.items()})
    with fetched_key(key) as kek:
        _wrap(rows, drawn, kek)
    return vm_metadata.element(named, vm_options.home_policy(new.wish), key, rows), drawn


def _tell_unused(wanted: _Creation, key: Key) -> None:
    """It is left at the KMS: to destroy it is for ever, and only a person knows whether anything was copied."""
    events.record_once(
        "key.unused",
        f"Key {key} protects nothing: {wanted.new.name}, which it was made for, was not made; destroy it under Key "
        "Providers if it is not wanted",
        target=key.cluster, job=wanted.job, key_id=key.key_id,
    )  # fmt: skip


def _wrap(rows: list[WrappedSecret], drawn: dict[str, tuple[UUID, Secret]], kek: Secret) -> None:
    for row in rows:
        row.wrapped = keywrap.wrap(kek, drawn[row.target or row.purpose][1])


def _variables(wanted: _Creation, hypervisor: Hypervisor, passphrase: Secret) -> bytes:
    """The firmware's own first variables, as a LUKS image that is made in memory."""
    template = variables_template(new_vm_definition.loader_of(wanted.new, wanted.store.host))
    try:
        content = hypervisor.read_file(template, offset=0, length=image_files.MAX_TEMPLATE + 1)
        image_files.check_variable_store(template, content)
        return in_memory.converted(Conversion(len(content), None, passphrase), content)
    except (HypervisorError, ImageFileError, ImageError, luks.LuksError) as exc:
        raise Conflict(
            "variables_not_made", f"{wanted.new.name}: its UEFI variables cannot be made: {exc}",
            hint=f"look at {template} on {wanted.store.host}",
        ) from exc  # fmt: skip


def _finish(wanted: _Creation, made: VirtualMachine) -> None:
    new, job = wanted.new, wanted.job
    policy = vm_options.home_policy(new.wish)
    with transaction.atomic():
        VmSecurity.objects.filter(virtual_machine=made).update(policy=policy)
        vm_options.record_disk_policies(made, new.wish)
        if new.encrypted_vmotion is not None and not policy.encrypts:
            vmotion.write_mode(made, EncryptedVmotion(new.encrypted_vmotion.value), actor=job.actor, job=job)
        events.record_once(
            "vm.created", f"{made} was made on {made.host}" + (f", under {policy}" if policy.encrypts else ""),
            target=made, job=job, policy=policy.name, vtpm=VTPM in new_vm_definition.secret_parts(new),
            disks=[f"{target}: {disk.size_bytes}" for target, disk in zip(new.targets, new.disks, strict=True)],
            plan_digest=str(job.params["plan"]["digest"]),
        )  # fmt: skip
