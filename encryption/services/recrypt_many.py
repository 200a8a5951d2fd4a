"""Shallow recrypt of many VMs in one job: all of a key provider, or those whose keys are too old (`rotation.py`).

A batch of VMs of one host gets its keys in a few messages to the key server, then one transaction names them, then
each VM's metadata. While rows and metadata are written, another thread gets the keys of the next batch. The order of
writes is that of `recrypt.py`, and so is what a kill leaves. Before keys are made, the checkpoint says for which VMs
(`making`): a run that goes on looks for theirs by name, and what no VM uses in the end is told (`unused_keys.py`).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Final, final
from uuid import UUID

from celery.exceptions import SoftTimeLimitExceeded

from encryption.engine.key_server import KmsError
from encryption.engine.secret import Secret
from encryption.models import KmsCluster, Stage, VmSecurity, WrappedSecret
from encryption.services.kek_batch import KekBatch, WantedKek
from encryption.services.key_access import KeySession, made_kek, new_key_name
from encryption.services.kms_state import service_error
from encryption.services.recrypt import (
    KeyedVm,
    NewKey,
    carried_secrets,
    cluster_of,
    has_key_of,
    keyed_vm,
    new_key,
    take_over,
    write_metadata,
)
from encryption.services.unused_keys import tell_suspects, tell_unused
from inventory import events, jobs
from inventory.errors import Conflict, ServiceError, Unavailable, Untrusted
from inventory.jobs import Cancelled, Progress
from inventory.models import LIVE_STATUSES, Job, Severity, VirtualMachine
from inventory.services import connections, sync
from inventory.services.connections import HostUnreachable, Hypervisor, HypervisorError

# As many keys as a message to a key server carries (`kmip_batches.py`). A batch that has new keys is finished before a
# job is cancelled, and done again after a kill.
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
    # A job that began before `making` was kept may have made a key for each.
    before = job.checkpoint.get("making", [str(vm.pk) for vm in waiting] if job.attempts > 1 else [])
    with KeySession(cluster) as session:
        bulk = _Bulk(job, progress, session, results, due or {}, making=set(before))
        try:
            for _, members in groupby(waiting, key=lambda vm: vm.host_id):
                lost = bulk.recrypt(list(members))
                if lost is not None:
                    raise lost
        except (ServiceError, Cancelled, SoftTimeLimitExceeded):
            bulk.account()
            raise
        bulk.account()
    failed = [code for code in results.values() if code != _DONE]
    if failed:
        raise Conflict(
            "some_failed",
            f"{len(failed)} of {len(results)} VMs keep their keys ({', '.join(sorted(set(failed)))})",
            hint="see the events of each",
        )


@final
class _Bulk:
    """One run of a job over many VMs. `results`: VM's id -> "ok" or the code of what failed. `making`: ids of the VMs
    that an earlier run may have made keys for."""

    def __init__(
        self,
        job: Job,
        progress: Progress,
        session: KeySession,
        results: dict[str, str],
        reasons: Mapping[str, str],
        making: set[str],
    ) -> None:
        self._job = job
        self._progress = progress
        self._session = session
        self._results = results
        self._reasons = reasons
        self._making = making
        self._unsettled: list[KekBatch] = []
        self._ahead: KekBatch | None = None

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
        except ServiceError as exc:  # no way to the host, or none any more; or the key provider has no server
            for vm in members:
                if str(vm.pk) not in self._results:
                    self._fail(vm, exc)
            self._ahead = None
        self._checkpoint()
        return lost

    def account(self) -> None:
        """At the end: tells of keys that were made, or may have been, and that no VM uses."""
        self._session.wait()
        for batch in list(self._unsettled):
            self._settle(batch, {key_id: name for name, key_id in batch.made.items()})
        known = VirtualMachine.objects.filter(pk__in=self._making)
        tell_suspects(self._session, {new_key_name(vm, self._job.pk) for vm in known}, self._job)

    def _batch(
        self, members: Sequence[VirtualMachine], following: Sequence[VirtualMachine], hypervisor: Hypervisor
    ) -> ServiceError | None:
        keks, self._ahead = self._ahead or self._begin(members), None
        coming = self._begin(following)
        lost: ServiceError | None = None
        try:
            self._session.ask(keks)
        except (Unavailable, Untrusted) as exc:
            lost = exc
        # Only here the job can be cancelled: a batch that has new keys is finished, and none is asked for the next.
        cancelled = self._is_cancelled()
        if following and lost is None and not cancelled:
            coming.take_present(keks)
            self._session.ask_ahead(coming.run_ahead)
            self._ahead = coming
        renewed, made, lost = self._make_keys(members, keks, lost)
        taken = take_over(self._still_free(made), self._session.cluster, self._job)
        used = {one.key.key_id for one in taken}
        got = {key_id: name for name, key_id in keks.made.items()} | {one.key_id: one.name for one in made}
        self._settle(keks, {key_id: name for key_id, name in got.items() if key_id not in used})
        self._making -= {str(keyed.vm.pk) for keyed in (*renewed, *taken)}
        self._write([*renewed, *taken], hypervisor)
        self._checkpoint()
        if cancelled:
            raise Cancelled
        return lost

    def _begin(self, members: Sequence[VirtualMachine]) -> KekBatch:
        """What to ask the key server for, as far as it can be told now: `_make_keys` looks again at each VM."""
        keks, busy = _present_keks(members, self._session.cluster), _busy(members)
        names = dict(
            VmSecurity.objects.filter(virtual_machine__in=members, key__isnull=False).values_list(
                "virtual_machine_id", "key__name"
            )
        )
        wanted = [
            WantedKek(vm, name, keks[vm.pk])
            for vm in members
            if (name := new_key_name(vm, self._job.pk)) != names.get(vm.pk, name)
            and vm.pk in keks
            and vm.pk not in busy
        ]
        batch = KekBatch(wanted, suspects=[one.name for one in wanted if str(one.vm.pk) in self._making])
        if wanted:
            self._unsettled.append(batch)
            self._making |= {str(one.vm.pk) for one in wanted}
            self._checkpoint()
        return batch

    def _settle(self, keks: KekBatch, unused: Mapping[str, str]) -> None:
        """Nothing more is asked for these. What may have been made without an answer waits for `account`."""
        tell_unused(self._session.cluster, unused, self._job)
        self._making -= {str(one.vm.pk) for name, one in keks.wanted.items() if name not in keks.suspects}
        if keks in self._unsettled:
            self._unsettled.remove(keks)

    def _write(self, renewed: Sequence[KeyedVm], hypervisor: Hypervisor) -> None:
        carried = carried_secrets([keyed.vm for keyed in renewed])
        for keyed in renewed:
            self._write_one(keyed, hypervisor, carried)
        # A job of a VM that began meanwhile may have written more than was read for all above.
        busy = _busy([keyed.vm for keyed in renewed])
        for keyed in renewed:
            if keyed.vm.pk in busy:
                self._write_one(keyed, hypervisor, None)
        if renewed:
            sync.refresh_uuids(renewed[0].vm.host, hypervisor, [keyed.vm.uuid for keyed in renewed])

    def _write_one(
        self, keyed: KeyedVm, hypervisor: Hypervisor, carried: Mapping[UUID, list[WrappedSecret]] | None
    ) -> None:
        try:
            write_metadata(keyed, hypervisor, carried)
            self._results[str(keyed.vm.pk)] = _DONE
        except HostUnreachable:
            raise
        except (ServiceError, HypervisorError) as exc:
            self._fail(keyed.vm, exc)

    def _checkpoint(self) -> None:
        self._progress.checkpoint(results=self._results, making=sorted(self._making))

    def _is_cancelled(self) -> bool:
        try:
            self._progress.advance(len(self._results))
        except Cancelled:
            return True
        return False

    def _make_keys(
        self, members: Sequence[VirtualMachine], keks: KekBatch, lost: ServiceError | None
    ) -> tuple[list[KeyedVm], list[NewKey], ServiceError | None]:
        """VMs that have their new key already, new keys of the others, and what the key provider was lost with. NOT
        excluded: a job of a VM that begins between the second look (`_still_free`) and the transaction; each of its
        secrets names the KEK that wraps it, so nothing is lost."""
        self._session.lend(keks.present)
        renewed: list[KeyedVm] = []
        made: list[NewKey] = []
        keyed_vms, secrets, busy = _keyed(members), _secrets(members), _busy(members)
        for vm in members:
            try:
                _refuse_busy(vm, busy)
                keyed = keyed_vms.get(vm.pk) or keyed_vm(vm)
                if has_key_of(self._job, keyed):
                    renewed.append(keyed)
                elif lost is None or keks.has(new_key_name(vm, self._job.pk)):
                    rows, reason = secrets.get(vm.pk, []), self._reasons.get(str(vm.pk), "")
                    made.append(new_key(keyed, rows, self._session, self._job, partial(self._kek, vm, keks), reason))
            except (Unavailable, Untrusted) as exc:
                lost = exc
            except ServiceError as exc:
                self._fail(vm, exc)
        return renewed, made, lost

    def _kek(self, vm: VirtualMachine, keks: KekBatch, name: str) -> tuple[str, Secret]:
        if not keks.has(name):  # busy or unfinished when the batch was begun, and no longer
            self._making.add(str(vm.pk))
            self._checkpoint()
            return made_kek(self._session, vm, name=name, job=self._job)
        try:
            return keks.kek(name)
        except KmsError as exc:
            raise service_error(exc) from exc

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
    of = {vm.pk: vm for vm in vms}
    for row in WrappedSecret.objects.filter(virtual_machine__in=vms).select_related("key__cluster"):
        row.virtual_machine = of[row.virtual_machine_id]
        found[row.virtual_machine_id].append(row)
    return found


def _present_keks(vms: Sequence[VirtualMachine], cluster: KmsCluster) -> dict[UUID, Mapping[UUID, str]]:
    """Of each VM with no change unfinished: the KEKs at this provider that wrap its data keys, row -> identifier."""
    found: dict[UUID, dict[UUID, str]] = {vm.pk: {} for vm in vms}
    rows = WrappedSecret.objects.filter(virtual_machine__in=vms).order_by("virtual_machine")
    for vm, stage, key, key_id, of in rows.values_list(
        "virtual_machine_id", "stage", "key__pk", "key__key_id", "key__cluster"
    ):
        if stage != Stage.IN_USE:
            found.pop(vm, None)
        elif of == cluster.pk and vm in found:
            found[vm][key] = key_id
    return dict(found)


def _vms_at(cluster: KmsCluster) -> list[VirtualMachine]:
    """All VMs whose KEK is this provider's, by host; VMs that share a KEK one after another."""
    found = VirtualMachine.objects.filter(security__key__cluster=cluster).select_related("host")
    return list(found.order_by("host_id", "security__key_id", "name"))
