"""A VM's virtual TPM: what there is to see of it, and its adding and removing, which VM Options carry out."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from encryption.engine.compliance import VTPM
from encryption.models import Compliance, Purpose
from encryption.services import options
from encryption.services.options import PlannedChange, Wish
from encryption.services.vtpm_certificates import VtpmCertificate, certificates_of
from inventory.authorize import VIEW, Actor, authorize
from inventory.models import Job, PowerState, VirtualMachine
from inventory.services.virtual_machines import vm_of


@dataclass(frozen=True, slots=True)
class Vtpm:
    """`evidence`: what the state file's header showed when it was last read (`checked_at`), empty while nobody has
    looked. `is_ours`: this console holds the key of its state. `certificates`: empty until they were asked for."""

    vm: VirtualMachine
    is_ours: bool
    evidence: str
    checked_at: datetime | None
    certificates: tuple[VtpmCertificate, ...]

    @property
    def is_present(self) -> bool:
        return bool(self.vm.tpm_model)

    @property
    def is_off(self) -> bool:
        return self.vm.power_state == PowerState.OFF

    @property
    def read_at(self) -> datetime | None:
        return self.certificates[0].row.read_at if self.certificates else None


def vtpm_of(*, vm_id: UUID, actor: Actor) -> Vtpm:
    """Of a VM without one, too. Raises NotFound."""
    vm = vm_of(vm_id)
    authorize(actor, VIEW, vm)
    seen = Compliance.objects.filter(virtual_machine=vm).first()
    evidence = next((one["evidence"] for one in seen.observations if one["part"] == VTPM), "") if seen else ""
    return Vtpm(
        vm=vm,
        is_ours=vm.wrapped_secrets.filter(purpose=Purpose.VTPM).exists(),
        evidence=evidence,
        checked_at=seen.checked_at if seen and evidence else None,
        certificates=certificates_of(vm) if vm.tpm_model else (),
    )


def plan_vtpm(*, vm_id: UUID, present: bool, actor: Actor) -> PlannedChange:
    """What adding (`present`) or removing would do, everything else staying as it is."""
    return options.plan_options(vm_id=vm_id, wish=_wish(vm_id, actor, present=present), actor=actor)


def add_vtpm(*, vm_id: UUID, actor: Actor, approved: str = "") -> Job:
    """A TPM 2.0 for a powered-off VM with UEFI; its home is encrypted for it. `approved`: the digest of the plan that
    somebody has seen. Raises what `apply_options` raises."""
    wish = _wish(vm_id, actor, present=True)
    return options.apply_options(vm_id=vm_id, wish=wish, actor=actor, approved=approved)


def remove_vtpm(*, vm_id: UUID, confirm: str, actor: Actor, approved: str = "") -> Job:
    """`confirm` repeats the VM's name; `approved` as in `add_vtpm`. Raises what `apply_options` raises."""
    wish = _wish(vm_id, actor, present=False)
    return options.apply_options(vm_id=vm_id, wish=wish, actor=actor, approved=approved, confirm=confirm)


def _wish(vm_id: UUID, actor: Actor, *, present: bool) -> Wish:
    """The policies stay as they were last applied."""
    found = options.vm_options(vm_id=vm_id, actor=actor)
    disks = {disk.target: policy.pk for disk, policy in found.disks_with_policies if not disk.is_read_only}
    return Wish(found.policy.pk, disks, vtpm=present)
