"""Export: a powered-off VM as a folder that can be carried elsewhere.

The folder holds the disks, NVRAM and vTPM state as they are on the host, the definition with the wrapped keys in its
metadata, and a manifest with digests. Of an encrypted VM nothing leaves in clear: what claims to be encrypted is looked
at before it is copied. The folder is named `.partial` until it is complete.
"""

import platform
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from encryption.adapters import bundle_files
from encryption.adapters.bundle_files import BundleFileError
from encryption.engine import bundle as engine
from encryption.engine import vtpm_state
from encryption.engine.bundle import BadBundle, BundleFile, KeyPlace, Manifest, Role
from encryption.models import Bundle, VmSecurity
from encryption.services import bundles, vm_files, vm_metadata
from encryption.services.parts import opens
from encryption.services.vm_files import SizedFile
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, Unavailable
from inventory.jobs import Progress
from inventory.models import Firmware, Job, Severity, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import Hypervisor, VmFacts
from inventory.services.definitions import (
    FileRole,
    OwnFile,
    boot_files,
    check_portable,
    portable,
    set_metadata,
    with_files,
    with_logs,
)
from inventory.services.virtual_machines import vm_of

EXPORT: Final = jobs.register(jobs.JobKind("encryption.export_vm", "Export VM", queue="crypto"))
ACTION: Final = "encryption.export_vm"
LUKS_MAGIC: Final = b"LUKS\xba\xbe"
VTPM_NAME: Final = "vtpm.permall"


@transaction.atomic
def export_vm(*, vm_id: UUID, actor: Actor, in_clear: bool = False) -> Job:
    """Starts the job that writes the bundle. `in_clear` says that a plain VM's data may lie there readable.

    Raises NotFound, Refused, Conflict (`vm_running` ..., `parts_in_clear`, `keys_not_ours`, `export_in_clear`,
    `target_busy`).
    """
    vm = vm_of(vm_id)
    authorize(actor, ACTION, vm)
    vm_files.refuse_unfit(vm)
    refuse_clear(vm, in_clear=in_clear)
    job = jobs.start(EXPORT, target=vm, actor=actor, params={"in_clear": in_clear})
    events.record(
        "vm.export_requested", f"Export of {vm} requested" + (" in clear" if in_clear else ""), target=vm, actor=actor,
        job=job, in_clear=in_clear,
    )  # fmt: skip
    return job


def parts_in_clear(vm: VirtualMachine) -> list[str]:
    """Of the VM's own data: disks by name, NVRAM, vTPM state. As last observed."""
    found = list(vm.disks.filter(device="disk", is_encrypted=False).values_list("target", flat=True))
    if vm.firmware == Firmware.UEFI and not vm.is_nvram_encrypted:
        found.append("NVRAM")
    if vm.tpm_model and not vm.is_tpm_encrypted:
        found.append("vTPM state")
    return found


def is_protected(vm: VirtualMachine) -> bool:
    return vm.wrapped_secrets.exists()


def refuse_clear(vm: VirtualMachine, *, in_clear: bool) -> None:
    """Raises Conflict: `parts_in_clear` for an encrypted VM with plain parts, whatever is wished; `export_in_clear` for
    a plain one unless it is wished; `keys_not_ours`."""
    clear = parts_in_clear(vm)
    if is_protected(vm):
        if clear:
            raise Conflict(
                "parts_in_clear", f"{vm} is encrypted, but not {', '.join(clear)}: that would leave in clear",
                hint="encrypt these parts by its VM Options, or detach the disks",
            )  # fmt: skip
        return
    if vm.is_nvram_encrypted or vm.is_tpm_encrypted or vm.disks.filter(is_encrypted=True).exists():
        raise Conflict(
            "keys_not_ours", f"{vm} is encrypted with keys that this console does not have",
            hint="unlock it first, or export it where its keys are",
        )  # fmt: skip
    if clear and not in_clear:
        raise Conflict(
            "export_in_clear", f"{vm} is not encrypted: its data would lie in the exchange folder readable to all who "
            "get the folder", hint="encrypt it first, or say that it is to be exported in clear",
        )  # fmt: skip


def run_export_vm(job: Job, progress: Progress) -> None:
    """Worker side of `export_vm`."""
    vm = vm_of(job.target_id)
    name = folder_name(vm, job)
    if bundle_files.exists(bundles.exchange(), name):  # complete, and then killed
        _finish(job, vm, bundles.note(name, job=job))
        return
    progress.checkpoint(bundle=name)
    progress.step("looking at the virtual machine")
    with ExitStack() as undo:
        row, _ = Bundle.objects.update_or_create(
            folder=name,
            defaults={"vm_name": vm.name, "vm_uuid": vm.uuid, "made_by": job.actor, "made_at": timezone.now()},
        )
        undo.callback(Bundle.objects.filter(pk=row.pk).delete)
        undo.callback(bundle_files.remove, bundles.exchange(), name)
        try:
            with connections.open_host(vm.host) as hypervisor:
                sync.refresh_virtual_machine(vm, hypervisor)
                vm_files.refuse_unfit(vm)
                refuse_clear(vm, in_clear=bool(job.params["in_clear"]))
                _write(job, progress, vm, hypervisor, name)
            bundle_files.complete(bundles.exchange(), name)
        except BundleFileError as exc:
            raise Unavailable("exchange_error", str(exc), hint="look at the exchange folder") from exc
        except BadBundle as exc:
            raise Conflict("vm_not_exportable", f"{vm}: {exc}") from exc
        undo.pop_all()
    _finish(job, vm, bundles.note(name, job=job))


def folder_name(vm: VirtualMachine, job: Job) -> str:
    """<vm-name>-<date>, the same for every attempt of the job."""
    plain = re.sub("[^A-Za-z0-9._-]", "_", vm.name).lstrip("._-")[:100] or "vm"
    return f"{plain}-{job.created_at:%Y%m%d-%H%M%S}"


def _write(job: Job, progress: Progress, vm: VirtualMachine, hypervisor: Hypervisor, name: str) -> None:
    facts, xml = hypervisor.virtual_machine(vm.uuid), hypervisor.definition(vm.uuid)
    sources = [*vm_files.files_of(vm, hypervisor, facts, xml), *_boot_files(vm, hypervisor, xml)]
    named = {(one.file.role, one.file.target): _name(one.file) for one in sources}
    definition, keys = _definition(vm, facts, xml, named)
    state = _tpm_state(vm, hypervisor, facts)
    for one in sources:
        if one.file.secret_uuid is not None:
            head = hypervisor.read_file(one.file.path, offset=0, length=len(LUKS_MAGIC))
            _refuse_plain(vm, one.file.path, is_encrypted=head == LUKS_MAGIC)
    total = sum(one.size for one in sources)
    free = bundle_files.free_bytes(bundles.exchange())
    if total + vm_files.SPARE_BYTES > free:
        raise Conflict(
            "space_missing", f"{vm}: {total >> 20} MiB are needed in the exchange folder, {free >> 20} MiB are free",
            hint="delete old exports",
        )  # fmt: skip
    partial = bundle_files.begin(bundles.exchange(), name)
    progress.step("copying files", total=total)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress.advance(done)

    files = [_file(partial, engine.DEFINITION, Role.DEFINITION, "", [definition.encode()], is_encrypted=False)]
    for one in sources:
        role, is_encrypted = Role(one.file.role.value), one.file.secret_uuid is not None
        pieces = _counted(hypervisor.download(one.file.path), count)
        made = _file(
            partial, named[one.file.role, one.file.target], role, one.file.target, pieces, is_encrypted=is_encrypted
        )
        files.append(made)
    if state is not None:
        is_encrypted = facts.tpm is not None and facts.tpm.is_encrypted
        files.append(_file(partial, VTPM_NAME, Role.VTPM, "", [state], is_encrypted=is_encrypted))
    if hypervisor.virtual_machine(vm.uuid).power != "off":
        raise Conflict("vm_running", f"{vm} was started while it was copied", hint="shut it down, then export it again")
    manifest = Manifest(
        vm_uuid=vm.uuid, vm_name=vm.name, console=platform.node() or "console", made_at=timezone.now(),
        made_by=job.actor or "nobody", is_clear=any(f.role in engine.GUEST_DATA and not f.is_encrypted for f in files),
        keys=keys if any(file.is_encrypted for file in files) else None, files=tuple(files),
    )  # fmt: skip
    bundle_files.write(partial, engine.MANIFEST, [engine.to_json(manifest)])


def _definition(
    vm: VirtualMachine, facts: VmFacts, xml: str, named: dict[tuple[FileRole, str], str]
) -> tuple[str, KeyPlace | None]:
    """The definition without its host, with the wrapped keys as this console has them; checked as an import would."""
    names = dict(named)
    if facts.nvram_path and (FileRole.NVRAM, "") not in names:
        names[FileRole.NVRAM, ""] = ""  # never made: libvirt makes it where the VM first starts
    xml = with_logs(with_files(portable(xml), names), lambda number: f"console-{number}.log")
    security = VmSecurity.objects.select_related("policy", "key__cluster").filter(virtual_machine=vm).first()
    known = vm.wrapped_secrets.select_related("key")
    rows = [row for row in known if opens(facts, row)]
    element, keys = None, None
    if rows and security is not None and security.key is not None:
        element = vm_metadata.element(vm, security.policy, security.key, rows)
        owner = security.key.cluster
        keys = KeyPlace(owner.pk, owner.name, security.key.key_id)
    xml = set_metadata(xml, vm_metadata.NAMESPACE, element)
    check_portable(xml, named, metadata_namespaces=frozenset({vm_metadata.NAMESPACE}))
    return xml, keys


def _boot_files(vm: VirtualMachine, hypervisor: Hypervisor, xml: str) -> list[SizedFile]:
    found = []
    for file in boot_files(xml):
        size = hypervisor.file_size(file.path)
        if size is None:
            raise Conflict("file_missing", f"{vm}: there is no {file.path}", hint="look at its definition")
        found.append(SizedFile(file, size))
    return found


def _tpm_state(vm: VirtualMachine, hypervisor: Hypervisor, facts: VmFacts) -> bytes | None:
    """Some kilobytes; None for a TPM that was never used."""
    if facts.tpm is None:
        return None
    if facts.tpm.version == "1.2":
        raise Conflict("vm_not_exportable", f"{vm} has a TPM 1.2", hint="only TPM 2.0 is exported; remove it first")
    path = vm_files.tpm_state_file(vm)
    try:
        size = hypervisor.file_size(path)
    except connections.OperationRefused:
        return None  # not even a folder
    if size is None:
        return None
    if size > vtpm_state.MAX_STATE_BYTES:
        raise Conflict("vtpm_state_damaged", f"{vm}: {path} is too large for a vTPM's state")
    state = b"".join(hypervisor.download(path))
    if facts.tpm.is_encrypted:
        try:
            is_encrypted = vtpm_state.parse(state).encrypted
        except vtpm_state.BadState as exc:
            raise Conflict("vtpm_state_damaged", f"{vm}: {exc}") from exc
        _refuse_plain(vm, path, is_encrypted=is_encrypted)
    return state


def _refuse_plain(vm: VirtualMachine, path: str, *, is_encrypted: bool) -> None:
    if not is_encrypted:
        raise Conflict(
            "not_ciphertext", f"{vm}: {path} is not encrypted, whatever the definition says",
            hint="look at the file; nothing was exported",
        )  # fmt: skip


def _name(file: OwnFile) -> str:
    is_encrypted = file.secret_uuid is not None
    if file.role is FileRole.DISK:
        return f"{file.target}.{'luks' if is_encrypted else file.format}"
    if file.role is FileRole.NVRAM:
        return "nvram.luks" if is_encrypted else "nvram.fd"
    return file.role.value


def _file(
    folder: Path, name: str, role: Role, target: str, pieces: Iterable[bytes], *, is_encrypted: bool
) -> BundleFile:
    size, digest = bundle_files.write(folder, name, pieces)
    return BundleFile(name, role, target, size, digest, is_encrypted)


def _counted(pieces: Iterable[bytes], count: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        count(len(piece))


def _finish(job: Job, vm: VirtualMachine, made: Bundle) -> None:
    if made.state != Bundle.State.COMPLETE:
        raise Conflict("bundle_unusable", f"{made} cannot be used: {made.reason}")
    events.record(
        "vm.exported",
        f"{vm} exported to {made.folder}" + (" in clear" if made.is_clear else ""),
        target=vm, actor=job.actor, job=job, severity=Severity.WARNING if made.is_clear else Severity.INFO,
        bundle=made.folder, in_clear=made.is_clear, bytes=made.size_bytes,
    )  # fmt: skip
