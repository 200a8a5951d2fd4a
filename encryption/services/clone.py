"""Clone: a second VM on the same host from the files of a powered-off one.

Order of writes: the files, then the definition with the wrapped keys in its metadata, then rows from that metadata
(adoption.py). Until the definition stands, a cancelled or failed clone leaves nothing; a killed one begins anew over
its own leftovers, which bear the job's number. LUKS images are copied as they are: same volume key, same passphrase,
which is wrapped anew. Data travel through the worker, so it works for any host.
"""

import posixpath
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from django.db import transaction

from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.models import DiskPolicy, Key, Purpose, VmSecurity, WrappedSecret
from encryption.services import adoption, vm_files, vm_metadata
from encryption.services.change import DATA_KEY_BYTES
from encryption.services.key_access import fetched_key, make_key, new_key_name
from encryption.services.parts import opens
from encryption.services.release import open_secrets
from encryption.services.vm_files import SizedFile
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.jobs import Progress
from inventory.models import Job, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import Hypervisor, VmFacts
from inventory.services.definitions import (
    FileRole,
    OwnFile,
    renamed,
    set_metadata,
    with_files,
    with_logs,
    with_new_identity,
    with_secrets,
)
from inventory.services.virtual_machines import vm_of

CLONE: Final = jobs.register(jobs.JobKind("encryption.clone_vm", "Clone VM", queue="crypto"))
ACTION: Final = "encryption.clone_vm"


class KeyChoice(StrEnum):
    """NEW: a KEK of its own. SAME: the original's; a change of one VM's key is then none of the other's."""

    NEW = "new"
    SAME = "same"


class TpmChoice(StrEnum):
    """COPY: the same TPM twice, with all its keys. REPLACE: a new one at the first start, with another identity."""

    COPY = "copy"
    REPLACE = "replace"


@transaction.atomic
def clone_vm(
    *, vm_id: UUID, name: str, actor: Actor, key: KeyChoice = KeyChoice.NEW, vtpm: TpmChoice = TpmChoice.COPY
) -> Job:
    """Starts the job that makes the clone `name`. Raises NotFound, Refused, Invalid `name_invalid`, Conflict
    (`vm_running`, `vm_has_snapshots`, `vm_suspended`, `change_unfinished`, `name_taken`, `target_busy` ...)."""
    vm = vm_of(vm_id)
    authorize(actor, ACTION, vm)
    vm_files.refuse_unfit(vm)
    vm_files.refuse_name(vm.host, name)
    job = jobs.start(CLONE, target=vm, actor=actor, params={"name": name, "key": key.value, "vtpm": vtpm.value})
    events.record(
        "vm.clone_requested", f"Clone {name} of {vm} requested", target=vm, actor=actor, job=job, name=name,
        key=key.value, vtpm=vtpm.value,
    )  # fmt: skip
    return job


@dataclass(frozen=True, slots=True)
class _Clone:
    job: Job
    vm: VirtualMachine
    uuid: UUID
    name: str
    key: KeyChoice
    vtpm: TpmChoice

    def place(self, path: str, part: str) -> str:
        """Beside the original; where that lies in a folder named after its VM, in a folder named after the clone."""
        folder, name = posixpath.split(path)
        ending = posixpath.splitext(name)[1]
        own = f"{part}-{self.job.pk.hex[:8]}{ending}"
        if posixpath.basename(folder) == self.vm.name:
            return posixpath.join(posixpath.dirname(folder), self.name, own)
        return posixpath.join(folder, f"{self.name}-{own}")


def run_clone_vm(job: Job, progress: Progress) -> None:
    """Worker side of `clone_vm`."""
    vm = vm_of(job.target_id)
    clone = _Clone(
        job, vm, uuid.uuid5(job.pk, "clone"), str(job.params["name"]), KeyChoice(job.params["key"]),
        TpmChoice(job.params["vtpm"]),
    )  # fmt: skip
    progress.checkpoint(uuid=str(clone.uuid))  # adoption.py leaves it to this job
    progress.step("looking at the virtual machine")
    with connections.open_host(vm.host) as hypervisor:
        sync.refresh_virtual_machine(vm, hypervisor)
        if not vm_files.has_vm(hypervisor, clone.uuid):
            vm_files.refuse_unfit(vm)
            vm_files.refuse_name(vm.host, clone.name)
            with ExitStack() as undo:
                xml = _made(clone, hypervisor, progress, undo)
                progress.step("defining the clone")
                hypervisor.define(xml)
                undo.pop_all()
        made = adoption.taken_in(vm.host, clone.uuid, hypervisor, job=job)
    _finish(clone, made)


def _made(clone: _Clone, hypervisor: Hypervisor, progress: Progress, undo: ExitStack) -> str:
    """Copies the files and gives the clone's definition. `undo` takes everything back."""
    vm = clone.vm
    facts, xml = hypervisor.virtual_machine(vm.uuid), hypervisor.definition(vm.uuid)
    files = vm_files.files_of(vm, hypervisor, facts, xml)
    places = {
        (one.file.role, one.file.target): clone.place(one.file.path, one.file.target or one.file.role.value)
        for one in files
    }
    state = _tpm_state(clone, hypervisor, facts)
    # What can be refused is refused before the first byte: space, names, the key provider.
    total = sum(one.size for one in files)
    for folder in sorted({posixpath.dirname(one.file.path) for one in files}):
        vm_files.check_space(hypervisor, folder, total, f"clone {clone.name}")
    home = posixpath.dirname(next(iter(places.values()), "")) or None
    xml = with_files(with_new_identity(renamed(xml, clone.name), clone.uuid), places)
    if home is not None:
        xml = with_logs(xml, lambda number: posixpath.join(home, f"{clone.name}-console{number or ''}.log"))
    xml = _with_keys(clone, facts, xml)
    progress.step("copying files", total=total)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress.advance(done)

    for one in files:
        place = places[one.file.role, one.file.target]
        _make_folder(hypervisor, posixpath.dirname(place), posixpath.dirname(one.file.path), undo)
        hypervisor.delete_file(place, wipe=False)
        undo.callback(hypervisor.delete_file, place, wipe=False)
        pieces = vm_files.blocks(iter(hypervisor.download(one.file.path)), count)
        hypervisor.upload(place, size=one.size, blocks=pieces)
    if state is not None:
        _copy_tpm_state(clone, hypervisor, state, undo)
    return xml


def _make_folder(hypervisor: Hypervisor, folder: str, original: str, undo: ExitStack) -> None:
    if folder != original:
        hypervisor.make_folder(folder)
        undo.callback(hypervisor.remove_folder, folder)


def _tpm_state(clone: _Clone, hypervisor: Hypervisor, facts: VmFacts) -> SizedFile | None:
    """The state to be copied; None where there is none, or none is wanted: swtpm then makes a new one."""
    if facts.tpm is None or clone.vtpm is TpmChoice.REPLACE:
        return None
    path = vm_files.tpm_state_file(clone.vm)
    try:
        size = hypervisor.file_size(path)
    except connections.OperationRefused:
        return None  # not even a folder: the VM never ran
    if size is None:
        return None
    return SizedFile(OwnFile(FileRole.NVRAM, "", path, "raw", facts.tpm.secret_uuid), size)


def _copy_tpm_state(clone: _Clone, hypervisor: Hypervisor, state: SizedFile, undo: ExitStack) -> None:
    place = vm_files.tpm_state_of(state.file.path, clone.uuid)
    folder = posixpath.dirname(place)
    undo.callback(hypervisor.remove_folder, posixpath.dirname(folder))
    undo.callback(hypervisor.remove_folder, folder)
    hypervisor.make_folder(folder)
    hypervisor.delete_file(place, wipe=False)
    undo.callback(hypervisor.delete_file, place, wipe=False)
    content = b"".join(hypervisor.download(state.file.path))
    hypervisor.upload(place, size=len(content), blocks=[(0, content)])


def _with_keys(clone: _Clone, facts: VmFacts, xml: str) -> str:
    """Other secrets, and metadata with their wrapped keys."""
    vm = clone.vm
    security = VmSecurity.objects.select_related("policy", "key__cluster").filter(virtual_machine=vm).first()
    known = vm.wrapped_secrets.select_related("key__cluster", "virtual_machine")
    rows = [row for row in known if opens(facts, row)]
    if security is None or security.key is None or not rows:
        return set_metadata(xml, vm_metadata.NAMESPACE, None)
    key, wrapped = _wrapped(clone, security.key, rows)
    fresh = [
        WrappedSecret(
            secret_uuid=uuid.uuid4(), virtual_machine=vm, purpose=row.purpose, target=row.target,
            key=key if clone.key is KeyChoice.NEW else row.key, wrapped=wrapped[row.pk], plain_format=row.plain_format,
            size_bytes=row.size_bytes,
        )
        for row in rows
    ]  # fmt: skip
    element = vm_metadata.element(vm, security.policy, key, fresh)
    swapped = {row.secret_uuid: one.secret_uuid for row, one in zip(rows, fresh, strict=True)}
    return set_metadata(with_secrets(xml, swapped), vm_metadata.NAMESPACE, element)


def _wrapped(clone: _Clone, old: Key, rows: Sequence[WrappedSecret]) -> tuple[Key, dict[UUID, bytes]]:
    """The clone's KEK, and its wrapped data keys by the original's secret. A replaced TPM gets a new data key."""

    def is_drawn(row: WrappedSecret) -> bool:
        return row.purpose == Purpose.VTPM and clone.vtpm is TpmChoice.REPLACE

    if clone.key is KeyChoice.SAME:
        wrapped = {row.pk: bytes(row.wrapped) for row in rows}
        for row in filter(is_drawn, rows):
            with fetched_key(row.key) as kek:
                wrapped[row.pk] = keywrap.wrap(kek, Secret.generate(DATA_KEY_BYTES))
        return old, wrapped
    opened = open_secrets(rows)
    # Not a row: the KMS is told whose key it will be before that VM exists.
    named = VirtualMachine(host=clone.vm.host, uuid=clone.uuid, name=clone.name)
    new = make_key(old.cluster, named, name=new_key_name(named, clone.job.pk), job=clone.job, about=clone.vm)
    with fetched_key(new) as kek:
        return new, {
            one.row.pk: keywrap.wrap(kek, Secret.generate(DATA_KEY_BYTES) if is_drawn(one.row) else one.data_key)
            for one in opened
        }


def _finish(clone: _Clone, made: VirtualMachine) -> None:
    vm, job = clone.vm, clone.job
    with transaction.atomic():
        for policy in DiskPolicy.objects.filter(virtual_machine=vm):
            DiskPolicy.objects.update_or_create(
                virtual_machine=made, target=policy.target, defaults={"policy": policy.policy}
            )
        events.record(
            "vm.cloned", f"{vm} cloned as {made}", target=vm, actor=job.actor, job=job, clone=str(made.pk),
            name=made.name, key=clone.key.value, vtpm=clone.vtpm.value,
        )  # fmt: skip
