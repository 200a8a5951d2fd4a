"""Ten thousand virtual machines on one host: sync, search, tree, in seconds and queries.

    python -m tests.benchmarks.bench_inventory [--vms 10000]

The host is libvirt's own test driver with a generated file, the database SQLite as in a new installation.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from tests.benchmarks.domains import simulated_host
from tests.benchmarks.own_console import own_console


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=10_000)
    count: int = parser.parse_args().vms
    with own_console() as folder:
        _run(count, folder)


def _run(count: int, folder: Path) -> None:
    import celery
    from django.core.management import call_command
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from inventory import jobs
    from inventory.authorize import SYSTEM
    from inventory.models import Event, PowerState, TargetKind, VirtualMachine
    from inventory.services import connections, hosts, places, search, sync, tree

    call_command("migrate", verbosity=0)
    no_broker = mock.patch.object(celery.current_app, "send_task")
    no_broker.start()
    file = folder / "host.xml"
    file.write_text(simulated_host(count))
    cluster = places.add_cluster(
        datacenter_id=places.add_datacenter(name="Bench", actor=SYSTEM).pk, name="Bench", actor=SYSTEM
    )

    def timed(what: str, work: Callable[[], object], repeat: int = 1) -> None:
        best, count = None, 0
        for _ in range(repeat):
            with CaptureQueriesContext(connection) as queries:
                began = time.perf_counter()
                work()
                took = time.perf_counter() - began
            best, count = took if best is None else min(best, took), len(queries)
        print(f"{what:<58} {best:8.3f} s {count:6d} queries")

    print(f"{count} virtual machines, test driver file of {file.stat().st_size / 2**20:.1f} MiB")
    job = hosts.add_host(cluster_id=cluster.pk, name="bench", uri=f"test://{file}", actor=SYSTEM)
    host = hosts.host_of(job.target_id)
    with connections.open_host(host):
        pass  # the test driver parses its file when it is opened; that is not ours to measure
    timed("add: connect job, first sync", lambda: jobs.run(str(job.pk), hosts.run_connect_host))
    job.refresh_from_db()
    host.refresh_from_db()
    assert job.status == "succeeded", job.message
    assert VirtualMachine.objects.count() == count
    print(f"{'events written by it':<58} {Event.objects.count():8d}")
    with connections.open_host(host) as hypervisor:
        timed("sync, nothing changed", lambda: sync.sync_host(host, hypervisor), 3)
        some = VirtualMachine.objects.filter(power_state=PowerState.OFF)[:100]
        for vm in some:
            hypervisor.power_on(vm.uuid)
        timed("sync, 100 powered on", lambda: sync.sync_host(host, hypervisor))
        one = VirtualMachine.objects.all()[count // 2]
        timed("refresh of one VM", lambda: sync.refresh_virtual_machine(one, hypervisor), 3)
    every = search.VmFilter()
    for what, wanted, sort, page in (
        ("list, first page by name", every, "name", 1),
        ("list, middle page by memory downwards", every, "-memory", count // 100),
        ("list, part of a name", search.VmFilter(text="M-0042"), "name", 1),
        ("list, encrypted and powered on, by host", search.VmFilter(is_encrypted=True, power=PowerState.ON), "host", 1),
        ("list, not encrypted", search.VmFilter(is_encrypted=False), "name", 1),
    ):
        timed(what, lambda w=wanted, s=sort, p=page: search.virtual_machines(actor=SYSTEM, wanted=w, sort=s, page=p), 5)  # type: ignore[misc]
    timed("search box, part of a name", lambda: search.search(actor=SYSTEM, text="m-00999"), 5)
    timed("search box, whole UUID", lambda: search.search(actor=SYSTEM, text=str(one.uuid)), 5)
    for view, kind, target in (
        (tree.View.HOSTS, TargetKind.HOST, host.pk),
        (tree.View.VMS, TargetKind.DATACENTER, cluster.datacenter_id),
        (tree.View.HOSTS, TargetKind.CLUSTER, cluster.pk),
    ):
        timed(
            f"tree, {view.value}: below {kind.label.lower()}",
            lambda v=view, k=kind, t=target: tree.children(view=v, kind=k, target_id=t, actor=SYSTEM),  # type: ignore[misc]
            5,
        )
    print(f"{'peak memory':<58} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MiB")


if __name__ == "__main__":
    main()
