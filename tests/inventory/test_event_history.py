"""The history through its page and the API: filters, export, and who sees what."""

import csv
import io
import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.http import StreamingHttpResponse
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from kombu.exceptions import OperationalError
from pytest_django import DjangoAssertNumQueries, Settings

from inventory import events, jobs
from inventory.authorize import SYSTEM
from inventory.engine.checkpoint import find_all
from inventory.engine.event_chain import START, digest
from inventory.models import Event, Host, Outcome, RoleAssignment, Severity
from inventory.services import checkpoints, event_history
from inventory.services.event_chain import recorded
from inventory.tasks import sign_checkpoint_now
from tests.api_client import Answer, caller

pytestmark = pytest.mark.django_db


@pytest.fixture
def history(host: Host, alice: User, sent: object) -> dict[str, Event]:
    """One event that each filter finds, and others that it must not."""
    kind = jobs.register(jobs.JobKind("tests.history", "History"))
    job = jobs.start(kind, target=host, actor=alice)
    with events.acting_from("192.0.2.50"):
        found = {
            "job": events.record("host.synced", "of the job", target=host, actor="bob", job=job),
            "denied": events.record("access.denied", "refused", target=None, actor="eve", outcome=Outcome.DENIED),
            "formula": events.record(
                "vm.changed", "=1+1", target=None, actor="@eve", severity=Severity.WARNING, a=["b"]
            ),
        }
    found["inside"] = events.record("vm.changing", "by itself", target=host, actor=SYSTEM)
    old = events.record("vm.changed", "long ago", target=None, actor="old")
    Event.objects.filter(pk=old.pk).update(time=timezone.now() - timedelta(days=400))
    return found | {"old": old}


def shown(answer: Any) -> set[int]:
    return {event.pk for event in answer.context["events"]}


QUERIES = [
    ({"kind": "vm.changed"}, {"formula", "old"}),
    ({"kind": "vm."}, {"formula", "old", "inside"}),
    ({"actor": "bob"}, {"job"}),
    ({"outcome": "denied"}, {"denied"}),
    ({"severity": "warning"}, {"formula"}),
    ({"until": "2026-01-01T00:00"}, set()),
    ({"actor": "nobody at all"}, set()),
    ({"kind": "vm.changed", "severity": "info"}, {"old"}),
]


@pytest.mark.parametrize(("query", "names"), QUERIES)
def test_filters_of_page_and_api(
    admin: Client, alice: User, history: dict[str, Event], query: dict[str, str], names: set[str]
) -> None:
    wanted = {history[name].pk for name in names}
    if "until" in query:
        wanted = {history["old"].pk}
        query = {"until": f"{timezone.now() - timedelta(days=1):%Y-%m-%dT%H:%M}"}
    assert shown(admin.get(reverse("events"), query)) == wanted
    query = {name: f"{value}Z" if name == "until" else value for name, value in query.items()}
    found = caller(alice).get("/events", **query)
    assert {row["id"] for row in found.body["items"]} == wanted


def test_filters_by_object_address_and_task(admin: Client, alice: User, host: Host, history: dict[str, Event]) -> None:
    page, api = reverse("events"), caller(alice)
    about_host = {history["job"].pk, history["inside"].pk}
    assert shown(admin.get(page, {"target": host.name})) == about_host
    assert shown(admin.get(page, {"target": str(host.pk)})) == about_host
    assert {row["id"] for row in api.get("/events", target_id=host.pk).body["items"]} == about_host
    assert {row["id"] for row in api.get("/events", target_name=host.name).body["items"]} == about_host
    from_there = {history[name].pk for name in ("job", "denied", "formula")}
    assert shown(admin.get(page, {"address": "192.0.2.50"})) == from_there
    assert {row["id"] for row in api.get("/events", source_address="192.0.2.50").body["items"]} == from_there
    job_id = history["job"].job_id
    assert shown(admin.get(page, {"job": str(job_id)})) == {history["job"].pk}
    assert [row["id"] for row in api.get("/events", job_id=job_id).body["items"]] == [history["job"].pk]
    assert api.get("/events", job_id=uuid4()).body["total"] == 0


@pytest.mark.parametrize("query", [{"since": "yesterday"}, {"address": "300.1.1.1"}, {"job": "7"}, {"severity": "odd"}])
def test_a_filter_that_cannot_be_read_lists_nothing(admin: Client, history: object, query: dict[str, str]) -> None:
    answer = admin.get(reverse("events"), query)
    assert answer.status_code == 422 and shown(answer) == set()
    answer = admin.get(reverse("export-events"), query)
    assert answer.status_code == 422 and b"filter_invalid" in answer.content
    assert not Event.objects.filter(kind="audit.events_exported").exists()


def test_bad_input_of_the_api(alice: User, admin: Client) -> None:
    api = caller(alice)
    assert api.get("/events", since="yesterday").code == "invalid_input"
    assert api.get("/events/export", format="xml").code == "invalid_input"
    answer = admin.get(reverse("export-events"), {"format": "xml"})
    assert answer.status_code == 422 and b"format_unknown" in answer.content


def body_of(answer: Any) -> str:
    assert isinstance(answer, StreamingHttpResponse)
    return b"".join(answer).decode()


def test_an_export_is_what_the_filters_show_and_an_event(admin: Client, history: dict[str, Event]) -> None:
    answer = admin.get(reverse("export-events"), {"kind": "vm.", "format": "csv"}, REMOTE_ADDR="192.0.2.60")
    assert ".csv" in answer.headers["Content-Disposition"] and "no-store" in answer.headers["Cache-Control"]
    rows = list(csv.DictReader(io.StringIO(body_of(answer))))
    assert [int(row["id"]) for row in rows] == sorted(history[name].pk for name in ("formula", "inside", "old"))
    formula = next(row for row in rows if row["id"] == str(history["formula"].pk))
    assert (formula["message"], formula["actor"], formula["data"]) == ("'=1+1", "'@eve", '{"a": ["b"]}')
    told = Event.objects.get(kind="audit.events_exported")
    assert (told.actor, told.source_address) == ("alice", "192.0.2.60")
    assert told.data == {"format": "csv", "filters": ["kind=vm."]}


def test_an_export_of_everything_can_be_verified_without_the_console(alice: User, history: dict[str, Event]) -> None:
    """JSON lines hold every column that the chain is made of."""
    answer: Answer = caller(alice).get("/events/export", format="jsonl")
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert len(rows) == Event.objects.count() - 1, "all but the export itself"
    previous = START
    for line in sorted(rows, key=lambda row: row["sequence"]):
        row = Event.objects.get(pk=line["id"])
        assert line["digest"] == digest(previous, recorded(row), line["sequence"])
        assert (line["message"], line["data"], line["job_id"]) == (
            row.message, row.data, None if row.job_id is None else str(row.job_id),
        )  # fmt: skip
        previous = line["digest"]


def test_an_export_reads_in_batches(
    alice: User, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(7):
        events.record("vm.changed", f"change {number}", target=None, actor="alice")
    monkeypatch.setattr(event_history, "BATCH", 3)
    found = event_history.export_events(actor=alice)
    with django_assert_num_queries(4):
        chunks = list(found.chunks)
    assert len(list(csv.reader(io.StringIO("".join(chunks))))) == 8


def test_everybody_sees_and_exports_the_events_of_what_they_may_see(host: Host, history: dict[str, Event]) -> None:
    dora = User.objects.create_user("dora")
    client = Client()
    client.force_login(dora)
    assert client.get(reverse("events")).status_code == 403
    assert client.get(reverse("export-events")).status_code == 403
    assert caller(dora).get("/events/export").status == 403
    RoleAssignment.objects.create(user=dora, role="auditor", cluster=host.cluster)
    about_host = {history["job"].pk, history["inside"].pk}
    assert shown(client.get(reverse("events"))) == about_host
    rows = csv.DictReader(io.StringIO(body_of(client.get(reverse("export-events")))))
    assert {int(row["id"]) for row in rows} == about_host


def test_nobody_unknown_gets_anything(client: Client) -> None:
    for name in ("events", "export-events"):
        assert client.get(reverse(name)).status_code == 302
        assert client.post(reverse(name)).status_code == 302


def test_wrong_methods(admin: Client) -> None:
    assert admin.post(reverse("events")).status_code == admin.post(reverse("export-events")).status_code == 405


def test_the_page_takes_the_same_queries_whatever_it_lists(
    admin: Client, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(60):
        events.record("vm.changed", f"change {number}", target=None, actor="alice", number=number)
    admin.get(reverse("events"))
    with django_assert_max_num_queries(14):
        page = admin.get(reverse("events"), {"actor": "alice", "page": "2"}).content.decode()
    assert "60 of 60 events" in page and "actor=alice&amp;page=1" in page


def test_the_page_says_how_far_it_is_sealed_and_signed(admin: Client, alice: User) -> None:
    api = caller(alice)
    assert api.get("/audit-key").code == "audit_key_not_made"
    checkpoints.sign(actor=SYSTEM)
    page = admin.get(reverse("events")).content.decode()
    assert "signed up to 2" in page and "bartizan-checkpoint-1/2/" in page
    assert api.get("/audit-key").text.startswith("-----BEGIN PUBLIC KEY-----")
    row = api.get("/events", kind="audit.key_made").body["items"][0]
    assert row["sequence"] and len(row["digest"]) == 64 and row["outcome"] == "success"


def test_a_checkpoint_is_asked_for_signed_by_a_worker_and_listed(
    admin: Client, alice: User, sent: list[tuple[str, list[str], str]]
) -> None:
    address = reverse("sign-checkpoint")
    assert address in admin.get(reverse("events")).content.decode()
    assert admin.post(address).headers["Location"] == reverse("events")
    assert sent == [("inventory.sign_checkpoint_now", [], "control")], "the web process has no key to sign with"
    assert Event.objects.get(kind="audit.checkpoint_requested").actor == "alice"
    sign_checkpoint_now()
    listed = caller(alice).get("/checkpoints").body
    assert [one["events"] for one in listed] == [2], "the wish, and the making of the key"
    assert Event.objects.get(sequence=2).digest == listed[0]["digest"] and find_all(listed[0]["text"])
    page = admin.get(reverse("events")).content.decode()
    assert listed[0]["digest"] in page and listed[0]["key"] in page
    assert caller(alice)("POST", "/checkpoints").status == 204
    assert len(sent) == 2


def test_who_may_not_sign_and_who_may_not_see_checkpoints(
    looker: Client, charlie: User, host: Host, sent: list[object]
) -> None:
    checkpoints.sign(actor=SYSTEM)
    page = looker.get(reverse("events")).content.decode()
    assert "Latest checkpoints" in page and reverse("sign-checkpoint") not in page
    assert looker.get(reverse("sign-checkpoint")).status_code == looker.post(reverse("sign-checkpoint")).status_code
    assert looker.post(reverse("sign-checkpoint")).status_code == 403
    assert caller(charlie)("POST", "/checkpoints").code == "not_permitted" and not sent
    RoleAssignment.objects.filter(user=charlie).update(cluster=host.cluster)
    assert "Latest checkpoints" not in looker.get(reverse("events")).content.decode()
    assert caller(charlie).get("/checkpoints").body == []


def test_no_broker_and_no_key(
    admin: Client, alice: User, monkeypatch: pytest.MonkeyPatch, settings: Settings, sent: list[object]
) -> None:
    settings.CONSOLE_KEY = ""
    sign_checkpoint_now()
    told = Event.objects.get(kind="audit.checkpoint_failed")
    assert (told.reason, told.severity, told.outcome) == ("console_key_missing", "error", "failure")

    def away(*_: object, **__: object) -> None:
        raise OperationalError

    monkeypatch.setattr("celery.current_app.send_task", away)
    answer = admin.post(reverse("sign-checkpoint"))
    assert answer.status_code == 503 and b"the broker does not answer" in answer.content
    assert caller(alice)("POST", "/checkpoints").code == "broker_unreachable"
