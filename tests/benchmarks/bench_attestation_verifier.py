"""Polls per second from end to end: hosts' agents asked over HTTP and mutual TLS, verdicts in the database.

python -m tests.benchmarks.bench_attestation_verifier [--agents 1000] [--workers 2] [--rounds 3]

The agents are simulated, all in one process (tests/benchmarks/simulated_agents.py), and share the machine. Workers are
processes that do what a Celery task does, `verifier.attest_hosts` for 25 hosts; messages and their broker are left out.
Each poll: claim, a TLS connection of its own, a quote with boot log and what is new of the IMA list, the endorsement
key's chain, appraisal against reference values, evidence, verdict and standing in one transaction. SQLite, as a new
installation has it; with DATABASE_URL in the environment, that database, which has to be empty.
"""

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

from tests.benchmarks.own_console import cpu_seconds, own_console, set_up

BATCH = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--agents", type=int, default=1_000)
    parser.add_argument("--boots", type=int, default=10, help="different boot logs among them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with own_console() as folder:
        _without_broker()
        _run(options.agents, options.boots, options.workers, options.rounds, folder)


def _set_up_worker() -> None:
    set_up()
    _without_broker()


def _without_broker() -> None:
    import celery

    mock.patch.object(celery.current_app, "send_task").start()


def _run(agents: int, boots: int, workers: int, rounds: int, folder: Path) -> None:
    from django.core.management import call_command
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from attestation.models import HostAttestation, Verdict, VerdictReason, VerdictStatus
    from attestation.services import references, verifier, verifier_identity
    from inventory.authorize import SYSTEM

    call_command("migrate", verbosity=0)
    client_ca = folder / "client-ca.pem"
    client_ca.write_text(verifier_identity.ca_pem())
    with _simulated(agents, boots, client_ca) as (process, found):
        hosts = _enrol(found)
        batches = [hosts[first : first + BATCH] for first in range(0, len(hosts), BATCH)]
        verifier.attest_hosts([UUID(hosts[0])], reason=VerdictReason.SCHEDULE)
        first = Verdict.objects.get()
        assert first.status == VerdictStatus.PASSED, first.message
        references.trust_boot(verdict_id=first.pk, reason="benchmark", actor=SYSTEM)
        with multiprocessing.get_context("spawn").Pool(workers, initializer=_set_up_worker) as pool:
            pool.map(_attest, batches, chunksize=1)  # whole IMA lists, logs seen for the first time
            with CaptureQueriesContext(connection) as queries:
                verifier.attest_hosts([UUID(each) for each in batches[0]], reason=VerdictReason.SCHEDULE)
            print(f"queries for {len(batches[0])} polls: {len(queries)}")
            for _ in range(rounds):
                before, began = cpu_seconds(process.pid), time.perf_counter()
                of_workers = sum(pool.imap_unordered(_attest, batches))
                took, of_agents = time.perf_counter() - began, cpu_seconds(process.pid) - before
                print(
                    f"{agents} polls by {workers} workers: {agents / took:7.1f} per second; CPU of a poll:"
                    f" {of_workers / agents * 1000:.2f} ms verifier, {of_agents / agents * 1000:.2f} ms simulated agent"
                )
        standing = set(HostAttestation.objects.values_list("status", flat=True))
        assert standing == {VerdictStatus.PASSED}, standing
        assert Verdict.objects.count() >= agents * (rounds + 1)


def _attest(host_ids: list[str]) -> float:
    """One message's work; the CPU seconds it took."""
    from attestation.models import VerdictReason
    from attestation.services import verifier

    before = resource.getrusage(resource.RUSAGE_SELF)
    asked = verifier.attest_hosts([UUID(each) for each in host_ids], reason=VerdictReason.SCHEDULE)
    assert asked == len(host_ids)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _enrol(found: dict[str, Any]) -> list[str]:
    """Hosts, their TPMs and the maker's CA, as enrolment leaves them."""
    from django.utils import timezone

    from attestation.models import HostAttestation, TpmIdentity
    from attestation.services import anchors
    from inventory.authorize import SYSTEM
    from inventory.models import Host
    from inventory.services import places

    anchors.add_anchor(name="Simulated TPM CA", certificate=found["maker"], actor=SYSTEM)
    datacenter = places.add_datacenter(name="Bench", actor=SYSTEM)
    cluster = places.add_cluster(datacenter_id=datacenter.pk, name="Bench", actor=SYSTEM)
    hosts = Host.objects.bulk_create(
        Host(cluster=cluster, name=each["agent_id"], uri=f"qemu+tls://{each['agent_id']}/system")
        for each in found["agents"]
    )
    for host, each in zip(hosts, found["agents"], strict=True):
        for name in ("ek_public", "ak_public"):
            each[name] = bytes.fromhex(each[name])
        TpmIdentity.objects.create(
            host=host, contact_host="127.0.0.1", enrolled_by="benchmark", activated_at=timezone.now(), **each
        )
        HostAttestation.objects.create(host=host)
    return [str(host.pk) for host in hosts]


@contextmanager
def _simulated(agents: int, boots: int, client_ca: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.simulated_agents", "--agents", str(agents), "--boots", str(boots),
         "--client-ca", str(client_ca)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


if __name__ == "__main__":
    main()
