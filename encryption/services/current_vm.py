"""A VM as the plan sees it: what its host last reported, and which of its secrets this console holds. Rows only."""

from collections.abc import Iterable

from encryption.engine.options import CurrentDisk, CurrentVm, Vmotion
from encryption.models import Purpose, Stage, VmSecurity, WrappedSecret
from encryption.services import boot_hardware, key_readiness, vmotion
from inventory.models import Disk, Firmware, VirtualMachine
from inventory.services.connections import reaches_files, vtpm_state_path


def observe(vm: VirtualMachine) -> CurrentVm:
    """The engine's view of a VM: what libvirt last reported and which secrets this console holds."""
    rows = list(
        vm.wrapped_secrets.exclude(stage=Stage.DETACHED)
        .select_related("replaces")
        .defer("wrapped", "replaces__wrapped")
    )
    held = {(row.purpose, row.target) for row in rows}
    disks = list(vm.disks.all())
    needed = {
        part
        for part in (Purpose.NVRAM if vm.is_nvram_encrypted else None, Purpose.VTPM if vm.is_tpm_encrypted else None)
        if part
    }
    security = VmSecurity.objects.select_related("key").filter(virtual_machine=vm).first()
    # As `vmotion.is_encrypted` asks the database.
    has_key = security is not None and security.key is not None
    is_encrypted = bool(needed) or bool(rows) or has_key or any(disk.is_encrypted for disk in disks)
    return CurrentVm(
        name=vm.name,
        is_present=vm.is_present,
        is_persistent=vm.is_persistent,
        is_running=vm.is_running,
        files_reachable=reaches_files(vm.host),
        nvram_path=vm.nvram_path if vm.firmware == Firmware.UEFI else "",
        is_nvram_encrypted=vm.is_nvram_encrypted,
        has_tpm=bool(vm.tpm_model),
        is_tpm_encrypted=vm.is_tpm_encrypted,
        tpm_state_known=vtpm_state_path(vm) is not None,
        home_is_ours=all((part, "") in held for part in needed),
        disks=tuple(_current_disks(vm, disks, held)),
        has_key=has_key,
        key_state=key_readiness.key_state(security),
        lock_reason=security.lock_detail if security is not None and security.locked_at else "",
        leftovers=tuple(_leftover(vm, disks, row) for row in rows if row.stage not in (Stage.IN_USE, Stage.REPLACED)),
        has_managed_save=vm.has_managed_save,
        snapshot_count=vm.snapshot_count,
        memory_snapshot_count=vm.memory_snapshot_count,
        firmware=vm.firmware,
        has_secure_boot=vm.has_secure_boot,
        hardware=boot_hardware.hardware_of(vm),
        host=boot_hardware.abilities_of(vm.host),
        encrypted_vmotion=Vmotion.REQUIRED if is_encrypted else Vmotion(vmotion.chosen_mode(vm).value),
    )


def _leftover(vm: VirtualMachine, disks: list[Disk], row: WrappedSecret) -> str:
    """The file of an unfinished part that its VM does not use: the half-written copy, or what was copied. Of a
    rotated passphrase only a keyslot is left."""
    if row.stage == Stage.REMOVING:
        return row.path
    if row.shares_image:
        return f"a keyslot of {row.path}"
    if row.replaces is not None and row.purpose != Purpose.VTPM:
        in_use = {vm.nvram_path} | {disk.source for disk in disks}
        return row.original if row.path in in_use else row.path
    if row.purpose == Purpose.NVRAM:
        is_encrypted = vm.is_nvram_encrypted
    elif row.purpose == Purpose.VTPM:
        return row.plain_path  # where the exchange puts the old state, see vtpm_files
    else:
        is_encrypted = any(disk.target == row.target and disk.is_encrypted for disk in disks)
    return row.plain_path if is_encrypted else row.path


def _current_disks(vm: VirtualMachine, disks: list[Disk], held: set[tuple[str, str]]) -> Iterable[CurrentDisk]:
    sharers: dict[str, list[str]] = {}
    sources = [disk.source for disk in disks if disk.source]
    others = Disk.objects.filter(source__in=sources, virtual_machine__host=vm.host, virtual_machine__is_present=True)
    for source, name in others.exclude(virtual_machine=vm).values_list("source", "virtual_machine__name"):
        sharers.setdefault(source, []).append(name)
    for disk in disks:
        yield CurrentDisk(
            target=disk.target,
            device=disk.device,
            format=disk.format,
            source=disk.source,
            size=disk.capacity_bytes,
            is_encrypted=disk.is_encrypted,
            is_read_only=disk.is_read_only,
            is_ours=(Purpose.DISK, disk.target) in held,
            shared_with=tuple(sorted(sharers.get(disk.source, []))),
            is_blank=boot_hardware.is_blank(disk),
        )
