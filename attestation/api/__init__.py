"""Attestation over REST: one router, mounted by console/api.py, over the services that the pages call."""

from ninja import Router

from attestation.api import clusters, hosts, trust

router = Router()
router.add_router("", hosts.router)
router.add_router("", clusters.router)
router.add_router("", trust.router)
