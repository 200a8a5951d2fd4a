"""The forwarder with real threads, a real database and real sockets. It waits for what must come.

What real collectors make of it: test_real_collectors.py."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from console.appliance.adapters import syslog_client
from console.appliance.engine import sent_window
from console.appliance.services import event_stream, forwarding, syslog_targets
from console.models import SyslogTarget
from encryption.engine import keywrap
from encryption.engine.secret import Secret
from encryption.services.key_access import console_key
from inventory.models import Alarm, Event, EventChain
from inventory.services import event_chain
from lab.pki import Authority, Issued
from tests.console.appliance.collector import Collector, server_context, until
from tests.console.appliance.conftest import CollectorMaker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "LOOK_EVERY_SECONDS": 0.02, "NOTE_EVERY_SECONDS": 0.02, "CHECK_EVERY_SECONDS": 0.05, "SHORT_SECONDS": 0.02,
        "FIRST_WAIT_SECONDS": 0.05, "LONGEST_WAIT_SECONDS": 0.1, "CALM_SECONDS": 0.1,
        # A collector of this process may be slow on a machine that has other things to do, and be in order.
        "FINISH_SECONDS": 20.0, "CUT_AFTER_SECONDS": 20.0,
    }.items():  # fmt: skip
        monkeypatch.setattr(forwarding, name, seconds)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a collector that hangs."""
    for name, seconds in {"FINISH_SECONDS": 0.5, "CUT_AFTER_SECONDS": 0.6}.items():
        monkeypatch.setattr(forwarding, name, seconds)
    monkeypatch.setattr(syslog_client, "SEND_SECONDS", 0.5)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def forward(logs: Path, transactional_db: None) -> Iterator[Callable[[], Callable[[], None]]]:
    """Starts a forwarder; what it gives ends it, and leaves no thread."""
    stops: list[Callable[[], None]] = []

    def start() -> Callable[[], None]:
        asked = threading.Event()
        thread = threading.Thread(target=forwarding.forward_all, args=(asked,), kwargs={"log_folder": logs})
        thread.start()

        def stop() -> None:
            asked.set()
            thread.join(timeout=60)
            assert not thread.is_alive()

        stops.append(stop)
        return stop

    yield start
    for stop in stops:
        stop()
    assert not [one for one in threading.enumerate() if one.name.startswith("syslog-")]


Forward = Callable[[], Callable[[], None]]


def record(number: int = 1, size: int = 10) -> None:
    Event.objects.bulk_create(
        Event(kind="x.happened", target_kind="console", target_name="x", actor="x", message="m" * size)
        for _ in range(number)
    )


def add(collector: Collector, alice: User, protocol: str = "tcp", **values: object) -> SyslogTarget:
    given = {"host": "127.0.0.1", "port": collector.port, "protocol": protocol} | values
    return syslog_targets.add_target(actor=alice, **given)  # type: ignore[arg-type]


def sequences(collector: Collector) -> list[int]:
    return [int(re.findall(rb'sequence="(\d+)"', message)[0]) for message in collector.messages]


def row(target: SyslogTarget) -> SyslogTarget:
    return SyslogTarget.objects.get(pk=target.pk)


def wait_for_all(target: SyslogTarget) -> int:
    """Until everything there is was written; how many that is."""
    until(lambda: not Event.objects.filter(sequence=None).exists())
    head = EventChain.objects.get().sequence
    until(lambda: row(target).sent >= head)
    return head


def test_every_event_in_order_as_one_stream_for_all(
    alice: User, collectors: CollectorMaker, forward: Forward, authority: Authority, identity: Issued
) -> None:
    one, two = collectors(), collectors(server_context(identity))
    plain = add(one, alice)
    secure = add(two, alice, "tls", trusted_pem=authority.certificate_pem.decode())
    record(1200)
    stop = forward()
    until(lambda: row(plain).state == row(secure).state == "up")
    record(5, size=900)
    wait_for_all(plain), wait_for_all(secure)
    stop()
    head = EventChain.objects.get().sequence
    assert head > 1205
    for collector in (one, two):
        until(lambda collector=collector: len(sequences(collector)) >= row(plain).sent)  # type: ignore[misc]
    assert sequences(one)[:1205] == list(range(1, 1206))
    shortest = min(len(one.messages), len(two.messages))
    assert one.messages[:shortest] == two.messages[:shortest]
    # Confirmed by the end of the stream, so nothing is sent again.
    assert row(plain).cursor == row(plain).sent and row(plain).last_sent_at is not None
    assert Event.objects.filter(kind="syslog.target_up").count() == 2


def test_a_collector_that_is_away_misses_nothing_and_is_told_of_once(
    alice: User, collectors: CollectorMaker, forward: Forward
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    steady = collectors()
    other = add(steady, alice)
    away = syslog_targets.add_target(host="127.0.0.1", port=port, protocol="tcp", actor=alice)
    forward()
    until(lambda: row(away).state == "down")
    assert row(away).state_code == "syslog_refused"
    alarm = Alarm.objects.get(kind="syslog.target_down", cleared_at=None)
    assert (alarm.target_id, "refuses the connection" in alarm.message) == (away.pk, True)
    record(700)
    head = wait_for_all(other)
    back = collectors(port=port)
    until(lambda: row(away).state == "up")
    wait_for_all(away)
    until(lambda: sequences(back)[:head] == list(range(1, head + 1)))
    until(lambda: not Alarm.objects.filter(cleared_at=None).exists())
    told = Event.objects.filter(target_id=away.pk).order_by("id").values_list("kind", "severity")
    assert list(told) == [
        ("syslog.target_added", "info"), ("syslog.target_down", "error"), ("syslog.target_up", "info"),
    ]  # fmt: skip
    assert "it was down since" in Event.objects.get(kind="syslog.target_up", target_id=away.pk).message


def test_one_that_hangs_up_gets_what_it_may_have_lost_again_and_is_not_down(
    alice: User, collectors: CollectorMaker, forward: Forward
) -> None:
    collector = collectors()
    target = add(collector, alice)
    forward()
    until(lambda: row(target).state == "up")
    record(20)
    before = wait_for_all(target)
    until(lambda: len(collector.messages) >= before)
    collector.hang_up()
    record(3)
    head = wait_for_all(target)
    until(lambda: sequences(collector)[-1] >= head)
    found = sequences(collector)
    assert len(collector.streams) == 2
    # Of the first connection nothing was old enough to be sure of.
    assert found[before : before + 3] == [1, 2, 3]
    assert sorted(set(found)) == list(range(1, max(found) + 1))
    assert not Event.objects.filter(kind="syslog.target_down").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("_impatient")
def test_one_that_hangs_holds_up_nobody_and_goes_on_when_it_reads_again(
    alice: User, collectors: CollectorMaker, forward: Forward
) -> None:
    steady, hanging = collectors(), collectors(hangs=True)
    quick, stuck = add(steady, alice), add(hanging, alice)
    record(4000, size=1000)  # more than both ends' buffers hold
    forward()
    wait_for_all(quick)
    until(lambda: row(stuck).state == "down")
    assert row(stuck).state_code == "syslog_stalled"
    assert row(quick).state == "up"
    assert row(stuck).cursor < 1000
    hanging.close()
    well = collectors(port=hanging.port)
    until(lambda: row(stuck).state == "up")
    head = wait_for_all(stuck)
    until(lambda: set(sequences(well)) >= set(range(1, head + 1)))
    found = sequences(well)
    assert list(dict.fromkeys(found))[:4000] == list(range(1, 4001))


def test_a_restarted_forwarder_goes_on_where_the_stream_ended(
    alice: User, collectors: CollectorMaker, forward: Forward
) -> None:
    collector = collectors()
    target = add(collector, alice)
    stop = forward()
    until(lambda: row(target).state == "up")
    wait_for_all(target)
    stop()
    first = row(target).cursor
    record(7)
    forward()
    head = wait_for_all(target)
    until(lambda: len(collector.messages) >= head)
    assert head >= first + 7
    assert sequences(collector) == list(range(1, len(collector.messages) + 1))


def test_a_killed_forwarder_repeats_and_loses_nothing(
    alice: User, collectors: CollectorMaker, forward: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the database has at any moment is enough: here it is put back as a kill would have left it."""
    monkeypatch.setattr(sent_window, "AGE_SECONDS", 0.0)
    monkeypatch.setattr(sent_window, "MARGIN_OCTETS", 20_000)
    collector = collectors()
    target = add(collector, alice)
    record(2000)
    stop = forward()
    until(lambda: row(target).state == "up")
    wait_for_all(target)
    until(lambda: row(target).cursor > 500)
    kept = row(target).cursor
    stop()
    assert kept < row(target).sent
    SyslogTarget.objects.update(cursor=kept)
    forward()
    until(lambda: len(collector.streams) == 2 and collector.streams[1])
    wait_for_all(target)
    until(lambda: set(sequences(collector)) >= set(range(1, 2001)))
    second = sequences(collector)[len(set(sequences(collector))) - 1 :]
    assert kept + 1 in sequences(collector) and second


def test_targets_are_added_edited_and_removed_while_it_runs(
    alice: User, collectors: CollectorMaker, forward: Forward
) -> None:
    forward()
    one, two = collectors(), collectors()
    target = add(one, alice)
    until(lambda: row(target).state == "up")
    record(3)
    wait_for_all(target)
    syslog_targets.edit_target(
        target_id=target.pk, host="127.0.0.1", port=two.port, protocol="tcp", includes_logs=False, trusted_pem="",
        actor=alice,
    )  # fmt: skip
    until(lambda: row(target).state == "up")
    record(3)
    head = wait_for_all(target)
    until(lambda: two.messages and sequences(two)[-1] >= head)
    # It goes on: what the one had confirmed, the other does not get.
    assert sequences(one) + sequences(two) == list(range(1, max(sequences(two)) + 1))
    syslog_targets.remove_target(target_id=target.pk, actor=alice)
    until(lambda: not [one for one in threading.enumerate() if one.name.startswith("syslog-")])


def test_with_a_client_certificate_from_the_database(
    alice: User, collectors: CollectorMaker, forward: Forward, authority: Authority, identity: Issued
) -> None:
    collector = collectors(server_context(identity, clients=authority))
    target = add(collector, alice, "tls", trusted_pem=authority.certificate_pem.decode())
    forward()
    until(lambda: row(target).state == "down")
    assert row(target).state_code == "syslog_client_refused"
    own = authority.issue("console", client=True)
    SyslogTarget.objects.update(
        client_certificate_pem=own.certificate_pem.decode(),
        client_key_sealed=keywrap.wrap(console_key(), Secret(own.key_pem)),
    )
    until(lambda: row(target).state == "up")
    assert "console" in collector.clients[0]
    SyslogTarget.objects.update(client_key_sealed=keywrap.wrap(Secret(b"k" * 32), Secret(own.key_pem)))
    until(lambda: row(target).state == "down")
    assert row(target).state_code == "client_key_sealed_otherwise"


def test_udp_is_never_up_and_down_where_nobody_is(alice: User, forward: Forward) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(20)
        port = receiver.getsockname()[1]
        target = syslog_targets.add_target(host="127.0.0.1", port=port, protocol="udp", actor=alice)
        forward()
        assert b'sequence="1"' in receiver.recv(9000)
        wait_for_all(target)
        assert row(target).state == "unknown"
    record()
    until(lambda: row(target).state == "down")
    assert row(target).state_code == "syslog_refused"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", port))
        until(lambda: row(target).state == "unknown")
    assert "UDP does not tell" in Event.objects.filter(kind="syslog.target_up").latest("id").message


def test_the_logs_of_the_processes_go_along_where_they_are_wanted(
    alice: User, collectors: CollectorMaker, forward: Forward, logs: Path
) -> None:
    (logs / "web.log").write_text("an old line\n")
    with_logs, without = collectors(), collectors()
    chatty, quiet = add(with_logs, alice, includes_logs=True), add(without, alice)
    forward()
    until(lambda: row(chatty).state == row(quiet).state == "up")
    with (logs / "web.log").open("a") as file:
        file.write("2026-11-23 17:20:00,123 ERROR web a line\n")
    until(lambda: any(b"ERROR web a line" in message for message in with_logs.messages))
    (line,) = [message for message in with_logs.messages if b"a line" in message]
    assert line.startswith(b"<27>1 2026-11-23T17:20:00.123000Z ") and b" bartizan-web - log [" in line
    record()
    wait_for_all(quiet)
    assert not any(b"bartizan-web" in message for message in without.messages)
    assert row(quiet).log_places is None


def test_pages_of_events_are_written_down_once(db: None, django_assert_num_queries: object) -> None:
    record(event_stream.PAGE + 1)
    event_chain.seal()
    stream = event_stream.EventStream("h")
    with django_assert_num_queries(2):  # type: ignore[operator]
        pages = [stream.after(0), stream.after(0), stream.after(event_stream.PAGE)]
    assert pages[0] is pages[1]
    assert [(len(page.messages), page.last) for page in pages[1:]] == [(500, 500), (1, 501)]
    record(1)
    event_chain.seal()
    assert stream.after(event_stream.PAGE).last == 502
    assert stream.after(502) == event_stream.EventPage((), 502)
