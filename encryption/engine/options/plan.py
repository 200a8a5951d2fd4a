"""Plan and apply, the first half: what has to be done to bring a VM's encryption from what is to what is wanted.

`plan` is pure and total: for any two states it answers with steps, warnings and refusals. A plan with a refusal must
not be applied. The worker plans again from fresh facts before it begins.

Rules (vSphere's, see docs/architecture.md):
1. the home (NVRAM, vTPM state) is encrypted before any disk, and no disk is encrypted on a VM with a plain home;
2. disks are decrypted before the home;
3. home files change only while the VM is powered off; disks change also while it runs, by a block copy;
4. a vTPM alone encrypts the home: disks stay as they are;
5. one change of the definition for all: either the guest starts with everything old or with everything new.

Each noun has its module with `refusals`, `steps` and `warnings`: `encryption.py` (home and disks), `vtpm.py`,
`vbs.py` (Secure Boot and VBS), `migration.py`, `keys.py`. What is wanted and so already gives no step and no refusal.

NOT checked here: free space, whether files exist, whether the KMS answers. The worker checks those before it writes.
"""

from collections.abc import Iterable

from encryption.engine.options import encryption, keys, migration, vbs, vtpm
from encryption.engine.options.state import CurrentDisk, CurrentVm, DesiredVm
from encryption.engine.options.steps import Finding, How, Plan, Step, StepKind

_AFTER_THE_SWITCH = frozenset({StepKind.REMOVE_VTPM})


def plan(current: CurrentVm, desired: DesiredVm) -> Plan:
    """Steps in the order in which they are done; refusals in the order in which to solve them."""
    encrypting = [
        disk
        for disk in encryption.hard_disks(current)
        if disk.target in desired.encrypted_disks and not disk.is_encrypted
    ]
    decrypting = [
        disk
        for disk in encryption.hard_disks(current)
        if disk.target not in desired.encrypted_disks and disk.is_encrypted
    ]
    home = encryption.home_steps(current, desired)
    hardware = [*vbs.steps(current, desired), *vtpm.steps(current, desired)]
    refusals = [
        *encryption.wish_refusals(current, desired),
        *vbs.refusals(current, desired),
        *vtpm.refusals(current, desired),
        *migration.refusals(current, desired),
        *encryption.state_refusals(current, desired, encrypting, decrypting, home),
    ]
    if hardware and not any(one.code in {"managed_save_present", "snapshots_present"} for one in refusals):
        refusals += encryption.kept_states(current)
    conversions = [encryption.disk_step(current, disk, encrypt=False) for disk in decrypting]
    conversions += home
    conversions += [encryption.disk_step(current, disk, encrypt=True) for disk in encrypting]
    warnings: tuple[Finding, ...] = (
        *vbs.warnings(current, desired),
        *vtpm.warnings(current, desired),
        *migration.warnings(current, desired),
    )
    last = migration.steps(current, desired)
    if not conversions and not hardware and desired.encrypt_home == current.has_key:
        rest = [encryption.assign_step(one) for one in desired.assignments]
        rest += [
            encryption.destroy_step(f"Overwrite and delete {path}, left by an earlier change")
            for path in current.leftovers
        ]
        return Plan((*rest, *last), warnings, tuple(refusals))
    steps = tuple(_surround(current, desired, conversions, hardware, encrypting))
    if keys.need_key(steps):
        refusals += keys.refusals(current, desired)
        warnings = (*keys.warnings(current, desired), *warnings)
    return Plan((*steps, *last), (*encryption.warnings(current, conversions), *warnings), tuple(refusals))


def _surround(
    current: CurrentVm,
    desired: DesiredVm,
    conversions: list[Step],
    hardware: list[Step],
    encrypting: list[CurrentDisk],
) -> Iterable[Step]:
    makes_secrets = bool(encrypting) or any(
        step.kind in {StepKind.ENCRYPT_NVRAM, StepKind.ENCRYPT_VTPM, StepKind.ADD_VTPM}
        for step in [*conversions, *hardware]
    )
    if desired.encrypt_home and not current.has_key:
        text = "Create and activate a 256-bit AES key at the key provider"
        undo = "destroy it under Key Providers once it protects nothing any more"
        yield Step(StepKind.CREATE_KEY, "", How.KMS, text, undo=undo)
    if makes_secrets:
        yield Step(
            StepKind.WRAP_SECRETS, "", How.KMS, "Draw a data key for each part and keep it wrapped under that key"
        )
    yield from conversions
    yield from (step for step in hardware if step.kind not in _AFTER_THE_SWITCH)
    converted = {step.target for step in conversions}
    yield from (encryption.assign_step(one) for one in desired.assignments if one.target not in converted)
    yield Step(
        StepKind.SWITCH_DEFINITION, "", How.LIBVIRT, f"Switch the VM's definition {_switched_to(desired, conversions)}"
    )
    yield from (step for step in hardware if step.kind in _AFTER_THE_SWITCH)
    if conversions:
        old = "plain" if desired.encrypt_home else "encrypted"
        if any(step.kind is StepKind.DECRYPT_DISK for step in conversions) and desired.encrypt_home:
            old = "old"
        yield encryption.destroy_step(f"Overwrite and delete the {old} originals")


def _switched_to(desired: DesiredVm, conversions: list[Step]) -> str:
    if desired.encrypt_home:
        return "to the encrypted parts, with the wrapped keys in its metadata"
    return "to the plain parts" if conversions else "to the new hardware"
