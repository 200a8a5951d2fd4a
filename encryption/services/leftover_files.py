"""Worker side of the leftovers: looking through a host's folders, and destroying one file.

Nothing is destroyed on the word of a row: right before, the file is read again, and every definition on the host and
every row of other hosts is looked through for its path.
"""

import hashlib
import posixpath
from collections import defaultdict
from collections.abc import Iterable
from uuid import UUID

from django.db import transaction

from encryption.adapters import image_files
from encryption.adapters.image_files import ImageFileError
from encryption.engine import leftovers as engine
from encryption.engine.leftovers import HEAD_BYTES, FoundFile, KnownVm
from encryption.models import Leftover, Purpose, Stage, WrappedSecret
from encryption.services import exposure
from encryption.services.leftovers import refuse_kept, review_alarm
from inventory import events
from inventory.errors import Conflict, NotFound
from inventory.jobs import Progress
from inventory.models import LIVE_STATUSES, Datastore, Disk, Host, Job, Severity, TargetKind, VirtualMachine
from inventory.services import connections, definitions, sync
from inventory.services.connections import Hypervisor, HypervisorError, reaches_files, vtpm_state_path
from inventory.services.saved_state import managed_save_path

FOLDER_KINDS = frozenset({"dir", "fs", "netfs"})


def run_find_leftovers(job: Job, progress: Progress) -> None:
    """The work of `encryption.find_leftovers`. Rows of what is no longer there go, kept or not."""
    host = _host(job)
    progress.step("reading the virtual machines")
    with connections.open_host(host) as hypervisor:
        sync.sync_host(host, hypervisor, actor=job.actor, job=job)
        found = _find(host, hypervisor, progress)
    with transaction.atomic():
        new = _write(host, found)
        if new:
            events.record(
                "host.leftovers_found", f"{host}: {len(new)} files with data of encrypted VMs in clear were found",
                target=host, actor=job.actor, severity=Severity.WARNING, job=job, paths=[row.path for row in new[:50]],
            )  # fmt: skip
        review_alarm(host)
        exposure.review_host(host)


def _find(host: Host, hypervisor: Hypervisor, progress: Progress) -> list[tuple[engine.Finding, str]]:
    """Findings, each with the fingerprint of its file."""
    vms = known_vms()
    used = used_paths(host)
    listed: dict[str, FoundFile] = {}
    progress.step("listing files")
    for folder in folders_of(host):
        for facts in hypervisor.list_files(folder):
            listed[facts.path] = FoundFile(facts.path, facts.size, facts.capacity, facts.backing)
        progress.advance(len(listed))
    used = engine.backing_chain(listed.values(), used)
    progress.step("looking into files", total=len(listed))
    read: dict[str, FoundFile] = {}
    for number, file in enumerate(listed.values()):
        progress.advance(number)
        read[file.path] = file if file.size == 0 else _with_head(hypervisor, file)
    return [(one, fingerprint(read[one.path])) for one in engine.classify(read.values(), vms, used)]


def _with_head(hypervisor: Hypervisor, file: FoundFile) -> FoundFile:
    """A file that cannot be read is nothing that could be told; it stays without content."""
    try:
        head = hypervisor.read_file(file.path, offset=0, length=HEAD_BYTES)
    except connections.HostUnreachable:
        raise
    except HypervisorError:
        head = b""
    return FoundFile(file.path, file.size, file.capacity, file.backing, head)


def fingerprint(file: FoundFile) -> str:
    return hashlib.sha256(f"{file.size}:".encode() + file.head).hexdigest()


def folders_of(host: Host) -> list[str]:
    """Its datastores, where libvirt keeps states of guests, where this console has put files; none below another."""
    stores = Datastore.objects.filter(host=host, is_active=True, kind__in=FOLDER_KINDS).exclude(path="")
    wanted = set(stores.values_list("path", flat=True))
    state = connections.state_folder(host)
    if state is not None:
        wanted |= {f"{state}/{name}" for name in ("save", "dump", "nvram", "snapshot")}
    if (base := connections.vtpm_states_folder(host)) is not None:
        wanted.add(base)
    rows = WrappedSecret.objects.filter(virtual_machine__host=host).exclude(purpose=Purpose.VTPM)
    for path, plain_path in rows.values_list("path", "plain_path"):
        wanted |= {posixpath.dirname(one) for one in (path, plain_path) if one.startswith("/")}
    kept: list[str] = []
    for folder in sorted(posixpath.normpath(one) for one in wanted):
        if folder != "/" and not any(folder == above or folder.startswith(f"{above}/") for above in kept):
            kept.append(folder)
    return kept


def known_vms() -> list[KnownVm]:
    """All VMs of the inventory, by two queries: hosts may share storage."""
    busy = set(
        Job.objects.filter(status__in=LIVE_STATUSES, target_kind=TargetKind.VIRTUAL_MACHINE).values_list(
            "target_id", flat=True
        )
    )
    rows: dict[UUID, list[WrappedSecret]] = defaultdict(list)
    for row in WrappedSecret.objects.defer("wrapped"):
        rows[row.virtual_machine_id].append(row)
    vms = VirtualMachine.objects.values_list("pk", "uuid", "name", "is_tpm_encrypted")
    return [_known(pk, uuid, name, is_tpm, rows.get(pk, []), pk in busy) for pk, uuid, name, is_tpm in vms]


def _known(
    pk: UUID, uuid: UUID, name: str, has_encrypted_tpm: bool, rows: list[WrappedSecret], is_busy: bool
) -> KnownVm:
    files = [row for row in rows if row.purpose != Purpose.VTPM]
    half = {row.path for row in files if row.stage == Stage.ENCRYPTING}
    half |= {row.plain_path for row in files if row.stage == Stage.DECRYPTING}
    return KnownVm(
        id=pk,
        uuid=uuid,
        name=name,
        is_protected=bool(rows),
        has_encrypted_tpm=has_encrypted_tpm,
        encrypted=frozenset(row.path for row in files),
        plain_paths=frozenset(row.plain_path for row in files if row.plain_path and row.plain_path != row.path),
        half_written=frozenset() if is_busy else frozenset(half - {""}),
        sizes=frozenset(row.size_bytes for row in files if row.purpose == Purpose.DISK),
    )


def used_paths(host: Host) -> frozenset[str]:
    """Every path that a row of any VM on any host names, vTPM folders in use, and files of VMs that a job works on."""
    used = set(Disk.objects.exclude(source="").values_list("source", flat=True))
    used |= set(VirtualMachine.objects.exclude(nvram_path="").values_list("nvram_path", flat=True))
    for vm in VirtualMachine.objects.filter(host=host, is_present=True).exclude(tpm_model="").select_related("host"):
        used.add(vtpm_state_path(vm) or "")
    live = Job.objects.filter(status__in=LIVE_STATUSES, target_kind=TargetKind.VIRTUAL_MACHINE)
    busy = WrappedSecret.objects.filter(virtual_machine__in=live.values("target_id"))
    for path, plain_path in busy.values_list("path", "plain_path"):
        used |= {path, plain_path}
    return frozenset(posixpath.normpath(path) for path in used - {""}) | (frozenset(used) - {""})


def _write(host: Host, found: Iterable[tuple[engine.Finding, str]]) -> list[Leftover]:
    """The rows as found now; those that were not there before. One that is another file now is judged anew."""
    known = {row.path: row for row in Leftover.objects.select_for_update().filter(host=host)}
    present: set[str] = set()
    new: list[Leftover] = []
    for finding, digest in found:
        present.add(finding.path)
        row = known.get(finding.path) or Leftover(host=host, path=finding.path)
        is_new = finding.path not in known
        if not is_new and row.fingerprint != digest:
            row.kept_at, row.kept_by, row.kept_reason = None, "", ""
        row.kind, row.size_bytes, row.fingerprint = finding.kind.value, finding.size, digest
        row.evidence, row.virtual_machine_id = list(finding.evidence), finding.vm_id
        row.save()
        if is_new:
            new.append(row)
    Leftover.objects.filter(pk__in=[row.pk for path, row in known.items() if path not in present]).delete()
    return new


def run_destroy_leftover(job: Job, progress: Progress) -> None:
    """The work of `encryption.destroy_leftover`:

    1. the file is still what was found;
    2. no definition on the host, live or of the next start, and no row of another host names it;
    3. overwritten and deleted, by the worker where it reaches the file, else through the host.
    """
    host = _host(job)
    row = Leftover.objects.select_related("host", "virtual_machine").filter(pk=job.params["leftover"]).first()
    if row is None:
        return  # destroyed by an earlier run of this job, or found to be gone
    refuse_kept(row)
    progress.step("looking at the file again")
    with connections.open_host(host) as hypervisor:
        size = hypervisor.file_size(row.path)
        if size is not None:
            _check_same(row, hypervisor, size)
            refuse_used(host, hypervisor, row.path)
            progress.step("overwriting and deleting")
            _destroy(row, hypervisor)
            if row.kind == Leftover.Kind.VTPM_STATE:
                hypervisor.remove_folder(posixpath.dirname(row.path))
    with transaction.atomic():
        row.delete()
        events.record(
            "leftover.destroyed", f"{row.path} on {host} was overwritten and deleted" if size is not None else
            f"{row.path} on {host} was gone already", target=host, actor=job.actor, job=job, path=row.path,
            size=row.size_bytes,
        )  # fmt: skip
        review_alarm(host)
        exposure.review_host(host)


def _check_same(row: Leftover, hypervisor: Hypervisor, size: int) -> None:
    head = hypervisor.read_file(row.path, offset=0, length=HEAD_BYTES) if size else b""
    if fingerprint(FoundFile(row.path, size, head=head)) != row.fingerprint:
        raise Conflict(
            "leftover_changed",
            f"{row.path} is not the file that was found: its size or its first bytes differ",
            hint="look for leftovers again, and judge it anew",
        )


def refuse_used(host: Host, hypervisor: Hypervisor, path: str) -> None:
    """Raises Conflict `leftover_in_use`. Rows answer for other hosts, definitions as they are now for this one."""
    known = {path, posixpath.dirname(path)}
    if known & used_paths(host):
        raise _in_use(path, "a virtual machine of this console")
    for facts in hypervisor.virtual_machines():
        texts = [hypervisor.definition(facts.uuid), hypervisor.live_definition(facts.uuid) or ""]
        if any(text and definitions.names_path(text, path) for text in texts):
            raise _in_use(path, facts.name)
    used = used_paths(host)
    folder = posixpath.dirname(path)
    files = [FoundFile(one.path, one.size, one.capacity, one.backing) for one in hypervisor.list_files(folder)]
    if path in engine.backing_chain(files, used) - used:
        raise _in_use(path, "another image, as its backing file")


def _in_use(path: str, user: str) -> Conflict:
    return Conflict("leftover_in_use", f"{path} is used by {user}", hint="look for leftovers again")


def _destroy(row: Leftover, hypervisor: Hypervisor) -> None:
    vm = row.virtual_machine
    if vm is not None and vm.has_managed_save and vm.host_id == row.host_id and row.path == managed_save_path(vm):
        hypervisor.discard_managed_save(vm.uuid, path=row.path)
        sync.refresh_virtual_machine(vm, hypervisor)
        return
    if not reaches_files(row.host):
        hypervisor.delete_file(row.path, wipe=True)
        return
    try:
        image_files.destroy(row.path)
    except ImageFileError as exc:
        raise Conflict(
            "file_not_destroyed", f"{row.host}: {exc}", hint="see who uses it, then destroy it again"
        ) from exc


def _host(job: Job) -> Host:
    found = Host.objects.filter(pk=job.target_id).first()
    if found is None:
        raise NotFound("host_not_found", f"{job.target_name} is no longer in the inventory")
    return found
