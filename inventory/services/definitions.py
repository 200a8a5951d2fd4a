"""Edits of a VM's definition, for the apps above. Each takes and gives domain XML text; see engine/domain_edit.py.

Used with `Hypervisor.redefine(uuid, edit)`, so that one read and one definition belong together.
"""

from inventory.engine.domain_edit import (
    metadata,
    nvram_template,
    set_disk,
    set_dump_core,
    set_metadata,
    set_nvram,
    set_tpm_secret,
)
from inventory.engine.domain_xml import BadDefinition, loader_path, names_path

__all__ = [
    "BadDefinition",
    "loader_path",
    "metadata",
    "names_path",
    "nvram_template",
    "set_disk",
    "set_dump_core",
    "set_metadata",
    "set_nvram",
    "set_tpm_secret",
]
