"""Storage policies: what there is, who uses it, and making, changing and deleting one.

The built-in ones stay as they are. One in use keeps what it says of encryption and cannot go: VMs are brought under
another policy by VM Options, which plans and converts.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from encryption.models import Compliance, DiskPolicy, StoragePolicy, VmSecurity
from encryption.services.options import APPLY
from inventory import events
from inventory.authorize import VIEW, Actor, authorize, visible
from inventory.errors import Conflict, Invalid, NotFound, Refused
from inventory.models import LIVE_STATUSES, Job, VirtualMachine
from inventory.services.listings import FIRST, Listing, Paging, listed

MANAGE: Final = "encryption.manage_policies"
MAX_NAME: Final = 80
MAX_DESCRIPTION: Final = 300
MAX_KEY_AGE_DAYS: Final = 3650


@dataclass(frozen=True, slots=True)
class PolicyUse:
    """A policy with the number of VMs whose home has it, of disks that have it, and of those VMs (either way) that are
    not compliant."""

    policy: StoragePolicy
    virtual_machines: int
    disks: int
    noncompliant: int

    @property
    def is_in_use(self) -> bool:
        return bool(self.virtual_machines or self.disks)


@dataclass(frozen=True, slots=True)
class VmUse:
    """A VM that has the policy for its home, for some disks (by target), or both."""

    vm: VirtualMachine
    is_home: bool
    disks: tuple[str, ...]
    compliance: Compliance | None


def policies(*, actor: Actor) -> tuple[PolicyUse, ...]:
    """All of them, in four queries."""
    authorize(actor, VIEW)
    return _with_use(StoragePolicy.objects.all())


def policy_use(policy_id: UUID, *, actor: Actor) -> PolicyUse:
    authorize(actor, VIEW)
    found = _with_use(StoragePolicy.objects.filter(pk=policy_id))
    if not found:
        raise NotFound("policy_not_found", f"there is no storage policy {policy_id}")
    return found[0]


def vms_of_policy(
    policy_id: UUID, *, actor: Actor, paging: Paging = FIRST
) -> tuple[Listing[VirtualMachine], list[VmUse]]:
    """A page of the VMs that have the policy in any part, by name, with what each has it for. Four queries."""
    authorize(actor, VIEW)
    rows = visible(with_policy(policy_id), actor).select_related("host", "compliance", "security")
    page = listed(rows, paging)
    disks: dict[UUID, list[str]] = {}
    wanted = DiskPolicy.objects.filter(policy=policy_id, virtual_machine__in=[vm.pk for vm in page.items])
    for vm_id, target in wanted.values_list("virtual_machine_id", "target"):
        disks.setdefault(vm_id, []).append(target)
    homes = set(
        VmSecurity.objects.filter(policy=policy_id, virtual_machine__in=[vm.pk for vm in page.items]).values_list(
            "virtual_machine_id", flat=True
        )
    )
    uses = [
        VmUse(vm, vm.pk in homes, tuple(disks.get(vm.pk, ())), getattr(vm, "compliance", None)) for vm in page.items
    ]
    return page, uses


def with_policy(policy_id: UUID) -> QuerySet[VirtualMachine]:
    """VMs that have it for their home or a disk."""
    by_home = VmSecurity.objects.filter(policy=policy_id, virtual_machine=OuterRef("pk"))
    by_disk = DiskPolicy.objects.filter(policy=policy_id, virtual_machine=OuterRef("pk"))
    return VirtualMachine.objects.filter(Exists(by_home) | Exists(by_disk))


@transaction.atomic
def create_policy(
    *, name: str, actor: Actor, description: str = "", encrypts: bool = True, max_key_age_days: int | None = None
) -> StoragePolicy:
    authorize(actor, MANAGE)
    made = StoragePolicy(encrypts=encrypts)
    _fill(made, name, description, max_key_age_days)
    made.save(force_insert=True)
    events.record(
        "policy.created", f"Storage policy {made} created", target=None, actor=actor, policy=made.name,
        encrypts=encrypts, max_key_age_days=max_key_age_days,
    )  # fmt: skip
    return made


@transaction.atomic
def clone_policy(*, policy_id: UUID, name: str, actor: Actor) -> StoragePolicy:
    """A policy of its own that says the same; the way to a changed built-in one."""
    authorize(actor, MANAGE)
    original = policy_of(policy_id)
    return create_policy(
        name=name, description=original.description, encrypts=original.encrypts,
        max_key_age_days=original.max_key_age_days, actor=actor,
    )  # fmt: skip


@transaction.atomic
def edit_policy(
    *,
    policy_id: UUID,
    name: str,
    actor: Actor,
    description: str = "",
    encrypts: bool = True,
    max_key_age_days: int | None = None,
) -> StoragePolicy:
    """Raises Refused `policy_builtin`, Conflict `policy_in_use` where `encrypts` would change under its VMs."""
    authorize(actor, MANAGE)
    edited = _own(policy_id, "edited")
    if encrypts != edited.encrypts:
        _refuse_in_use(edited, "change whether it encrypts")
    edited.encrypts = encrypts
    _fill(edited, name, description, max_key_age_days)
    edited.save()
    events.record(
        "policy.edited", f"Storage policy {edited} changed", target=None, actor=actor, policy=edited.name,
        encrypts=encrypts, max_key_age_days=max_key_age_days,
    )  # fmt: skip
    return edited


@transaction.atomic
def delete_policy(*, policy_id: UUID, actor: Actor) -> None:
    """Raises Refused `policy_builtin`, Conflict `policy_in_use`."""
    authorize(actor, MANAGE)
    dropped = _own(policy_id, "deleted")
    _refuse_in_use(dropped, "be deleted")
    events.record("policy.deleted", f"Storage policy {dropped} deleted", target=None, actor=actor, policy=dropped.name)
    dropped.delete()


def policy_of(policy_id: UUID) -> StoragePolicy:
    found = StoragePolicy.objects.filter(pk=policy_id).first()
    if found is None:
        raise NotFound("policy_not_found", f"there is no storage policy {policy_id}")
    return found


def _own(policy_id: UUID, verb: str) -> StoragePolicy:
    # Held until the end, so that a VM does not come under it meanwhile.
    found = StoragePolicy.objects.select_for_update().filter(pk=policy_id).first() or policy_of(policy_id)
    if found.is_builtin:
        raise Refused("policy_builtin", f"{found} is built in and cannot be {verb}", hint="clone it, and use the clone")
    return found


def _refuse_in_use(policy: StoragePolicy, what: str) -> None:
    home = VmSecurity.objects.filter(policy=policy).select_related("virtual_machine").first()
    disk = DiskPolicy.objects.filter(policy=policy).select_related("virtual_machine").first()
    user = str(home.virtual_machine) if home else f"{disk.target} of {disk.virtual_machine}" if disk else ""
    user = user or _wanted_by(policy)
    if user:
        raise Conflict(
            "policy_in_use",
            f"{policy} is in use ({user}), so it cannot {what}",
            hint="give its VMs and disks another policy in their VM Options first",
        )


def _wanted_by(policy: StoragePolicy) -> str:
    """A VM that a waiting or running change brings under the policy; empty where there is none."""
    for job in Job.objects.filter(kind=APPLY.name, status__in=LIVE_STATUSES):
        if str(policy.pk) in {job.params["policy"], *job.params["disks"].values()}:
            return f"a change of {job.target_name} that is not finished"
    return ""


def _fill(policy: StoragePolicy, name: str, description: str, max_key_age_days: int | None) -> None:
    policy.name, policy.description = name.strip(), " ".join(description.split())
    if not policy.name:
        raise Invalid("name_missing", "the storage policy has no name", hint="give it one")
    if len(policy.name) > MAX_NAME or not policy.name.isprintable():
        raise Invalid(
            "name_invalid",
            "that name is too long or holds characters that cannot be printed",
            hint=f"at most {MAX_NAME} characters; it is written into the metadata of VMs",
        )
    if len(policy.description) > MAX_DESCRIPTION or not policy.description.isprintable():
        raise Invalid("description_invalid", "that description is too long or cannot be printed", hint="shorten it")
    if max_key_age_days is not None and not 1 <= max_key_age_days <= MAX_KEY_AGE_DAYS:
        raise Invalid(
            "max_key_age_invalid",
            f"{max_key_age_days} days is no age for a key",
            hint=f"1 to {MAX_KEY_AGE_DAYS} days, or none",
        )
    if max_key_age_days is not None and not policy.encrypts:
        raise Invalid("max_key_age_invalid", "a policy that does not encrypt has no keys", hint="leave the age empty")
    if StoragePolicy.every.filter(name__iexact=policy.name).exclude(pk=policy.pk).exists():
        raise Conflict("name_taken", f"there is a storage policy {policy.name} already", hint="choose another name")
    policy.max_key_age_days = max_key_age_days


def _with_use(rows: QuerySet[StoragePolicy]) -> tuple[PolicyUse, ...]:
    found = list(rows)
    ids = [policy.pk for policy in found]
    homes = {
        row["policy_id"]: row["number"]
        for row in VmSecurity.objects.filter(policy__in=ids).values("policy_id").annotate(number=Count("pk")).order_by()
    }
    disks = {
        row["policy_id"]: row["number"]
        for row in DiskPolicy.objects.filter(policy__in=ids).values("policy_id").annotate(number=Count("pk")).order_by()
    }
    bad = Compliance.objects.filter(state=Compliance.State.NONCOMPLIANT).values("virtual_machine")
    users: dict[UUID, set[UUID]] = {}
    for model in (VmSecurity, DiskPolicy):
        pairs = model.objects.filter(Q(policy__in=ids), virtual_machine__in=bad)
        for policy_id, vm_id in pairs.values_list("policy_id", "virtual_machine_id"):
            users.setdefault(policy_id, set()).add(vm_id)
    return tuple(
        PolicyUse(one, homes.get(one.pk, 0), disks.get(one.pk, 0), len(users.get(one.pk, ()))) for one in found
    )
