"""The inventory over REST: one router, mounted by console/api.py, over the services that the pages call."""

from ninja import Router

from inventory.api import activity, approvals, hardware, places, roles, virtual_machines

router = Router()
router.add_router("", places.router)
router.add_router("", virtual_machines.router)
router.add_router("", hardware.router)
router.add_router("", activity.router)
router.add_router("", roles.router)
router.add_router("", approvals.router)
