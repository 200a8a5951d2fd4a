"""VM Options, encryption part: what is, what is wanted, the plan, and the job that carries it out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from uuid import UUID

from django.db import transaction

from encryption.engine import options
from encryption.engine.options import CurrentDisk, CurrentVm, DesiredVm
from encryption.engine.options import Plan as Plan  # the shape that delivery code shows
from encryption.models import KmsCluster, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from inventory import events, jobs
from inventory.authorize import VIEW, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Disk, Firmware, Job, VirtualMachine
from inventory.services.connections import reaches_files, vtpm_state_path
from inventory.services.virtual_machines import vm_of

APPLY: Final = jobs.register(jobs.JobKind("encryption.apply_options", "Change VM encryption", queue="crypto"))
ENCRYPT: Final = "encryption.encrypt_vm"
DECRYPT: Final = "encryption.decrypt_vm"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the panel's form says: the home's policy, the disks to be encrypted, where the key comes from."""

    policy_id: UUID
    disks: frozenset[str]
    kms_cluster_id: UUID | None = None

    def as_params(self) -> dict[str, Any]:
        return {
            "policy": str(self.policy_id),
            "disks": sorted(self.disks),
            "kms_cluster": str(self.kms_cluster_id) if self.kms_cluster_id else None,
        }

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        kms = params["kms_cluster"]
        return cls(UUID(params["policy"]), frozenset(params["disks"]), UUID(kms) if kms else None)


@dataclass(frozen=True, slots=True)
class VmOptions:
    """All that the panel shows of one VM."""

    vm: VirtualMachine
    disks: tuple[Disk, ...]
    security: VmSecurity | None
    secrets: tuple[WrappedSecret, ...]
    policies: tuple[StoragePolicy, ...]
    kms_clusters: tuple[KmsCluster, ...]

    @property
    def policy(self) -> StoragePolicy:
        if self.security is not None:
            return self.security.policy
        return next(policy for policy in self.policies if not policy.encrypts)

    @property
    def encrypted_disks(self) -> frozenset[str]:
        return frozenset(disk.target for disk in self.disks if disk.is_encrypted)


def vm_options(*, vm_id: UUID, actor: Actor) -> VmOptions:
    """The VM, what is known of its encryption, and the choices there are."""
    authorize(actor, VIEW)
    vm = vm_of(vm_id)
    return VmOptions(
        vm=vm,
        disks=tuple(vm.disks.filter(device="disk")),
        security=VmSecurity.objects.select_related("policy", "key__cluster").filter(virtual_machine=vm).first(),
        secrets=tuple(vm.wrapped_secrets.select_related("key__cluster")),
        policies=tuple(StoragePolicy.objects.all()),
        kms_clusters=tuple(KmsCluster.objects.order_by("-is_default", "name")),
    )


def storage_policies(*, actor: Actor) -> tuple[StoragePolicy, ...]:
    authorize(actor, VIEW)
    return tuple(StoragePolicy.objects.all())


def plan_options(*, vm_id: UUID, wish: Wish, actor: Actor) -> Plan:
    """What would be done, from what is known now. Changes nothing."""
    authorize(actor, VIEW)
    vm = vm_of(vm_id)
    return plan_from_wish(vm, wish)


def plan_from_wish(vm: VirtualMachine, wish: Wish) -> Plan:
    policy = policy_of(wish)
    return options.plan(
        observe(vm), DesiredVm(policy.encrypts, wish.disks, has_key_provider=_kms_cluster(vm, wish) is not None)
    )


@transaction.atomic
def apply_options(*, vm_id: UUID, wish: Wish, actor: Actor) -> Job:
    """Starts the job that does what `plan_options` shows. Raises Conflict with the first refusal of the plan."""
    vm = vm_of(vm_id)
    authorize(actor, ENCRYPT if policy_of(wish).encrypts else DECRYPT, vm)
    plan = plan_from_wish(vm, wish)
    refuse(vm, plan)
    if plan.is_empty:
        raise Conflict("nothing_to_do", f"{vm} is as wanted already")
    job = jobs.start(APPLY, target=vm, actor=actor, params=wish.as_params())
    events.record(
        "vm.options_requested", f"{policy_of(wish)} requested for {vm}", target=vm, actor=actor, job=job,
        policy=policy_of(wish).name, disks=sorted(wish.disks), steps=[step.text for step in plan.steps],
    )  # fmt: skip
    return job


def refuse(vm: VirtualMachine, plan: Plan) -> None:
    if plan.refusals:
        first = plan.refusals[0]
        raise Conflict(first.code, f"{vm}: {first.text}", hint=first.hint)


def observe(vm: VirtualMachine) -> CurrentVm:
    """The engine's view of a VM: what libvirt last reported and which secrets this console holds."""
    rows = list(vm.wrapped_secrets.defer("wrapped"))
    held = {(row.purpose, row.target) for row in rows}
    disks = list(vm.disks.all())
    needed = {
        part
        for part in (Purpose.NVRAM if vm.is_nvram_encrypted else None, Purpose.VTPM if vm.is_tpm_encrypted else None)
        if part
    }
    return CurrentVm(
        name=vm.name,
        is_present=vm.is_present,
        is_persistent=vm.is_persistent,
        is_running=vm.is_running,
        files_reachable=reaches_files(vm.host),
        nvram_path=vm.nvram_path if vm.firmware == Firmware.UEFI else "",
        is_nvram_encrypted=vm.is_nvram_encrypted,
        has_tpm=bool(vm.tpm_model),
        is_tpm_encrypted=vm.is_tpm_encrypted,
        tpm_state_known=vtpm_state_path(vm) is not None,
        home_is_ours=all((part, "") in held for part in needed),
        disks=tuple(_current_disks(vm, disks, held)),
        has_key=VmSecurity.objects.filter(virtual_machine=vm, key__isnull=False).exists(),
        leftovers=tuple(_leftover(vm, disks, row) for row in rows if row.stage != Stage.IN_USE),
        has_managed_save=vm.has_managed_save,
        snapshot_count=vm.snapshot_count,
        memory_snapshot_count=vm.memory_snapshot_count,
    )


def _leftover(vm: VirtualMachine, disks: list[Disk], row: WrappedSecret) -> str:
    """The file of an unfinished part that its VM does not use: the half-written copy, or what was copied."""
    if row.purpose == Purpose.NVRAM:
        is_encrypted = vm.is_nvram_encrypted
    elif row.purpose == Purpose.VTPM:
        return row.plain_path  # where the exchange puts the old state, see vtpm_files
    else:
        is_encrypted = any(disk.target == row.target and disk.is_encrypted for disk in disks)
    return row.plain_path if is_encrypted else row.path


def _current_disks(vm: VirtualMachine, disks: list[Disk], held: set[tuple[str, str]]) -> Iterable[CurrentDisk]:
    sharers: dict[str, list[str]] = {}
    sources = [disk.source for disk in disks if disk.source]
    others = Disk.objects.filter(source__in=sources, virtual_machine__host=vm.host, virtual_machine__is_present=True)
    for source, name in others.exclude(virtual_machine=vm).values_list("source", "virtual_machine__name"):
        sharers.setdefault(source, []).append(name)
    for disk in disks:
        yield CurrentDisk(
            target=disk.target,
            device=disk.device,
            format=disk.format,
            source=disk.source,
            size=disk.capacity_bytes,
            is_encrypted=disk.is_encrypted,
            is_read_only=disk.is_read_only,
            is_ours=(Purpose.DISK, disk.target) in held,
            shared_with=tuple(sorted(sharers.get(disk.source, []))),
        )


def kms_cluster_of(vm: VirtualMachine, wish: Wish) -> KmsCluster:
    found = _kms_cluster(vm, wish)
    if found is None:
        raise Conflict(
            "no_key_provider", "there is no key provider to take a key from", hint="add one under Key Providers"
        )
    return found


def _kms_cluster(vm: VirtualMachine, wish: Wish) -> KmsCluster | None:
    if wish.kms_cluster_id:
        found = KmsCluster.objects.filter(pk=wish.kms_cluster_id).first()
        if found is None:
            raise NotFound("key_provider_not_found", f"there is no key provider {wish.kms_cluster_id}")
        return found
    return KmsCluster.objects.filter(is_default=True).first()


def policy_of(wish: Wish) -> StoragePolicy:
    found = StoragePolicy.objects.filter(pk=wish.policy_id).first()
    if found is None:
        raise Invalid(
            "policy_not_found", f"there is no storage policy {wish.policy_id}", hint="choose one from the list"
        )
    return found
