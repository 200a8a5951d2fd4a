"""Key release: a VM's data keys reach a host only for the moment of its start, as private ephemeral libvirt secrets."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from inventory.services.connections import Hypervisor

from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.models import OPENED_BY_SECRET, Purpose, WrappedSecret
from encryption.services.key_access import fetched_key
from inventory import events
from inventory.errors import Conflict
from inventory.models import Job, VirtualMachine


@dataclass(frozen=True, slots=True)
class OpenedSecret:
    """A wrapped secret and its data key, in worker memory for one operation."""

    row: WrappedSecret
    data_key: Secret

    @property
    def passphrase(self) -> Secret:
        """What QEMU, swtpm and cryptsetup are given: the data key in hexadecimal (see Secret.passphrase_text)."""
        return Secret(self.data_key.passphrase_text())


def open_secrets(rows: Iterable[WrappedSecret]) -> list[OpenedSecret]:
    """Unwraps under the KEKs of the KMS; each KEK is fetched once."""
    opened: list[OpenedSecret] = []
    ordered = sorted(rows, key=lambda row: (str(row.key_id), row.purpose, row.target))
    for _, group in groupby(ordered, key=lambda row: row.key_id):
        members = list(group)
        with fetched_key(members[0].key) as kek:
            for row in members:
                try:
                    opened.append(OpenedSecret(row, keywrap.unwrap(kek, bytes(row.wrapped))))
                except keywrap.UnwrapFailed as exc:
                    raise Conflict(
                        "wrapped_secret_damaged",
                        f"the wrapped {row} does not open with key {row.key}",
                        hint="restore it from the VM's metadata",
                    ) from exc
    return opened


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
    """Before a start: KEK from the KMS, unwrap, secrets to this host. Does nothing for a VM without secrets."""
    rows = list(vm.wrapped_secrets.filter(stage__in=OPENED_BY_SECRET).select_related("key__cluster", "virtual_machine"))
    if not rows:
        return
    for opened in open_secrets(rows):
        put_secret(hypervisor, opened)
    events.record(
        "key.released", f"Keys of {vm} sent to {vm.host} for its start", target=vm, actor=job.actor, job=job,
        host=vm.host.name, secrets=len(rows), key_ids=sorted({row.key.key_id for row in rows}),
    )  # fmt: skip


def withdraw_keys(vm: VirtualMachine, hypervisor: Hypervisor, job: Job) -> None:
    """After a start, good or bad: QEMU has what it needs, and the host's libvirt keeps nothing."""
    for secret_uuid in vm.wrapped_secrets.values_list("secret_uuid", flat=True):
        hypervisor.remove_secret(secret_uuid)
