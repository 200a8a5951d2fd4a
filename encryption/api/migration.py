"""Routes of migration: where a VM can go, the plan, the job; Encrypted vMotion; which hosts can migrate encrypted."""

from datetime import datetime
from typing import Self
from uuid import UUID

from django.http import HttpRequest
from ninja import Router, Schema

from encryption.api.schemas import FindingOut
from encryption.models import EncryptedVmotion, MigrationProbe
from encryption.services import migration, migration_probes, vmotion
from encryption.services.migration import Plan, TargetChoice
from inventory.api.frame import Input, actor_of
from inventory.api.schemas import JobOut
from inventory.services.virtual_machines import virtual_machine

router = Router(tags=["Migration"])


class MigrationIn(Input):
    """`datastore_id` left out: all files of the VM are on storage that both hosts see, and stay there."""

    target_host_id: UUID
    datastore_id: UUID | None = None


class MigrationStepOut(Schema):
    kind: str
    text: str
    size: int


class MigrationPlanOut(Schema):
    """`mode`: the effective one; `tries_tls`, `may_fall_back`: what it means for this move."""

    mode: EncryptedVmotion
    live: bool
    tries_tls: bool
    may_fall_back: bool
    copied_bytes: int
    steps: list[MigrationStepOut]
    warnings: list[FindingOut]
    refusals: list[FindingOut]

    @classmethod
    def of(cls, plan: Plan) -> Self:
        return cls(
            mode=EncryptedVmotion(plan.mode.value),
            live=plan.is_live,
            tries_tls=plan.tries_tls,
            may_fall_back=plan.may_fall_back,
            copied_bytes=plan.copied_bytes,
            steps=[MigrationStepOut(kind=step.kind.value, text=step.text, size=step.size) for step in plan.steps],
            warnings=[FindingOut(code=one.code, text=one.text, hint=one.hint) for one in plan.warnings],
            refusals=[FindingOut(code=one.code, text=one.text, hint=one.hint) for one in plan.refusals],
        )


class ProbeOut(Schema):
    """A pair of hosts, as last tried; `code` and `reason` are empty while it is ready."""

    source_id: UUID
    target_id: UUID
    is_ready: bool
    code: str
    reason: str
    remedy: str
    checked_at: datetime

    @classmethod
    def of(cls, row: MigrationProbe) -> Self:
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class TargetOut(Schema):
    """`datastore_id`: the one that the plan takes, null where the VM's files can stay."""

    host_id: UUID
    host: str
    is_possible: bool
    datastore_id: UUID | None
    probe: ProbeOut | None
    plan: MigrationPlanOut

    @classmethod
    def of(cls, choice: TargetChoice) -> Self:
        return cls(
            host_id=choice.host.pk,
            host=choice.host.name,
            is_possible=choice.is_possible,
            datastore_id=None if choice.datastore is None else choice.datastore.pk,
            probe=None if choice.probe is None else ProbeOut.of(choice.probe),
            plan=MigrationPlanOut.of(choice.plan),
        )


class VmotionIn(Input):
    mode: EncryptedVmotion


class VmotionOut(Schema):
    """`is_fixed`: the VM is encrypted, and so always *required*."""

    mode: EncryptedVmotion
    effective: EncryptedVmotion
    is_fixed: bool


class StuckOut(Schema):
    virtual_machine_id: UUID
    name: str
    reason: str


class MatrixOut(Schema):
    """Pairs that were never tried are left out."""

    probes: list[ProbeOut]
    stuck: list[StuckOut]


@router.get("/virtual-machines/{uuid:vm_id}/migration-targets", response=list[TargetOut])
def list_migration_targets(request: HttpRequest, vm_id: UUID) -> list[TargetOut]:
    """All other hosts, those that the VM can go to first, each with its plan."""
    return [TargetOut.of(one) for one in migration.migration_targets(vm_id=vm_id, actor=actor_of(request))]


@router.post("/virtual-machines/{uuid:vm_id}/migrate/plan", response=MigrationPlanOut)
def plan_migration(request: HttpRequest, vm_id: UUID, wanted: MigrationIn) -> MigrationPlanOut:
    """What would be done, from what is known now. Changes nothing."""
    return MigrationPlanOut.of(
        migration.plan_migration(
            vm_id=vm_id, target_id=wanted.target_host_id, datastore_id=wanted.datastore_id, actor=actor_of(request)
        )
    )


@router.post("/virtual-machines/{uuid:vm_id}/migrate", response={202: JobOut})
def migrate_vm(request: HttpRequest, vm_id: UUID, wanted: MigrationIn) -> JobOut:
    """Starts the job: live where the VM runs, else cold."""
    return JobOut.of(
        migration.migrate_vm(
            vm_id=vm_id, target_id=wanted.target_host_id, datastore_id=wanted.datastore_id, actor=actor_of(request)
        )
    )


@router.get("/virtual-machines/{uuid:vm_id}/encrypted-vmotion", response=VmotionOut)
def get_encrypted_vmotion(request: HttpRequest, vm_id: UUID) -> VmotionOut:
    return _vmotion(request, vm_id)


@router.put("/virtual-machines/{uuid:vm_id}/encrypted-vmotion", response=VmotionOut)
def set_encrypted_vmotion(request: HttpRequest, vm_id: UUID, wanted: VmotionIn) -> VmotionOut:
    vmotion.set_encrypted_vmotion(vm_id=vm_id, mode=wanted.mode, actor=actor_of(request))
    return _vmotion(request, vm_id)


def _vmotion(request: HttpRequest, vm_id: UUID) -> VmotionOut:
    vm = virtual_machine(vm_id=vm_id, actor=actor_of(request))
    return VmotionOut(
        mode=EncryptedVmotion(vmotion.chosen_mode(vm).value),
        effective=EncryptedVmotion(vmotion.effective_mode(vm).value),
        is_fixed=vmotion.is_encrypted(vm),
    )


@router.get("/clusters/{uuid:cluster_id}/encrypted-migration", response=MatrixOut)
def get_migration_matrix(request: HttpRequest, cluster_id: UUID) -> MatrixOut:
    """Which hosts can migrate encrypted to which, and which VMs cannot move."""
    found = migration_probes.matrix(cluster_id=cluster_id, actor=actor_of(request))
    probes = [cell.probe for line in found.lines for cell in line.cells if cell.probe is not None]
    return MatrixOut(
        probes=[ProbeOut.of(one) for one in probes],
        stuck=[StuckOut(virtual_machine_id=one.vm.pk, name=one.vm.name, reason=one.reason) for one in found.stuck],
    )


@router.post("/clusters/{uuid:cluster_id}/encrypted-migration/probe", response={202: JobOut})
def probe_cluster(request: HttpRequest, cluster_id: UUID) -> JobOut:
    """Starts the job that tries all pairs of the cluster's connected hosts, in both directions."""
    return JobOut.of(migration_probes.probe_cluster(cluster_id=cluster_id, actor=actor_of(request)))
