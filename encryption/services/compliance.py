"""Compliance: whether protected VMs are what their policies say, looked at on their hosts. Worker side, and asking.

Looked at right after each change of a VM's encryption, when its host is back, when sync has seen a change, by schedule,
and on request. The answer is one row a VM. An answer that is not known neither raises nor clears the alarm.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Prefetch, Q, QuerySet
from django.utils import timezone

from encryption.engine import compliance
from encryption.engine.compliance import NVRAM, VTPM, ExpectedPart, ExpectedVm, Finding, Result
from encryption.engine.metadata import BadMetadata, ProtectedVm
from encryption.models import (
    OPENED_BY_SECRET,
    Compliance,
    DiskPolicy,
    Purpose,
    Stage,
    StoragePolicy,
    VmSecurity,
    WrappedSecret,
)
from encryption.services import exposure, messages, vm_metadata
from encryption.services.observation import observe
from encryption.services.storage_policies import policy_of, with_policy
from inventory import events, jobs
from inventory.alarms import clear_alarm, raise_alarm
from inventory.authorize import SYSTEM, VIEW, Actor, authorize
from inventory.errors import Conflict, ServiceError
from inventory.jobs import Progress
from inventory.models import LIVE_STATUSES, Host, Job, Severity, TargetKind, VirtualMachine
from inventory.services import connections
from inventory.services.connections import HostUnreachable, Hypervisor, HypervisorError, translate
from inventory.services.hosts import host_of
from inventory.services.virtual_machines import vm_of

CHECK: Final = jobs.register(jobs.JobKind("encryption.check_compliance", "Check compliance", queue="attestation"))
CHECK_HOST: Final = "encryption.check_compliance_of_host"
CHECK_CHANGED: Final = "encryption.check_compliance_of_changed"
ACTION: Final = "encryption.check_compliance"
ALARM: Final = "vm.noncompliant"
MOST_NAMES: Final = 20
_HOMES: Final = ((NVRAM, Purpose.NVRAM), (VTPM, Purpose.VTPM))


@dataclass(slots=True)
class Tally:
    """VMs by the answer."""

    compliant: int = 0
    noncompliant: int = 0
    unknown: int = 0
    names: tuple[str, ...] = ()  # not compliant

    def count(self, vm: VirtualMachine, state: str) -> None:
        if state == Compliance.State.COMPLIANT:
            self.compliant += 1
        elif state == Compliance.State.NONCOMPLIANT:
            self.noncompliant += 1
            self.names = (*self.names, vm.name)[:MOST_NAMES]
        else:
            self.unknown += 1

    @property
    def told(self) -> str:
        bad = f" ({', '.join(self.names)}{', …' if self.noncompliant > len(self.names) else ''})" if self.names else ""
        return f"{self.compliant} compliant, {self.noncompliant} not compliant{bad}, {self.unknown} not known"


@dataclass(frozen=True, slots=True)
class Marks:
    """What a list shows of a protected VM; `compliance` empty: not looked at yet."""

    is_locked: bool
    compliance: str


def marks_of(ids: Sequence[UUID]) -> dict[UUID, Marks]:
    """Of those VMs that are protected; one query."""
    rows = VmSecurity.objects.filter(virtual_machine__in=ids)
    found = rows.values_list("virtual_machine_id", "locked_at", "virtual_machine__compliance__state")
    return {vm_id: Marks(locked_at is not None, state or "") for vm_id, locked_at, state in found}


def compliance_of(*, vm_id: UUID, actor: Actor) -> Compliance | None:
    """As last observed; None for a VM that is not protected, or was not looked at yet."""
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    return Compliance.objects.filter(virtual_machine=vm).first()


@transaction.atomic
def check_vm(*, vm_id: UUID, actor: Actor) -> Job:
    """A worker looks at one VM. Raises Conflict `not_encrypted` where no policy asks for anything, `vm_gone`."""
    vm = vm_of(vm_id)
    authorize(actor, ACTION, vm)
    if not VmSecurity.objects.filter(virtual_machine=vm).exists():
        raise Conflict("not_encrypted", f"{vm} is not encrypted", hint="only an encrypted VM is checked")
    if not vm.is_present:
        raise Conflict("vm_gone", f"{vm} is no longer on its host", hint="refresh the host")
    return jobs.start(CHECK, target=vm, actor=actor)


@transaction.atomic
def check_policy(*, policy_id: UUID, actor: Actor) -> Job:
    """A worker looks at every VM that has the policy in some part. Raises Conflict `policy_not_used`."""
    policy = policy_of(policy_id)
    authorize(actor, ACTION, policy)
    if not with_policy(policy_id).exists():
        raise Conflict("policy_not_used", f"no VM has the policy {policy}", hint="choose it in VM Options first")
    return jobs.start(CHECK, target=policy, actor=actor)


@transaction.atomic
def check_host(*, host_id: UUID, actor: Actor) -> Job:
    """A worker looks at every protected VM of the host."""
    host = host_of(host_id)
    authorize(actor, ACTION, host)
    return jobs.start(CHECK, target=host, actor=actor)


def run_check(job: Job, progress: Progress) -> None:
    """Worker side of the three above. It can be run again from the start at any time: it only reads and notes."""
    tally = Tally()
    rows = _chosen(job)
    progress.step("reading headers and definitions", total=rows.count())
    for done, (vm, state) in enumerate(_look_at(rows, job, is_alone=_is_vm(job)), start=1):
        tally.count(vm, state)
        progress.advance(done)
    if not _is_vm(job):
        events.record(
            "compliance.checked", f"Compliance of the VMs of {job.target_name} checked: {tally.told}",
            target=events.Subject(job.target_kind, job.target_id, job.target_name), actor=job.actor, job=job,
            compliant=tally.compliant, noncompliant=tally.noncompliant, unknown=tally.unknown,
            severity=Severity.WARNING if tally.noncompliant else Severity.INFO,
        )  # fmt: skip


def _is_vm(job: Job) -> bool:
    return job.target_kind == TargetKind.VIRTUAL_MACHINE


def _chosen(job: Job) -> QuerySet[VirtualMachine]:
    if _is_vm(job):
        return _protected().filter(pk=job.target_id)
    if job.target_kind == TargetKind.HOST:
        return _idle(_protected().filter(host=job.target_id))
    return _idle(_protected().filter(pk__in=with_policy(job.target_id).values("pk")))


def check_all() -> int:
    """By schedule: asks for a look at every host that has protected VMs, each on its own; returns how many."""
    found = list(Host.objects.filter(virtual_machines__security__isnull=False).distinct().values_list("pk", flat=True))
    for host_id in found:
        messages.send(CHECK_HOST, str(host_id))
    return len(found)


def check_of_host(host_id: str) -> int:
    """All protected VMs of a host but those that a job is busy with; returns how many were looked at."""
    return sum(1 for _ in _look_at(_idle(_protected().filter(host=UUID(host_id))), None))


def check_of_changed(host_id: str) -> int:
    """Those whose rows have changed since they were looked at."""
    rows = _protected().filter(host=UUID(host_id))
    stale = Q(compliance__isnull=True) | Q(compliance__checked_at__lt=F("last_changed_at"))
    return sum(1 for _ in _look_at(_idle(rows.filter(stale)), None))


def after_reconnect(host: Host, hypervisor: Hypervisor) -> None:
    """For inventory's watch: somebody may have been at work on the host meanwhile."""
    messages.send(CHECK_HOST, str(host.pk))


def after_change(host: Host) -> None:
    """For inventory's sync: a worker looks at what has changed, once the rows are written. What was last seen of a VM
    that is gone does not stand as if it still were so."""
    if not VmSecurity.objects.filter(virtual_machine__host=host).exists():
        return
    gone = Compliance.objects.filter(virtual_machine__host=host, virtual_machine__is_present=False)
    result = _not_observed("it is no longer on its host")
    gone.exclude(state=result.state.value).update(
        state=result.state.value, findings=[asdict(one) for one in result.findings], observations=[]
    )
    transaction.on_commit(partial(messages.send, CHECK_CHANGED, str(host.pk)))


def after_apply(vm: VirtualMachine, hypervisor: Hypervisor, job: Job) -> None:
    """At the end of a change of the VM's encryption, good or bad. What cannot be looked at is noted and no error."""
    found = _protected().filter(pk=vm.pk).first()
    if found is None:
        forget(vm)
        return
    try:
        _note(found, _assess(found, hypervisor), job)
    except HypervisorError as exc:
        _note(found, _not_observed(exc.message), job)


def forget(vm: VirtualMachine) -> None:
    """A VM that is not protected any more has nothing to comply with."""
    Compliance.objects.filter(virtual_machine=vm).delete()
    clear_alarm(ALARM, target=vm)


def _protected() -> QuerySet[VirtualMachine]:
    """With all that the expectation needs, in a fixed number of queries for any number of VMs."""
    secrets = WrappedSecret.objects.filter(stage__in=OPENED_BY_SECRET).select_related("key")
    disks = DiskPolicy.objects.select_related("policy")
    rows = VirtualMachine.objects.filter(security__isnull=False, is_present=True)
    return (
        rows.select_related("host", "compliance", "security__policy", "security__key__cluster")
        .prefetch_related(Prefetch("wrapped_secrets", secrets), Prefetch("disk_policies", disks))
        .order_by("host_id", "name", "pk")
    )


def _idle(rows: QuerySet[VirtualMachine]) -> QuerySet[VirtualMachine]:
    """Not those that a job is changing just now: it looks at them itself in the end."""
    busy = Job.objects.filter(
        target_kind=TargetKind.VIRTUAL_MACHINE, target_id=OuterRef("pk"), status__in=LIVE_STATUSES
    )
    return rows.exclude(Exists(busy))


def _look_at(
    rows: QuerySet[VirtualMachine], job: Job | None, *, is_alone: bool = False
) -> Iterable[tuple[VirtualMachine, str]]:
    """Host by host, over one connection each. `is_alone`: a host that does not answer is the caller's error too."""
    by_host: dict[UUID, list[VirtualMachine]] = {}
    for vm in rows:
        by_host.setdefault(vm.host_id, []).append(vm)
    for vms in by_host.values():
        waiting = list(vms)
        try:
            with connections.open_host(vms[0].host) as hypervisor:
                while waiting:
                    yield waiting[0], _look(waiting[0], hypervisor, job)
                    del waiting[0]
        except ServiceError as exc:
            _note_unreachable(waiting, exc)
            if is_alone:
                raise
            yield from ((vm, Compliance.State.UNKNOWN) for vm in waiting)


def _look(vm: VirtualMachine, hypervisor: Hypervisor, job: Job | None) -> str:
    try:
        result = _assess(vm, hypervisor)
    except HostUnreachable as exc:
        raise translate(exc, vm.host) from exc
    except HypervisorError as exc:
        result = _not_observed(exc.message)
    _note(vm, result, job)
    return result.state


def _assess(vm: VirtualMachine, hypervisor: Hypervisor) -> Result:
    return compliance.assess(_expectation(vm), observe(vm, hypervisor))


def _not_observed(why: str) -> Result:
    finding = Finding(
        "not_observed", "vm", "a look at the VM", "none", why[:400], "see that the host answers, then check again",
        is_unknown=True,
    )  # fmt: skip
    return Result(compliance.State.UNKNOWN, (finding,), ())


def _expectation(vm: VirtualMachine) -> ExpectedVm:
    """From the rows. A disk that was encrypted and has no policy of its own counts under the home's."""
    security = vm.security
    # A part that is getting a new key has two rows for a while: the one that replaces the other counts.
    rows = [row for row in vm.wrapped_secrets.all() if row.stage != Stage.REPLACED]
    new = {(row.purpose, row.target) for row in rows}
    rows += [
        row for row in vm.wrapped_secrets.all() if row.stage == Stage.REPLACED and (row.purpose, row.target) not in new
    ]
    secrets = {row.target or str(row.purpose): row.secret_uuid for row in rows}
    home = security.policy
    parts = [ExpectedPart(name, home.name, home.encrypts, secrets.get(purpose)) for name, purpose in _HOMES]
    policies: dict[str, StoragePolicy] = {row.target: row.policy for row in vm.disk_policies.all()}
    for row in rows:
        if row.purpose == Purpose.DISK:
            policies.setdefault(row.target, home)
    parts += [
        ExpectedPart(target, policy.name, policy.encrypts, secrets.get(target)) for target, policy in policies.items()
    ]
    return ExpectedVm(home.name, tuple(parts), _element(security, rows))


def _element(security: VmSecurity, rows: list[WrappedSecret]) -> ProtectedVm | None:
    """None where there is nothing to compare with: no key, or rows of an interrupted change that make no element."""
    if security.key is None:
        return None
    try:
        return vm_metadata.protected_vm(security.policy, security.key, rows)
    except BadMetadata:
        return None


def _note(vm: VirtualMachine, result: Result, job: Job | None) -> None:
    """The row, the alarm, and an event where the answer is another one than before."""
    now = timezone.now()
    findings = [asdict(finding) for finding in result.findings]
    observations = [asdict(line) for line in result.observations]
    with transaction.atomic():
        before = Compliance.objects.select_for_update().filter(virtual_machine=vm).first()
        Compliance.objects.update_or_create(
            virtual_machine=vm,
            defaults={
                "state": result.state.value, "findings": findings, "observations": observations, "checked_at": now,
            },
        )  # fmt: skip
        bad = [one for one in result.findings if not one.is_unknown and one.code not in exposure.TOLD_HERE]
        if bad:
            _raise(vm, bad, job)
        elif not any(one.is_unknown for one in result.findings):
            clear_alarm(ALARM, target=vm, job=job, is_told=True)
        if _is_news(before, result):
            _tell(vm, result, job)


def _is_news(before: Compliance | None, result: Result) -> bool:
    if before is None:
        return result.state is not compliance.State.COMPLIANT
    known = {(one["code"], one["part"]) for one in before.findings}
    return before.state != result.state or known != {(one.code, one.part) for one in result.findings}


def _raise(vm: VirtualMachine, bad: Sequence[Finding], job: Job | None) -> None:
    raise_alarm(
        ALARM, f"{vm} is not what its storage policies say: {_summary(bad)}", target=vm, severity=Severity.ERROR,
        remedy="; ".join(dict.fromkeys(finding.remedy for finding in bad)),
        evidence=[f"{finding.code}: {finding.evidence}"[:600] for finding in bad], job=job, is_told=True,
    )  # fmt: skip


def _tell(vm: VirtualMachine, result: Result, job: Job | None) -> None:
    words = {
        compliance.State.COMPLIANT: f"{vm} is what its storage policies say",
        compliance.State.NONCOMPLIANT: f"{vm} is not what its storage policies say: {_summary(result.findings)}",
        compliance.State.UNKNOWN: f"Whether {vm} is what its storage policies say is not known: "
        f"{_summary(result.findings)}",
    }
    events.record(
        "vm.compliance_changed", words[result.state], target=vm, actor=SYSTEM if job is None else job.actor, job=job,
        severity=Severity.INFO if result.state is compliance.State.COMPLIANT else Severity.WARNING,
        state=result.state.value, codes=sorted({finding.code for finding in result.findings}),
    )  # fmt: skip


def _summary(findings: Iterable[Finding]) -> str:
    return ", ".join(f"{finding.part} {finding.observed} ({finding.code})" for finding in findings)[:600]


def _note_unreachable(vms: Sequence[VirtualMachine], error: ServiceError, now: datetime | None = None) -> None:
    """One statement for all; no event of each, since that of the lost host says it."""
    result = _not_observed(error.message)
    Compliance.objects.bulk_create(
        [
            Compliance(
                virtual_machine=vm, state=result.state.value, findings=[asdict(one) for one in result.findings],
                observations=[], checked_at=now or timezone.now(),
            )
            for vm in vms
        ],
        update_conflicts=True,
        unique_fields=["virtual_machine"],
        update_fields=["state", "findings", "observations", "checked_at"],
    )  # fmt: skip
