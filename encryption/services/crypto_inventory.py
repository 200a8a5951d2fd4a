"""The crypto inventory: what protects each disk, NVRAM and vTPM, under which key, as a file that a worker signs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import cryptography
from cryptography.hazmat.backends.openssl import backend
from django.db import transaction
from django.utils import timezone

from attestation.models import Verdict
from encryption.engine import crypto_inventory as engine
from encryption.models import CryptoInventory, KmsCluster, Purpose, Stage, VmSecurity, WrappedSecret
from inventory import events, jobs
from inventory.authorize import Actor, authorize
from inventory.errors import Conflict, NotFound
from inventory.jobs import Progress
from inventory.models import LIVE_STATUSES, Host, Job, VirtualMachine
from inventory.services import audit_key
from inventory.services.listings import FIRST, Listing, Paging, listed

MAKE: Final = jobs.register(jobs.JobKind("encryption.make_inventory", "Make crypto inventory"))
EXPORT: Final = "encryption.export_inventory"
KEPT: Final = 10
"""So many are kept; each was recorded with its fingerprint, and can be made anew."""
BATCH: Final = 500
LUKS: Final = "aes-xts-plain64, 512-bit key, LUKS1"
SWTPM: Final = "aes-256-cbc, swtpm's encrypted state"
UNKNOWN: Final = "not known to this console"
KEY_WRAP: Final = "AES-256 key wrap with padding (RFC 5649)"


def inventories(*, actor: Actor, paging: Paging = FIRST) -> Listing[CryptoInventory]:
    """The newest first, without their content."""
    authorize(actor, EXPORT)
    return listed(CryptoInventory.objects.defer("content"), paging)


def inventory(*, inventory_id: UUID, actor: Actor) -> CryptoInventory:
    """Without its content."""
    authorize(actor, EXPORT)
    found = CryptoInventory.objects.defer("content").filter(pk=inventory_id).first()
    if found is None:
        raise NotFound(
            "crypto_inventory_not_found",
            f"there is no crypto inventory {inventory_id}",
            hint=f"the last {KEPT} are kept",
        )
    return found


@transaction.atomic
def request_inventory(*, actor: Actor) -> Job:
    """Starts the job that makes one. Raises Conflict `crypto_inventory_waits` while another is being made."""
    authorize(actor, EXPORT)
    if Job.objects.filter(kind=MAKE.name, status__in=LIVE_STATUSES).exists():
        raise Conflict(
            "crypto_inventory_waits", "a crypto inventory is being made already", hint="wait for it in Recent Tasks"
        )
    row = CryptoInventory.objects.create(asked_by=actor.username)
    job = jobs.start(MAKE, target=row, actor=actor)
    events.record("crypto_inventory.requested", "A crypto inventory was requested", target=row, actor=actor, job=job)
    return job


@transaction.atomic
def download_inventory(*, inventory_id: UUID, actor: Actor) -> CryptoInventory:
    """With its content. Reading it is an event. Raises NotFound, Conflict `crypto_inventory_not_made`."""
    row = inventory(inventory_id=inventory_id, actor=actor)
    if row.made_at is None:
        raise Conflict("crypto_inventory_not_made", f"the {row} is not made", hint="look for its task")
    events.record("crypto_inventory.downloaded", f"The {row} was downloaded", target=row, actor=actor)
    return row


def run_make_inventory(job: Job, progress: Progress) -> None:
    """Worker side of `request_inventory`. Raises Unavailable `console_key_missing`."""
    row = CryptoInventory.objects.get(pk=job.target_id)
    if row.made_at is not None:
        return
    key = audit_key.current()
    now = timezone.now()
    progress.step("reading", total=VirtualMachine.objects.count())
    machines, encrypted = _machines(now, progress)
    found = _contents(now, job.actor, machines, encrypted)
    progress.step("signing")
    value = audit_key.sign(key, engine.signed_bytes(found))
    with transaction.atomic():
        row.content = engine.document(found, key=key.fingerprint, public_key=key.public_pem, value=value)
        row.made_at, row.key = now, key.fingerprint
        row.virtual_machines, row.encrypted_parts = len(machines), encrypted
        row.save()
        amount = f"{row.virtual_machines} VMs, {row.encrypted_parts} encrypted parts"
        events.record(
            "crypto_inventory.made", f"The {row} was made: {amount}", target=row, actor=job.actor, job=job,
            key=key.fingerprint,
        )  # fmt: skip
        kept = CryptoInventory.objects.order_by("-asked_at").values("pk")[:KEPT]
        CryptoInventory.objects.exclude(pk__in=list(kept.values_list("pk", flat=True))).delete()


def _machines(now: datetime, progress: Progress) -> tuple[list[dict[str, object]], int]:
    """Every VM with its parts, and how many of these are encrypted."""
    machines: list[dict[str, object]] = []
    encrypted = 0
    for batch in _batches():
        verdicts = _verdicts(batch)
        for vm in batch:
            parts = list(_parts(vm, now))
            encrypted += sum(bool(part["is_encrypted"]) for part in parts)
            machines.append(_machine(vm, parts, verdicts))
        progress.advance(len(machines))
    return machines, encrypted


def _contents(now: datetime, made_by: str, machines: Sequence[dict[str, object]], encrypted: int) -> dict[str, object]:
    return {
        "made_at": now.isoformat(timespec="seconds"),
        "made_by": made_by,
        "modules": {
            "console": f"cryptography {cryptography.__version__}, {backend.openssl_version_text()}",
            "key_wrap": KEY_WRAP,
        },
        "key_providers": [
            {"id": str(one.pk), "name": one.name, "servers": [str(server) for server in one.servers.all()]}
            for one in KmsCluster.objects.prefetch_related("servers").order_by("name")
        ],
        "virtual_machines": machines,
        "totals": {"virtual_machines": len(machines), "encrypted_parts": encrypted},
    }


def _batches() -> Iterator[list[VirtualMachine]]:
    """All VMs by id, with what `_parts` needs: a constant number of queries a batch."""
    rows = VirtualMachine.objects.select_related("host__cluster__datacenter", "security__policy")
    rows = rows.prefetch_related("disks", "wrapped_secrets__key__cluster").order_by("pk")
    last = UUID(int=0)
    while batch := list(rows.filter(pk__gt=last)[:BATCH]):
        yield batch
        last = batch[-1].pk


def _verdicts(vms: Iterable[VirtualMachine]) -> Mapping[int, Verdict]:
    """Those that the last releases of keys relied on, where they are still kept."""
    ids = {security.released_verdict for vm in vms if (security := _security(vm)) is not None}
    return Verdict.objects.only("id", "status", "checked_at").in_bulk([one for one in ids if one is not None])


def _security(vm: VirtualMachine) -> VmSecurity | None:
    return getattr(vm, "security", None)


def _machine(vm: VirtualMachine, parts: list[dict[str, object]], verdicts: Mapping[int, Verdict]) -> dict[str, object]:
    security = _security(vm)
    return {
        "id": str(vm.pk),
        "uuid": str(vm.uuid),
        "name": vm.name,
        "host": vm.host.name,
        "cluster": vm.host.cluster.name,
        "datacenter": vm.host.cluster.datacenter.name,
        "is_present": vm.is_present,
        "policy": None if security is None else security.policy.name,
        "is_locked": security is not None and security.locked_at is not None,
        "last_release": None if security is None else _release(security, verdicts),
        "parts": parts,
    }


def _release(security: VmSecurity, verdicts: Mapping[int, Verdict]) -> dict[str, object] | None:
    """When its keys last went to a host, and the host's verdict then; null: none was required."""
    if security.released_at is None:
        return None
    number = security.released_verdict
    verdict = None if number is None else verdicts.get(number)
    told = None
    if number is not None:
        told = {
            "id": number,
            "status": None if verdict is None else verdict.status,
            "checked_at": None if verdict is None else verdict.checked_at.isoformat(timespec="seconds"),
        }
    return {
        "at": security.released_at.isoformat(timespec="seconds"),
        "host": security.released_host,
        "verdict": told,
    }


def _parts(vm: VirtualMachine, now: datetime) -> Iterator[dict[str, object]]:
    secrets = {(row.purpose, row.target): row for row in vm.wrapped_secrets.all() if row.stage not in _NOT_IN_USE}
    for disk in vm.disks.all():
        if disk.device == "disk":
            row = secrets.get((Purpose.DISK, disk.target))
            yield _part(disk.target, disk.source, disk.is_encrypted, row, vm.host, now)
    if vm.nvram_path:
        row = secrets.get((Purpose.NVRAM, ""))
        yield _part("nvram", vm.nvram_path, vm.is_nvram_encrypted, row, vm.host, now)
    if vm.tpm_model:
        row = secrets.get((Purpose.VTPM, ""))
        yield _part("vtpm", "" if row is None else row.path, vm.is_tpm_encrypted, row, vm.host, now)
    for row in vm.wrapped_secrets.all():
        if row.stage == Stage.DETACHED:
            yield _part(f"detached {row.target}", row.path, True, row, vm.host, now)


_NOT_IN_USE: Final = (Stage.DETACHED, Stage.REPLACED)


def _part(
    name: str, path: str, is_encrypted: bool, row: WrappedSecret | None, host: Host, now: datetime
) -> dict[str, object]:
    """`is_encrypted` is what libvirt reports, the key what this console keeps; an encrypted part without a key is one
    that this console did not encrypt."""
    is_vtpm = name == Purpose.VTPM
    cipher = module = None
    if is_encrypted:
        cipher = UNKNOWN if row is None else SWTPM if is_vtpm else LUKS
        module = f"swtpm on {host.name}" if is_vtpm else f"{host.hypervisor} {host.hypervisor_version} on {host.name}"
    return {
        "part": name,
        "path": path,
        "is_encrypted": is_encrypted,
        "cipher": cipher,
        "module": module,
        "stage": None if row is None else row.stage,
        "key_id": None if row is None else row.key.key_id,
        "key_provider": None if row is None else row.key.cluster.name,
        "key_state": None if row is None else row.key.state,
        "key_made_at": None if row is None else row.key.created_at.isoformat(timespec="seconds"),
        "key_age_days": None if row is None else (now - row.key.created_at).days,
    }
