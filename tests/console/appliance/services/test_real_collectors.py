"""rsyslog and syslog-ng as receivers: over UDP, TCP and TLS, killed for a while, and beside one that hangs."""

import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from console.appliance import tasks
from console.appliance.adapters import syslog_client
from console.appliance.engine.syslog_message import event_entry, written
from console.appliance.services import forwarding, syslog_targets
from console.models import SyslogTarget
from inventory.models import Event, EventChain, Job
from inventory.services.event_chain import recorded
from lab.pki import Authority, Issued
from tests.console.appliance import collector, receivers
from tests.console.appliance.collector import until
from tests.console.appliance.conftest import CollectorMaker
from tests.console.appliance.receivers import Receiver, rsyslog, syslog_ng

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow, pytest.mark.usefixtures("sent")]
Make = Callable[..., Receiver]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again, and how much, is as in the product; only waiting is shorter."""
    monkeypatch.setattr(collector, "PATIENCE_SECONDS", 90)
    for name in ("FIRST_WAIT_SECONDS", "LONGEST_WAIT_SECONDS", "CALM_SECONDS"):
        monkeypatch.setattr(forwarding, name, 0.2)
    monkeypatch.setattr(syslog_client, "SEND_SECONDS", 2.0)


@pytest.fixture
def forwarding_now(tmp_path: Path, transactional_db: None) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=forwarding.forward_all, args=(stop,), kwargs={"log_folder": tmp_path})
    thread.start()
    yield
    stop.set()
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.fixture
def make(tmp_path: Path, identity: Issued, authority: Authority) -> Iterator[Make]:
    """make(rsyslog, "tls"): a running receiver."""
    made: list[Receiver] = []

    def start(kind: Make, protocol: str, port: int = 0) -> Receiver:
        made.append(kind(tmp_path / f"receiver-{len(made)}", protocol, identity, authority, port))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.stop()


@pytest.fixture
def add(alice: User, authority: Authority) -> Callable[[str, int], SyslogTarget]:
    def target(protocol: str, port: int) -> SyslogTarget:
        trusted = authority.certificate_pem.decode() if protocol == "tls" else ""
        return syslog_targets.add_target(
            host="127.0.0.1", port=port, protocol=protocol, trusted_pem=trusted, actor=alice
        )

    return target


def record(number: int, text: str = "something happened to a virtual machine") -> None:
    Event.objects.bulk_create(
        [
            Event(
                kind="vm.changed", target_kind="vm", target_name=f"app-{one}", actor="alice", message=f"{text}: {one}",
                data={"number": one, "before": "x" * 100},
            )
            for one in range(number)
        ],
        batch_size=500,
    )  # fmt: skip


def is_sent(*targets: SyslogTarget) -> bool:
    """All there is was sealed, and written to these."""
    head = EventChain.objects.values_list("sequence", flat=True).first()
    rows = SyslogTarget.objects.filter(pk__in=[one.pk for one in targets])
    return not Event.objects.filter(sequence=None).exists() and {row.sent for row in rows} == {head}


def state(target: SyslogTarget) -> str:
    return SyslogTarget.objects.get(pk=target.pk).state


def stream(receiver: Receiver) -> list[bytes]:
    """As a collector that drops what it has already keeps it."""
    return list(dict.fromkeys(receiver.written))


def expected(host: str) -> list[bytes]:
    """Every event as its row has it now."""
    return [
        message
        for event in Event.objects.order_by("sequence")
        for message in written(event_entry(recorded(event)), host=host)
    ]


def host_of(message: bytes) -> str:
    return message.split(b" ")[2].decode()


@pytest.mark.parametrize("kind", [rsyslog, syslog_ng], ids=["rsyslog", "syslog-ng"])
def test_each_over_udp_tcp_and_tls(
    kind: Make, make: Make, add: Callable[[str, int], SyslogTarget], alice: User, request: pytest.FixtureRequest
) -> None:
    found = {protocol: make(kind, protocol) for protocol in ("udp", "tcp", "tls")}
    targets = [add(protocol, receiver.port) for protocol, receiver in found.items()]
    record(20)
    record(1, 'käse "quoted" [in brackets] \\ back, ' + "lang " * 190)
    request.getfixturevalue("forwarding_now")
    until(lambda: state(targets[1]) == state(targets[2]) == "up")
    until(lambda: is_sent(*targets))
    head = EventChain.objects.get().sequence
    for receiver in found.values():
        until(lambda receiver=receiver: any(f'sequence="{head}"'.encode() in one for one in receiver.written))  # type: ignore[misc]
    wanted = expected(host_of(found["tls"].written[0]))
    assert [stream(receiver) for receiver in found.values()] == [wanted[: len(stream(found["tls"]))]] * 3
    assert len(stream(found["tls"])) >= len(wanted) - 2  # what was told of the targets themselves may be on its way
    for target in targets[1:]:
        job = syslog_targets.send_test(target_id=target.pk, actor=alice)
        tasks.send_syslog_test(str(job.pk))
        assert Job.objects.get(pk=job.pk).status == "succeeded"
        assert SyslogTarget.objects.get(pk=target.pk).test_result.endswith("read by the collector")


def test_one_is_killed_and_one_hangs_and_all_three_have_the_same_in_the_end(
    make: Make, add: Callable[[str, int], SyslogTarget], collectors: CollectorMaker, request: pytest.FixtureRequest
) -> None:
    steady, killed, hanging = make(syslog_ng, "tls"), make(rsyslog, "tls"), collectors(hangs=True)
    quick, lost, stuck = add("tls", steady.port), add("tls", killed.port), add("tcp", hanging.port)
    record(10_000)
    request.getfixturevalue("forwarding_now")
    until(lambda: len(killed.written) > 500)
    killed.kill()
    record(5_000)
    until(lambda: is_sent(quick))
    until(lambda: state(lost) == state(stuck) == "down")
    assert state(quick) == "up"
    killed.start()
    hanging.close()
    freed = make(rsyslog, "tcp", hanging.port)
    record(5_000)
    until(lambda: {state(quick), state(lost), state(stuck)} == {"up"})
    until(partial(is_sent, quick, lost, stuck))
    head = EventChain.objects.get().sequence
    assert head > 20_000
    mark = f'sequence="{head}"'.encode()
    for receiver in (steady, killed, freed):
        until(lambda receiver=receiver: receiver.written and mark in receiver.written[-1])  # type: ignore[misc]
    streams = [stream(receiver) for receiver in (steady, killed, freed)]
    assert streams[0] == streams[1] == streams[2]
    assert [int(re.findall(rb'sequence="(\d+)"', one)[0]) for one in streams[0]] == list(range(1, head + 1))
    assert streams[0] == expected(host_of(streams[0][0]))[: len(streams[0])]


def test_the_collectors_are_looked_for_where_the_launcher_puts_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BARTIZAN_TEST_RECEIVERS", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="are not unpacked"):
        receivers.folder()
