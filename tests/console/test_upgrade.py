"""The database of an older version: `migrate` takes it over with all its rows, and the services go on with them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.launch.conftest import ROOT

pytestmark = pytest.mark.slow
OLDER: Final = """
import django
django.setup()
from uuid import uuid4
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
call_command("migrate", "auth", verbosity=0)
call_command("migrate", "inventory", "0006", verbosity=0)
loader = MigrationExecutor(connection).loader
known = [node for node in loader.applied_migrations if node in loader.graph.nodes]
apps = loader.project_state(known).apps
apps.get_model("auth", "User").objects.create(username="dora")
apps.get_model("auth", "User").objects.create(username="root", is_superuser=True)
made = {}
for name, above in (("Datacenter", ""), ("Cluster", "datacenter"), ("Host", "cluster"), ("VirtualMachine", "host")):
    values = {"name": f"old {name}"} | ({above: made[above]} if above else {})
    values |= {"uri": "qemu+tls://old/system"} if name == "Host" else {"uuid": uuid4()} if above == "host" else {}
    made[name.lower()] = apps.get_model("inventory", name).objects.create(**values)
for number in range(3):
    apps.get_model("inventory", "Event").objects.create(
        kind="vm.powered_on", target_kind="vm", target_id=made["virtualmachine"].pk, target_name="old", actor="dora",
        message=f"number {number}",
    )
"""
NOW: Final = """
import django
django.setup()
import json
from django.contrib.auth.models import User
from django.core.management import call_command
call_command("migrate", verbosity=0)
from encryption.models import StoragePolicy
from inventory.authorize import SYSTEM
from inventory.models import Event, RoleAssignment, VirtualMachine
from inventory.services import checkpoints, event_history
from inventory.services.verification import verify
checkpoints.sign(actor=SYSTEM)
vm = VirtualMachine.objects.select_related("host__cluster__datacenter").get()
found = event_history.event_list(actor=User.objects.get(username="dora"))
print(json.dumps({
    "roles": [str(one) for one in RoleAssignment.objects.all()],
    "vm": [vm.name, vm.host.name, vm.host.cluster.datacenter.name],
    "events": sorted(one.message for one in found.items if one.kind == "vm.powered_on"),
    "problems": [one.code for one in verify(actor=SYSTEM).problems],
    "policies": StoragePolicy.objects.filter(is_builtin=True).exists(),
}))
"""


def run(script: str, state: Path) -> str:
    environment = {
        "PATH": os.defpath, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "tests.settings",
        "BARTIZAN_TEST_STATE": str(state),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_database_from_before_roles_is_taken_over(tmp_path: Path) -> None:
    run(OLDER, tmp_path)
    found = json.loads(run(NOW, tmp_path))
    assert found == {
        "roles": ["Auditor of dora on everything"],
        "vm": ["old VirtualMachine", "old Host", "old Datacenter"],
        "events": ["number 0", "number 1", "number 2"],
        "problems": [],
        "policies": True,
    }
