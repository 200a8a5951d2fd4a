"""Guest memory of protected VMs that lies on a host in clear: an alarm while it does.

Nothing of ours writes it: a managed save, a snapshot or a core dump is made on the host by other means. It is seen in
the facts of every sync, and in what the leftovers finder has found.
"""

from collections.abc import Iterable, Mapping
from typing import Final
from uuid import UUID

from django.db.models import Q, QuerySet

from encryption.models import Leftover
from inventory.alarms import clear_alarm, raise_alarm
from inventory.models import Alarm, Host, Severity, TargetKind, VirtualMachine

KIND: Final = "vm.memory_in_clear"
# What a look at compliance finds of the same; this alarm tells it, so that a saved state is one alarm and not two.
TOLD_HERE: Final = frozenset({"managed_save_present", "memory_snapshot"})
_REMEDY: Final = (
    "discard a saved state by Actions, delete snapshots on the host (virsh snapshot-delete), destroy files under "
    "Monitor, Leftovers of the host; then change what the guest held in memory and should be secret"
)


def review_host(host: Host) -> None:
    """Raises and clears the alarm for the host's VMs. A fixed number of queries where nothing is to be told."""
    rows = VirtualMachine.objects.filter(host=host)
    live = {
        alarm.target_id: alarm
        for alarm in Alarm.objects.filter(
            kind=KIND, target_kind=TargetKind.VIRTUAL_MACHINE, cleared_at=None, target_id__in=rows.values("pk")
        )
    }
    files = _files(host)
    exposed = {vm.pk: vm for vm in _exposed(rows, files)}
    for vm in exposed.values():
        evidence = [*evidence_of(vm), *files.get(vm.pk, [])]
        if vm.pk not in live or live[vm.pk].evidence != evidence:
            raise_alarm(
                KIND, f"{vm} is encrypted, but guest memory or disk content of it lies on {host} in clear", target=vm,
                severity=Severity.ERROR, remedy=_REMEDY, evidence=evidence,
            )  # fmt: skip
    for vm in _gone(live.keys() - exposed.keys()):
        clear_alarm(KIND, target=vm)


def _exposed(rows: QuerySet[VirtualMachine], files: Mapping[UUID, list[str]]) -> QuerySet[VirtualMachine]:
    shown = Q(has_managed_save=True) | Q(snapshot_count__gt=0)
    if files:
        shown |= Q(pk__in=list(files))
    return rows.filter(shown, is_present=True, security__isnull=False)


def _files(host: Host) -> dict[UUID, list[str]]:
    """Files with guest memory that the finder has found, and nobody keeps, by VM."""
    found: dict[UUID, list[str]] = {}
    kinds = (Leftover.Kind.SAVED_STATE, Leftover.Kind.CORE_DUMP)
    rows = Leftover.objects.filter(host=host, kind__in=kinds, kept_at=None, virtual_machine__isnull=False)
    for row in rows:
        if row.virtual_machine_id is not None:
            found.setdefault(row.virtual_machine_id, []).append(f"{row.get_kind_display()}: {row.path}")
    return found


def _gone(ids: Iterable[UUID]) -> Iterable[VirtualMachine]:
    wanted = list(ids)
    return VirtualMachine.objects.filter(pk__in=wanted) if wanted else ()


def evidence_of(vm: VirtualMachine) -> list[str]:
    found = []
    if vm.has_managed_save:
        found.append("libvirt reports a managed save: the guest's memory, written to a file in clear")
    if vm.memory_snapshot_count:
        found.append(f"libvirt reports {vm.memory_snapshot_count} snapshots with guest memory")
    if without := vm.snapshot_count - vm.memory_snapshot_count:
        found.append(f"libvirt reports {without} snapshots of disks, made outside this console")
    return found
