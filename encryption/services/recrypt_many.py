"""Shallow recrypt of many VMs in one job: all of a key provider, or those whose keys are too old (`rotation.py`).

A batch of VMs of one host gets its keys at the key server, then one transaction names them, then each VM's metadata.
While rows and metadata are written, a helper thread asks the key server for what the next batch will need. The order of
writes is that of `recrypt.py`, and so is what a kill leaves; keys that were made ahead are found again by their names.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final, final
from uuid import UUID

from encryption.models import KmsCluster, Stage, VmSecurity, WrappedSecret
from encryption.services.key_access import KeySession, ask_keks_ahead, new_key_name
from encryption.services.recrypt import (
    KeyedVm,
    NewKey,
    cluster_of,
    has_key_of,
    keyed_vm,
    new_key,
    take_over,
    write_metadata,
)
from inventory import events, jobs
from inventory.errors import Conflict, ServiceError, Unavailable, Untrusted
from inventory.jobs import Cancelled, Progress
from inventory.models import LIVE_STATUSES, Job, Severity, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import HostUnreachable, Hypervisor, HypervisorError

_BATCH: Final = 20
_DONE: Final = "ok"


def run_recrypt_vms(job: Job, progress: Progress) -> None:
    """Worker side of `recrypt_provider` and of the schedule (`rotation.py`), over one connection to the key provider
    and one to each host in turn.

    A VM that fails does not hold up the others, nor does a host. A key provider that is lost ends the job: each
    further VM would only wait for it. After a kill, VMs that have their new key already are not given another one.
    """
    cluster = cluster_of(job.target_id)
    due: dict[str, str] | None = job.params.get("due")
    results: dict[str, str] = dict(job.checkpoint.get("results", {}))
    found = [vm for vm in _vms_at(cluster) if due is None or str(vm.pk) in due]
    waiting = [vm for vm in found if str(vm.pk) not in results]
    progress.step("recrypting", total=len(results) + len(waiting))
    with KeySession(cluster) as session:
        bulk = _Bulk(job, progress, session, results, due or {})
        for _, members in groupby(waiting, key=lambda vm: vm.host_id):
            lost = bulk.recrypt(list(members))
            progress.checkpoint(results=results)
            if lost is not None:
                raise lost
    failed = [code for code in results.values() if code != _DONE]
    if failed:
        raise Conflict(
            "some_failed",
            f"{len(failed)} of {len(results)} VMs keep their keys ({', '.join(sorted(set(failed)))})",
            hint="see the events of each",
        )


@final
class _Bulk:
    """One run of a job over many VMs. `results`: VM's id -> "ok" or the code of what failed."""

    def __init__(
        self, job: Job, progress: Progress, session: KeySession, results: dict[str, str], reasons: Mapping[str, str]
    ) -> None:
        self._job = job
        self._progress = progress
        self._session = session
        self._results = results
        self._reasons = reasons

    def recrypt(self, members: Sequence[VirtualMachine]) -> ServiceError | None:
        """VMs of one host. Returns what the key provider failed with, when it is lost for all."""
        host = members[0].host
        lost: ServiceError | None = None
        try:
            with connections.open_host(host) as hypervisor:
                batches = [members[first : first + _BATCH] for first in range(0, len(members), _BATCH)]
                for batch, following in zip(batches, [*batches[1:], []], strict=True):
                    lost = self._batch(batch, following, hypervisor)
                    if lost is not None:
                        break
        except ServiceError as exc:  # no way to the host, or none any more
            for vm in members:
                if str(vm.pk) not in self._results:
                    self._fail(vm, exc)
        return lost

    def _batch(
        self, members: Sequence[VirtualMachine], following: Sequence[VirtualMachine], hypervisor: Hypervisor
    ) -> ServiceError | None:
        renewed, made, lost = self._make_keys(members)
        # Only here the job can be cancelled: a batch that has new keys is finished, and none is asked for the next.
        cancelled = self._is_cancelled()
        if lost is None and not cancelled:
            self._ask_ahead(following)
        renewed += take_over(self._still_free(made), self._session.cluster, self._job)
        for keyed in renewed:
            try:
                write_metadata(keyed, hypervisor)
                self._results[str(keyed.vm.pk)] = _DONE
            except HostUnreachable:
                raise
            except (ServiceError, HypervisorError) as exc:
                self._fail(keyed.vm, exc)
        if renewed:
            sync.refresh_uuids(members[0].host, hypervisor, [keyed.vm.uuid for keyed in renewed])
        self._progress.checkpoint(results=self._results)
        if cancelled:
            raise Cancelled
        return lost

    def _is_cancelled(self) -> bool:
        try:
            self._progress.advance(len(self._results))
        except Cancelled:
            return True
        return False

    def _make_keys(self, members: Sequence[VirtualMachine]) -> tuple[list[KeyedVm], list[NewKey], ServiceError | None]:
        """VMs that have their new key already, new keys of the others, and what the key provider was lost with. NOT
        excluded: a job of a VM that begins between the second look (`_still_free`) and the transaction; each of its
        secrets names the KEK that wraps it, so nothing is lost."""
        lost: ServiceError | None = None
        renewed: list[KeyedVm] = []
        made: list[NewKey] = []
        keyed_vms, rows, busy = _keyed(members), _secrets(members), _busy(members)
        for vm in members:
            try:
                _refuse_busy(vm, busy)
                keyed = keyed_vms.get(vm.pk) or keyed_vm(vm)
                if has_key_of(self._job, keyed):
                    renewed.append(keyed)
                else:
                    reason = self._reasons.get(str(vm.pk), "")
                    made.append(new_key(keyed, rows.get(vm.pk, []), self._session, self._job, reason))
            except (Unavailable, Untrusted) as exc:
                lost = exc
                break
            except ServiceError as exc:
                self._fail(vm, exc)
        return renewed, made, lost

    def _ask_ahead(self, members: Sequence[VirtualMachine]) -> None:
        """For what `_make_keys` of these will ask, as far as it can be told now: it looks again at each VM."""
        keyed_vms, rows, busy = _keyed(members), _secrets(members), _busy(members)
        wanted = []
        for vm in members:
            keyed, secrets = keyed_vms.get(vm.pk), rows.get(vm.pk, [])
            is_free = vm.pk not in busy and all(row.stage == Stage.IN_USE for row in secrets)
            if is_free and keyed is not None and not has_key_of(self._job, keyed):
                wanted.append((vm, new_key_name(vm, self._job.pk), [row.key for row in secrets]))
        ask_keks_ahead(self._session, wanted, job=self._job)

    def _still_free(self, made: Sequence[NewKey]) -> list[NewKey]:
        busy, free = _busy([one.keyed.vm for one in made]), []
        for one in made:
            try:
                _refuse_busy(one.keyed.vm, busy)
                free.append(one)
            except Conflict as exc:
                self._fail(one.keyed.vm, exc)
        return free

    def _fail(self, vm: VirtualMachine, error: ServiceError | HypervisorError) -> None:
        self._results[str(vm.pk)] = error.code
        has_new = VmSecurity.objects.filter(virtual_machine=vm, key__name=new_key_name(vm, self._job.pk)).exists()
        told = "has its new key, but its definition on the host names the old one" if has_new else "keeps its key"
        events.record(
            "key.recrypt_failed", f"{vm} {told}: {error}", target=vm, actor=self._job.actor, job=self._job,
            severity=Severity.ERROR, code=error.code,
        )  # fmt: skip


def _busy(vms: Sequence[VirtualMachine]) -> dict[UUID, Job]:
    live = Job.objects.filter(target_id__in=[vm.pk for vm in vms], status__in=LIVE_STATUSES)
    return {job.target_id: job for job in live}


def _refuse_busy(vm: VirtualMachine, busy: Mapping[UUID, Job]) -> None:
    """A job over many VMs claims none of them."""
    if vm.pk in busy:
        raise Conflict(
            "target_busy", f"{vm} is busy: {jobs.label(busy[vm.pk])}", hint="recrypt it by itself afterwards"
        )


def _keyed(vms: Sequence[VirtualMachine]) -> dict[UUID, KeyedVm]:
    """`recrypt.keyed_vm` of many in one query; a VM that is not encrypted is left out."""
    found = VmSecurity.objects.filter(virtual_machine__in=vms, key__isnull=False).select_related(
        "key__cluster", "policy"
    )
    of = {vm.pk: vm for vm in vms}
    return {
        row.virtual_machine_id: KeyedVm(of[row.virtual_machine_id], row, row.key)
        for row in found
        if row.key is not None
    }


def _secrets(vms: Sequence[VirtualMachine]) -> Mapping[UUID, list[WrappedSecret]]:
    found: dict[UUID, list[WrappedSecret]] = defaultdict(list)
    for row in WrappedSecret.objects.filter(virtual_machine__in=vms).select_related("key__cluster", "virtual_machine"):
        found[row.virtual_machine_id].append(row)
    return found


def _vms_at(cluster: KmsCluster) -> list[VirtualMachine]:
    """All VMs whose KEK is this provider's, by host; VMs that share a KEK one after another."""
    found = VirtualMachine.objects.filter(security__key__cluster=cluster).select_related("host")
    return list(found.order_by("host_id", "security__key_id", "name"))
