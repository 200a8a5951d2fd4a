"""Cryptographic modules: the page, its API, the self-tests on request, and a process that fails them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.engine import xts
from encryption.models import CryptoProcess
from encryption.services import crypto_modules
from inventory import jobs
from inventory.models import Event, Job, JobStatus
from inventory.services import processes

API = "/api/v1/crypto-modules"
PAGE, TEST = reverse("appliance:crypto-modules"), reverse("appliance:crypto-modules-test")
Sent = list[tuple[str, list[str], str]]


@pytest.fixture(autouse=True)
def this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("encryption.services.crypto_modules.connections.close_all", lambda: None)
    before = (crypto_modules._this.name, crypto_modules._this.failed)
    yield
    crypto_modules._this.name, crypto_modules._this.failed = before


@pytest.fixture
def reported(db: None) -> None:
    for name in ("worker-control", "worker-crypto", "beat", "web"):
        processes.started(name)


def run(job: Job) -> Job:
    jobs.run(str(job.pk), crypto_modules.test_worker)
    return Job.objects.get(pk=job.pk)


def test_the_page_names_every_boundary_and_none_of_the_big_words(reported: None, looker: Client) -> None:
    page = looker.get(PAGE).content.decode()
    for row in CryptoProcess.objects.all():
        assert f"{row.name} on {row.machine}" in page
    for name in ("cryptography package", "system OpenSSL", "Linux kernel", "QEMU and swtpm", "Key servers", "Redis"):
        assert name in page
    assert "FIPS compliant" not in page
    assert "FIPS 140" not in page
    assert TEST not in page  # the looker may not


def test_before_any_process_has_reported(admin: Client) -> None:
    assert "No process has reported yet" in admin.get(PAGE).content.decode()
    assert admin.get(API).json() == {"label": None, "processes": []}


def test_the_least_holds_for_all(reported: None, admin: Client) -> None:
    CryptoProcess.objects.update(label=CryptoProcess.Label.VALIDATED)
    assert admin.get(API).json()["label"] == "validated"
    for label in ("active", "approved", "failed"):
        CryptoProcess.objects.filter(name="beat").update(label=label)
        assert admin.get(API).json()["label"] == label
    assert "FAILED" in admin.get(PAGE).content.decode()


def test_the_api_gives_tests_and_digests(reported: None, admin: Client) -> None:
    found = admin.get(API).json()["processes"]
    assert [one["name"] for one in found] == ["beat", "web", "worker-control", "worker-crypto"]
    assert all(test["passed"] for one in found for test in one["tests"])
    assert all({"provider", "sha256", "library"} <= boundary.keys() for boundary in found[0]["boundaries"])


def test_on_request_each_workers_queue_gets_a_job(
    reported: None, admin: Client, sent: Sent, django_capture_on_commit_callbacks: Any
) -> None:
    crypto_modules._this.name = "web"
    CryptoProcess.objects.update(tested_at=datetime(2026, 1, 1, tzinfo=UTC))
    with django_capture_on_commit_callbacks(execute=True):
        assert admin.post(TEST).status_code == 302
    assert sorted(queue for _, _, queue in sent) == ["control", "crypto"]
    assert Event.objects.filter(kind="crypto.self_tests_requested", actor="alice").count() == 1
    assert CryptoProcess.objects.get(name="web").tested_at.month != 1  # at once, in this process
    crypto_modules._this.name = "worker-control"  # as in the worker that takes it
    job = Job.objects.get(kind="encryption.test_crypto_modules_control")
    assert run(job).status == JobStatus.SUCCEEDED
    assert CryptoProcess.objects.get(name="worker-control").tested_at.month != 1
    assert CryptoProcess.objects.get(name="worker-crypto").tested_at.month == 1
    assert admin.get(reverse("tasks")).status_code == 200  # a job about a process has no page to link to


def test_twice_is_a_conflict_while_the_first_waits(reported: None, admin: Client, sent: Sent) -> None:
    assert admin.post(f"{API}/test").status_code == 202
    again = admin.post(f"{API}/test")
    assert (again.status_code, again.json()["code"]) == (409, "target_busy")
    assert admin.post(TEST).status_code == 409
    assert Job.objects.count() == 2


def test_without_workers_it_is_refused(db: None, admin: Client) -> None:
    refused = admin.post(f"{API}/test")
    assert (refused.status_code, refused.json()["code"]) == (409, "no_worker_reported")
    assert admin.post(TEST).status_code == 409
    assert not Event.objects.filter(kind="crypto.self_tests_requested").exists()


def test_who_may_only_look_may_not_run_them(reported: None, looker: Client) -> None:
    assert looker.get(TEST).status_code == 403
    assert looker.post(TEST).status_code == 403
    refused = looker.post(f"{API}/test")
    assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")
    assert not Job.objects.exists()


def test_a_worker_that_fails_takes_no_more_jobs(
    reported: None, alice: User, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = crypto_modules.request_self_tests(actor=alice)
    crypto_modules._this.name = "worker-control"
    with monkeypatch.context() as patch:
        patch.setattr(xts, "_VECTOR_CIPHER_HEAD", bytes(16))
        ended = run(first)
    assert (ended.status, ended.error_code) == (JobStatus.FAILED, "self_tests_failed")
    assert "AES-256-XTS" in ended.message
    assert CryptoProcess.objects.get(name="worker-control").label == CryptoProcess.Label.FAILED
    waiting = run(second)
    assert (waiting.status, waiting.attempts) == (JobStatus.PENDING, 0)  # another worker may take it


def test_a_row_that_is_gone_fails_the_job(reported: None, alice: User, sent: Sent) -> None:
    job = crypto_modules.request_self_tests(actor=alice)[0]
    CryptoProcess.objects.all().delete()
    ended = run(job)
    assert (ended.status, ended.error_code) == (JobStatus.FAILED, "process_not_found")


def test_a_web_process_that_fails_answers_503_and_nothing_else(
    db: None, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(xts, "_VECTOR_CIPHER_HEAD", bytes(16))
        processes.started("web")  # stays, to say so
    for path in ("/", "/login/", PAGE, API, "/api/v1/me"):
        answer = admin.get(path)
        assert answer.status_code == 503
        assert b"AES-256-XTS" in answer.content
    ready = admin.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["crypto"]) == (503, "failed")
    assert admin.get("/healthz").status_code == 200
    processes.started("web")
    assert admin.get(PAGE).status_code == 200


def test_by_schedule_a_worker_tests_itself_and_tells(reported: None) -> None:
    before = CryptoProcess.objects.get(name="worker-crypto").tested_at
    crypto_modules._this.name = "worker-crypto"
    CryptoProcess.objects.filter(name="beat").update(tested_at=before - crypto_modules.KEPT)
    crypto_modules.repeat()
    assert CryptoProcess.objects.get(name="worker-crypto").tested_at > before
    assert not CryptoProcess.objects.filter(name="beat").exists()
