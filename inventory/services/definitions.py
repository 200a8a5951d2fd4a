"""Edits of a VM's definition, for the apps above. Each takes and gives domain XML text; see engine/domain_edit.py.

Used with `Hypervisor.redefine(uuid, edit)`, so that one read and one definition belong together.
"""

from inventory.engine.domain_copy import (
    FileRole,
    OwnFile,
    boot_files,
    checked_name,
    own_files,
    renamed,
    secrets_of,
    with_files,
    with_logs,
    with_new_identity,
    with_secrets,
)
from inventory.engine.domain_diff import difference
from inventory.engine.domain_edit import (
    add_disk,
    metadata,
    nvram_template,
    remove_disk,
    set_disk,
    set_dump_core,
    set_metadata,
    set_nvram,
    set_tpm_secret,
)
from inventory.engine.domain_move import NewPlace, Traits, moved, traits
from inventory.engine.domain_new import Guest, NewDomain, disk_targets, new_domain
from inventory.engine.domain_portable import check_portable, portable
from inventory.engine.domain_tpm import add_tpm, remove_tpm
from inventory.engine.domain_vbs import set_secure_boot, set_vbs, unset_vbs
from inventory.engine.domain_xml import BadDefinition, loader_path, names_path, read_facts
from inventory.engine.hypervisor import Power, VmFacts
from inventory.models import VirtualMachine, VmDefinition

__all__ = [
    "BadDefinition",
    "FileRole",
    "Guest",
    "NewDomain",
    "NewPlace",
    "OwnFile",
    "Traits",
    "add_disk",
    "add_tpm",
    "boot_files",
    "check_portable",
    "checked_name",
    "difference",
    "disk_targets",
    "loader_path",
    "metadata",
    "moved",
    "names_path",
    "new_domain",
    "next_start",
    "nvram_template",
    "own_files",
    "portable",
    "remove_disk",
    "remove_tpm",
    "renamed",
    "secrets_of",
    "set_disk",
    "set_dump_core",
    "set_metadata",
    "set_nvram",
    "set_secure_boot",
    "set_tpm_secret",
    "set_vbs",
    "stored_definition",
    "traits",
    "unset_vbs",
    "with_files",
    "with_logs",
    "with_new_identity",
    "with_secrets",
]


def stored_definition(vm: VirtualMachine) -> str:
    """The definition that the VM's host last reported; "" where that is not kept, or older than the VM's row."""
    found = VmDefinition.objects.filter(virtual_machine=vm, sha256=vm.definition_sha256).first()
    return found.xml if found is not None and vm.definition_sha256 else ""


def next_start(xml: str) -> VmFacts:
    """What the definition says of the next start, whatever runs now. Sizes of disks are 0. Raises BadDefinition."""
    return read_facts(xml, live=None, power=Power.OFF, is_persistent=True)
