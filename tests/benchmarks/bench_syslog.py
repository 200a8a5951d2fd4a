"""Events per second to three TLS targets at once: from the database to the files of rsyslog and syslog-ng.

    BARTIZAN_TEST_RECEIVERS=FOLDER python -m tests.benchmarks.bench_syslog [--events 20000]

FOLDER is where `./bartizan test` has unpacked the receivers (test-receivers in the state folder). One forwarder with
its three threads, SQLite; the receivers run on the same machine and take their share of it.
"""

import argparse
import resource
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.own_console import own_console


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    count: int = parser.parse_args().events
    with own_console() as folder:
        _run(count, folder)


def _run(count: int, folder: Path) -> None:
    from django.core.management import call_command

    from console.appliance.services.event_stream import EventStream
    from console.models import SyslogTarget
    from inventory.models import Event, EventChain
    from inventory.services import event_chain
    from lab.pki import Authority
    from tests.console.appliance.receivers import rsyslog, syslog_ng

    call_command("migrate", verbosity=0)
    event_chain.seal()
    before = EventChain.objects.get().sequence
    Event.objects.bulk_create(
        [
            Event(
                kind="vm.powered_on", target_kind="vm", target_name=f"app-{number}", actor="alice",
                message=f"Virtual machine app-{number} powered on", data={"host": "kvm-a", "number": number},
            )
            for number in range(count)
        ],
        batch_size=500,
    )  # fmt: skip
    seconds, _ = timed(event_chain.seal)
    show("seal", count, seconds)

    def read_all() -> None:
        stream, place = EventStream("console.example"), before
        while (page := stream.after(place)).last > place:
            place = page.last

    seconds, _ = timed(read_all)
    show("read and write down, one thread", count, seconds)
    authority = Authority.create(folder / "ca", "Bench")
    identity = authority.issue("collector", ips=["127.0.0.1"], server=True)
    kinds = (rsyslog, syslog_ng, syslog_ng)
    made = [kind(folder / f"receiver-{number}", "tls", identity, authority) for number, kind in enumerate(kinds)]
    for number in (1, 3):
        SyslogTarget.objects.all().delete()
        used = made[:number]
        try:
            for slot, receiver in enumerate(used, 1):
                receiver.start()
                receiver.earlier = []  # of the run before
                SyslogTarget.objects.create(
                    slot=slot, host="127.0.0.1", port=receiver.port, protocol="tls", cursor=before, sent=before,
                    trusted_pem=authority.certificate_pem.decode(),
                )  # fmt: skip
            seconds, cpu = timed(partial(_forward, used, count, folder))
        finally:
            for receiver in used:
                receiver.stop()
        show(f"to {number} TLS target{'s' * (number > 1)}, until all is in their files", count, seconds)
        print(f"{'of it computing in this process':<58} {cpu:8.2f} s")
        octets = used[0].output.stat().st_size
        print(f"{'octets a message':<58} {octets / count:8.0f}")
    print(f"{'peak memory of this process':<58} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MiB")


def _forward(used: list[Any], count: int, folder: Path) -> None:
    from console.appliance.services import forwarding

    stop = threading.Event()
    thread = threading.Thread(target=forwarding.forward_all, args=(stop,), kwargs={"log_folder": folder / "log"})
    thread.start()
    # Sizes first: reading the files again and again would be most of the work.
    while any(_size(one) < count * 100 or len(one.written) < count for one in used):
        time.sleep(0.05)
    stop.set()
    thread.join()


def _size(receiver: Any) -> int:
    return int(receiver.output.stat().st_size) if receiver.output.exists() else 0


def timed(work: Callable[[], object]) -> tuple[float, float]:
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def show(what: str, count: int, seconds: float) -> None:
    print(f"{what:<58} {seconds:8.2f} s {count / seconds:10,.0f} events/s")


if __name__ == "__main__":
    main()
