"""New virtual machines: what is asked for, its plan, and the start of the job (worker side: new_vm_job.py).

The wish for its protection is that of VM Options, and so are the rules. What shall be encrypted is never on a datastore
in clear: nothing is converted, each part is made as it shall be.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from uuid import UUID

from django.db import transaction

from encryption.engine import options
from encryption.engine.options import Approved, CurrentDisk, CurrentVm, DesiredVm, Plan, VmHardware, gigabytes
from encryption.models import KmsCluster, StoragePolicy
from encryption.services import boot_hardware, disks, key_readiness, new_vm_definition, vm_files
from encryption.services import options as vm_options
from encryption.services.new_vm_shape import Guest as Guest
from encryption.services.new_vm_shape import NewDisk as NewDisk
from encryption.services.new_vm_shape import NewVm as NewVm
from encryption.services.options import PlannedChange, VmOptions
from inventory import events, jobs
from inventory.authorize import VIEW, Actor, authorize
from inventory.errors import Conflict, Invalid, NotFound
from inventory.models import Cluster, Datacenter, Datastore, Disk, Firmware, Host, Job, TargetKind, VirtualMachine
from inventory.services.connections import vtpm_state_path

CREATE: Final = jobs.register(jobs.JobKind("encryption.create_vm", "Create virtual machine", queue="crypto"))
ACTION: Final = "encryption.create_vm"
ENCRYPTED: Final = "encryption.create_encrypted_vm"
MOST_DISKS: Final = 16
MOST_VCPUS: Final = 512
MOST_MEMORY_BYTES: Final = 16 * 2**40
MIB: Final = 2**20
_PLACES: Final[dict[TargetKind, tuple[type[Datacenter | Cluster | Host], str]]] = {
    TargetKind.DATACENTER: (Datacenter, "host__cluster__datacenter"),
    TargetKind.CLUSTER: (Cluster, "host__cluster"),
    TargetKind.HOST: (Host, "host"),
}
_NETWORK: Final = re.compile(r"[A-Za-z0-9_.-]{0,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Choices:
    """What the form offers: the datastores of connected hosts, and the options of a VM with that many disks."""

    datastores: tuple[Datastore, ...]
    options: VmOptions


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is chosen in the form so far, as far as other choices depend on it. None: what the form begins with."""

    datastore_id: UUID | None = None
    is_uefi: bool = True
    kms_cluster_id: UUID | None = None


def choices(
    *, actor: Actor, disk_count: int, place: tuple[TargetKind, UUID] | None = None, chosen: Chosen | None = None
) -> Choices:
    """`place`: a data center, cluster or host; None: everywhere. Raises Refused, NotFound."""
    found = Datastore.objects.filter(is_active=True, kind__in=disks.FOLDER_KINDS, host__state=Host.State.CONNECTED)
    if place is None:
        authorize(actor, ACTION)
    else:
        model, path = _PLACES[place[0]]
        target = model.objects.filter(pk=place[1]).first()
        if target is None:
            raise NotFound("place_not_found", f"there is no {place[0].label.lower()} {place[1]}")
        authorize(actor, ACTION, target)
        found = found.filter(**{path: target})
    stores = tuple(found.exclude(path="").select_related("host__cluster").order_by("host__name", "name"))
    vm = VirtualMachine(name="", firmware=Firmware.UEFI)
    blank = CurrentVm(
        name="", is_present=True, is_persistent=True, is_running=False, files_reachable=True, nvram_path="",
        is_nvram_encrypted=False, has_tpm=False, is_tpm_encrypted=False, tpm_state_known=True, home_is_ours=True,
        disks=(), has_key=False,
    )  # fmt: skip
    drawn = VmOptions(
        vm=vm,
        disks=tuple(Disk(target=str(number + 1), format="raw") for number in range(disk_count)),
        security=None,
        secrets=(),
        policies=tuple(StoragePolicy.objects.all()),
        kms_clusters=tuple(KmsCluster.objects.order_by("-is_default", "name")),
        disk_policies={},
        compliance=None,
        current=blank,
        obstacles=_obstacles(stores, chosen or Chosen()),
        progress=None,
    )
    return Choices(stores, drawn)


def _obstacles(stores: Sequence[Datastore], chosen: Chosen) -> dict[str, tuple[options.Finding, ...]]:
    store = next((one for one in stores if one.pk == chosen.datastore_id), next(iter(stores), None))
    if store is None:
        return {}
    named = KmsCluster.objects.filter(pk=chosen.kms_cluster_id).first() if chosen.kms_cluster_id else None
    provider = named or KmsCluster.objects.filter(is_default=True).first()
    blank = _blank("the new VM", store.host, is_uefi=chosen.is_uefi)
    return options.creation_obstacles(blank, key_provider=key_readiness.provider_state(provider))


def plan_new_vm(*, new: NewVm, actor: Actor) -> PlannedChange:
    """What would be done. Changes nothing. Raises NotFound, Refused, Invalid (see `create_vm`)."""
    store = checked_store(new)
    authorize(actor, VIEW, store.host)
    check_shape(new, store.host)
    made = plan_of(new, store.host)
    provider = vm_options.chosen_provider(new.wish)
    effects = options.creation_effects(made, host=store.host.name, key_provider=provider.name if provider else "")
    shown = None
    if not made.refusals:
        policy = vm_options.home_policy(new.wish)
        shown = new_vm_definition.preview(new, store, policy=policy, provider=provider)
    return PlannedChange(made, Approved.of(made, "").digest, effects, shown)


@transaction.atomic
def create_vm(*, new: NewVm, actor: Actor, approved: str = "") -> Job:
    """Starts the job that makes the VM, powered off. `approved`: the digest of the plan that somebody has seen.

    Raises NotFound, Refused, Invalid (`name_invalid`, `datastore_unsupported`, `vcpus_invalid`, `memory_invalid`,
    `size_invalid`, `no_disk`, `too_many_disks`, `network_invalid`, `path_invalid`, `policy_not_found`,
    `policy_not_for_home`), Conflict (`disk_in_use`, the plan's first refusal, `host_disconnected`, `name_taken`,
    `space_missing`, `plan_outdated`, `target_busy`).
    """
    store = checked_store(new)
    host = store.host
    authorize(actor, ACTION, host)
    check_shape(new, host)
    if vm_options.home_policy(new.wish).encrypts:
        authorize(actor, ENCRYPTED, host)
    if host.state != Host.State.CONNECTED:
        raise Conflict("host_disconnected", f"{host} is not connected", hint="connect the host first")
    vm_files.refuse_name(host, new.name)
    wanted = sum(disk.size_bytes for disk in new.disks)
    if wanted > store.available_bytes:
        raise Conflict(
            "space_missing", f"{store} has {store.available_bytes >> 20} MiB free, {wanted >> 20} MiB are wanted",
            hint="free space there, or choose another datastore",
        )  # fmt: skip
    made = plan_of(new, host)
    refuse(new, made)
    now = Approved.of(made, "")
    if approved and approved != now.digest:
        raise Conflict(
            "plan_outdated", f"the plan of {new.name} is another one by now", hint="look at the new plan, then create"
        )
    job = jobs.start(CREATE, target=host, actor=actor, params={**new.as_params(), "plan": now.as_params()})
    events.record(
        "vm.creation_requested", f"New virtual machine {new.name} requested on {host}", target=host, actor=actor,
        job=job, name=new.name, policy=vm_options.home_policy(new.wish).name, plan_digest=now.digest,
        steps=[step.text for step in made.steps],
    )  # fmt: skip
    return job


def checked_store(new: NewVm) -> Datastore:
    found = Datastore.objects.select_related("host__cluster").filter(pk=new.datastore_id).first()
    if found is None:
        raise NotFound("datastore_not_found", f"there is no datastore {new.datastore_id}")
    if not found.is_active or found.kind not in disks.FOLDER_KINDS or not found.path:
        raise Invalid(
            "datastore_unsupported", f"datastore {found} of {found.host} cannot take files",
            hint="choose a folder datastore",
        )  # fmt: skip
    return found


def check_shape(new: NewVm, host: Host) -> None:
    """What is wrong with the input, whatever the host can do. A name is checked where a VM of it would be made."""
    if not 0 < new.vcpus <= MOST_VCPUS:
        raise Invalid("vcpus_invalid", f"a VM has 1 to {MOST_VCPUS} CPUs")
    if new.memory_bytes % MIB or not 64 * MIB <= new.memory_bytes <= MOST_MEMORY_BYTES:
        raise Invalid("memory_invalid", "the memory of a VM is a whole number of MiB, 64 at least")
    if not new.disks:
        raise Invalid("no_disk", f"{new.name} has no hard disk", hint="give it one")
    if len(new.disks) > MOST_DISKS:
        raise Invalid("too_many_disks", f"a new VM has at most {MOST_DISKS} hard disks", hint="add the others later")
    for disk in new.disks:
        disks.check_size(disk.size_bytes)
    if not _NETWORK.fullmatch(new.network):
        raise Invalid("network_invalid", f"{new.network[:64]!r} is no name of a network", hint="as libvirt has it")
    if new.iso:
        _check_iso(new, host)


def _check_iso(new: NewVm, host: Host) -> None:
    """A guest reads whatever it is given as a CD-ROM, so not what another VM has written: neither its disks, nor what
    is left of them under other names."""
    disks.check_path(host, new.iso)
    if not new.iso.lower().endswith(".iso"):
        raise Invalid(
            "path_invalid", f"{new.iso[:200]!r} is no ISO image by its name", hint="give one that ends in .iso"
        )
    other = Disk.objects.filter(source=new.iso).exclude(device="cdrom").select_related("virtual_machine").first()
    if other is not None:
        raise Conflict("disk_in_use", f"{new.iso} is {other.target} of {other.virtual_machine}", hint="choose another")


def plan_of(new: NewVm, host: Host) -> Plan:
    """Raises Invalid for policies that are not there."""
    wish = new.wish
    policy, of_disks = vm_options.home_policy(wish), vm_options.disk_policies_of(wish)
    desired = DesiredVm(
        policy.encrypts,
        frozenset(target for target, one in of_disks.items() if one.encrypts),
        key_provider=key_readiness.provider_state(vm_options.chosen_provider(wish)),
        known_disks=frozenset(of_disks),
        home_is_for_vtpm=policy.is_for_vtpm,
        vtpm=wish.vtpm,
        secure_boot=wish.secure_boot,
        vbs=wish.vbs,
        encrypted_vmotion=wish.encrypted_vmotion,
    )
    hardware = f"{new.vcpus} CPU{'s' * (new.vcpus != 1)}, {gigabytes(new.memory_bytes)} of memory"
    blank = _blank(new.name, host, is_uefi=new.is_uefi, disks=dict(zip(new.targets, new.disks, strict=True)))
    return options.plan_creation(blank, desired, hardware=hardware)


def _blank(name: str, host: Host, *, is_uefi: bool, disks: Mapping[str, NewDisk] = MappingProxyType({})) -> CurrentVm:
    """The VM as it would be with nothing of its wishes: powered off, with disks that nothing was written to."""
    able = boot_hardware.abilities_of(host)
    place = vtpm_state_path(VirtualMachine(host=host, name=name, tpm_version="2.0"))
    return CurrentVm(
        name=name,
        is_present=True,
        is_persistent=True,
        is_running=False,
        files_reachable=True,
        nvram_path="",
        is_nvram_encrypted=False,
        has_tpm=False,
        is_tpm_encrypted=False,
        tpm_state_known=place is not None,
        home_is_ours=True,
        disks=tuple(
            CurrentDisk(
                target=target, device="disk", format="raw", source=posixpath.join("/", target), size=disk.size_bytes,
                is_encrypted=False, is_read_only=False, is_ours=False, is_blank=True,
            )
            for target, disk in disks.items()
        ),
        has_key=False,
        firmware=Firmware.UEFI if is_uefi else Firmware.BIOS,
        hardware=VmHardware(is_q35=True, is_kvm=able.is_kvm),
        host=able,
    )  # fmt: skip


def refuse(new: NewVm, made: Plan, *, but_for: frozenset[str] = frozenset()) -> None:
    """Raises Conflict with the plan's first refusal. `but_for`: codes of what the worker tries itself."""
    first = next((one for one in made.refusals if one.code not in but_for), None)
    if first is not None:
        raise Conflict(first.code, f"{new.name}: {first.text}", hint=first.hint)
