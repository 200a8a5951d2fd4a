"""The seal of the history: events are numbered without gaps and chained, whoever seals and however often."""

import threading

import pytest
from django.contrib.auth.models import User
from django.db import connections

from inventory import events, jobs
from inventory.engine.event_chain import Damage, Finding, verify
from inventory.errors import NotFound
from inventory.models import Event, EventChain, Host, Job, Outcome, Severity
from inventory.services import event_chain
from inventory.services.housekeeping import prune_jobs


def write(count: int) -> None:
    for number in range(count):
        events.record(
            "vm.powered_on", f"vm-{number} was powered on", target=None, actor="alice", number=number, ok=True
        )


def findings() -> tuple[Finding, ...]:
    rows = Event.objects.filter(sequence__isnull=False).order_by("sequence")
    return verify(map(event_chain.recorded, rows), expected=EventChain.objects.get().sequence)


def test_events_are_numbered_without_gaps_in_batches(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_chain, "BATCH", 3)
    write(7)
    assert event_chain.seal() == 7
    assert list(Event.objects.order_by("id").values_list("sequence", flat=True)) == [1, 2, 3, 4, 5, 6, 7]
    assert event_chain.seal() == 0
    write(2)
    assert event_chain.seal() == 2
    assert EventChain.objects.get().sequence == 9
    assert EventChain.objects.get().digest == Event.objects.get(sequence=9).digest
    assert findings() == ()


def test_an_empty_history_is_sealed_too(db: None) -> None:
    assert event_chain.seal() == 0
    assert findings() == ()


@pytest.mark.parametrize("column", ["message", "actor", "data", "time", "outcome", "source_address", "target_name"])
def test_a_row_altered_in_the_database_is_found(db: None, column: str) -> None:
    write(5)
    event_chain.seal()
    other = Event(message="another", actor="mallory", data={"number": 2, "ok": 1}, outcome=Outcome.DENIED,
                  source_address="192.0.2.9", target_name="other", time="2020-01-01T00:00:00Z")  # fmt: skip
    Event.objects.filter(sequence=3).update(**{column: getattr(other, column)})
    assert findings() == (Finding(Damage.ALTERED, 3, 3),)


def test_a_deleted_row_is_found(db: None) -> None:
    write(5)
    event_chain.seal()
    Event.objects.filter(sequence__in=[2, 5]).delete()
    assert findings() == (Finding(Damage.MISSING, 2, 2), Finding(Damage.TRUNCATED, 5, 5))


def test_sealed_events_outlive_their_job(host: Host, alice: User, sent: object) -> None:
    """A job's row goes after 90 days; its id in the event is sealed and stays."""
    kind = jobs.register(jobs.JobKind("tests.sealed", "Sealed"))
    job = jobs.start(kind, target=host, actor=alice)
    events.record("host.connected", "kvm-a is connected", target=host, actor=alice, job=job)
    event_chain.seal()
    ended = job.created_at.replace(year=job.created_at.year - 1)
    Job.objects.update(status="succeeded", ended_at=ended)
    assert prune_jobs() == 1
    assert Event.objects.get().job_id == job.pk
    assert findings() == ()


def test_an_event_knows_address_outcome_reason_and_plan(host: Host, alice: User, sent: object) -> None:
    kind = jobs.register(jobs.JobKind("tests.origin", "Origin"))
    with events.acting_from("192.0.2.7"):
        job = jobs.start(kind, target=host, actor=alice, params={"plan": {"digest": "ab" * 32}})

    def work(job: Job, progress: jobs.Progress) -> None:
        events.record("host.edited", "from the worker", target=host, actor=job.actor, job=job)
        events.record("host.found", "by the console", target=host, actor="Bartizan", job=job)
        raise NotFound("gone", "it is gone")

    jobs.run(str(job.pk), work)
    asked, own, ended = Event.objects.order_by("id")
    assert (asked.source_address, asked.plan_digest, asked.outcome) == ("192.0.2.7", "ab" * 32, Outcome.SUCCESS)
    assert own.source_address == ""
    assert (ended.kind, ended.outcome, ended.reason) == ("job.failed", Outcome.FAILURE, "gone")
    assert (ended.source_address, ended.severity) == ("192.0.2.7", Severity.ERROR)


@pytest.mark.django_db(transaction=True)
def test_several_processes_seal_at_once() -> None:
    """Writers and sealers side by side: each event has one number, the numbers have no gap, and the chain fits."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                write(4)
                event_chain.seal()
        except BaseException as exc:
            problems.append(exc)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    event_chain.seal()
    assert list(Event.objects.order_by("sequence").values_list("sequence", flat=True)) == list(range(1, 81))
    assert findings() == ()


@pytest.mark.parametrize(
    ("severity", "code", "outcome"),
    [
        (Severity.INFO, "", Outcome.SUCCESS),
        (Severity.WARNING, "", Outcome.SUCCESS),
        (Severity.WARNING, "kms_unreachable", Outcome.FAILURE),
        (Severity.ERROR, "", Outcome.FAILURE),
    ],
)
def test_an_event_with_an_errors_code_is_a_failure(db: None, severity: Severity, code: str, outcome: Outcome) -> None:
    row = events.record("kms.server_lost", "lost", target=None, actor="alice", severity=severity, code=code)
    assert (row.outcome, row.reason) == (outcome, code)
