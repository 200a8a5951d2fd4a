"""Locked VMs: what is noted when a VM's keys cannot be had, and when they can be had again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from django.db import transaction
from django.utils import timezone

from encryption.models import LockCause, VmSecurity, WrappedSecret
from inventory import alarms, events
from inventory.authorize import Actor
from inventory.errors import NotFound, Refused, ServiceError, Untrusted
from inventory.models import Job, Severity, VirtualMachine

ALARM: Final = "vm.locked"
_BY_CODE: Final = {
    "wrapped_secret_damaged": LockCause.SECRET_DAMAGED,
    "console_key_missing": LockCause.CONSOLE_KEY,
    "client_key_sealed_otherwise": LockCause.CONSOLE_KEY,
    "kms_wrong_key_state": LockCause.KEY_REFUSED,
    "metadata_damaged": LockCause.SECRET_DAMAGED,
    "key_provider_unknown": LockCause.PROVIDER_UNKNOWN,
    "vm_is_copy": LockCause.COPY,
    "key_missing_on_host": LockCause.KEY_MISSING_ON_HOST,
    **dict.fromkeys(
        (
            "host_not_enrolled",
            "host_not_attested",
            "host_unreachable_for_attestation",
            "host_attestation_failed",
            "attestation_stale",
        ),
        LockCause.HOST_UNTRUSTED,
    ),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A secret that does not open, and why."""

    row: WrappedSecret
    error: ServiceError


def cause_of(error: ServiceError) -> LockCause:
    """Whatever is not known better is an error of the key provider: unreachable, no server, protocol."""
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    if isinstance(error, NotFound):
        return LockCause.KEY_MISSING
    if isinstance(error, Refused):
        return LockCause.KEY_REFUSED
    return LockCause.KMS_ERROR if not isinstance(error, Untrusted) else LockCause.KMS_UNTRUSTED


def lock(vm: VirtualMachine, failures: Sequence[Failure], *, actor: Actor | str, job: Job | None = None) -> None:
    """Marks a VM as locked. One event when it becomes so, and another only for another cause or other parts."""
    _write(
        vm,
        [failure.error for failure in failures],
        sorted({failure.row.target or str(failure.row.purpose) for failure in failures}),
        sorted({failure.row.key.key_id for failure in failures}),
        actor, job,
    )  # fmt: skip


def lock_parts(
    vm: VirtualMachine, error: ServiceError, parts: Sequence[str], *, actor: Actor | str, job: Job | None = None
) -> None:
    """As `lock`, of a VM whose secrets this console has no rows for."""
    _write(vm, [error], list(parts), [], actor, job)


def _write(
    vm: VirtualMachine, errors: Sequence[ServiceError], parts: list[str], key_ids: list[str], actor: Actor | str,
    job: Job | None,
) -> None:  # fmt: skip
    first = errors[0]
    cause = cause_of(first)
    with transaction.atomic():
        found = VmSecurity.objects.select_for_update().filter(virtual_machine=vm).first()
        if found is None:  # decrypted meanwhile
            return
        is_known = found.locked_at is not None and found.lock_cause == cause and found.lock_parts == parts
        found.locked_at = found.locked_at or timezone.now()
        found.lock_cause, found.lock_parts = cause, parts
        found.lock_detail = "; ".join(dict.fromkeys(error.message for error in errors))[:1000]
        found.lock_remedy = first.hint[:500]
        found.save(update_fields=["locked_at", "lock_cause", "lock_parts", "lock_detail", "lock_remedy"])
        alarms.raise_alarm(
            ALARM, f"{vm} is locked: {cause.label} ({found.locked_parts})", target=vm, severity=Severity.ERROR,
            remedy=f"{first.hint}; then Unlock" if first.hint else "repair the cause, then Unlock", job=job,
            evidence=list(dict.fromkeys(error.message[:600] for error in errors)), is_told=True,
        )  # fmt: skip
        if not is_known:
            remedy = f"; {first.hint}" if first.hint else ""
            events.record(
                "vm.locked",
                f"{vm} is locked: {cause.label} ({found.locked_parts}): {found.lock_detail}{remedy}",
                target=vm, actor=actor, severity=Severity.ERROR, job=job, cause=cause.value, code=first.code,
                parts=parts, key_ids=key_ids,
            )  # fmt: skip


def release(
    vm: VirtualMachine, *, actor: Actor | str, job: Job | None = None, has_seen_definition: bool = False
) -> None:
    """All keys of the VM that are known here were had: it is locked no longer.

    One that opens with a key of somebody else, which its host did not have, stays locked unless its definition was
    looked at for that.
    """
    found = VmSecurity.objects.filter(virtual_machine=vm, locked_at__isnull=False)
    if not has_seen_definition:
        found = found.exclude(lock_cause=LockCause.KEY_MISSING_ON_HOST)
    with transaction.atomic():
        freed = found.update(locked_at=None, lock_cause="", lock_detail="", lock_remedy="", lock_parts=[])
        if freed:
            alarms.clear_alarm(ALARM, target=vm, job=job, is_told=True)
            events.record(
                "vm.unlocked", f"{vm} is no longer locked: its keys can be had", target=vm, actor=actor, job=job
            )
