"""The virtual TPM and its certificates."""

from datetime import datetime
from typing import Annotated, Self

from ninja import Schema
from pydantic import Field

from encryption.api.schemas.key_providers import Pem
from encryption.services.vtpm import Vtpm
from encryption.services.vtpm_certificates import VtpmCertificate
from inventory.api.frame import Input


class VtpmCertificateOut(Schema):
    """An endorsement key. `nv_index` is its certificate's place in the TPM. What the certificate says is UNVERIFIED;
    all of it null where there is none, or (`problem`) none that can be read."""

    nv_index: int
    kind: str
    public_key_pem: str
    subject: str | None
    issuer: str | None
    serial: str | None
    not_before: datetime | None
    not_after: datetime | None
    fingerprint: str | None
    names_its_key: bool | None
    signer: str
    problem: str

    @classmethod
    def of(cls, one: VtpmCertificate) -> Self:
        facts = one.facts
        return cls(
            nv_index=one.row.nv_index,
            kind=one.row.kind,
            public_key_pem=one.public_key_pem,
            subject=facts.subject if facts else None,
            issuer=facts.issuer if facts else None,
            serial=facts.serial if facts else None,
            not_before=facts.not_before if facts else None,
            not_after=facts.not_after if facts else None,
            fingerprint=facts.fingerprint if facts else None,
            names_its_key=facts.names_its_key if facts else None,
            signer=one.signer,
            problem=one.problem,
        )


class VtpmOut(Schema):
    """`evidence`: what the state file's header showed at `checked_at`; empty while nobody has looked.
    `endorsement_keys`: as last read, at `read_at`; empty until then."""

    is_present: bool
    model: str
    version: str
    is_encrypted: bool
    evidence: str
    checked_at: datetime | None
    endorsement_keys: list[VtpmCertificateOut]
    read_at: datetime | None

    @classmethod
    def of(cls, found: Vtpm) -> Self:
        return cls(
            is_present=found.is_present,
            model=found.vm.tpm_model,
            version=found.vm.tpm_version,
            is_encrypted=found.vm.is_tpm_encrypted,
            evidence=found.evidence,
            checked_at=found.checked_at,
            endorsement_keys=[VtpmCertificateOut.of(one) for one in found.certificates],
            read_at=found.read_at,
        )


class RemoveVtpmIn(Input):
    """`confirm` repeats the VM's name."""

    confirm: Annotated[str, Field(max_length=255)]


class ReplaceVtpmCertificateIn(Input):
    certificate_pem: Pem
