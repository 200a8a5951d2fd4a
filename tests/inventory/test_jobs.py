"""The life of a job: claimed once, alive by its heartbeat, resumed, cancelled, ended with a code."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from kombu.exceptions import OperationalError

from inventory import jobs
from inventory.errors import Conflict, NotFound, Unavailable
from inventory.jobs import Progress
from inventory.models import Event, Host, Job, JobStatus

KIND = jobs.register(jobs.JobKind("tests.job", "Test job", queue="crypto"))
Sent = list[tuple[str, list[str], str]]


@pytest.fixture
def job(host: Host, alice: User, sent: Sent) -> Job:
    return jobs.start(KIND, target=host, actor=alice, params={"n": 1})


def nothing(job: Job, progress: Progress) -> None:
    pass


def reread(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


def test_queued_on_commit(
    host: Host, alice: User, sent: Sent, django_capture_on_commit_callbacks: pytest.FixtureRequest
) -> None:
    with django_capture_on_commit_callbacks() as callbacks:  # type: ignore[operator]
        job = jobs.start(KIND, target=host, actor=alice)
        assert sent == []
    for callback in callbacks:
        callback()
    assert sent == [("tests.job", [str(job.pk)], "crypto")]


def test_a_broker_that_is_down_leaves_the_job_waiting(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OperationalError("no broker")

    monkeypatch.setattr("celery.current_app.send_task", refuse)
    jobs._queue(job.pk, KIND)
    assert reread(job).status == JobStatus.PENDING


def test_one_live_job_per_target(job: Job, host: Host, alice: User) -> None:
    with pytest.raises(Conflict) as caught:
        jobs.start(KIND, target=host, actor=alice)
    assert caught.value.code == "target_busy"
    assert "Test job" in caught.value.message
    jobs.run(str(job.pk), nothing)
    assert jobs.start(KIND, target=host, actor=alice).status == JobStatus.PENDING


def test_succeeds_and_a_second_delivery_does_nothing(job: Job) -> None:
    runs: list[str] = []

    def work(job: Job, progress: Progress) -> None:
        runs.append(job.status)
        progress.step("copying", total=10)
        progress.advance(5)
        progress.checkpoint(offset=5)
        jobs.run(str(job.pk), work)  # delivered again while it runs

    jobs.run(str(job.pk), work)
    jobs.run(str(job.pk), work)  # and once more after its end
    ended = reread(job)
    assert runs == [JobStatus.RUNNING]
    assert (ended.status, ended.attempts, ended.step, ended.checkpoint) == ("succeeded", 1, "copying", {"offset": 5})
    assert ended.ended_at is not None
    assert ended.claim is None


def test_expected_failure_has_its_code_and_an_event(job: Job) -> None:
    def work(job: Job, progress: Progress) -> None:
        raise Unavailable("host_timeout", "kvm-a did not answer", hint="check the network")

    jobs.run(str(job.pk), work)
    ended = reread(job)
    assert (ended.status, ended.error_code) == (JobStatus.FAILED, "host_timeout")
    assert ended.message == "kvm-a did not answer; check the network"
    event = Event.objects.get(kind="job.failed")
    assert (event.severity, event.job_id, event.actor) == ("error", job.pk, "alice")


def test_a_bug_shows_a_reference_and_no_text(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    first, second = "-".join(("key", "5e1f")), "-".join(("passphrase", "77aa"))  # not as they stand in code lines

    def work(job: Job, progress: Progress) -> None:
        try:
            raise KeyError(first)
        except KeyError as exc:
            raise RuntimeError(second) from exc

    jobs.run(str(job.pk), work)
    ended = reread(job)
    assert (ended.status, ended.error_code) == (JobStatus.ERRORED, "internal_error")
    reference = ended.message.split("reference ")[1][:8]
    assert reference in caplog.text
    assert "RuntimeError" in caplog.text
    shown = caplog.text + ended.message + "".join(Event.objects.values_list("message", flat=True))
    assert first not in shown
    assert second not in shown


def test_cancelled_before_it_began(job: Job, alice: User) -> None:
    jobs.request_cancel(job.pk, actor=alice)
    ran: list[int] = []
    jobs.run(str(job.pk), lambda job, progress: ran.append(1))
    assert (reread(job).status, ran) == (JobStatus.CANCELLED, [])
    with pytest.raises(Conflict) as caught:
        jobs.request_cancel(job.pk, actor=alice)
    assert caught.value.code == "job_ended"


def test_cancelled_while_it_runs(job: Job, alice: User) -> None:
    reached: list[str] = []

    def work(job: Job, progress: Progress) -> None:
        progress.step("first")
        jobs.request_cancel(job.pk, actor=alice)
        reached.append("asked")
        progress.step("second")
        reached.append("never")

    jobs.run(str(job.pk), work)
    assert (reread(job).status, reached) == (JobStatus.CANCELLED, ["asked"])


def test_cancel_of_what_is_not_there(alice: User, db: None) -> None:
    with pytest.raises(NotFound):
        jobs.request_cancel(uuid4(), actor=alice)


def test_a_dead_workers_job_goes_on_from_its_checkpoint(job: Job, sent: Sent) -> None:
    dead = uuid4()
    Job.objects.filter(pk=job.pk).update(
        status=JobStatus.RUNNING, claim=dead, attempts=1, checkpoint={"offset": 64},
        heartbeat_at=timezone.now() - jobs.STALE_AFTER - timedelta(seconds=1),
    )  # fmt: skip
    sent.clear()
    assert jobs.resume_interrupted() == 1
    assert sent == [("tests.job", [str(job.pk)], "crypto")]
    assert Event.objects.filter(kind="job.resumed").count() == 1
    seen: list[object] = []
    jobs.run(str(job.pk), lambda job, progress: seen.append(job.checkpoint["offset"]))
    assert (seen, reread(job).status, reread(job).attempts) == ([64], JobStatus.SUCCEEDED, 2)


def test_a_living_job_and_a_fresh_one_are_left_alone(job: Job, sent: Sent) -> None:
    assert jobs.resume_interrupted() == 0
    Job.objects.filter(pk=job.pk).update(status=JobStatus.RUNNING, claim=uuid4(), heartbeat_at=timezone.now())
    assert jobs.resume_interrupted() == 0


def test_a_lost_message_is_sent_again(job: Job, sent: Sent) -> None:
    sent.clear()
    assert jobs.resume_interrupted(timezone.now() + jobs.UNCLAIMED_AFTER + timedelta(seconds=1)) == 1
    assert sent == [("tests.job", [str(job.pk)], "crypto")]
    assert not Event.objects.filter(kind="job.resumed").exists()


def test_a_job_that_kills_its_workers_ends(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(
        status=JobStatus.RUNNING, claim=uuid4(), attempts=jobs.MAX_ATTEMPTS,
        heartbeat_at=timezone.now() - timedelta(hours=1),
    )  # fmt: skip
    assert jobs.resume_interrupted() == 0
    assert (reread(job).status, reread(job).error_code) == (JobStatus.ERRORED, "worker_lost")


def test_a_slow_worker_that_lost_its_claim_stops_and_writes_nothing(job: Job) -> None:
    other = uuid4()

    def work(job: Job, progress: Progress) -> None:
        Job.objects.filter(pk=job.pk).update(claim=other, step="of the other")
        progress.step("of the slow one")
        raise AssertionError("went on without its claim")

    jobs.run(str(job.pk), work)
    now = reread(job)
    assert (now.status, now.claim, now.step) == (JobStatus.RUNNING, other, "of the other")


def test_a_worker_that_lost_its_claim_cannot_end_the_job(job: Job) -> None:
    other = uuid4()

    def work(job: Job, progress: Progress) -> None:
        Job.objects.filter(pk=job.pk).update(claim=other)

    jobs.run(str(job.pk), work)
    assert (reread(job).status, reread(job).claim) == (JobStatus.RUNNING, other)
