"""Pages of encryption, and where they plug into inventory's."""

from encryption.services.key_providers import READ
from encryption.views import (
    compliance,
    crypto_inventory,
    key_providers,
    key_trust,
    keys,
    leftovers,
    migration,
    new_vm,
    storage_policies,
    vm_copies,
    vm_disks,
    vm_options,
    vm_options_many,
    vm_recrypt,
    vm_unlock,
    vm_vtpm,
)
from inventory.authorize import VIEW_ALL
from inventory.models import TargetKind
from inventory.views import extensions

extensions.add_navigation(extensions.Entry("Key Providers", "encryption:kms", "key", READ))
extensions.add_navigation(extensions.Entry("Policies", "encryption:policies", "shield-check"))
extensions.add_navigation(extensions.Entry("Exports", "encryption:bundles", "export", VIEW_ALL))
extensions.add_target(TargetKind.KMS_CLUSTER, "encryption:kms-cluster")
extensions.add_section(
    TargetKind.VIRTUAL_MACHINE, extensions.Section("Security", "VM Options", "encryption:vm-options")
)
extensions.add_section(TargetKind.VIRTUAL_MACHINE, extensions.Section("Security", "Virtual TPM", "encryption:vm-vtpm"))
extensions.add_list_action(
    TargetKind.VIRTUAL_MACHINE, extensions.Entry("VM Options", "encryption:vm-options-many", "shield-check")
)
extensions.add_monitor_section(TargetKind.HOST, extensions.Section("", "Leftovers", "encryption:host-leftovers"))
extensions.add_monitor_section(
    TargetKind.DATASTORE, extensions.Section("", "Leftovers", "encryption:datastore-leftovers")
)
extensions.add_action(TargetKind.VIRTUAL_MACHINE, vm_unlock.actions)
extensions.add_monitor_section(
    TargetKind.CLUSTER, extensions.Section("", "Encrypted Migration", "encryption:cluster-migration")
)
extensions.add_action(TargetKind.VIRTUAL_MACHINE, migration.actions)
extensions.add_action(TargetKind.VIRTUAL_MACHINE, vm_copies.vm_actions)
for _kind in (TargetKind.DATACENTER, TargetKind.CLUSTER, TargetKind.HOST):
    extensions.add_action(_kind, new_vm.actions)
extensions.add_action(TargetKind.HOST, vm_copies.host_actions)
extensions.add_action(TargetKind.VIRTUAL_MACHINE, vm_disks.actions)
extensions.add_section(TargetKind.VIRTUAL_MACHINE, extensions.Section("Settings", "Hard Disks", "encryption:vm-disks"))
extensions.add_badges(TargetKind.VIRTUAL_MACHINE, vm_unlock.badges)
extensions.add_badges(TargetKind.VIRTUAL_MACHINE, compliance.badges)
extensions.add_list_badges(TargetKind.VIRTUAL_MACHINE, compliance.list_badges)
extensions.add_counts(vm_unlock.counts)
extensions.add_action(TargetKind.HOST, compliance.actions)
extensions.add_target(TargetKind.STORAGE_POLICY, "encryption:policy")
extensions.add_card(TargetKind.VIRTUAL_MACHINE, "encryption:vm-card")

__all__ = [
    "compliance",
    "crypto_inventory",
    "key_providers",
    "key_trust",
    "keys",
    "leftovers",
    "migration",
    "new_vm",
    "storage_policies",
    "vm_copies",
    "vm_disks",
    "vm_options",
    "vm_options_many",
    "vm_recrypt",
    "vm_unlock",
    "vm_vtpm",
]
