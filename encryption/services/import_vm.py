"""Import: a VM from a bundle of the exchange folder onto a host.

Nobody vouches for a bundle. Order of checks and writes:

1. the manifest is parsed strictly (engine/bundle.py); the definition must have its digest and hold nothing but what is
   known to be harmless, and exactly the files of the manifest (inventory's engine/domain_portable.py);
2. what is said to be encrypted must look so, its keys must be in the definition; a qcow2 image must stand alone;
3. files go to the host under names of this job and are digested on the way: another digest, and all of them go again;
4. the definition is made, with these paths; from its metadata come the keys (adoption.py), or why it is locked.
"""

import hashlib
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final
from uuid import UUID

from django.db import transaction

from encryption.adapters import bundle_files
from encryption.adapters.bundle_files import BundleFileError
from encryption.engine import bundle as engine
from encryption.engine import metadata as vm_element
from encryption.engine import vtpm_state
from encryption.engine.bundle import BadBundle, BundleFile, Manifest, Role
from encryption.engine.metadata import BadMetadata
from encryption.models import Bundle, VmSecurity
from encryption.services import adoption, bundles, vm_files, vm_metadata
from encryption.services.export import LUKS_MAGIC
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.jobs import Progress
from inventory.models import Datastore, Host, Job, Severity, VirtualMachine
from inventory.services import connections
from inventory.services.connections import Hypervisor
from inventory.services.definitions import (
    BadDefinition,
    FileRole,
    check_portable,
    metadata,
    own_files,
    renamed,
    secrets_of,
    set_metadata,
    with_files,
    with_logs,
    with_new_identity,
    with_secrets,
)

IMPORT: Final = jobs.register(jobs.JobKind("encryption.import_vm", "Import VM", queue="crypto"))
ACTION: Final = "encryption.import_vm"
ENCRYPTED: Final = "encryption.import_encrypted_vm"
KINDS: Final = frozenset({"dir", "fs", "netfs"})
_HEAD_BYTES: Final = 104


class Identity(StrEnum):
    """MOVE: the same VM goes on here. COPY: another UUID and MAC addresses; its TPM is the same."""

    MOVE = "move"
    COPY = "copy"


def datastores(host: Host) -> list[Datastore]:
    """Those that can take an imported VM."""
    return list(Datastore.objects.filter(host=host, is_active=True, kind__in=KINDS).exclude(path=""))


@transaction.atomic
def import_vm(
    *, bundle_id: UUID, host_id: UUID, datastore_id: UUID, name: str, actor: Actor, identity: Identity = Identity.MOVE
) -> Job:
    """Starts the job that imports the bundle as `name`. Raises NotFound, Refused, Invalid (`name_invalid`,
    `datastore_unsupported`), Conflict (`bundle_unusable`, `host_disconnected`, `name_taken`, `vm_exists`,
    `target_busy`)."""
    host = Host.objects.filter(pk=host_id).first()
    if host is None:
        raise NotFound("host_not_found", f"there is no host {host_id}")
    authorize(actor, ACTION, host)
    found = bundles.bundle(bundle_id, actor=actor)
    if found.key_id or found.kms_cluster is not None:
        authorize(actor, ENCRYPTED, host)
    if found.state != Bundle.State.COMPLETE:
        raise Conflict("bundle_unusable", f"{found} cannot be imported: {found.reason or found.get_state_display()}")
    if host.state != Host.State.CONNECTED:
        raise Conflict("host_disconnected", f"{host} is not connected", hint="connect the host first")
    vm_files.refuse_name(host, name)
    _datastore(host, datastore_id)
    if identity is Identity.MOVE and found.vm_uuid is not None:
        _refuse_second(found.vm_uuid)
    params = {"host": str(host.pk), "datastore": str(datastore_id), "name": name, "identity": identity.value}
    job = jobs.start(IMPORT, target=found, actor=actor, params=params)
    events.record(
        "vm.import_requested", f"Import of {found} as {name} requested", target=host, actor=actor, job=job,
        bundle=found.folder, name=name, identity=identity.value,
    )  # fmt: skip
    return job


def _datastore(host: Host, datastore_id: UUID | str) -> Datastore:
    found = Datastore.objects.filter(pk=datastore_id, host=host).first()
    if found is None:
        raise NotFound("datastore_not_found", f"{host} has no datastore {datastore_id}")
    if not found.is_active or found.kind not in KINDS or not found.path:
        raise Invalid(
            "datastore_unsupported", f"datastore {found} of {host} cannot take files", hint="choose a folder datastore"
        )
    return found


def _refuse_second(vm_uuid: UUID) -> None:
    present = VirtualMachine.objects.filter(uuid=vm_uuid, is_present=True).select_related("host").first()
    if present is not None:
        raise Conflict(
            "vm_exists", f"this VM is here already: {present} on {present.host}",
            hint="import it as a copy, with a new identity, or remove that one from its host first",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Import:
    """One run of the job. `folder`: where the VM's files go on the host."""

    job: Job
    bundle: str
    manifest: Manifest
    host: Host
    uuid: UUID
    name: str
    identity: Identity
    folder: str

    def place(self, file: BundleFile) -> str:
        ending = posixpath.splitext(file.name)[1]
        return posixpath.join(self.folder, f"{file.target or file.role.value}-{self.job.pk.hex[:8]}{ending}")

    def files(self) -> list[BundleFile]:
        """Those that go into the VM's folder."""
        return [file for file in self.manifest.files if file.role not in (Role.DEFINITION, Role.VTPM)]


def run_import_vm(job: Job, progress: Progress) -> None:
    """Worker side of `import_vm`."""
    progress.step("reading the bundle")
    host = Host.objects.filter(pk=job.params["host"]).first()
    if host is None:
        raise NotFound("host_not_found", "the host is no longer in the inventory")
    try:
        wanted = _wanted(job, host)
        definition = _definition(wanted)
        _check_heads(wanted)
        with connections.open_host(host) as hypervisor:
            made = _carry_out(wanted, definition, hypervisor, progress)
    except (BadBundle, BundleFileError) as exc:
        raise Invalid("bundle_refused", f"{job.target_name}: {exc}", hint="export the VM again") from exc
    is_locked = VmSecurity.objects.filter(virtual_machine=made, locked_at__isnull=False).exists()
    events.record(
        "vm.imported", f"{made} imported on {host}" + (", locked" if is_locked else ""), target=made, actor=job.actor,
        job=job, severity=Severity.WARNING if is_locked else Severity.INFO, bundle=job.target_name,
        identity=wanted.identity.value, host=host.name,
    )  # fmt: skip


def _wanted(job: Job, host: Host) -> _Import:
    manifest = bundles.read_manifest(job.target_name)
    identity, name = Identity(job.params["identity"]), str(job.params["name"])
    store = _datastore(host, job.params["datastore"])
    return _Import(
        job, job.target_name, manifest, host,
        manifest.vm_uuid if identity is Identity.MOVE else uuid.uuid5(job.pk, "import"),
        name, identity, posixpath.join(store.path, name),
    )  # fmt: skip


def _definition(wanted: _Import) -> str:
    """The definition as it came, checked. Raises BadBundle, BundleFileError, Invalid `definition_refused`."""
    file = wanted.manifest.file(Role.DEFINITION)
    assert file is not None  # noqa: S101  a manifest has one
    content = b"".join(bundle_files.pieces(bundles.exchange(), wanted.bundle, file.name, size=file.size))
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise BadBundle("its definition was changed: the digest is another")
    try:
        xml = content.decode()
        named = {(FileRole(one.role.value), one.target): one.name for one in wanted.files()}
        check_portable(xml, named, metadata_namespaces=frozenset({vm_metadata.NAMESPACE}))
        _check_keys(wanted.manifest, xml)
    except UnicodeDecodeError as exc:
        raise BadBundle("its definition is no text") from exc
    except (BadDefinition, BadMetadata) as exc:
        code = exc.code if isinstance(exc, BadDefinition) else "metadata_damaged"
        hint = exc.hint if isinstance(exc, BadDefinition) else ""
        raise Invalid(code, f"{wanted.bundle}: {exc}", hint=hint) from exc
    return xml


def _check_keys(manifest: Manifest, xml: str) -> None:
    """What is encrypted is so in the definition too, and the definition holds the keys of nothing but this VM's."""
    text = metadata(xml, vm_metadata.NAMESPACE)
    held = frozenset() if text is None else frozenset(one.secret_uuid for one in vm_element.from_xml(text).secrets)
    if secrets_of(xml) - held:
        raise BadBundle("its definition names secrets whose wrapped keys it does not hold")
    for file in own_files(xml):
        listed = manifest.file(Role(file.role.value), file.target)
        if listed is not None and listed.is_encrypted != (file.secret_uuid is not None):
            raise BadBundle(f"{listed.name} is encrypted by the manifest and not by the definition, or the reverse")


def _check_heads(wanted: _Import) -> None:
    for file in wanted.manifest.files:
        head = bundle_files.head(bundles.exchange(), wanted.bundle, file.name, length=_HEAD_BYTES)
        if file.role is Role.VTPM:
            try:
                is_encrypted = vtpm_state.parse(head, file_bytes=file.size).encrypted
            except vtpm_state.BadState as exc:
                raise BadBundle(str(exc)) from exc
            if is_encrypted != file.is_encrypted:
                raise BadBundle("its vTPM state is not encrypted as it claims")
        elif file.is_encrypted and head[: len(LUKS_MAGIC)] != LUKS_MAGIC:
            raise BadBundle(f"{file.name} is not encrypted as it claims")
        elif file.name.endswith(".qcow2"):
            engine.refuse_backing(head)


def _carry_out(wanted: _Import, definition: str, hypervisor: Hypervisor, progress: Progress) -> VirtualMachine:
    is_ours = bool(wanted.job.checkpoint.get("defining"))  # a killed attempt came this far
    progress.checkpoint(uuid=str(wanted.uuid))  # adoption.py leaves it to this job
    if not (vm_files.has_vm(hypervisor, wanted.uuid) and is_ours):
        if wanted.identity is Identity.MOVE:
            _refuse_second(wanted.uuid)
            if vm_files.has_vm(hypervisor, wanted.uuid):
                raise Conflict("vm_exists", f"{wanted.host} has a VM with the UUID {wanted.uuid} already")
        vm_files.refuse_name(wanted.host, wanted.name)
        with ExitStack() as undo:
            xml = _made(wanted, definition, hypervisor, progress, undo)
            progress.step("defining the virtual machine")
            progress.checkpoint(defining=True)
            hypervisor.define(xml)
            undo.pop_all()
    return adoption.taken_in(wanted.host, wanted.uuid, hypervisor, job=wanted.job)


def _made(wanted: _Import, xml: str, hypervisor: Hypervisor, progress: Progress, undo: ExitStack) -> str:
    """Puts the files on the host and gives the definition that names them."""
    places = {(FileRole(file.role.value), file.target): wanted.place(file) for file in wanted.files()}
    xml = renamed(xml, wanted.name)
    if wanted.identity is Identity.COPY:
        xml = _with_new_secrets(with_new_identity(xml, wanted.uuid))
    xml = with_logs(with_files(xml, places), lambda number: posixpath.join(wanted.folder, f"console{number or ''}.log"))
    files = wanted.files()
    total = sum(file.size for file in files)
    vm_files.check_space(hypervisor, posixpath.dirname(wanted.folder), total, wanted.bundle)
    hypervisor.make_folder(wanted.folder)
    undo.callback(hypervisor.remove_folder, wanted.folder)
    progress.step("copying files", total=total)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress.advance(done)

    for file in files:
        place = wanted.place(file)
        hypervisor.delete_file(place, wipe=False)
        undo.callback(hypervisor.delete_file, place, wipe=False)
        hypervisor.upload(place, size=file.size, blocks=vm_files.blocks(_digested(wanted, file), count))
    state = wanted.manifest.file(Role.VTPM)
    if state is not None:
        _put_tpm_state(wanted, state, hypervisor, progress, undo)
    return xml


def _digested(wanted: _Import, file: BundleFile) -> Iterator[bytes]:
    """The file's content; raises BadBundle at its end where the digest is another."""
    digest = hashlib.sha256()
    for piece in bundle_files.pieces(bundles.exchange(), wanted.bundle, file.name, size=file.size):
        digest.update(piece)
        yield piece
    if digest.hexdigest() != file.sha256:
        raise BadBundle(f"{file.name} was changed or is damaged: its digest is another")


def _with_new_secrets(xml: str) -> str:
    """Secrets of its own for a copy, in the definition and in its metadata; the wrapped keys are the same."""
    text = metadata(xml, vm_metadata.NAMESPACE)
    if text is None:
        return xml
    found = vm_element.from_xml(text)
    swapped = {one.secret_uuid: uuid.uuid4() for one in found.secrets}
    fresh = tuple(replace(one, secret_uuid=swapped[one.secret_uuid]) for one in found.secrets)
    element = vm_element.to_xml(replace(found, secrets=fresh))
    return set_metadata(with_secrets(xml, swapped), vm_metadata.NAMESPACE, element)


def _put_tpm_state(
    wanted: _Import, file: BundleFile, hypervisor: Hypervisor, progress: Progress, undo: ExitStack
) -> None:
    content = b"".join(_digested(wanted, file))
    place = vm_files.tpm_state_file(
        VirtualMachine(host=wanted.host, uuid=wanted.uuid, name=wanted.name, tpm_version="2.0")
    )
    folder = posixpath.dirname(place)
    hypervisor.make_folder(folder)
    if hypervisor.file_size(place) is not None:
        if not wanted.job.checkpoint.get("tpm"):
            raise Conflict(
                "vtpm_state_exists", f"{wanted.host} has vTPM state of this VM already: {place}",
                hint="it is of an earlier stay there: move that file away, or import the VM as a copy",
            )  # fmt: skip
        hypervisor.delete_file(place, wipe=True)
    progress.checkpoint(tpm=True)
    undo.callback(hypervisor.remove_folder, posixpath.dirname(folder))
    undo.callback(hypervisor.remove_folder, folder)
    undo.callback(hypervisor.delete_file, place, wipe=True)
    hypervisor.upload(place, size=len(content), blocks=[(0, content)])
