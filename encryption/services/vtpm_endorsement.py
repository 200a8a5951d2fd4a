"""Worker side of vtpm_certificates.py: a TPM is started over a copy of the VM's state, in memory, and asked.

Reading changes nothing of the VM's. A certificate is written into the copy, and the copy, which swtpm keeps under the
VM's own key, takes the state's place in the end, in one piece where the worker reaches the files. The TPM is started
once for that, which its reset counter shows to the guest.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.db import transaction
from django.utils import timezone

from encryption.adapters import swtpm
from encryption.adapters.image_files import ImageFileError
from encryption.adapters.memory_folder import memory_folder
from encryption.adapters.swtpm import KeyMismatch, SwtpmFailed
from encryption.engine import endorsement, tpm_command
from encryption.engine.endorsement import BadCertificate, Endorsement
from encryption.engine.secret import Secret
from encryption.engine.tpm_command import BadAnswer, TpmRefused, Transmit
from encryption.models import Purpose, Stage, VtpmEndorsement
from encryption.services import vtpm_certificates, vtpm_files
from encryption.services.part_files import PartFiles
from encryption.services.parts import opens
from encryption.services.release import open_secrets
from inventory import events
from inventory.errors import Conflict, Unavailable
from inventory.jobs import Progress
from inventory.models import Job, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import Hypervisor, VmFacts
from inventory.services.virtual_machines import vm_of


def run_read_vtpm(job: Job, progress: Progress) -> None:
    """The work of `encryption.read_vtpm`."""
    vm = vm_of(job.target_id)
    progress.step("looking at the virtual machine")
    with connections.open_host(vm.host) as hypervisor:
        sync.refresh_virtual_machine(vm, hypervisor)
        vtpm_certificates.refuse_without_vtpm(vm)
        progress.step("reading the vTPM's certificates")
        with _copied(vm, hypervisor) as copy, _started(vm, copy) as transmit:
            found = endorsement.read(transmit)
    _keep(vm, found)
    events.record_once(
        "vm.vtpm_read", f"Certificates of the vTPM of {vm} read: {_names(found)}", target=vm, job=job,
        keys=[one.kind for one in found],
    )  # fmt: skip


def run_replace_certificate(job: Job, progress: Progress) -> None:
    """The work of `encryption.replace_vtpm_certificate`. Run again, it writes again what is written already."""
    vm = vm_of(job.target_id)
    index, certificate = int(job.params["nv_index"]), base64.b64decode(job.params["certificate"])
    progress.step("looking at the virtual machine")
    with connections.open_host(vm.host) as hypervisor:
        files = PartFiles(hypervisor, vm.host)
        if job.checkpoint.get("replacing"):
            files.finish_replacing_tpm_state(str(vtpm_files.folder(vm)))
        sync.refresh_virtual_machine(vm, hypervisor)
        vtpm_certificates.refuse_without_vtpm(vm)
        vtpm_certificates.refuse_running(vm)
        progress.step("writing the certificate into the vTPM")
        with _copied(vm, hypervisor) as copy:
            with _started(vm, copy) as transmit:
                endorsement.replace(transmit, index, certificate)
                found = endorsement.read(transmit)
                tpm_command.shutdown(transmit)
            _put_back(vm, hypervisor, copy, progress)
    _keep(vm, found)
    kind = endorsement.kind_of(index).name
    facts = endorsement.describe(certificate, next(one.public_key for one in found if one.index == index))
    events.record_once(
        "vm.vtpm_certificate_replaced",
        f"The {kind} EK of {vm} has a certificate of {facts.issuer}", target=vm, job=job, issuer=facts.issuer,
        fingerprint=facts.fingerprint,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Copy:
    """A state in memory: the folder it was read from, what it was, the folder of its copy, and what opens both."""

    path: str
    before: bytes
    folder: Path
    passphrase: Secret | None


@contextmanager
def _copied(vm: VirtualMachine, hypervisor: Hypervisor) -> Iterator[_Copy]:
    """Plain state lies in memory only; encrypted state does so, too."""
    facts, path = hypervisor.virtual_machine(vm.uuid), str(vtpm_files.folder(vm))
    state = _reading(vm, hypervisor, path)
    passphrase = _passphrase(vm, facts)
    with memory_folder() as place:
        swtpm.state_file(place).write_bytes(state)
        yield _Copy(path, state, place, passphrase)


def _reading(vm: VirtualMachine, hypervisor: Hypervisor, path: str) -> bytes:
    try:
        state = PartFiles(hypervisor, vm.host).read_tpm_state(path)
    except (ImageFileError, OSError) as exc:
        raise Unavailable("datastore_error", f"{vm}: {exc}", hint="look at the vTPM state folder") from exc
    if not state:
        raise Conflict(
            "vtpm_without_state", f"the vTPM of {vm} has no state yet", hint="start the VM once: its host makes it then"
        )
    return state


def _passphrase(vm: VirtualMachine, facts: VmFacts) -> Secret | None:
    if facts.tpm is None or not facts.tpm.is_encrypted:
        return None
    rows = vm.wrapped_secrets.filter(purpose=Purpose.VTPM).exclude(stage=Stage.DETACHED)
    row = next((one for one in rows.select_related("key__cluster", "virtual_machine") if opens(facts, one)), None)
    if row is None:
        raise Conflict(
            "foreign_home",
            f"the vTPM of {vm} was encrypted outside this console, which has no key for it",
            hint="import its keys first",
        )
    return open_secrets([row])[0].passphrase


@contextmanager
def _started(vm: VirtualMachine, copy: _Copy) -> Iterator[Transmit]:
    try:
        with swtpm.started(copy.folder, copy.passphrase) as transmit:
            tpm_command.startup(transmit)
            yield transmit
    except KeyMismatch as exc:
        raise Conflict(
            "vtpm_key_mismatch",
            f"{vm}: vTPM key does not fit the state; nothing was changed",
            hint="bring back the state that belongs to this VM's key",
        ) from exc
    except (SwtpmFailed, TpmRefused, BadAnswer) as exc:
        raise Conflict(
            "vtpm_unreadable",
            f"{vm}: {exc}; nothing was changed",
            hint="a guest that has set passwords of its TPM's hierarchies has to take them back first",
        ) from exc
    except BadCertificate as exc:
        raise Conflict(exc.code, f"{vm}: {exc}", hint=exc.hint) from exc


def _put_back(vm: VirtualMachine, hypervisor: Hypervisor, copy: _Copy, progress: Progress) -> None:
    made = swtpm.state_file(copy.folder).read_bytes()
    is_off = hypervisor.virtual_machine(vm.uuid).power == "off"
    if not is_off or _reading(vm, hypervisor, copy.path) != copy.before:
        raise Conflict(
            "source_changed", f"the vTPM state of {vm} was written to meanwhile", hint="shut it down, then try again"
        )
    progress.checkpoint(replacing=True)
    try:
        PartFiles(hypervisor, vm.host).replace_tpm_state(copy.path, made)
    except (ImageFileError, OSError) as exc:
        raise Unavailable("datastore_error", f"{vm}: {exc}", hint="look at the vTPM state folder") from exc


@transaction.atomic
def _keep(vm: VirtualMachine, found: tuple[Endorsement, ...]) -> None:
    now = timezone.now()
    vm.vtpm_endorsements.exclude(nv_index__in=[one.index for one in found]).delete()
    for one in found:
        VtpmEndorsement.objects.update_or_create(
            virtual_machine=vm, nv_index=one.index,
            defaults={
                "kind": one.kind, "certificate": one.certificate, "public_key": one.public_key, "read_at": now,
            },
        )  # fmt: skip


def _names(found: tuple[Endorsement, ...]) -> str:
    return ", ".join(one.kind if one.certificate else f"{one.kind} (no certificate)" for one in found)
