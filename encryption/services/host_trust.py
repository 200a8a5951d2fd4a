"""Attestation and keys: only a host that may be trusted gets any, and what it had goes when it no longer may be.

Running VMs are left alone: QEMU has their keys already, and no withdrawal could take them out of its memory.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final
from uuid import UUID

from django.db import transaction

from attestation.services import gate
from encryption.models import LockCause, WrappedSecret
from encryption.services import messages, unlock
from inventory import events
from inventory.authorize import SYSTEM
from inventory.errors import ServiceError, Untrusted
from inventory.models import LIVE_STATUSES, Host, Job, Severity, TargetKind, VirtualMachine
from inventory.services import connections

UNLOCK_ON_HOST: Final = "encryption.unlock_on_host"
WITHDRAW_FROM_HOST: Final = "encryption.withdraw_from_host"


def attested(host: Host, purpose: str) -> Mapping[str, str | int | bool]:
    """The gate of key releases (release.KeyGate). Raises Untrusted with the reason and the way out."""
    decision = gate.check_host(host, purpose=purpose)
    if not decision.allowed:
        raise Untrusted(decision.code, decision.message, hint=decision.hint)
    told: dict[str, str | int | bool] = {"attestation": decision.code}
    if decision.verdict is not None:
        told["verdict"] = decision.verdict.pk
    return told


def trust_changed(host: Host, is_trusted: bool) -> None:
    """A host's verdict became good, or ceased to be: its locked VMs are tried again, its secrets taken back."""
    task = UNLOCK_ON_HOST if is_trusted else WITHDRAW_FROM_HOST
    transaction.on_commit(partial(messages.send, task, str(host.pk)))


def unlock_on_host(host_id: str) -> int:
    """Tries the VMs that were locked for want of trust in this host; returns how many are free."""
    found = VirtualMachine.objects.select_related("host__cluster").filter(
        host=UUID(host_id), security__locked_at__isnull=False, security__lock_cause=LockCause.HOST_UNTRUSTED
    )
    return sum(not unlock.try_again(vm, actor=SYSTEM) for vm in found.order_by("security__locked_at")[: unlock.MOST])


def withdraw_from_host(host_id: str) -> int:
    """Removes what secrets of VMs the host's libvirt still has; returns how many there were.

    Left to their jobs are those of VMs at which one is at work. A host that cannot be reached is told of: what it
    has, it may keep until libvirt ends, and that is all that can be done from here.
    """
    host = Host.objects.filter(pk=UUID(host_id)).first()
    if host is None:
        return 0
    at_work = Job.objects.filter(target_kind=TargetKind.VIRTUAL_MACHINE, status__in=LIVE_STATUSES)
    rows = WrappedSecret.objects.filter(virtual_machine__host=host).exclude(
        virtual_machine__in=at_work.values("target_id")
    )
    secrets = list(rows.values_list("secret_uuid", flat=True))
    if not secrets:
        return 0
    removed = 0
    try:
        with connections.open_host(host) as hypervisor:
            for secret_uuid in secrets:
                if hypervisor.has_secret(secret_uuid):
                    hypervisor.remove_secret(secret_uuid)
                    removed += 1
    except ServiceError as exc:
        events.record(
            "key.not_withdrawn", f"Keys cannot be taken back from {host}, which is not trusted any more: {exc.message}",
            target=host, actor=SYSTEM, severity=Severity.WARNING, code=exc.code,
        )  # fmt: skip
        return removed
    if removed:
        events.record("key.withdrawn", f"{removed} keys taken back from {host}, which is not trusted any more",
                      target=host, actor=SYSTEM, secrets=removed)  # fmt: skip
    return removed
