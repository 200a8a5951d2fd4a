"""Encryption over REST: one router, mounted by console/api.py, over the services that the pages call."""

from ninja import Router

from encryption.api import (
    compliance,
    copies,
    crypto_inventory,
    crypto_modules,
    disks,
    key_providers,
    key_trust,
    keys,
    leftovers,
    migration,
    new_vm,
    storage_policies,
    vm_options,
    vtpm,
)

router = Router()
router.add_router("", copies.router)
router.add_router("", crypto_inventory.router)
router.add_router("", crypto_modules.router)
router.add_router("", disks.router)
router.add_router("", key_providers.router)
router.add_router("", key_trust.router)
router.add_router("", keys.router)
router.add_router("", leftovers.router)
router.add_router("", migration.router)
router.add_router("", new_vm.router)
router.add_router("", vm_options.router)
router.add_router("", vtpm.router)
router.add_router("", storage_policies.router)
router.add_router("", compliance.router)
