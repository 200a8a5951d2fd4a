"""New KEKs for a thousand VMs in one job, beside what the key server can do at most.

    python -m tests.benchmarks.bench_recrypt [--vms 1000]

The key server is a real PyKMIP process as the lab runs it, over mutual TLS. The host is libvirt's own test driver: its
definitions are parsed and written by libvirt, but there is no network and no disk behind them. SQLite, as in a new
installation. The server's own rate is taken before and after the job, by the same client with nothing else to do: in
messages of many requests, as the job sends them, and one request after another. The CPU time of the key server's
process does not depend on what else the machine does meanwhile, rates do.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tests.benchmarks.domains import simulated_host
from tests.benchmarks.own_console import cpu_seconds, own_console

# A label as the console gives it to a VM's key.
ORDINARY = "vm vm-00001 00000000-0000-4000-8000-000000000001"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=1000)
    count: int = parser.parse_args().vms
    with own_console() as folder:
        _run(count, folder)


def _run(count: int, folder: Path) -> None:
    import celery
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection

    from encryption.adapters.kmip_batches import MESSAGE_REQUESTS
    from encryption.adapters.kmip_tls import Channel
    from encryption.engine.key_server import KeyOrder
    from encryption.engine.secret import Secret
    from encryption.models import Key, VmSecurity
    from encryption.services import recrypt, recrypt_many
    from encryption.services.key_access import KeySession
    from inventory import jobs
    from inventory.authorize import SYSTEM
    from inventory.models import VirtualMachine
    from inventory.services import hosts, places
    from lab import kms
    from tests.encryption.adapters.conftest import serving
    from tests.encryption.many_vms import any_job, key_them
    from tests.encryption.services.real_kms import connected

    call_command("migrate", verbosity=0)
    no_broker = mock.patch.object(celery.current_app, "send_task")
    no_broker.start()
    file = folder / "host.xml"
    file.write_text(simulated_host(count))
    place = places.add_cluster(
        datacenter_id=places.add_datacenter(name="Bench", actor=SYSTEM).pk, name="Bench", actor=SYSTEM
    )
    admin = User.objects.create_user("bench", is_superuser=True)
    jobs.run(
        str(hosts.add_host(cluster_id=place.pk, name="bench", uri=f"test://{file}", actor=SYSTEM).pk),
        hosts.run_connect_host,
    )
    assert VirtualMachine.objects.count() == count
    with serving(kms.prepare(folder / "kms", 5696)) as server:
        provider = connected(admin, server)
        with KeySession(provider) as session:
            job = any_job(provider)
            for vm in VirtualMachine.objects.all():
                key_them(vm, session, job)
        old = dict(VmSecurity.objects.values_list("virtual_machine", "key__key_id"))
        ids = list(old.values())
        with server.client() as client:

            def one_by_one(number: int) -> None:
                key_id = client.create_key(name=f"own {time.monotonic_ns()}")
                client.activate(key_id)
                client.get_key(key_id)
                client.get_key(ids[number % count])

            def in_batches(number: int) -> None:
                if number % MESSAGE_REQUESTS:
                    return
                now = time.monotonic_ns()
                orders = [KeyOrder(f"own {now} {one}", {"bartizan": ORDINARY}) for one in range(MESSAGE_REQUESTS)]
                old_ids = [ids[(number + one) % count] for one in range(MESSAGE_REQUESTS)]
                assert all(isinstance(key, Secret) for key in client.get_keys(old_ids))
                made = [key_id for key_id in client.create_keys(orders) if isinstance(key_id, str)]
                assert client.activate_keys(made) == (None,) * MESSAGE_REQUESTS
                assert all(isinstance(key, Secret) for key in client.get_keys(made))

            def alone() -> tuple[float, float, float]:
                """Keys a second: one by one, in batches; and the server's CPU seconds for a key in a batch."""
                slow = _rate(one_by_one, 200)
                used = cpu_seconds(server.process.pid)
                quick = _rate(in_batches, 400)
                return slow, quick, (cpu_seconds(server.process.pid) - used) / 400

            before = alone()
            job = recrypt.recrypt_provider(cluster_id=provider.pk, actor=admin)
            asked: list[float] = []
            exchange = Channel.exchange

            def timed(channel: Channel, request: bytes, timeout: float) -> bytes:
                since = time.perf_counter()
                answer = exchange(channel, request, timeout)
                asked.append(time.perf_counter() - since)
                return answer

            n_queries = 0

            def counted(execute: Callable[..., Any], *arguments: Any) -> Any:
                nonlocal n_queries
                n_queries += 1
                return execute(*arguments)

            with mock.patch.object(Channel, "exchange", timed), connection.execute_wrapper(counted):
                began, cpu, of_server = time.perf_counter(), time.process_time(), cpu_seconds(server.process.pid)
                jobs.run(str(job.pk), recrypt_many.run_recrypt_vms)
                took, busy = time.perf_counter() - began, time.process_time() - cpu
                of_server = cpu_seconds(server.process.pid) - of_server
            after = alone()
        job.refresh_from_db()
        assert job.status == "succeeded", job.message
        new = dict(VmSecurity.objects.values_list("virtual_machine", "key__key_id"))
        assert all(new[vm] != old[vm] for vm in old) and len(set(new.values())) == count
        keys = Key.objects.count()
    slow, quick, cpu_each = ((one + other) / 2 for one, other in zip(before, after, strict=True))
    print(f"{'VMs in one job, and keys at the key server afterwards':<66} {count:8d} {keys:8d}")
    print(f"{'the job':<66} {took:8.1f} s {count / took:8.0f} a second")
    print(f"{'of it this process computing':<66} {busy:8.1f} s")
    print(f"{'of it the key server computing':<66} {of_server:8.1f} s")
    under_way = f"of it {len(asked)} messages to the key server under way"
    print(f"{under_way:<66} {sum(asked):8.1f} s {sum(asked) / took:8.0%}")
    print(f"{'database queries':<66} {n_queries:8d}   {n_queries / count:8.1f} a VM")
    print(f"{'key server alone, the same messages of many requests':<66} {count / quick:8.1f} s {quick:8.0f} a second")
    print(f"{'    of it the key server computing':<66} {cpu_each * count:8.1f} s")
    print(f"{'key server alone, one request in a message':<66} {count / slow:8.1f} s {slow:8.0f} a second")
    print(f"{'job : key server alone, the same messages':<66} {took / (count / quick):10.2f}")
    print(f"{'peak memory':<66} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MiB")


def _rate(work: Callable[[int], None], count: int) -> float:
    began = time.perf_counter()
    for number in range(count):
        work(number)
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
