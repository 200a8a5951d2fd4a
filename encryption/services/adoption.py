"""Keys of a VM that this console has no rows for, taken over from the VM's own definition.

Such a VM was found on a host (the console was rebuilt, the VM was imported or moved by hand). Its metadata names the
key provider and holds the wrapped keys. It comes from a host that may lie, so: the parse is strict
(engine/metadata.py), rows that are there are never changed, secrets that this console keeps for another VM are not
given to this one, and a wrapped key opens under its own KEK or not at all. NOT proven: that the VM is the one whose
keys these are; whoever can define VMs on a host can present wrapped keys there, and the gate in front of that host
decides who gets them.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import Count, Q, QuerySet

from encryption.engine.metadata import BadMetadata, ProtectedVm, from_xml
from encryption.models import (
    DiskPolicy,
    Key,
    KmsCluster,
    Purpose,
    Stage,
    StoragePolicy,
    VmSecurity,
    WrappedSecret,
)
from encryption.services import locks, messages, vm_metadata, vmotion
from encryption.services.key_access import cluster_of
from encryption.services.key_lifecycle import refresh_states
from encryption.services.key_providers import MANAGE, cluster
from encryption.services.parts import opens, path_in
from encryption.services.release import try_secrets
from inventory import events, jobs
from inventory.authorize import SYSTEM, VIEW_ALL, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound, ServiceError
from inventory.jobs import Progress
from inventory.models import LIVE_STATUSES, Host, Job, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import Hypervisor, VmFacts, vtpm_state_path
from inventory.services.definitions import BadDefinition, metadata, set_metadata

ADOPT: Final = jobs.register(jobs.JobKind("encryption.adopt_keys", "Take over keys"))
FIND: Final = "encryption.adopt_found"
MAKERS: Final = ("encryption.clone_vm", "encryption.import_vm", "encryption.create_vm")
MOST: Final = 1000
MAX_TARGET: Final = 32


@dataclass(frozen=True, slots=True)
class ForeignProvider:
    """A key provider that VMs name and that is not known here. `name` is what it is called there, UNVERIFIED."""

    identity: UUID
    name: str
    vms: int


def foreign_providers(*, actor: Actor) -> list[ForeignProvider]:
    """Those that locked VMs name, the most wanted first. One query."""
    authorize(actor, VIEW_ALL)
    rows = VmSecurity.objects.filter(foreign_kms__isnull=False).values_list("foreign_kms", "foreign_kms_name")
    counted = rows.annotate(vms=Count("id")).order_by("-vms", "foreign_kms_name")
    found: dict[UUID, ForeignProvider] = {}
    for identity, name, count in counted:
        before = found.get(identity)
        found[identity] = ForeignProvider(
            identity, before.name if before else name, count + (before.vms if before else 0)
        )
    return list(found.values())


def unknown_vms() -> QuerySet[VirtualMachine]:
    """VMs with an encrypted part, of which nothing is known here: neither keys nor why there are none."""
    encrypted = Q(is_nvram_encrypted=True) | Q(is_tpm_encrypted=True) | Q(disks__is_encrypted=True)
    found = VirtualMachine.objects.filter(
        encrypted, is_present=True, security__isnull=True, wrapped_secrets__isnull=True
    )
    return found.distinct()


def look_for_unknown(host: Host) -> None:
    """After rows of a host were written: a worker looks at VMs that came with keys of their own. One query."""
    if unknown_vms().filter(host=host).exists():
        transaction.on_commit(lambda: messages.send(FIND))


def adopt_found() -> int:
    """Takes over the keys of all VMs that were found; how many were looked at. A host that does not answer waits for
    the schedule."""
    by_host: dict[UUID, list[VirtualMachine]] = {}
    made = set(Job.objects.filter(kind__in=MAKERS, status__in=LIVE_STATUSES).values_list("checkpoint__uuid", flat=True))
    for vm in unknown_vms().filter(host__state=Host.State.CONNECTED).select_related("host")[:MOST]:
        if str(vm.uuid) in made:
            continue  # the job that has just defined it does it, with the right of whoever asked
        by_host.setdefault(vm.host_id, []).append(vm)
    looked_at = 0
    for vms in by_host.values():
        try:
            with connections.open_host(vms[0].host) as hypervisor:
                for vm in vms:
                    adopt(vm, hypervisor, actor=SYSTEM)
                    looked_at += 1
        except ServiceError:
            continue
    return looked_at


def adopt_foreign(owner: KmsCluster) -> int:
    """The VMs that waited for this key provider, now that it is known and answers. How many have their keys."""
    waiting = VirtualMachine.objects.filter(security__foreign_kms=owner.pk, is_present=True).select_related("host")
    free = 0
    for vm in waiting[:MOST]:
        try:
            with connections.open_host(vm.host) as hypervisor:
                free += not adopt(vm, hypervisor, actor=SYSTEM)
        except ServiceError:
            continue
    return free


@transaction.atomic
def adopt_keys(*, cluster_id: UUID, identity: UUID, actor: Actor) -> Job:
    """Says that this provider holds the keys of the unknown provider `identity`, and has a worker take them over.

    Raises Refused, NotFound, Invalid `identity_unknown` where no locked VM names it.
    """
    authorize(actor, MANAGE)
    owner = cluster(cluster_id, actor=actor)
    if identity not in {one.identity for one in foreign_providers(actor=actor)}:
        raise Invalid("identity_unknown", f"no locked VM names the key provider {identity}")
    job = jobs.start(ADOPT, target=owner, actor=actor, params={"identity": str(identity)})
    events.record(
        "key.adoption_requested", f"{owner} is to hold the keys of key provider {identity}", target=owner, actor=actor,
        job=job, identity=str(identity),
    )  # fmt: skip
    return job


def run_adopt_keys(job: Job, progress: Progress) -> None:
    """Worker side of `adopt_keys`: VM after VM. One whose keys are not there stays as it was, and the job tells it."""
    owner = cluster_of(job)
    waiting = VirtualMachine.objects.filter(security__foreign_kms=job.params["identity"], is_present=True)
    vms = list(waiting.select_related("host")[:MOST])
    progress.step("taking over keys", total=len(vms))
    failed: list[str] = []
    for number, vm in enumerate(vms):
        progress.advance(number)
        try:
            with connections.open_host(vm.host) as hypervisor:
                error = adopt(vm, hypervisor, actor=job.actor, job=job, owner=owner, is_asked=True)
        except ServiceError as exc:
            error = exc
        if error is not None:
            failed.append(f"{vm}: {error.code}")
    if failed:
        raise Conflict("some_failed", f"{len(failed)} of {len(vms)} VMs stay locked ({', '.join(failed)})"[:900])


def before_start(vm: VirtualMachine, hypervisor: Hypervisor, job: Job) -> None:
    """A start step: a VM whose keys are not known here is looked at once more, or refused with what keeps it locked."""
    if vm.wrapped_secrets.exists():
        return
    error = adopt(vm, hypervisor, actor=job.actor, job=job)
    if error is not None:
        raise Conflict("vm_locked", f"{vm} is locked: {error.message}", hint=error.hint)


def taken_in(host: Host, uuid: UUID, hypervisor: Hypervisor, *, job: Job) -> VirtualMachine:
    """The row of a VM that the job has just defined on the host, with the keys from its definition."""
    sync.refresh_uuids(host, hypervisor, [uuid])
    made = VirtualMachine.objects.select_related("host").get(host=host, uuid=uuid)
    adopt(made, hypervisor, actor=job.actor, job=job, is_asked=True)
    return VirtualMachine.objects.select_related("host").get(pk=made.pk)


def adopt(
    vm: VirtualMachine,
    hypervisor: Hypervisor,
    *,
    actor: Actor | str,
    job: Job | None = None,
    owner: KmsCluster | None = None,
    is_asked: bool = False,
) -> ServiceError | None:
    """Takes over the VM's keys from its definition; what keeps it locked, or None. Does nothing where keys are known.

    `owner`: the provider to look at in place of the one that the metadata names. `is_asked`: a person wants it, so that
    a VM with the same wrapped keys as another (a copy made on purpose) gets them too.
    """
    facts = hypervisor.virtual_machine(vm.uuid)
    named = _secrets_of(facts)
    if vm.wrapped_secrets.exists():
        return None
    if not named:
        _forget(vm)
        return None
    parts = sorted(named)
    error: ServiceError
    try:
        text = metadata(hypervisor.definition(vm.uuid), vm_metadata.NAMESPACE)
        found = None if text is None else _checked(from_xml(text))
    except (BadDefinition, BadMetadata) as exc:
        error = Conflict(
            "metadata_damaged", f"the keys in the definition of {vm} cannot be read: {exc}",
            hint="restore its definition from a backup",
        )  # fmt: skip
        return _locked(vm, error, parts, None, actor, job)
    if found is None:
        return _without_metadata(vm, hypervisor, named, actor, job)
    known = owner or KmsCluster.objects.filter(pk=found.kms_cluster).first()
    if known is None:
        error = NotFound(
            "key_provider_unknown",
            f"its keys are at the key provider {found.kms_cluster_name} ({found.kms_cluster}), which is not known here",
            hint="add that key provider with this identity, or say which one holds its keys",
        )
        return _locked(vm, error, parts, found, actor, job)
    other = _same_keys(vm, found, also_wrapped=not is_asked)
    if other is not None:
        error = Conflict(
            "vm_is_copy", f"its keys are those of {other} on {other.host}, which this console keeps",
            hint="if it is a copy made on purpose, unlock it; if it is that VM, remove one of the two from its host",
        )  # fmt: skip
        return _locked(vm, error, parts, found, actor, job)
    return _take_over(vm, hypervisor, facts, named, found, known, actor, job)


def _take_over(
    vm: VirtualMachine, hypervisor: Hypervisor, facts: VmFacts, named: dict[str, UUID], found: ProtectedVm,
    owner: KmsCluster, actor: Actor | str, job: Job | None,
) -> ServiceError | None:  # fmt: skip
    rows = _write_rows(vm, facts, found, owner)
    if not rows:
        return None  # somebody else was quicker
    with suppress(ServiceError):  # the next lines tell what that means for the VM
        refresh_states(owner, list({row.key_id: row.key for row in rows}.values()), actor=actor)
    _, failures = try_secrets(rows)
    if failures and owner.pk != found.kms_cluster:
        # It was only said that this provider has the keys. It has not, so nothing is taken over.
        WrappedSecret.objects.filter(pk__in=[row.pk for row in rows]).delete()
        VmSecurity.objects.filter(virtual_machine=vm).update(key=None)
        return _locked(vm, failures[0].error, sorted(named), found, actor, job)
    events.record(
        "vm.adopted", f"Keys of {vm} taken over from its definition: {', '.join(row.part for row in rows)}", target=vm,
        actor=actor, job=job, kms=owner.name, key_ids=sorted({row.key.key_id for row in rows}),
        parts=sorted(row.target or str(row.purpose) for row in rows),
    )  # fmt: skip
    if failures:
        locks.lock(vm, failures, actor=actor, job=job)
        return failures[0].error
    if owner.pk != found.kms_cluster:
        _write_metadata(vm, hypervisor, rows)
    known = {row.secret_uuid for row in rows}
    missing = [part for part, secret in named.items() if secret not in known and not hypervisor.has_secret(secret)]
    if missing:
        return _locked(vm, _missing_on_host(vm), missing, None, actor, job)
    locks.release(vm, actor=actor, job=job, has_seen_definition=True)
    return None


def _write_rows(vm: VirtualMachine, facts: VmFacts, found: ProtectedVm, owner: KmsCluster) -> list[WrappedSecret]:
    with transaction.atomic():
        VirtualMachine.objects.select_for_update().get(pk=vm.pk)
        if WrappedSecret.objects.filter(virtual_machine=vm).exists():
            return []
        keys = {
            key_id: Key.objects.get_or_create(cluster=owner, key_id=key_id)[0]
            for key_id in {found.kek_id, *(secret.kek_id for secret in found.secrets)}
        }
        rows = []
        for secret in found.secrets:
            purpose = Purpose(secret.purpose)
            row = WrappedSecret(
                secret_uuid=secret.secret_uuid, virtual_machine=vm, purpose=purpose,
                target=secret.target if purpose == Purpose.DISK else "", key=keys[secret.kek_id],
                wrapped=secret.wrapped, plain_format="" if purpose == Purpose.VTPM else secret.source_format,
                size_bytes=secret.size, stage=Stage.IN_USE,
            )  # fmt: skip
            if purpose == Purpose.VTPM:
                row.path = vtpm_state_path(vm) or ""
            elif opens(facts, row):
                row.path = path_in(facts, row)
            row.save(force_insert=True)
            rows.append(row)
        policy = _policy(found)
        VmSecurity.objects.update_or_create(
            virtual_machine=vm,
            defaults={"policy": policy, "key": keys[found.kek_id], "foreign_kms": None, "foreign_kms_name": ""},
        )
        vmotion.keep_required(vm)
        for row in rows:
            if row.purpose == Purpose.DISK and opens(facts, row):
                DiskPolicy.objects.get_or_create(virtual_machine=vm, target=row.target, defaults={"policy": policy})
        return rows


def _write_metadata(vm: VirtualMachine, hypervisor: Hypervisor, rows: Iterable[WrappedSecret]) -> None:
    """Names the provider that has proved to hold the keys, so that the next console finds it."""
    security = VmSecurity.objects.select_related("policy", "key__cluster").get(virtual_machine=vm)
    assert security.key is not None  # noqa: S101  _write_rows has set it
    element = vm_metadata.element(vm, security.policy, security.key, rows)
    hypervisor.redefine(vm.uuid, lambda xml: set_metadata(xml, vm_metadata.NAMESPACE, element))
    sync.refresh_virtual_machine(vm, hypervisor)


def _without_metadata(
    vm: VirtualMachine, hypervisor: Hypervisor, named: dict[str, UUID], actor: Actor | str, job: Job | None
) -> ServiceError | None:
    """Encrypted by somebody else: not locked as long as its host has the secrets that its definition names."""
    missing = [part for part, secret in named.items() if not hypervisor.has_secret(secret)]
    if missing:
        return _locked(vm, _missing_on_host(vm), missing, None, actor, job)
    _forget(vm)
    return None


def _missing_on_host(vm: VirtualMachine) -> ServiceError:
    return Conflict(
        "key_missing_on_host",
        f"its definition names secrets that {vm.host} does not have, and nothing here holds them wrapped",
        hint="restore the VM's definition with Bartizan's metadata, or define the secrets on the host, then unlock it",
    )


def _locked(
    vm: VirtualMachine, error: ServiceError, parts: list[str], found: ProtectedVm | None, actor: Actor | str,
    job: Job | None,
) -> ServiceError:  # fmt: skip
    foreign = found if found is not None and error.code == "key_provider_unknown" else None
    with transaction.atomic():
        defaults: dict[str, object] = {}
        if found is not None:
            defaults = {
                "foreign_kms": found.kms_cluster if foreign else None,
                "foreign_kms_name": found.kms_cluster_name if foreign else "",
            }
        VmSecurity.objects.update_or_create(
            virtual_machine=vm, defaults=defaults, create_defaults={"policy": _policy(found), **defaults}
        )
        locks.lock_parts(vm, error, sorted(parts), actor=actor, job=job)
    return error


def _forget(vm: VirtualMachine) -> None:
    """Nothing of ours is needed any more to open it."""
    with transaction.atomic():
        unknown = VmSecurity.objects.filter(virtual_machine=vm, key__isnull=True, locked_at__isnull=False)
        if unknown.exists():
            locks.release(vm, actor=SYSTEM, has_seen_definition=True)
            unknown.model.objects.filter(virtual_machine=vm, key__isnull=True).delete()


def _same_keys(vm: VirtualMachine, found: ProtectedVm, *, also_wrapped: bool) -> VirtualMachine | None:
    """Another VM of this console that has one of these secrets, or (a copy) the same wrapped keys or the same UUID."""
    same = Q(secret_uuid__in=[secret.secret_uuid for secret in found.secrets])
    if also_wrapped:
        same |= Q(wrapped__in=[secret.wrapped for secret in found.secrets]) | Q(virtual_machine__uuid=vm.uuid)
    rows = WrappedSecret.objects.filter(same).exclude(virtual_machine=vm)
    row = rows.select_related("virtual_machine__host").defer("wrapped").first()
    return None if row is None else row.virtual_machine


def _checked(found: ProtectedVm) -> ProtectedVm:
    if any(len(secret.target) > MAX_TARGET for secret in found.secrets):
        raise BadMetadata("a disk's name is too long")
    return found


def _policy(found: ProtectedVm | None) -> StoragePolicy:
    """The policy of that name here, else the built-in one that encrypts."""
    policies = StoragePolicy.objects.filter(encrypts=True)
    named = policies.filter(name=found.policy).first() if found is not None else None
    return named or policies.order_by("-is_builtin", "name")[0]


def _secrets_of(facts: VmFacts) -> dict[str, UUID]:
    """Each part that the definition opens with a secret: vda ..., nvram, vtpm."""
    named = {disk.target: disk.secret_uuid for disk in facts.disks if disk.secret_uuid is not None}
    if facts.nvram_secret_uuid is not None:
        named[str(Purpose.NVRAM)] = facts.nvram_secret_uuid
    if facts.tpm is not None and facts.tpm.secret_uuid is not None:
        named[str(Purpose.VTPM)] = facts.tpm.secret_uuid
    return named
