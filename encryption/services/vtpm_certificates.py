"""Endorsement keys of a VM's vTPM and their certificates: asked for here, read and replaced by `vtpm_endorsement.py`.

The vTPM is made by swtpm on the VM's host, at the first start, and its certificates are signed there by that host's
own `swtpm-localca`. A certificate of another CA can take their place; a request signed by the key there is none, since
an EK decrypts and cannot sign.
"""

import base64
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from encryption.engine import endorsement
from encryption.engine.endorsement import BadCertificate, CertificateFacts
from encryption.models import VtpmEndorsement
from inventory import events, jobs
from inventory.authorize import VIEW, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Host, Job, PowerState, VirtualMachine
from inventory.services.virtual_machines import vm_of

READ: Final = jobs.register(jobs.JobKind("encryption.read_vtpm", "Read vTPM certificates", queue="crypto"))
REPLACE: Final = jobs.register(
    jobs.JobKind("encryption.replace_vtpm_certificate", "Replace vTPM certificate", queue="crypto")
)
MAX_UPLOAD_BYTES: Final = endorsement.MAX_UPLOAD_BYTES
LOCAL_CA: Final = "swtpm-localca"


@dataclass(frozen=True, slots=True)
class VtpmCertificate:
    """`facts` None: there is no certificate, or (`problem`) none that can be read."""

    row: VtpmEndorsement
    facts: CertificateFacts | None
    problem: str

    @property
    def public_key_pem(self) -> str:
        return endorsement.public_key_pem(bytes(self.row.public_key)).decode()

    @property
    def signer(self) -> str:
        """Who signed, in words, as the certificate says it."""
        if self.facts is None:
            return ""
        if LOCAL_CA in self.facts.issuer:
            return "swtpm-localca of the host where the vTPM was made"
        return "another certificate authority"


@dataclass(frozen=True, slots=True)
class Download:
    content: bytes
    media_type: str
    file_name: str


def certificates_of(vm: VirtualMachine) -> tuple[VtpmCertificate, ...]:
    return tuple(_described(row) for row in vm.vtpm_endorsements.all())


def _described(row: VtpmEndorsement) -> VtpmCertificate:
    if not row.certificate:
        return VtpmCertificate(row, None, "")
    try:
        return VtpmCertificate(row, endorsement.describe(bytes(row.certificate), bytes(row.public_key)), "")
    except BadCertificate as exc:
        return VtpmCertificate(row, None, str(exc))


def download(*, vm_id: UUID, nv_index: int, what: str, actor: Actor) -> Download:
    """`what`: certificate.der, certificate.pem, or key.pem for the EK's public key.

    Raises NotFound (`vtpm_certificate_not_found`).
    """
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    row = _row(vm, nv_index)
    stem = f"{row.virtual_machine.name}-ek-{row.kind.lower().replace(' ', '-')}"
    if what == "key.pem":
        return Download(endorsement.public_key_pem(bytes(row.public_key)), "application/x-pem-file", f"{stem}-key.pem")
    certificate = bytes(row.certificate)
    if certificate and what == "certificate.der":
        return Download(certificate, "application/pkix-cert", f"{stem}.der")
    if certificate and what == "certificate.pem":
        try:
            return Download(endorsement.as_pem(certificate), "application/x-pem-file", f"{stem}.pem")
        except BadCertificate as exc:
            raise Conflict(exc.code, f"{row}: {exc}", hint="take it as DER, as it is in the TPM") from exc
    raise NotFound("vtpm_certificate_not_found", f"there is no {what[:32]} of the {row}")


@transaction.atomic
def read_certificates(*, vm_id: UUID, actor: Actor) -> Job:
    """Starts the job that reads them from a copy of the state; the VM may run.

    Raises NotFound, Refused, Conflict (`vtpm_missing`, `vm_gone`, `host_disconnected`, `target_busy`).
    """
    vm = vm_of(vm_id)
    authorize(actor, READ.name, vm)
    refuse_without_vtpm(vm)
    return _start(READ, vm, actor, f"Certificates of the vTPM of {vm} asked for", {})


@transaction.atomic
def replace_certificate(*, vm_id: UUID, nv_index: int, certificate: bytes, actor: Actor) -> Job:
    """Starts the job that puts another certificate into a powered-off VM's vTPM. `certificate`: one, PEM or DER.

    Raises NotFound (`vtpm_certificate_not_found`), Refused, Invalid (`certificate_...`: malformed, too large, of
    another key, of an authority, not valid now), Conflict (`vm_running`, and those of `read_certificates`).
    """
    vm = vm_of(vm_id)
    authorize(actor, REPLACE.name, vm)
    refuse_without_vtpm(vm)
    row = _row(vm, nv_index)
    try:
        der = endorsement.load(certificate)
        endorsement.check(der, bytes(row.public_key), now=timezone.now())
    except BadCertificate as exc:
        raise Invalid(exc.code, f"{vm}: {exc}", hint=exc.hint) from exc
    refuse_running(vm)
    params = {"nv_index": nv_index, "certificate": base64.b64encode(der).decode()}
    return _start(REPLACE, vm, actor, f"Another certificate for the {row.kind} EK of {vm} given", params)


def _start(kind: jobs.JobKind, vm: VirtualMachine, actor: Actor, text: str, params: dict[str, Any]) -> Job:
    job = jobs.start(kind, target=vm, actor=actor, params=params)
    events.record(f"vm.{kind.name.partition('.')[2]}_requested", text, target=vm, actor=actor, job=job)
    return job


def _row(vm: VirtualMachine, nv_index: int) -> VtpmEndorsement:
    found = vm.vtpm_endorsements.filter(nv_index=nv_index).select_related("virtual_machine").first()
    if found is None:
        raise NotFound(
            "vtpm_certificate_not_found",
            f"no endorsement key of {vm} is known with its certificate at NV index {nv_index:#x}",
            hint="have the certificates read from the vTPM first",
        )
    return found


# What the worker asks again


def refuse_without_vtpm(vm: VirtualMachine) -> None:
    """Raises Conflict: `vm_gone`, `host_disconnected`, `vtpm_missing`."""
    if not vm.is_present:
        raise Conflict("vm_gone", f"{vm} is no longer on its host", hint="refresh the host")
    if vm.host.state != Host.State.CONNECTED:
        raise Conflict("host_disconnected", f"{vm.host} is not connected", hint="connect the host first")
    if not vm.tpm_model or vm.tpm_version != "2.0":
        raise Conflict("vtpm_missing", f"{vm} has no virtual TPM 2.0", hint="add one in VM Options")


def refuse_running(vm: VirtualMachine) -> None:
    """Raises Conflict `vm_running`."""
    if vm.power_state != PowerState.OFF:
        raise Conflict("vm_running", f"{vm} is not powered off, and its vTPM is in use", hint="shut it down first")
