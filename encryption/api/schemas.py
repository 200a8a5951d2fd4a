"""What the routes of encryption give and take.

Certificates and identifiers only: neither sealed client keys nor wrapped data keys have a field here, and answers are
built field by field, so that a new column of a model does not get out by itself.
"""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from ninja import Schema
from pydantic import Field, SecretStr
from typing_extensions import override

from encryption.models import (
    Compliance,
    Key,
    KmsCluster,
    KmsServer,
    Leftover,
    LockCause,
    Purpose,
    Stage,
    StoragePolicy,
    VmSecurity,
    WrappedSecret,
)
from encryption.services import certificates
from encryption.services.certificates import CertificateFacts
from encryption.services.options import Plan, PlannedChange, VmOptions, Vmotion, Wish
from encryption.services.options_many import ManyWish, VmPlan, VmResult
from encryption.services.storage_policies import PolicyUse, VmUse
from encryption.services.vtpm import Vtpm
from encryption.services.vtpm_certificates import VtpmCertificate
from inventory.api.frame import Input, PageOut
from inventory.api.schemas import Name, Ref

ServerState = Literal["unknown", "connected", "unreachable", "untrusted", "failing"]
ComplianceState = Literal["compliant", "noncompliant", "unknown"]
LeftoverKind = Literal[
    "original", "plain_copy", "backing_file", "saved_state", "core_dump", "nvram_copy", "vtpm_state", "half_written",
    "same_size",
]  # fmt: skip
KeyState = Literal["pre_active", "active", "deactivated", "compromised", "destroyed", "missing"]
Pem = Annotated[str, Field(max_length=certificates.MAX_PEM_CHARACTERS)]


class KeyServerOut(Schema):
    """One server of a key provider, as it was last found. `state_code` is that of the error, empty while connected.

    The directions of trust are null where they are not known. `certificate_fingerprint` is the SHA-256 of what the
    server showed last, which nobody verified: review it, then accept it.
    """

    id: UUID
    position: int
    host: str
    port: int
    state: ServerState
    state_code: str
    state_reason: str
    console_trusts_server: bool | None
    server_trusts_console: bool | None
    certificate_subject: str
    certificate_issuer: str
    certificate_fingerprint: str
    certificate_not_after: datetime | None
    certificate_seen_at: datetime | None
    vendor: str
    latency_ms: int | None
    checked_at: datetime | None

    @classmethod
    def of(cls, row: KmsServer) -> Self:
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class KeyProviderLine(Schema):
    """Key servers that replicate each other. `is_lab`: of the local lab, not for real keys."""

    id: UUID
    name: str
    is_default: bool
    is_lab: bool
    created_at: datetime
    servers: list[KeyServerOut]

    @classmethod
    def of(cls, row: KmsCluster) -> Self:
        return cls(
            id=row.pk,
            name=row.name,
            is_default=row.is_default,
            is_lab=row.is_lab,
            created_at=row.created_at,
            servers=[KeyServerOut.of(server) for server in row.servers.all()],
        )


class CertificateOut(Schema):
    """`fingerprint` is SHA-256 in hexadecimal."""

    subject: str
    issuer: str
    fingerprint: str
    not_before: datetime
    not_after: datetime
    names: list[str]
    is_ca: bool

    @classmethod
    def of(cls, facts: CertificateFacts) -> Self:
        return cls.model_validate({name: getattr(facts, name) for name in cls.model_fields})


class KeyProviderOut(KeyProviderLine):
    """With both directions of trust: what the console trusts, and the certificate by which it shows itself.

    `has_client_request`: a signing request waits to be turned into the next client certificate.
    `next_client_certificate`: made or uploaded, and not in use until it is put into use.
    """

    trusted: list[CertificateOut]
    client_certificate: list[CertificateOut]
    next_client_certificate: list[CertificateOut]
    console_ca: list[CertificateOut]
    has_client_request: bool

    @override
    @classmethod
    def of(cls, row: KmsCluster) -> Self:
        line = KeyProviderLine.of(row)
        return cls(
            **line.dict(),
            trusted=[CertificateOut.of(one) for one in certificates.describe(row.trusted_pem)],
            client_certificate=[CertificateOut.of(one) for one in certificates.describe(row.client_certificate_pem)],
            next_client_certificate=[
                CertificateOut.of(one) for one in certificates.describe(row.client_certificate_next_pem)
            ],
            console_ca=[CertificateOut.of(one) for one in certificates.describe(row.client_ca_pem)],
            has_client_request=bool(row.client_csr_pem),
        )


class KeyOut(Schema):
    """A key at the key provider, known by its ID there, and the virtual machines whose secrets it wraps.

    `checked_at`: when its state was last read there. `last_used_at`: when a worker last fetched it, `last_used_by`
    whom, `last_used_for` which job with its target. `due_at`: when a storage policy has it replaced; null: none does.
    `is_foreign`: made by somebody else and added here.
    """

    id: UUID
    key_id: str
    name: str
    algorithm: str
    state: KeyState
    created_at: datetime
    checked_at: datetime | None
    last_used_at: datetime | None
    last_used_by: str
    last_used_for: str
    due_at: datetime | None
    is_foreign: bool
    virtual_machines: list[Ref]

    @classmethod
    def of(cls, row: Key) -> Self:
        vms = {secret.virtual_machine_id: secret.virtual_machine for secret in row.wrapped_secrets.all()}
        plain = {name: getattr(row, name) for name in cls.model_fields if name != "virtual_machines"}
        return cls.model_validate(plain | {"virtual_machines": [Ref.of(vm) for vm in vms.values()]})


class KeyPage(PageOut):
    items: list[KeyOut]


class RequestOut(Schema):
    """A PKCS #10 signing request for the KMS administrator."""

    pem: str


class StoragePolicyOut(Schema):
    """What a VM's home or a disk must be. `max_key_age_days`: a VM whose key is older gets a new one; null: never."""

    id: UUID
    name: str
    description: str
    encrypts: bool
    is_builtin: bool
    max_key_age_days: int | None

    @classmethod
    def of(cls, row: StoragePolicy) -> Self:
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class StoragePolicyLine(StoragePolicyOut):
    """With its use: VMs whose home has it, disks that have it, and how many of all those VMs are not compliant."""

    virtual_machine_count: int
    disk_count: int
    noncompliant_count: int

    @classmethod
    def of_use(cls, use: PolicyUse) -> Self:
        return cls(
            **StoragePolicyOut.of(use.policy).dict(),
            virtual_machine_count=use.virtual_machines,
            disk_count=use.disks,
            noncompliant_count=use.noncompliant,
        )


class StoragePolicyIn(Input):
    """`max_key_age_days` 1 to 3650, or null."""

    name: Name
    description: Annotated[str, Field(max_length=300)] = ""
    encrypts: bool = True
    max_key_age_days: int | None = None


class ComplianceFindingOut(Schema):
    """`part` is a disk's target, `nvram`, `vtpm`, or `vm` for the definition as a whole.

    `is_unknown`: it could not be found out, which is no breach and no compliance either.
    """

    code: str
    part: str
    expected: str
    observed: str
    evidence: str
    remedy: str
    is_unknown: bool


class ObservationOut(Schema):
    """What was seen of one part; `state` is encrypted, weak, plain, absent or unreadable."""

    part: str
    state: str
    evidence: str


class ComplianceOut(Schema):
    """`state` is null for a VM that is not protected or was not looked at yet."""

    state: ComplianceState | None
    checked_at: datetime | None
    findings: list[ComplianceFindingOut]
    observations: list[ObservationOut]

    @classmethod
    def of(cls, row: Compliance | None) -> Self:
        if row is None:
            return cls(state=None, checked_at=None, findings=[], observations=[])
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class PolicyNameIn(Input):
    name: Name


class PolicyVmOut(Schema):
    """A VM that has the policy for its home, for some disks (by target), or both."""

    virtual_machine: Ref
    is_home: bool
    disks: list[str]
    compliance: ComplianceState | None

    @classmethod
    def of_use(cls, use: VmUse) -> Self:
        state = use.compliance.state if use.compliance else None
        return cls.model_validate(
            {"virtual_machine": Ref.of(use.vm), "is_home": use.is_home, "disks": list(use.disks), "compliance": state}
        )


class PolicyVmPage(PageOut):
    items: list[PolicyVmOut]


class KeyProviderIn(Input):
    """A key provider with its first server."""

    name: Name
    host: Annotated[str, Field(max_length=253)]
    port: int = 5696
    identity: UUID | None = Field(
        None, description="The UUID by which the metadata of VMs names it; left out: a new one."
    )


class AdoptKeysIn(Input):
    """The identity of a key provider that locked VMs name and that is not known here."""

    identity: UUID


class ForeignProviderOut(Schema):
    """A key provider that locked VMs name and that is not known here; its name is what they say."""

    identity: UUID
    name: str
    vms: int


class KeyServerIn(Input):
    host: Annotated[str, Field(max_length=253)]
    port: int = 5696


class CertificateIn(Input):
    certificate_pem: Pem


class ServerCertificateOut(Schema):
    """What a server showed last, its issuers behind it. `can_pin_issuer`: it sent the CA that issued it along."""

    seen_at: datetime | None
    certificates: list[CertificateOut]
    can_pin_issuer: bool


class AcceptCertificateIn(Input):
    """`fingerprint` of the server's own certificate, as it was reviewed; `pin` certificate or issuer."""

    fingerprint: Annotated[str, Field(max_length=100)]
    pin: Annotated[str, Field(max_length=20)] = "certificate"


class DirectionIn(Input):
    """`direction`: up is tried earlier, down later."""

    direction: Annotated[str, Field(max_length=20)]


class MethodIn(Input):
    """`method`: console_ca (from a CA of this console) or self_signed."""

    method: Annotated[str, Field(max_length=20)]


class ClientIdentityIn(Input):
    """A certificate with intermediates behind it, and its private key, not encrypted, both as PEM."""

    certificate_pem: Pem
    private_key_pem: Annotated[SecretStr, Field(max_length=certificates.MAX_PEM_CHARACTERS)]


class PemOut(Schema):
    pem: str


class RevokeIn(Input):
    """`reason` is one of KMIP: unspecified, key_compromise, superseded, cessation_of_operation."""

    reason: Annotated[str, Field(max_length=40)]


class AdoptKeyIn(Input):
    """`key`: its identifier at the key provider, or its name there."""

    key: Annotated[str, Field(max_length=255)]


class DestroyIn(Input):
    """`confirm` repeats the key's ID at the key provider (`key_id`)."""

    confirm: Annotated[str, Field(max_length=255)]


class DestroyLeftoverIn(Input):
    """`confirm` repeats the file's name, without its folder."""

    confirm: Annotated[str, Field(max_length=255)]


class AddDiskIn(Input):
    """`size_bytes` in whole sectors of 512. An encrypting policy wants the format raw."""

    size_bytes: int
    datastore_id: UUID
    image_format: Annotated[str, Field(max_length=16)] = "raw"
    policy_id: UUID


class AttachDiskIn(Input):
    """`path`: of an image on the host, below the folder of one of its datastores."""

    path: Annotated[str, Field(max_length=1000)]
    policy_id: UUID


class DetachedDiskOut(Schema):
    """An encrypted disk that its virtual machine no longer has. `target`: what it was there."""

    id: UUID
    target: str
    path: str
    size_bytes: int
    key_id: str

    @classmethod
    def of(cls, row: WrappedSecret) -> Self:
        return cls(
            id=row.secret_uuid, target=row.target, path=row.path, size_bytes=row.size_bytes, key_id=row.key.key_id
        )


class KeepLeftoverIn(Input):
    reason: Annotated[str, Field(max_length=300)]


class LeftoverOut(Schema):
    """A file with something of an encrypted virtual machine in clear. `evidence`: what shows it, in lines for people.

    `kept_at`: since when somebody answers for its being kept; else null.
    """

    id: UUID
    host: Ref
    path: str
    kind: LeftoverKind
    size_bytes: int
    evidence: list[str]
    virtual_machine: Ref | None
    found_at: datetime
    kept_at: datetime | None
    kept_by: str
    kept_reason: str

    @classmethod
    def of(cls, row: Leftover) -> Self:
        values = {name: getattr(row, name) for name in cls.model_fields if name not in ("host", "virtual_machine")}
        vm = row.virtual_machine
        return cls.model_validate(values | {"host": Ref.of(row.host), "virtual_machine": Ref.of(vm) if vm else None})


class LeftoverPage(PageOut):
    items: list[LeftoverOut]


class PartOut(Schema):
    """A part of the VM whose data key this console holds, wrapped under the key `key_id`."""

    purpose: Purpose
    target: str
    stage: Stage
    key_id: str
    path: str
    size_bytes: int


class LockOut(Schema):
    """Why a VM's keys could not be had. `parts` are the ones without a key: disks by target, `nvram`, `vtpm`."""

    cause: LockCause
    detail: str
    remedy: str
    parts: list[str]
    since: datetime

    @classmethod
    def of(cls, row: VmSecurity | None) -> Self | None:
        if row is None or row.locked_at is None:
            return None
        return cls(
            cause=LockCause(row.lock_cause),
            detail=row.lock_detail,
            remedy=row.lock_remedy,
            parts=row.lock_parts,
            since=row.locked_at,
        )


class OptionDiskOut(Schema):
    """A hard disk that a policy can be chosen for, and the one it has."""

    target: str
    policy: StoragePolicyOut
    format: str
    source: str
    is_read_only: bool
    is_encrypted: bool
    capacity_bytes: int


class VmOptionsOut(Schema):
    """What is of a VM's encryption, and what can be chosen. `policy` is the home's; `lock` is null unless locked."""

    virtual_machine: Ref
    policy: StoragePolicyOut
    key_provider: Ref | None
    key_id: str
    disks: list[OptionDiskOut]
    parts: list[PartOut]
    lock: LockOut | None
    policies: list[StoragePolicyOut]
    key_providers: list[Ref]

    @classmethod
    def of(cls, found: VmOptions) -> Self:
        key = found.security.key if found.security else None
        return cls(
            virtual_machine=Ref.of(found.vm),
            policy=StoragePolicyOut.of(found.policy),
            key_provider=None if key is None else Ref(id=key.cluster.pk, name=key.cluster.name),
            key_id="" if key is None else key.key_id,
            disks=[
                OptionDiskOut.model_validate(
                    {name: getattr(disk, name) for name in OptionDiskOut.model_fields if name != "policy"}
                    | {"policy": StoragePolicyOut.of(policy)}
                )
                for disk, policy in found.disks_with_policies
            ],
            parts=[
                PartOut(
                    purpose=Purpose(row.purpose),
                    target=row.target,
                    stage=Stage(row.stage),
                    key_id=row.key.key_id,
                    path=row.path,
                    size_bytes=row.size_bytes,
                )
                for row in found.secrets
            ],
            lock=LockOut.of(found.security),
            policies=[StoragePolicyOut.of(one) for one in found.policies],
            key_providers=[Ref(id=one.pk, name=one.name) for one in found.kms_clusters],
        )


class WishIn(Input):
    """What is wanted: the policy of the home, the policy of each disk by its target, where a new key comes from.

    A disk that is left out is not encrypted. `key_provider_id` left out: the default one. `vtpm`, `secure_boot`, `vbs`,
    `encrypted_vmotion` left out or null: as it is. A vTPM that is wanted encrypts the home, whatever policy is named.
    `confirm` repeats the VM's name where a vTPM is removed.
    """

    policy_id: UUID
    disks: Annotated[dict[Annotated[str, Field(max_length=32)], UUID], Field(max_length=256)] = Field(
        default_factory=dict, examples=[{"vda": "6f6c1a5e-0a55-4f5f-9f0d-0e3f7d5a9a11"}]
    )
    key_provider_id: UUID | None = None
    vtpm: bool | None = None
    secure_boot: bool | None = None
    vbs: bool | None = None
    encrypted_vmotion: Literal["disabled", "opportunistic", "required"] | None = None
    confirm: Annotated[str, Field(max_length=255)] = ""

    def wish(self) -> Wish:
        return Wish(
            self.policy_id,
            self.disks,
            self.key_provider_id,
            vtpm=self.vtpm,
            secure_boot=self.secure_boot,
            vbs=self.vbs,
            encrypted_vmotion=Vmotion(self.encrypted_vmotion) if self.encrypted_vmotion else None,
        )


class RecryptPlanIn(Input):
    """`parts` count for new volume keys alone: disks by target, "nvram", "vtpm". Left out or null: all of them."""

    way: Literal["key", "passphrases", "volume_keys"]
    parts: Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=256)] | None = None

    def chosen(self) -> frozenset[str] | None:
        return None if self.parts is None else frozenset(self.parts)


class DeepRecryptIn(Input):
    """`parts`: disks by target, "nvram", "vtpm"; left out or null: all that are encrypted.

    `key_provider_id` left out: where the VM's key is now.
    """

    parts: Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=256)] | None = None
    key_provider_id: UUID | None = None

    def chosen(self) -> frozenset[str] | None:
        return None if self.parts is None else frozenset(self.parts)


class StepOut(Schema):
    """One step of a plan; `size` in bytes."""

    kind: str
    target: str
    how: str
    text: str
    size: int
    undo: str


class FindingOut(Schema):
    code: str
    text: str
    hint: str


class EffectOut(Schema):
    label: str
    text: str


class PlanOut(Schema):
    """What would be done, in this order. With a refusal it cannot be applied; warnings are to be read first."""

    steps: list[StepOut]
    warnings: list[FindingOut]
    refusals: list[FindingOut]
    new_bytes: int

    @classmethod
    def of(cls, plan: Plan) -> Self:
        return cls(
            steps=[
                StepOut(
                    kind=step.kind.value,
                    target=step.target,
                    how=step.how.value,
                    text=step.text,
                    size=step.size,
                    undo=step.undo,
                )
                for step in plan.steps
            ],
            warnings=[FindingOut(code=one.code, text=one.text, hint=one.hint) for one in plan.warnings],
            refusals=[FindingOut(code=one.code, text=one.text, hint=one.hint) for one in plan.refusals],
            new_bytes=plan.new_bytes,
        )


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


class OptionsPlanOut(PlanOut):
    """`digest`: sent along with the change, it says which plan was seen; `effects`: what the plan means."""

    digest: str
    effects: list[EffectOut]

    @classmethod
    def of_change(cls, change: PlannedChange) -> Self:
        return cls(
            **PlanOut.of(change.plan).model_dump(),
            digest=change.digest,
            effects=[EffectOut(label=one.label, text=one.text) for one in change.effects],
        )


class ApplyIn(WishIn):
    """`plan_digest`: of the plan that was seen; where the plan is another one by now nothing is begun. Left out: the
    plan as of now."""

    plan_digest: Annotated[str, Field(max_length=64)] = ""


class ManyWishIn(Input):
    """What all the VMs shall be; left out or null: each as it is. A vTPM can only be added here."""

    virtual_machines: Annotated[list[UUID], Field(min_length=1, max_length=200)]
    policy_id: UUID | None = None
    disks_policy_id: UUID | None = None
    add_vtpm: bool = False
    secure_boot: bool | None = None
    vbs: bool | None = None
    encrypted_vmotion: Literal["disabled", "opportunistic", "required"] | None = None

    def wish(self) -> ManyWish:
        return ManyWish(
            self.policy_id,
            self.disks_policy_id,
            add_vtpm=self.add_vtpm,
            secure_boot=self.secure_boot,
            vbs=self.vbs,
            encrypted_vmotion=Vmotion(self.encrypted_vmotion) if self.encrypted_vmotion else None,
        )


class ApplyManyIn(ManyWishIn):
    """`plan_digests`: of each plan that was seen; of a VM that is left out, the plan as of now."""

    plan_digests: Annotated[dict[UUID, Annotated[str, Field(max_length=64)]], Field(max_length=200)] = Field(
        default_factory=dict
    )


class VmPlanOut(Schema):
    """`code` and `message` where not even a plan could be made."""

    virtual_machine: Ref
    plan: OptionsPlanOut | None
    code: str
    message: str

    @classmethod
    def of(cls, one: VmPlan) -> Self:
        return cls(
            virtual_machine=Ref.of(one.vm),
            plan=OptionsPlanOut.of_change(one.change) if one.change else None,
            code=one.error.code if one.error else "",
            message=str(one.error) if one.error else "",
        )


class VmResultOut(Schema):
    """`job` null: nothing was begun, for the reason in `code` and `message`."""

    virtual_machine: Ref
    job: UUID | None
    code: str
    message: str

    @classmethod
    def of(cls, one: VmResult) -> Self:
        return cls(
            virtual_machine=Ref.of(one.vm),
            job=one.job.pk if one.job else None,
            code=one.error.code if one.error else "",
            message=str(one.error) if one.error else "",
        )
