"""Encrypted vMotion: may this VM go to that host, and how.

`plan` is pure and total: for any VM and any target it answers with steps, warnings and refusals. The web process asks
it with what was last observed; the worker asks again with what both hosts tell, before it touches anything.

Rules (vSphere's):
1. an encrypted VM is always *required*: a LUKS disk that is copied without TLS travels decrypted;
2. *required* never falls back; *opportunistic* goes in clear where the pair of hosts cannot do TLS, and says so;
3. what is shared by both hosts stays where it is; the rest is copied, and destroyed at the source after the VM runs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from encryption.engine.options import Finding, gigabytes

SPARE_BYTES = 64 * 2**20


class Mode(StrEnum):
    """Encrypted vMotion, as vSphere names it."""

    DISABLED = "disabled"
    OPPORTUNISTIC = "opportunistic"
    REQUIRED = "required"


class Tls(StrEnum):
    """What a probe of the pair of hosts has found, in the direction of the move."""

    READY = "ready"
    NOT_READY = "not_ready"
    UNKNOWN = "unknown"


class StepKind(StrEnum):
    CHECK = "check"
    SEND_KEYS = "send_keys"
    CREATE_FILES = "create_files"
    TRANSFER = "transfer"
    COPY_FILES = "copy_files"
    DEFINE = "define"
    REMOVE_KEYS = "remove_keys"
    DESTROY_ORIGINALS = "destroy_originals"


@dataclass(frozen=True, slots=True)
class MovingFile:
    """The file of a disk, `part` being its name, or of the "NVRAM". `size` in bytes as the copy will have it;
    `is_shared` None: not known yet."""

    part: str
    path: str
    format: str
    size: int
    is_encrypted: bool
    is_shared: bool | None

    @property
    def is_disk(self) -> bool:
        """NVRAM needs no datastore: without one it keeps its path, on the other host's own file system."""
        return self.part != "NVRAM"


@dataclass(frozen=True, slots=True)
class MovingVm:
    """`keys_are_ours`: every secret that its definition names is held by this console. `detached`: disks that it no
    longer has and whose files stay behind. `held_by`: devices that only its host has; None where not known."""

    name: str
    host: str
    is_present: bool
    is_persistent: bool
    is_running: bool
    is_off: bool
    is_encrypted: bool
    keys_are_ours: bool
    is_changing: bool
    has_tpm: bool
    memory_bytes: int
    files: tuple[MovingFile, ...]
    mode: Mode
    host_is_connected: bool = True
    has_managed_save: bool = False
    snapshot_count: int = 0
    cpu_model: str = ""
    needs_same_cpu: bool | None = None
    detached: tuple[str, ...] = ()
    held_by: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A host that the VM may go to. `missing_media`: paths that the VM needs and the host lacks, None: not known.
    `machine_is_known` None: not asked. `free_bytes`: of the datastore; `datastore` empty: none was chosen."""

    name: str
    is_same: bool
    is_connected: bool
    is_reachable_by_hosts: bool
    memory_free_bytes: int
    cpu_model: str
    has_name: bool
    has_uuid: bool
    knows_vtpm_folder: bool
    tls: Tls
    tls_code: str = ""
    tls_reason: str = ""
    datastore: str = ""
    free_bytes: int = 0
    machine_is_known: bool | None = None
    missing_media: tuple[str, ...] | None = None
    machine: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    kind: StepKind
    text: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """`tries_tls`: the move begins under TLS. `may_fall_back`: it goes on in clear where that fails."""

    steps: tuple[Step, ...]
    warnings: tuple[Finding, ...]
    refusals: tuple[Finding, ...]
    mode: Mode
    is_live: bool
    copied: tuple[MovingFile, ...]

    @property
    def tries_tls(self) -> bool:
        return self.is_live and self.mode is not Mode.DISABLED

    @property
    def may_fall_back(self) -> bool:
        return self.mode is Mode.OPPORTUNISTIC

    @property
    def copied_bytes(self) -> int:
        return sum(file.size for file in self.copied)


def effective_mode(chosen: Mode, *, is_encrypted: bool) -> Mode:
    return Mode.REQUIRED if is_encrypted else chosen


def plan(vm: MovingVm, target: Target) -> Plan:
    """Refusals in the order in which to solve them; steps in the order in which they are done."""
    mode = effective_mode(vm.mode, is_encrypted=vm.is_encrypted)
    copied = tuple(file for file in vm.files if not _is_shared(file, target))
    refusals = (*_of_vm(vm), *_of_target(vm, target), *_of_storage(vm, target, copied), *_of_tls(vm, target, mode))
    return Plan(
        steps=tuple(_steps(vm, target, mode, copied)),
        warnings=tuple(_warnings(vm, target, mode, copied)),
        refusals=refusals,
        mode=mode,
        is_live=vm.is_running,
        copied=copied,
    )


def _is_shared(file: MovingFile, target: Target) -> bool:
    """Without a datastore to copy to, what is not known to be shared is taken for it: the worker finds out."""
    return file.is_shared is True or (file.is_shared is None and not target.datastore)


def _of_vm(vm: MovingVm) -> Iterable[Finding]:
    if not vm.is_present:
        yield Finding("vm_not_present", f"{vm.name} is no longer on {vm.host}", "refresh the host")
    if not vm.host_is_connected:
        yield Finding(
            "host_disconnected", f"{vm.host}, the host of {vm.name}, is not connected", "connect the host first"
        )
    if not vm.is_persistent:
        yield Finding("vm_transient", f"{vm.name} has no persistent definition", "define it on its host first")
    if not vm.is_running and not vm.is_off:
        yield Finding(
            "vm_crashed", f"{vm.name} is neither running nor powered off", "power it off, then migrate it cold"
        )
    if vm.is_changing:
        yield Finding(
            "change_unfinished",
            f"an encryption change of {vm.name} is not finished",
            "apply its VM Options first",
        )
    if vm.has_managed_save:
        yield Finding(
            "vm_suspended",
            f"{vm.name} is suspended to a file on {vm.host}",
            "start it and shut it down, or discard the saved state (Actions)",
        )
    if vm.snapshot_count:
        yield Finding("vm_has_snapshots", f"{vm.name} has snapshots", "delete or merge them first")
    if not vm.keys_are_ours:
        yield Finding(
            "foreign_keys",
            f"{vm.name} opens with keys that this console does not hold, so they cannot go with it",
            "import its keys first",
        )
    for device in vm.held_by or ():
        yield Finding(
            "host_device", f"{vm.name} uses {device}, which stays with {vm.host}", "remove that device from it first"
        )


def _of_target(vm: MovingVm, target: Target) -> Iterable[Finding]:
    if target.is_same:
        yield Finding("migration_same_host", f"{vm.name} is on {target.name} already", "choose another host")
        return
    if not target.is_connected:
        yield Finding("target_disconnected", f"{target.name} is not connected", "connect that host first")
    if vm.is_running and not target.is_reachable_by_hosts:
        yield Finding(
            "migration_uri_missing",
            f"how other hosts reach {target.name} is not known",
            "give it a migration URI: qemu+tls://... or qemu+ssh://... (Edit Connection)",
        )
    if target.has_uuid:
        yield Finding(
            "uuid_taken",
            f"{target.name} has a VM with the UUID of {vm.name}",
            "remove that one, or choose another host",
        )
    elif target.has_name:
        yield Finding("name_taken", f"there is a VM {vm.name} on {target.name} already", "rename one of the two")
    if vm.is_running and target.memory_free_bytes and vm.memory_bytes > target.memory_free_bytes:
        yield Finding(
            "memory_missing",
            f"{vm.name} has {gigabytes(vm.memory_bytes)} of memory, {target.name} has "
            f"{gigabytes(target.memory_free_bytes)} free",
            "free memory there, or choose another host",
        )
    if target.machine_is_known is False:
        yield Finding(
            "machine_unknown", f"{target.name} cannot run the machine {target.machine or 'type'} of {vm.name}",
            "choose a host with as new a QEMU, or give the VM an older machine type",
        )  # fmt: skip
    if vm.needs_same_cpu and vm.cpu_model != target.cpu_model:
        yield Finding(
            "cpu_incompatible",
            f"{vm.name} sees the processor of {vm.host} as it is ({vm.cpu_model}), {target.name} has "
            f"{target.cpu_model or 'another'}",
            "give the VM a named CPU model that both have",
        )
    for path in target.missing_media or ():
        yield Finding(
            "media_missing", f"{vm.name} uses {path}, which {target.name} does not have", "eject or copy it first"
        )
    if vm.has_tpm and not vm.is_running and not target.knows_vtpm_folder:
        yield Finding(
            "vtpm_state_unknown",
            f"where {target.name} keeps vTPM state is not known",
            "set the vTPM state folder of the host (Configure)",
        )


def _of_storage(vm: MovingVm, target: Target, copied: tuple[MovingFile, ...]) -> Iterable[Finding]:
    for file in vm.files:
        if not file.path.startswith("/") or file.path.startswith("/dev/"):
            yield Finding(
                "disk_not_copyable", f"{file.part} of {vm.name} is not in a file", "move it to a file datastore first"
            )
    local = [file.part for file in vm.files if file.is_shared is False and file.is_disk]
    if local and not target.datastore:
        yield Finding(
            "datastore_needed",
            f"{', '.join(local)} of {vm.name} is on storage that {target.name} does not share",
            "choose a datastore there",
        )
    needed = sum(file.size for file in copied)
    if copied and target.datastore and needed + SPARE_BYTES > target.free_bytes:
        yield Finding(
            "space_missing",
            f"{gigabytes(needed)} are needed on {target.datastore} of {target.name}, "
            f"{gigabytes(target.free_bytes)} are free",
            "free space there, or choose another datastore",
        )
    if vm.is_running:
        for file in copied:
            if file.size == 0 and file.is_disk:
                yield Finding("size_unknown", f"the size of {file.part} of {vm.name} is not known", "refresh the host")


def _of_tls(vm: MovingVm, target: Target, mode: Mode) -> Iterable[Finding]:
    if vm.is_running and mode is Mode.REQUIRED and target.tls is Tls.NOT_READY:
        yield Finding(
            target.tls_code or "migration_tls_unavailable",
            f"{vm.host} cannot migrate encrypted to {target.name}"
            + (f": {target.tls_reason}" if target.tls_reason else ""),
            "repair their certificates and probe the hosts again; required never falls back",
        )


def _steps(vm: MovingVm, target: Target, mode: Mode, copied: tuple[MovingFile, ...]) -> Iterable[Step]:
    if not vm.is_running:
        if copied:
            names = ", ".join(file.part for file in copied)
            size = sum(file.size for file in copied)
            yield Step(StepKind.COPY_FILES, f"Copy {names} to {target.name} as they are", size)
        if vm.has_tpm:
            yield Step(StepKind.COPY_FILES, f"Copy the state of the vTPM to {target.name}")
        yield Step(StepKind.DEFINE, f"Define the VM on {target.name}, then remove it from {vm.host}")
        if copied or vm.has_tpm:
            yield Step(StepKind.DESTROY_ORIGINALS, f"Overwrite and delete its files on {vm.host}")
        return
    if mode is not Mode.DISABLED:
        yield Step(StepKind.CHECK, f"Check that {vm.host} and {target.name} trust each other's certificates")
    if copied:
        names = ", ".join(file.part for file in copied)
        encrypted = ", LUKS images under the same keys" if any(file.is_encrypted for file in copied) else ""
        yield Step(StepKind.CREATE_FILES, f"Create the files of {names} on {target.name}{encrypted}")
    if vm.is_encrypted:
        yield Step(StepKind.SEND_KEYS, f"Send the VM's keys to {target.name}, if its gate lets them pass")
    how = {Mode.REQUIRED: "under TLS", Mode.OPPORTUNISTIC: "under TLS if possible", Mode.DISABLED: "in clear"}[mode]
    what = "memory" + (", vTPM state" if vm.has_tpm else "") + (" and disks" if copied else "")
    yield Step(
        StepKind.TRANSFER, f"Transfer {what} from {vm.host} to {target.name} {how}, while the VM runs",
        vm.memory_bytes + sum(file.size for file in copied),
    )  # fmt: skip
    if vm.is_encrypted:
        yield Step(StepKind.REMOVE_KEYS, f"Remove the keys from {vm.host} and from {target.name}'s libvirt")
    if copied:
        yield Step(StepKind.DESTROY_ORIGINALS, f"Overwrite and delete the files on {vm.host}")


def _warnings(vm: MovingVm, target: Target, mode: Mode, copied: tuple[MovingFile, ...]) -> Iterable[Finding]:
    if vm.is_running and mode is Mode.DISABLED:
        yield Finding(
            "travels_in_clear",
            f"Memory of {vm.name}{' and its disks' if copied else ''} will cross the network in clear",
        )
    if vm.is_running and mode is Mode.OPPORTUNISTIC and target.tls is Tls.NOT_READY:
        yield Finding(
            "will_fall_back",
            f"{vm.host} cannot migrate encrypted to {target.name}, so it will go in clear"
            + (f": {target.tls_reason}" if target.tls_reason else ""),
            "repair their certificates, or set Encrypted vMotion to Required",
        )
    if vm.is_running and mode is not Mode.DISABLED and target.tls is Tls.UNKNOWN:
        yield Finding(
            "tls_not_probed", f"Whether {vm.host} and {target.name} can do TLS is found out before anything moves"
        )
    unknown = [file.part for file in vm.files if file.is_shared is None]
    if unknown and not target.datastore:
        yield Finding(
            "sharing_assumed",
            f"{', '.join(unknown)}: both hosts must see the same storage at the same path; that is tried first",
            "choose a datastore there if they do not",
        )
    if any(file.format == "qcow2" for file in copied) and vm.is_running:
        yield Finding("format_changes", "A qcow2 disk that is copied becomes a raw image of full size")
    if vm.needs_same_cpu is None and vm.is_running and vm.cpu_model != target.cpu_model:
        yield Finding(
            "cpu_differs", f"{target.name} has another processor ({target.cpu_model}); libvirt compares their features"
        )
    if vm.detached:
        yield Finding(
            "detached_disks_stay", f"Detached disks stay on {vm.host}: {', '.join(vm.detached)}",
            "attach them first if they shall go along",
        )  # fmt: skip
    if copied:
        yield Finding(
            "overwrite_limits",
            "Overwriting does not reach copies that storage keeps itself (SSD spare blocks, copy-on-write, backups)",
        )
