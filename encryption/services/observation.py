"""Worker side of compliance: what a VM is like now, from its host. Headers only, so a few hundred bytes a part."""

from collections.abc import Iterable
from typing import Final

from encryption.adapters import image_files, swtpm
from encryption.adapters.image_files import FileMissing, ImageFileError
from encryption.engine import compliance, vtpm_state
from encryption.engine.compliance import NVRAM, VTPM, Header, ObservedPart, ObservedVm, SeenHeader
from encryption.engine.metadata import BadMetadata, ProtectedVm, from_xml
from encryption.services import vm_metadata, vtpm_files
from inventory.models import Host, VirtualMachine
from inventory.services.connections import (
    HostUnreachable,
    Hypervisor,
    HypervisorError,
    VmFacts,
    reaches_files,
    vtpm_state_path,
)
from inventory.services.definitions import BadDefinition, metadata, next_start

_MISSING: Final = "storage_missing"  # libvirt's answer for a file that is not in its folder


def observe(vm: VirtualMachine, hypervisor: Hypervisor) -> ObservedVm:
    """Raises HypervisorError where the host cannot be asked for the VM at all; a part that it does not give out is
    unreadable, and no error.

    Not looked at: CD-ROMs, floppies and read-only disks, for which no policy can be chosen.
    """
    facts = hypervisor.virtual_machine(vm.uuid)
    definition = hypervisor.definition(vm.uuid)
    defined = next_start(definition)
    element, problem = _metadata(definition)
    return ObservedVm(
        parts=tuple(_parts(vm, hypervisor, facts, defined)),
        metadata=element,
        metadata_problem=problem,
        dumps_core=defined.dumps_core,
        has_managed_save=vm.has_managed_save,
        memory_snapshot_count=vm.memory_snapshot_count,
    )


def _parts(vm: VirtualMachine, hypervisor: Hypervisor, facts: VmFacts, defined: VmFacts) -> Iterable[ObservedPart]:
    if facts.firmware == "uefi":
        seen = _image(vm.host, hypervisor, facts.nvram_path)
        yield ObservedPart(
            NVRAM, facts.nvram_path, seen, facts.nvram_secret_uuid, defined.nvram_secret_uuid, defined.nvram_path
        )
    if facts.tpm is not None:
        place = vtpm_state_path(vm)
        path = "" if place is None else str(swtpm.state_file(vtpm_files.as_path(place)))
        seen = _vtpm(vm.host, hypervisor, path)
        after = defined.tpm.secret_uuid if defined.tpm is not None else None
        yield ObservedPart(VTPM, path, seen, facts.tpm.secret_uuid, after, path if defined.tpm is not None else "")
    later = {disk.target: disk for disk in defined.disks}
    for disk in facts.disks:
        if disk.device != "disk" or disk.is_read_only:
            continue
        then = later.get(disk.target)
        yield ObservedPart(
            disk.target, disk.source, _image(vm.host, hypervisor, disk.source), disk.secret_uuid,
            then.secret_uuid if then else None, then.source if then else "",
        )  # fmt: skip


def _image(host: Host, hypervisor: Hypervisor, path: str) -> SeenHeader:
    head = _head(host, hypervisor, path, compliance.HEAD_BYTES)
    return compliance.look_at_image(head) if isinstance(head, bytes) else head


def _vtpm(host: Host, hypervisor: Hypervisor, path: str) -> SeenHeader:
    if not path:
        return SeenHeader(Header.UNREADABLE, "where the host keeps vTPM state is not known")
    head = _head(host, hypervisor, path, vtpm_state.HEADER_BYTES)
    if isinstance(head, bytes):
        return compliance.look_at_vtpm(head)
    if head.header is Header.ABSENT:
        return SeenHeader(Header.ABSENT, "no state yet; swtpm makes it at the first start")
    return head


def _head(host: Host, hypervisor: Hypervisor, path: str, length: int) -> bytes | SeenHeader:
    """The first bytes, by the worker where it reaches the file and may read it, else through libvirt."""
    if not path:
        return SeenHeader(Header.ABSENT, "no file is named")
    if reaches_files(host):
        try:
            with image_files.opened(path) as file:
                return file.read(length)
        except FileMissing:
            return SeenHeader(Header.ABSENT, "there is no such file")
        except (ImageFileError, OSError):
            pass  # the host itself may be allowed to
    try:
        return hypervisor.read_file(path, offset=0, length=length)
    except HostUnreachable:
        raise
    except HypervisorError as exc:
        if exc.code == _MISSING:
            return SeenHeader(Header.ABSENT, "there is no such file")
        return SeenHeader(Header.UNREADABLE, f"its header cannot be read: {exc.message}"[:400])


def _metadata(definition: str) -> tuple[ProtectedVm | None, str]:
    try:
        text = metadata(definition, vm_metadata.NAMESPACE)
        return (None, "") if text is None else (from_xml(text), "")
    except (BadDefinition, BadMetadata) as exc:
        return None, str(exc)
