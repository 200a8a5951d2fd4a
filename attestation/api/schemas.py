"""What the routes of attestation give and take. Public keys and digests only; evidence itself is a download."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from ninja import Schema
from pydantic import Field

from attestation.models import (
    AttestationPolicy,
    PendingRegistration,
    ReferenceSet,
    TpmIdentity,
    TrustAnchor,
    Verdict,
    VerdictReason,
    VerdictStatus,
)
from attestation.services.reports import EventLine, HostLine, HostReport, PcrRow
from inventory.api.frame import Input, PageOut
from inventory.api.schemas import Ref

Reason = Annotated[str, Field(max_length=300)]


class HostSecurityOut(Schema):
    """One host as Monitor, Security lists it. `is_required`: keys only while it is attested."""

    host: Ref
    has_tpm: bool
    is_required: bool
    status: VerdictStatus
    message: str
    secure_boot: bool | None
    checked_at: datetime | None
    passed_at: datetime | None

    @classmethod
    def of(cls, line: HostLine) -> Self:
        return cls(
            host=Ref.of(line.host), has_tpm=line.has_tpm, is_required=line.is_required, status=line.status,
            message=line.message, secure_boot=line.secure_boot, checked_at=line.checked_at, passed_at=line.passed_at,
        )  # fmt: skip


class HostSecurityPage(PageOut):
    items: list[HostSecurityOut]


class FindingOut(Schema):
    """`code` stays; `event` is the place in the boot log, from 0; `pcr` the register concerned."""

    code: str
    severity: str
    message: str
    remedy: str
    pcr: int | None
    event: int | None
    expected: str
    observed: str


class VerdictOut(Schema):
    id: int
    status: VerdictStatus
    message: str
    findings: list[FindingOut]
    secure_boot: bool | None
    reason: VerdictReason
    reference_id: UUID | None
    has_evidence: bool
    is_change: bool
    checked_at: datetime

    @classmethod
    def of(cls, row: Verdict) -> Self:
        return cls(
            id=row.pk, status=VerdictStatus(row.status), message=row.message,
            findings=[FindingOut(**each) for each in row.findings], secure_boot=row.secure_boot,
            reason=VerdictReason(row.reason), reference_id=row.reference_id, has_evidence=row.evidence_id is not None,
            is_change=row.is_change, checked_at=row.checked_at,
        )  # fmt: skip


class VerdictPage(PageOut):
    items: list[VerdictOut]


class PcrOut(Schema):
    """Hexadecimal. `expected`: of the boot that became the baseline; `agrees`: log and quote, empty: not told."""

    index: int
    expected: str
    quoted: str
    replayed: str
    agrees: bool | None

    @classmethod
    def of(cls, row: PcrRow) -> Self:
        return cls(index=row.index, expected=row.expected, quoted=row.quoted, replayed=row.replayed, agrees=row.agrees)


class TpmOut(Schema):
    """Names are those of the TPM, hexadecimal. `vouched_by`: a trust anchor, or the administrator."""

    agent_id: str
    ek_name: str
    ak_name: str
    contact_host: str
    contact_port: int
    vouched_by: str
    vouched_reason: str
    enrolled_at: datetime
    enrolled_by: str

    @classmethod
    def of(cls, row: TpmIdentity) -> Self:
        anchor = "" if row.ek_anchor is None else row.ek_anchor.name
        return cls(
            agent_id=row.agent_id, ek_name=row.ek_name, ak_name=row.ak_name, contact_host=row.contact_host,
            contact_port=row.contact_port, vouched_by=row.ek_accepted_by or anchor,
            vouched_reason=row.ek_accepted_reason, enrolled_at=row.enrolled_at, enrolled_by=row.enrolled_by,
        )  # fmt: skip


class HostReportOut(Schema):
    """`is_trusted`: a key would be released to this host now, as far as attestation goes, without asking it again."""

    host: Ref
    status: VerdictStatus
    message: str
    is_required: bool
    is_trusted: bool
    tpm: TpmOut | None
    verdict: VerdictOut | None
    bank: str
    pcrs: list[PcrOut]
    unreachable_since: datetime | None
    other_tpm_registration: UUID | None

    @classmethod
    def of(cls, found: HostReport) -> Self:
        return cls(
            host=Ref.of(found.host), status=found.status,
            message="" if found.standing is None else found.standing.message, is_required=found.is_required,
            is_trusted=found.is_trusted, tpm=None if found.identity is None else TpmOut.of(found.identity),
            verdict=None if found.verdict is None else VerdictOut.of(found.verdict), bank=found.bank,
            pcrs=[PcrOut.of(row) for row in found.pcrs],
            unreachable_since=None if found.standing is None else found.standing.unreachable_since,
            other_tpm_registration=None if found.other_tpm is None else found.other_tpm.pk,
        )  # fmt: skip


class BootEventOut(Schema):
    """`is_covered`: the data hash to the measured digest; else type and data are only what the log says."""

    number: int
    pcr: int
    type: str
    summary: str
    fields: dict[str, str]
    digest: str
    is_covered: bool

    @classmethod
    def of(cls, line: EventLine) -> Self:
        return cls(
            number=line.number, pcr=line.pcr, type=line.type, summary=line.summary, fields=dict(line.fields),
            digest=line.digest, is_covered=line.is_covered,
        )  # fmt: skip


class BootEventPage(PageOut):
    items: list[BootEventOut]


class EnrolIn(Input):
    """`reason` where no trust anchor vouches for the TPM; `contact_host` empty: where the agent says."""

    registration_id: UUID
    reason: Reason = ""
    contact_host: Annotated[str, Field(max_length=253)] = ""


class ReasonIn(Input):
    reason: Reason


class TrustBootIn(Input):
    """`keeps_others`: what is allowed stays allowed beside it; `with_files`: its IMA list becomes the allowlist."""

    reason: Reason
    keeps_others: bool = True
    with_files: bool = False


class AcceptIn(Input):
    """`events`: numbers of events that findings of this verdict name."""

    events: Annotated[list[int], Field(min_length=1, max_length=1000)]
    reason: Reason


class PolicyOut(Schema):
    """`require`: auto (hosts with an enrolled TPM), always, never."""

    require: str
    freshness_minutes: int
    interval_minutes: int
    two_person_references: bool

    @classmethod
    def of(cls, row: AttestationPolicy) -> Self:
        return cls(
            require=row.require, freshness_minutes=row.freshness_minutes, interval_minutes=row.interval_minutes,
            two_person_references=row.two_person_references,
        )  # fmt: skip


class PolicyIn(Input):
    require: Annotated[str, Field(max_length=8)]
    freshness_minutes: int
    interval_minutes: int
    two_person_references: bool = False


class ReferenceOut(Schema):
    """A version of a cluster's reference values; in force is the newest with `approved_at`."""

    id: UUID
    version: int
    reason: str
    made_by: str
    made_at: datetime
    approved_by: str
    approved_at: datetime | None

    @classmethod
    def of(cls, row: ReferenceSet) -> Self:
        return cls(
            id=row.pk, version=row.version, reason=row.reason, made_by=row.made_by, made_at=row.made_at,
            approved_by=row.approved_by, approved_at=row.approved_at,
        )  # fmt: skip


class ReferencePage(PageOut):
    items: list[ReferenceOut]


class ChangeOut(Schema):
    kind: str
    part: str
    subject: str
    before: str
    after: str


class ReferenceDetails(ReferenceOut):
    """`body`: the values as docs/attestation.md describes; `changes`: against the version in force before it."""

    body: dict[str, Any]
    changes: list[ChangeOut]


class ReferencesIn(Input):
    """`body`: the whole set of values, as docs/attestation.md describes."""

    body: dict[str, Any]
    reason: Reason


class AnchorOut(Schema):
    id: UUID
    name: str
    fingerprint: str
    certificate_pem: str
    not_after: datetime
    added_by: str
    added_at: datetime

    @classmethod
    def of(cls, row: TrustAnchor) -> Self:
        return cls(
            id=row.pk, name=row.name, fingerprint=row.fingerprint, certificate_pem=row.certificate_pem,
            not_after=row.not_after, added_by=row.added_by, added_at=row.added_at,
        )  # fmt: skip


class AnchorIn(Input):
    """`certificate`: one, in PEM."""

    name: Annotated[str, Field(max_length=200)]
    certificate: Annotated[str, Field(max_length=20_000)]


class RegistrationOut(Schema):
    """A TPM that has answered its challenge and is no host's. `refusal_code` tpm_changed: another one is enrolled."""

    id: UUID
    agent_id: str
    ek_name: str
    ak_name: str
    source_address: str
    activated_at: datetime | None
    refusal_code: str
    refusal: str

    @classmethod
    def of(cls, row: PendingRegistration) -> Self:
        return cls(
            id=row.pk, agent_id=row.agent_id, ek_name=row.ek_name, ak_name=row.ak_name,
            source_address=row.source_address, activated_at=row.activated_at, refusal_code=row.refusal_code,
            refusal=row.refusal,
        )  # fmt: skip


class RegistrationPage(PageOut):
    items: list[RegistrationOut]


class VerifierCaOut(Schema):
    """What hosts' agents must trust (`trusted_client_ca`)."""

    certificate_pem: str
