"""VM Options, encryption part: what is, what is wanted, the plan, and the job that carries it out.

The home and each disk have a storage policy of their own. A VM that is not encrypted has none recorded: its home and
its disks count as under the built-in policy that does not encrypt.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from encryption.engine import options
from encryption.engine.options import KEY_CODES, Approved, Assignment, CurrentVm, DesiredVm, StepKind
from encryption.engine.options import Finding as Finding  # the shapes that delivery code shows
from encryption.engine.options import Plan as Plan
from encryption.engine.options import Vmotion as Vmotion
from encryption.models import (
    Compliance,
    DiskPolicy,
    KmsCluster,
    Stage,
    StoragePolicy,
    VmSecurity,
    WrappedSecret,
)
from encryption.services import definition_preview, key_readiness
from encryption.services.current_vm import observe as observe
from encryption.services.planned_change import PlannedChange as PlannedChange
from encryption.services.planned_change import PlanProgress as PlanProgress
from encryption.services.planned_change import progress_of
from inventory import events, jobs
from inventory.authorize import VIEW, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Disk, Job, VirtualMachine
from inventory.services.virtual_machines import vm_of

APPLY: Final = jobs.register(jobs.JobKind("encryption.apply_options", "Change VM encryption", queue="crypto"))
ENCRYPT: Final = "encryption.encrypt_vm"
DECRYPT: Final = "encryption.decrypt_vm"
CONFIGURE: Final = "encryption.configure_vm"
# A vTPM comes with a key of its own, and goes with it.
_DECRYPTING: Final = frozenset(
    {StepKind.DECRYPT_DISK, StepKind.DECRYPT_NVRAM, StepKind.DECRYPT_VTPM, StepKind.REMOVE_VTPM}
)
_ENCRYPTING: Final = frozenset(
    {
        StepKind.CREATE_KEY, StepKind.WRAP_SECRETS, StepKind.ENCRYPT_DISK, StepKind.ENCRYPT_NVRAM,
        StepKind.ENCRYPT_VTPM, StepKind.ADD_VTPM,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """What the panel's form says: the home's policy, each disk's policy by its target, where the key comes from; then
    vTPM, Secure Boot, VBS and Encrypted vMotion, None: as it is.

    A disk that is left out is not encrypted. A vTPM that is wanted encrypts the home, whatever policy is named:
    see `policy_of`.
    """

    policy_id: UUID
    disks: Mapping[str, UUID]
    kms_cluster_id: UUID | None = None
    vtpm: bool | None = None
    secure_boot: bool | None = None
    vbs: bool | None = None
    encrypted_vmotion: Vmotion | None = None

    def as_params(self) -> dict[str, Any]:
        hardware = {"vtpm": self.vtpm, "secure_boot": self.secure_boot, "vbs": self.vbs}
        return {
            "policy": str(self.policy_id),
            "disks": {target: str(policy) for target, policy in sorted(self.disks.items())},
            "kms_cluster": str(self.kms_cluster_id) if self.kms_cluster_id else None,
            **{name: value for name, value in hardware.items() if value is not None},
            **({"encrypted_vmotion": self.encrypted_vmotion.value} if self.encrypted_vmotion else {}),
        }

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        kms, vmotion = params["kms_cluster"], params.get("encrypted_vmotion")
        return cls(
            policy_id=UUID(params["policy"]),
            disks={target: UUID(policy) for target, policy in params["disks"].items()},
            kms_cluster_id=UUID(kms) if kms else None,
            vtpm=params.get("vtpm"),
            secure_boot=params.get("secure_boot"),
            vbs=params.get("vbs"),
            encrypted_vmotion=Vmotion(vmotion) if vmotion else None,
        )


@dataclass(frozen=True, slots=True)
class VmOptions:
    """All that the panel shows of one VM."""

    vm: VirtualMachine
    disks: tuple[Disk, ...]
    security: VmSecurity | None
    secrets: tuple[WrappedSecret, ...]
    policies: tuple[StoragePolicy, ...]
    kms_clusters: tuple[KmsCluster, ...]
    disk_policies: Mapping[str, StoragePolicy]  # as last applied, by target
    compliance: Compliance | None
    current: CurrentVm
    obstacles: Mapping[str, tuple[Finding, ...]]  # by control: why it cannot be used now
    progress: PlanProgress | None  # of a change that is being applied

    @property
    def plain_policy(self) -> StoragePolicy:
        return next(policy for policy in self.policies if policy.is_builtin and not policy.encrypts)

    @property
    def policy(self) -> StoragePolicy:
        return self.plain_policy if self.security is None else self.security.policy

    @property
    def home_policies(self) -> tuple[StoragePolicy, ...]:
        """What a home may have: see `home_policy`."""
        found = tuple(policy for policy in self.policies if policy.encrypts or policy.is_builtin)
        if self.policy.is_for_vtpm or self.vm.is_tpm_encrypted:
            return (*found, *StoragePolicy.every.filter(is_for_vtpm=True))
        return found

    def policy_of_disk(self, disk: Disk) -> StoragePolicy:
        """The one last applied; for a disk that has none, what fits its present state."""
        if disk.target in self.disk_policies:
            return self.disk_policies[disk.target]
        if not disk.is_encrypted:
            return self.plain_policy
        return next(one for one in (self.policy, *self.policies) if one.encrypts and not one.is_for_vtpm)

    @property
    def disks_with_policies(self) -> tuple[tuple[Disk, StoragePolicy], ...]:
        return tuple((disk, self.policy_of_disk(disk)) for disk in self.disks)


def vm_options(*, vm_id: UUID, actor: Actor) -> VmOptions:
    """The VM, what is known of its encryption, and the choices there are."""
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    current = observe(vm)
    providers = tuple(KmsCluster.objects.order_by("-is_default", "name"))
    return VmOptions(
        vm=vm,
        disks=tuple(vm.disks.filter(device="disk")),
        security=VmSecurity.objects.select_related("policy", "key__cluster").filter(virtual_machine=vm).first(),
        secrets=tuple(
            row for row in vm.wrapped_secrets.select_related("key__cluster", "replaces", "replaced_by") if _counts(row)
        ),
        policies=tuple(StoragePolicy.objects.all()),
        kms_clusters=providers,
        disk_policies={row.target: row.policy for row in vm.disk_policies.select_related("policy")},
        compliance=Compliance.objects.filter(virtual_machine=vm).first(),
        current=current,
        obstacles=options.obstacles(current, key_provider=key_readiness.provider_state(_provider(vm, None))),
        progress=progress_of(vm, APPLY.name, is_live=True),
    )


def apply_progress(*, vm_id: UUID, actor: Actor) -> PlanProgress | None:
    """The last change of the VM's options, live or not; None where there was none."""
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    return progress_of(vm, APPLY.name)


def _counts(row: WrappedSecret) -> bool:
    """Of a secret and the one that replaces it people see one: that which the definition opens."""
    if row.stage == Stage.REPLACED:
        return getattr(row, "replaced_by", None) is None or row.replaced_by.stage == Stage.ENCRYPTING
    return row.stage != Stage.ENCRYPTING or row.replaces is None


def plan_options(*, vm_id: UUID, wish: Wish, actor: Actor, with_definition: bool = True) -> PlannedChange:
    """What would be done, from what is known now, and what that means. Changes nothing. `with_definition`: with the
    difference that it makes to the VM's definition."""
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    current, desired = observe(vm), desired_of(vm, wish)
    plan = options.plan(current, desired)
    provider = _provider(vm, wish)
    told = options.effects(current, desired, plan, host=vm.host.name, key_provider=provider.name if provider else "")
    shown = None
    if with_definition and plan.steps and not plan.refusals:
        shown = definition_preview.preview(vm, plan, policy=home_policy(wish), provider=provider)
    return PlannedChange(plan, Approved.of(plan, vm.definition_sha256).digest, told, shown)


def plan_from_wish(vm: VirtualMachine, wish: Wish) -> Plan:
    return options.plan(observe(vm), desired_of(vm, wish))


def desired_of(vm: VirtualMachine, wish: Wish) -> DesiredVm:
    policy, disks = home_policy(wish), disk_policies_of(wish)
    return DesiredVm(
        policy.encrypts,
        frozenset(target for target, one in disks.items() if one.encrypts),
        key_provider=key_readiness.provider_state(_provider(vm, wish)),
        assignments=tuple(_assignments(vm, policy, disks)) if policy.encrypts else (),
        known_disks=frozenset(disks),
        home_is_for_vtpm=policy.is_for_vtpm,
        vtpm=wish.vtpm,
        secure_boot=wish.secure_boot,
        vbs=wish.vbs,
        encrypted_vmotion=wish.encrypted_vmotion,
    )


def _assignments(vm: VirtualMachine, policy: StoragePolicy, disks: Mapping[str, StoragePolicy]) -> Iterable[Assignment]:
    """Policies that differ from what was last applied. A disk without one has to get it, too."""
    security = VmSecurity.objects.select_related("policy").filter(virtual_machine=vm).first()
    if security is None:
        return
    if security.policy != policy:
        yield Assignment("", policy.name, policy.encrypts)
    known = dict(vm.disk_policies.values_list("target", "policy"))
    plain = plain_policy()
    for target in vm.disks.filter(device="disk", is_read_only=False).values_list("target", flat=True):
        wanted = disks.get(target, plain)
        if known.get(target) != wanted.pk:
            yield Assignment(target, wanted.name, wanted.encrypts)


def rights_of(plan: Plan) -> frozenset[str]:
    """What the steps of a plan need the right to; empty where it has none. Decided by what is done, not by the policy
    of the home: under an encrypting one single disks can be decrypted."""
    found = set()
    for step in plan.steps:
        if step.kind in _DECRYPTING:
            found.add(DECRYPT)
        elif step.kind in _ENCRYPTING:
            found.add(ENCRYPT)
        else:
            found.add(CONFIGURE)
    return frozenset(found if found == {CONFIGURE} else found - {CONFIGURE})


@transaction.atomic
def apply_options(
    *,
    vm_id: UUID,
    wish: Wish,
    actor: Actor,
    approved: str = "",
    confirm: str = "",
    full_verification: bool = False,
) -> Job:
    """Starts the job that does what `plan_options` shows.

    `approved`: the digest of the plan that somebody has seen; without one it is the plan as of now. `confirm` repeats
    the VM's name where its vTPM is removed: what is only in there is lost. `full_verification`: each copy that is made
    while the VM is off is compared wholly. Raises Conflict with the first refusal of the plan, `nothing_to_do` or
    `plan_outdated`; Invalid (`confirmation_mismatch`).
    """
    vm = vm_of(vm_id)
    policy = home_policy(wish)
    plan = plan_from_wish(vm, wish)
    rights = rights_of(plan) or {CONFIGURE}
    for right in sorted(rights):
        authorize(actor, right, vm)
    refuse(vm, plan)
    if plan.is_empty:
        raise Conflict("nothing_to_do", f"{vm} is as wanted already")
    now = Approved.of(plan, vm.definition_sha256)
    if approved and approved != now.digest:
        raise outdated(vm, ())
    if confirm.strip() != vm.name and any(step.kind is StepKind.REMOVE_VTPM for step in plan.steps):
        raise Invalid(
            "confirmation_mismatch",
            f"the vTPM of {vm} is destroyed by this, and that is not the VM's name",
            hint="type the VM's name as it is shown",
        )
    params = {**wish.as_params(), "plan": now.as_params(), **verification(is_full=full_verification)}
    job = jobs.start(
        APPLY, target=vm, actor=actor, params=params, rule=DECRYPT if DECRYPT in rights else "", right=DECRYPT
    )
    events.record(
        "vm.options_requested", f"{policy} requested for {vm}", target=vm, actor=actor, job=job,
        policy=policy.name, steps=[step.text for step in plan.steps], plan_digest=now.digest,
        disks=[f"{target}: {one.name}" for target, one in sorted(disk_policies_of(wish).items())],
    )  # fmt: skip
    return job


def verification(*, is_full: bool) -> dict[str, str]:
    """What a job's parameters say of how its copies are compared with their originals; nothing: by samples."""
    return {"verify": "full"} if is_full else {}


def check_approved(vm: VirtualMachine, wish: Wish, params: Mapping[str, Any]) -> None:
    """Worker side: whether the plan, made again from fresh facts, is still the one that was approved. Raises Conflict
    with the first refusal that it has now, else `plan_outdated`."""
    plan = plan_from_wish(vm, wish)
    refuse(vm, plan, but_for=KEY_CODES)
    if "plan" in params:
        told = options.differences(Approved.from_params(params["plan"]), Approved.of(plan, vm.definition_sha256))
        if told:
            raise outdated(vm, told)


def outdated(vm: VirtualMachine, told: Sequence[str]) -> Conflict:
    what = f": {'; '.join(told)}" if told else ""
    return Conflict(
        "plan_outdated", f"{vm} is not as it was when the plan was made{what}"[:900],
        hint="nothing was changed; look at the new plan, then apply that",
    )  # fmt: skip


def refuse(vm: VirtualMachine, plan: Plan, *, but_for: Collection[str] = ()) -> None:
    """Raises Conflict with the first refusal. `but_for`: codes of what the worker does not believe but tries itself."""
    first = next((one for one in plan.refusals if one.code not in but_for), None)
    if first is not None:
        raise Conflict(first.code, f"{vm}: {first.text}", hint=first.hint)


def kms_cluster_of(vm: VirtualMachine, wish: Wish) -> KmsCluster:
    found = chosen_provider(wish)
    if found is None:
        raise Conflict(
            "no_key_provider", "there is no key provider to take a key from", hint="add one under Key Providers"
        )
    return found


def _provider(vm: VirtualMachine, wish: Wish | None) -> KmsCluster | None:
    """The one that the VM's key is of, else the wanted one, else the default."""
    chosen = chosen_provider(wish) if wish else KmsCluster.objects.filter(is_default=True).first()
    return KmsCluster.objects.filter(keys__virtual_machines__virtual_machine=vm).first() or chosen


def chosen_provider(wish: Wish) -> KmsCluster | None:
    """The one that is named, else the default. Raises NotFound."""
    if wish.kms_cluster_id:
        found = KmsCluster.objects.filter(pk=wish.kms_cluster_id).first()
        if found is None:
            raise NotFound("key_provider_not_found", f"there is no key provider {wish.kms_cluster_id}")
        return found
    return KmsCluster.objects.filter(is_default=True).first()


def policy_of(wish: Wish) -> StoragePolicy:
    """The home's, after the change. A vTPM encrypts it where the named policy does not; without that vTPM nothing asks
    for it any more."""
    named = _policy(StoragePolicy.every.in_bulk([wish.policy_id]), wish.policy_id)
    if wish.vtpm is True and not named.encrypts and named.is_builtin:
        return StoragePolicy.every.get(is_for_vtpm=True)
    if wish.vtpm is False and named.is_for_vtpm:
        return plain_policy()
    return named


def home_policy(wish: Wish) -> StoragePolicy:
    """As `policy_of`. Raises Invalid `policy_not_for_home`: a home that is not encrypted has the built-in policy, and
    nothing is recorded of it."""
    found = policy_of(wish)
    if not found.encrypts and not found.is_builtin:
        raise Invalid(
            "policy_not_for_home",
            f"storage policy {found} does not encrypt, so it is for single disks of an encrypted VM only",
            hint=f"choose {plain_policy()} for the VM itself",
        )
    return found


def disk_policies_of(wish: Wish) -> dict[str, StoragePolicy]:
    """By target, in one query."""
    found = StoragePolicy.objects.in_bulk(set(wish.disks.values()))
    return {target: _policy(found, policy_id) for target, policy_id in wish.disks.items()}


def encrypted_disks(wish: Wish) -> frozenset[str]:
    return frozenset(target for target, policy in disk_policies_of(wish).items() if policy.encrypts)


def plain_policy() -> StoragePolicy:
    """The built-in one that does not encrypt."""
    return StoragePolicy.objects.get(is_builtin=True, encrypts=False)


def _policy(found: Mapping[UUID, StoragePolicy], policy_id: UUID) -> StoragePolicy:
    if policy_id not in found:
        raise Invalid("policy_not_found", f"there is no storage policy {policy_id}", hint="choose one from the list")
    return found[policy_id]


def record_disk_policies(vm: VirtualMachine, wish: Wish) -> None:
    """Once a change is carried out: every hard disk has its policy. Those of a VM that is plain again are forgotten."""
    if not policy_of(wish).encrypts:
        vm.disk_policies.all().delete()
        return
    wanted, plain = disk_policies_of(wish), plain_policy()
    for target in vm.disks.filter(device="disk", is_read_only=False).values_list("target", flat=True):
        DiskPolicy.objects.update_or_create(
            virtual_machine=vm, target=target, defaults={"policy": wanted.get(target, plain)}
        )


def forget_detached(disks: Sequence[tuple[UUID, str]]) -> None:
    """Disks that their VM no longer has lose their policy; it is to be chosen again where one comes back.

    `disks`: (VM id, target).
    """
    gone = Q()
    for vm_id, target in disks:
        gone |= Q(virtual_machine=vm_id, target=target)
    if disks:
        DiskPolicy.objects.filter(gone).delete()
