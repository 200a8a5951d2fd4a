"""Key release: a VM's data keys reach a host only for the moment of its start, as private ephemeral libvirt secrets."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Final
from uuid import UUID

from django.db.models import QuerySet
from django.utils import timezone

from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.models import Purpose, Stage, VmSecurity, WrappedSecret
from encryption.services import locks
from encryption.services.key_access import KeySession, fetched_key
from encryption.services.locks import Failure
from encryption.services.parts import opens, secrets_of
from inventory import events
from inventory.errors import Conflict, ServiceError, Unavailable, Untrusted
from inventory.models import Host, Job, VirtualMachine
from inventory.services.connections import Hypervisor, VmFacts

# Asked before keys go to a host, with what for ("start", "migration"). Raises ServiceError to forbid it; what it
# returns is told in the event of the release.
KeyGate = Callable[[Host, str], Mapping[str, str | int | bool]]
_GATES: Final[list[KeyGate]] = []


def register_key_gate(gate: KeyGate) -> None:
    """`gate` decides of every host that is to get keys; all gates must let them pass."""
    _GATES.append(gate)


def pass_gates(host: Host, *, purpose: str) -> list[str]:
    """What the gates tell for the event, "name=value". Raises the first ServiceError of one. Worker side, before each
    release."""
    return [f"{name}={value}" for gate in _GATES for name, value in gate(host, purpose).items()]


def note_release(vm: VirtualMachine, host: Host, told: Iterable[str]) -> None:
    """On the VM: which host got its keys last, and on which verdict that relied."""
    verdict = dict(each.split("=", 1) for each in told).get("verdict")
    VmSecurity.objects.filter(virtual_machine=vm).update(
        released_at=timezone.now(), released_host=host.name, released_verdict=None if verdict is None else int(verdict)
    )


@dataclass(frozen=True, slots=True)
class OpenedSecret:
    """A wrapped secret and its data key, in worker memory for one operation."""

    row: WrappedSecret
    data_key: Secret

    @property
    def passphrase(self) -> Secret:
        """What QEMU, swtpm and cryptsetup are given: the data key in hexadecimal (see Secret.passphrase_text)."""
        return Secret(self.data_key.passphrase_text())


def open_secrets(rows: Iterable[WrappedSecret], session: KeySession | None = None) -> list[OpenedSecret]:
    """Unwraps under the KEKs of the KMS; each KEK is fetched once. Raises the first failure of `try_secrets`."""
    opened, failures = try_secrets(rows, session)
    if failures:
        raise failures[0].error
    return opened


def try_secrets(
    rows: Iterable[WrappedSecret], session: KeySession | None = None
) -> tuple[list[OpenedSecret], list[Failure]]:
    """What opens, and of each other secret why it does not. A key provider that does not answer is asked once.

    `session`: a connection to use for keys of its provider.
    """
    opened: list[OpenedSecret] = []
    failures: list[Failure] = []
    lost: dict[UUID, ServiceError] = {}
    ordered = sorted(rows, key=lambda row: (str(row.key_id), row.purpose, row.target))
    for _, group in groupby(ordered, key=lambda row: row.key_id):
        members = list(group)
        key = members[0].key
        error = lost.get(key.cluster_id)
        if error is None:
            try:
                with fetched_key(key, session) as kek:
                    _unwrap(kek, members, opened, failures)
            except ServiceError as exc:
                error = exc
                if isinstance(exc, Unavailable | Untrusted):
                    lost[key.cluster_id] = exc
        if error is not None:
            failures += [Failure(row, error) for row in members]
    return opened, failures


def _unwrap(kek: Secret, rows: list[WrappedSecret], opened: list[OpenedSecret], failures: list[Failure]) -> None:
    for row in rows:
        try:
            opened.append(OpenedSecret(row, keywrap.unwrap(kek, bytes(row.wrapped))))
        except keywrap.UnwrapFailed:
            error = Conflict(
                "wrapped_secret_damaged",
                f"the wrapped {row} does not open with key {row.key}",
                hint="restore it from the VM's metadata",
            )
            failures.append(Failure(row, error))


def put_secret(hypervisor: Hypervisor, opened: OpenedSecret) -> None:
    """Sends one secret to a host. libvirt wants a distinct usage for each: the file it opens, or the VM for a vTPM."""
    row = opened.row
    is_vtpm = row.purpose == Purpose.VTPM
    hypervisor.put_secret(
        row.secret_uuid,
        usage=f"vtpm-{row.virtual_machine.uuid}" if is_vtpm else row.path,
        vtpm=is_vtpm,
        value=opened.passphrase.reveal(),
    )


def send_keys(vm: VirtualMachine, hypervisor: Hypervisor, job: Job) -> None:
    """Before a start: KEK from the KMS, unwrap, secrets to this host. Does nothing for a VM without secrets.

    What the definition opens counts, not how far a change has come: an interrupted one must not keep a VM down. A VM
    whose keys cannot be had is locked by this, and one that was locked no longer is when they can.
    """
    known = list(vm.wrapped_secrets.select_related("key__cluster", "virtual_machine"))
    if not known:
        return
    facts = hypervisor.virtual_machine(vm.uuid)
    refuse_unknown(vm, facts, hypervisor, job)
    if facts.has_managed_save:
        raise _saved_state_refused(vm)
    for row in known:
        if row.purpose == Purpose.VTPM and _waits_for_exchange(facts, row):
            raise Conflict(
                "change_unfinished",
                f"{vm}: a change of its encryption was interrupted",
                hint="apply its VM Options again, then start it",
            )
    rows = [row for row in known if opens(facts, row)]
    if not rows:
        return
    try:
        told = pass_gates(vm.host, purpose="start")
    except ServiceError as exc:
        parts = sorted({row.target or str(row.purpose) for row in rows})
        locks.lock_parts(vm, exc, parts, actor=job.actor, job=job)
        raise
    found, failures = try_secrets(rows)
    if failures:
        locks.lock(vm, failures, actor=job.actor, job=job)
        raise failures[0].error
    locks.release(vm, actor=job.actor, job=job, has_seen_definition=True)
    for opened in found:
        put_secret(hypervisor, opened)
    events.record(
        "key.released", f"Keys of {vm} sent to {vm.host} for its start", target=vm, actor=job.actor, job=job,
        host=vm.host.name, secrets=len(rows), key_ids=sorted({row.key.key_id for row in rows}), gate=told,
    )  # fmt: skip
    note_release(vm, vm.host, told)


def refuse_unknown(vm: VirtualMachine, facts: VmFacts, hypervisor: Hypervisor, job: Job) -> None:
    """Locks a VM with a part whose secret neither this console nor the host has: QEMU could not open it. Raises
    Conflict `key_missing_on_host`.

    A secret that somebody else put on the host is left to them. NOT checked: whether that one has a value.
    """
    known = {row.secret_uuid for row in vm.wrapped_secrets.all()}
    foreign = {uuid: part for uuid, part in secrets_of(facts).items() if uuid not in known}
    parts = sorted(part for uuid, part in foreign.items() if not hypervisor.has_secret(uuid))
    if not parts:
        return
    error = Conflict(
        "key_missing_on_host",
        f"{vm}: {', '.join(parts)} opens with a key that neither this console nor {vm.host} has",
        hint="define that secret on the host, or bring back the definition that this console made",
    )
    locks.lock_parts(vm, error, parts, actor=job.actor, job=job)
    raise error


def refuse_saved_state(vm: VirtualMachine) -> None:
    """A start would restore guest memory that lay on the host in clear, where it could have been read or changed."""
    if vm.has_managed_save and vm.wrapped_secrets.exists():
        raise _saved_state_refused(vm)


def _saved_state_refused(vm: VirtualMachine) -> Conflict:
    return Conflict(
        "managed_save_present",
        f"{vm} is encrypted, but was saved with its guest memory in clear, and is not resumed from that",
        hint="discard its saved state (Actions), then start it afresh",
    )


def _waits_for_exchange(facts: VmFacts, row: WrappedSecret) -> bool:
    """The definition is switched, the vTPM state is not yet: swtpm would refuse it."""
    if row.stage == Stage.ENCRYPTING:
        return opens(facts, row)
    return row.stage == Stage.DECRYPTING and not opens(facts, row)


def withdraw_keys(vm: VirtualMachine, hypervisor: Hypervisor, job: Job) -> None:
    """After a start, good or bad: QEMU has what it needs, and the host's libvirt keeps nothing."""
    for secret_uuid in vm.wrapped_secrets.values_list("secret_uuid", flat=True):
        hypervisor.remove_secret(secret_uuid)


def keep_keyed_rows(vms: QuerySet[VirtualMachine]) -> None:
    """Refuses that rows go on which wrapped keys hang: they may be the only copy, with the VM's files lost or moved."""
    held = WrappedSecret.objects.filter(virtual_machine__in=vms).select_related("virtual_machine").first()
    if held is not None:
        raise Conflict(
            "vm_has_keys",
            f"{held.virtual_machine} is encrypted, and its wrapped keys hang on this record",
            hint="decrypt it first; a VM that is gone for good keeps its record until its keys may go too",
        )
    VmSecurity.objects.filter(virtual_machine__in=vms).delete()  # without keys it says only why there are none
