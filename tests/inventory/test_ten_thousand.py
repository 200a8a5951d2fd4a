"""Ten thousand VMs on a host of libvirt's test driver: added over HTTP, then every list and tree as with a few.

Fast means: the same number of database queries. Times stand in docs/benchmarks.md.
"""

from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from inventory import jobs
from inventory.models import Cluster, Host, Job, VirtualMachine
from inventory.services import hosts
from tests.benchmarks.domains import simulated_host

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

# A few are more than one page: counting what lies behind a page costs a query of its own.
FEW, MANY = 300, 10_000


def add_over_http(client: Client, cluster: Cluster, name: str, file: Path) -> Host:
    answer = client.post(f"/inventory/cluster/{cluster.pk}/hosts/add/", {"name": name, "uri": f"test://{file}"})
    assert answer.status_code == 302, answer.content[:2000]
    job = Job.objects.get(target_name=name)
    jobs.run(str(job.pk), hosts.run_connect_host)
    job.refresh_from_db()
    assert job.status == "succeeded", job.message
    return Host.objects.get(name=name)


def queries_of(client: Client, path: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        answer = client.get(path)
    assert answer.status_code == 200, (path, answer.status_code)
    return len(queries)


def test_every_list_and_tree_costs_the_same_with_ten_thousand(
    client: Client, alice: User, cluster: Cluster, sent: object, tmp_path: Path
) -> None:
    client.force_login(alice)
    measured: dict[str, dict[str, int]] = {}
    for label, count in (("few", FEW), ("many", MANY)):
        file = tmp_path / f"{label}.xml"
        file.write_text(simulated_host(count, base=count))
        place = cluster if label == "few" else Cluster.objects.create(datacenter=cluster.datacenter, name="Many")
        host = add_over_http(client, place, f"host-{label}", file)
        assert host.virtual_machines.count() == count
        vm = host.virtual_machines.order_by("name")[8]  # encrypted, like every fourth
        pages = {
            "VMs of the host": f"/inventory/host/{host.pk}/vms/",
            "VMs of the host, filtered": f"/inventory/host/{host.pk}/vms/?power=off&encrypted=1&sort=-name",
            "VMs of the cluster": f"/inventory/cluster/{place.pk}/vms/",
            "VMs of the data center, second page": f"/inventory/datacenter/{place.datacenter_id}/vms/?page=2",
            "hosts of the cluster": f"/inventory/cluster/{place.pk}/hosts/",
            "host": f"/inventory/host/{host.pk}/",
            "VM": f"/inventory/vm/{vm.pk}/",
            "tree: host opened": f"/inventory/tree/hosts/host/{host.pk}/",
            "tree: whole": "/inventory/tree/",
            "search": f"/search/?q={vm.name[:6]}",
            "API: VMs": "/api/v1/virtual-machines",
            "API: VMs, searched": f"/api/v1/virtual-machines?text={vm.name}",
            "API: tree": f"/api/v1/tree/hosts/host/{host.pk}",
            "tasks": "/tasks/",
        }
        measured[label] = {what: queries_of(client, path) for what, path in pages.items()}
    assert VirtualMachine.objects.count() == FEW + MANY
    assert measured["many"] == measured["few"]
