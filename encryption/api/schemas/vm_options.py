"""VM Options: what is, what is wanted, the plan."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from ninja import Schema
from pydantic import Field

from encryption.api.schemas.policies import StoragePolicyOut
from encryption.models import (
    LockCause,
    Purpose,
    Stage,
    VmSecurity,
)
from encryption.services.options import Plan, PlannedChange, VmOptions, Vmotion, Wish
from encryption.services.options_many import ManyWish, VmPlan, VmResult
from inventory.api.frame import Input
from inventory.api.schemas import Ref


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


class OptionsPlanOut(PlanOut):
    """`digest`: sent along with the change, it says which plan was seen; `effects`: what the plan means.
    `definition_difference`: lines of a unified diff of the VM's definition, what cannot be known before in braces;
    null where nothing may be done, or where `definition_note` says why it cannot be shown."""

    digest: str
    effects: list[EffectOut]
    definition_difference: list[str] | None
    definition_note: str

    @classmethod
    def of_change(cls, change: PlannedChange) -> Self:
        told = change.definition
        return cls(
            **PlanOut.of(change.plan).model_dump(),
            digest=change.digest,
            effects=[EffectOut(label=one.label, text=one.text) for one in change.effects],
            definition_difference=list(told.lines) if told and not told.note else None,
            definition_note=told.note if told else "",
        )


class ApplyIn(WishIn):
    """`plan_digest`: of the plan that was seen; where the plan is another one by now nothing is begun. Left out: the
    plan as of now. `full_verification`: every byte of a copy that is made while the VM is off is compared, not samples.
    """

    plan_digest: Annotated[str, Field(max_length=64)] = ""
    full_verification: bool = False


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
