"""Roles and two-person approval in a browser."""

import pytest
from django.contrib.auth.models import User

from inventory.models import JobStatus, RoleAssignment
from inventory.services import approvals
from tests import sample
from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_roles_and_approvals(console: Console, inventory: Sample) -> None:
    dora = User.objects.create_user("dora")
    RoleAssignment.objects.create(user=dora, role="operator", cluster=inventory.cluster, assigned_by="admin")
    alice = User.objects.create_superuser("alice")
    approvals.switch_on(action="encryption.decrypt_vm", actor=alice)
    sample.job_of(
        inventory.off_vm, "encryption.apply_options", JobStatus.WAITING, approval_right="encryption.decrypt_vm"
    )
    page = console.open("/roles/")
    assert console.axe() == []
    console.shot("roles")
    page.click("text=Assign role")
    page.wait_for_selector("dialog[open]")
    assert console.axe() == []
    console.shot("roles-assign")
    page = console.open("/approvals/")
    assert console.axe() == []
    console.shot("approvals")
    page = console.open(f"/inventory/cluster/{inventory.cluster.pk}/permissions/")
    assert console.axe() == []
    console.shot("permissions")
    page.set_viewport_size({"width": 420, "height": 900})
    console.open("/roles/")
    console.shot("roles-narrow")
    assert console.axe() == []
