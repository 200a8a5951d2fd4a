"""The definition of a new VM: as the worker makes it, and as its plan shows it. Rows only."""

import posixpath
import uuid
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from encryption.models import Key, KmsCluster, Purpose, StoragePolicy, WrappedSecret
from encryption.services import options as vm_options
from encryption.services import vm_metadata
from encryption.services.definition_preview import DefinitionChange
from encryption.services.new_vm_shape import NewVm
from inventory.errors import ServiceError
from inventory.models import Datastore, Host, VirtualMachine
from inventory.services.connections import HypervisorError
from inventory.services.definitions import (
    NewDomain,
    add_disk,
    add_tpm,
    difference,
    new_domain,
    set_dump_core,
    set_metadata,
    set_nvram,
    set_secure_boot,
    set_tpm_secret,
    set_vbs,
)

NVRAM: Final = Purpose.NVRAM.value
VTPM: Final = Purpose.VTPM.value
_NAMESPACE: Final = UUID("0b9a2f0e-6f0c-4d2b-9a53-2e8f5a1c7d44")


def secret_parts(new: NewVm) -> tuple[str, ...]:
    """What gets a data key: disks by target, then `nvram`, `vtpm`."""
    policies = vm_options.disk_policies_of(new.wish)
    found = [target for target in new.targets if policies[target].encrypts]
    if vm_options.home_policy(new.wish).encrypts and new.is_uefi:
        found.append(NVRAM)
    return (*found, VTPM) if new.vtpm else tuple(found)


def places(new: NewVm, store: Datastore, number: str) -> dict[str, str]:
    """Where each file goes: in a folder named after the VM, with some digits of the job's number."""
    encrypted, folder = secret_parts(new), posixpath.join(store.path, new.name)
    found = {
        target: posixpath.join(folder, f"{target}-{number}.{'luks' if target in encrypted else 'raw'}")
        for target in new.targets
    }
    return found | ({NVRAM: posixpath.join(folder, f"nvram-{number}.luks")} if NVRAM in encrypted else {})


def loader_of(new: NewVm, host: Host) -> str:
    """The UEFI firmware file on the host."""
    able = host.known_abilities
    return able.secure_loader if new.secure_boot or new.vbs else able.plain_loader


def definition(
    new: NewVm, host: Host, vm_uuid: UUID, *, files: Mapping[str, str], secrets: Mapping[str, UUID],
    element: str | None,
) -> str:  # fmt: skip
    """`files` as `places` gives them; `secrets` by part; `element`: the metadata, None for a plain VM. Raises
    BadDefinition."""
    able = host.known_abilities
    xml = new_domain(
        NewDomain(
            name=new.name, uuid=vm_uuid, guest=new.guest, is_kvm=able.virtualization == "kvm", is_uefi=new.is_uefi,
            vcpus=new.vcpus, memory_bytes=new.memory_bytes, network=new.network, iso=new.iso,
        )
    )  # fmt: skip
    for target in new.targets:
        xml = add_disk(xml, target, path=files[target], format="raw", secret_uuid=secrets.get(target))
    if NVRAM in secrets:
        xml = set_nvram(xml, path=files[NVRAM], secret_uuid=secrets[NVRAM], loader=loader_of(new, host))
    if new.is_uefi:
        xml = set_secure_boot(xml, is_on=new.secure_boot or new.vbs, host=able)
    if new.vbs:
        xml = set_vbs(xml, host=able)
    if new.vtpm:
        xml = set_tpm_secret(add_tpm(xml), secrets[VTPM])
    return set_dump_core(set_metadata(xml, vm_metadata.NAMESPACE, element), is_allowed=element is None)


def rows_of(new: NewVm, vm: VirtualMachine, key: Key, secrets: Mapping[str, UUID]) -> list[WrappedSecret]:
    """Not written: as the metadata need them, without wrapped keys."""
    sizes = {target: disk.size_bytes for target, disk in zip(new.targets, new.disks, strict=True)}
    return [
        WrappedSecret(
            secret_uuid=secret, virtual_machine=vm, key=key, plain_format="raw", wrapped=b"?",
            purpose=Purpose(part) if part in (NVRAM, VTPM) else Purpose.DISK,
            target="" if part in (NVRAM, VTPM) else part, size_bytes=sizes.get(part, 0),
        )
        for part, secret in secrets.items()
    ]  # fmt: skip


def preview(new: NewVm, store: Datastore, *, policy: StoragePolicy, provider: KmsCluster | None) -> DefinitionChange:
    """All of it, what is drawn later in braces."""
    vm_uuid, number = (uuid.uuid5(_NAMESPACE, what) for what in ("vm", "job"))
    secrets = {part: uuid.uuid5(_NAMESPACE, part) for part in secret_parts(new)}
    names = {str(one): f"{{new secret of {part}}}" for part, one in secrets.items()}
    names |= {str(vm_uuid): "{new UUID}", number.hex[:8]: "{8 digits}"}
    vm = VirtualMachine(host=store.host, uuid=vm_uuid, name=new.name)
    try:
        element = None
        if provider is not None and secrets:
            key = Key(cluster=provider, key_id="{ID of the new key}")
            element = vm_metadata.element(vm, policy, key, rows_of(new, vm, key, secrets))
        files = places(new, store, number.hex[:8])
        xml = definition(new, store.host, vm_uuid, files=files, secrets=secrets, element=element)
        return DefinitionChange(difference("", xml, names))
    except (HypervisorError, ServiceError) as exc:
        return DefinitionChange(note=f"the definition cannot be shown: {exc.message}")
