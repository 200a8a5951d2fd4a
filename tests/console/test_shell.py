"""The shell through its URLs: login, theme, search, tasks, errors, headers."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError
from django.http import HttpRequest
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from inventory import events
from inventory.models import Job, JobStatus
from inventory.services import activity as activity_service
from inventory.services import search
from inventory.views import activity
from tests import sample
from tests.sample import Sample

pytestmark = pytest.mark.django_db
HTMX = {"HX-Request": "true"}
PASSWORD = "correct horse battery staple"


@pytest.fixture
def admin(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("alice"))
    return client


@pytest.fixture
def inventory() -> Sample:
    return sample.make()


def test_every_answer_has_the_policy(client: Client, admin: Client) -> None:
    for url in (reverse("login"), "/nowhere/", reverse("inventory:root"), reverse("admin:index")):
        policy = Client().get(url).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy, url
        assert admin.get(url).headers["Content-Security-Policy"] == policy, url


def test_only_the_login_answers_somebody_unknown() -> None:
    for name in ("home", "search", "tasks", "alarms", "inventory:root", "inventory:tree", "encryption:kms"):
        assert Client().get(reverse(name)).headers["Location"].startswith("/login/?next="), name
    for name in ("theme", "logout"):
        assert Client().get(reverse(name)).status_code in (405, 302), name
    assert Client().get(reverse("login")).status_code == 200


def test_htmx_is_sent_to_the_login_with_the_page_to_come_back_to() -> None:
    answer = Client().get(reverse("tasks"), headers=HTMX | {"HX-Current-URL": "http://testserver/inventory/?view=vms"})
    assert answer.status_code == 401
    assert answer.headers["HX-Redirect"] == "/login/?next=/inventory/"
    elsewhere = Client().get(reverse("tasks"), headers=HTMX | {"HX-Current-URL": "https://evil.example//x"})
    assert elsewhere.headers["HX-Redirect"] == "/login/?next=//x"
    # The login itself refuses to lead off this host, whatever `next` says.
    User.objects.create_user("bob", password=PASSWORD)
    client = Client()
    landed = client.post("/login/", {"username": "bob", "password": PASSWORD, "next": "//x"}, REMOTE_ADDR="127.0.0.9")
    assert landed.headers["Location"] == "/"


def test_pages_of_somebody_logged_in_stay_out_of_caches(admin: Client) -> None:
    assert "no-store" in admin.get(reverse("inventory:root")).headers["Cache-Control"]


def test_login_and_logout(client: Client) -> None:
    User.objects.create_user("bob", password=PASSWORD)
    wrong = client.post(reverse("login"), {"username": "bob", "password": "no"})
    assert "User name or password is wrong." in wrong.content.decode()
    right = client.post(reverse("login"), {"username": "bob", "password": PASSWORD, "next": "/alarms/"})
    assert right.headers["Location"] == "/alarms/"
    assert client.get(reverse("logout")).status_code == 405
    assert client.post(reverse("logout")).headers["Location"] == reverse("login")
    assert client.get(reverse("alarms")).status_code == 302


def test_an_inactive_user_is_out(client: Client) -> None:
    User.objects.create_user("dora", password=PASSWORD, is_active=False)
    assert client.post(reverse("login"), {"username": "dora", "password": PASSWORD}).status_code == 200
    assert client.get(reverse("alarms")).status_code == 302


def test_the_sixth_wrong_password_meets_a_lock_that_says_how_long(client: Client) -> None:
    User.objects.create_user("bob", password=PASSWORD)
    answers = [client.post(reverse("login"), {"username": "bob", "password": str(n)}) for n in range(6)]
    assert answers[0].status_code == 200 and answers[-1].status_code == 429
    assert "ait 15 minutes" in answers[-1].content.decode()
    right = client.post(reverse("login"), {"username": "bob", "password": PASSWORD})
    assert right.status_code == 429, "the right password does not help while it is locked"
    elsewhere = client.post(reverse("login"), {"username": "bob", "password": PASSWORD}, REMOTE_ADDR="10.0.0.7")
    assert elsewhere.status_code == 302, "nobody can lock out a user elsewhere"


def test_theme(admin: Client) -> None:
    assert 'cds-theme="light"' in admin.get(reverse("inventory:root")).content.decode()
    answer = admin.post(reverse("theme"), {"theme": "dark", "next": "/alarms/"})
    assert answer.headers["Location"] == "/alarms/"
    assert 'cds-theme="dark"' in admin.get(reverse("inventory:root")).content.decode()
    assert admin.post(reverse("theme"), {"theme": "dark", "next": "https://evil.example/"}).headers["Location"] == "/"
    assert admin.post(reverse("theme"), {"theme": "<b>"}).status_code == 422
    assert admin.get(reverse("theme")).status_code == 405


def test_search_finds_by_part_of_a_name_and_by_uuid(looker: Client, inventory: Sample) -> None:
    page = looker.get(reverse("search"), {"q": "WEB"}).content.decode()
    assert "app-web01" in page and "app-db01" not in page and "<html" in page
    live = looker.get(
        reverse("search"), {"q": str(inventory.vm.uuid)}, headers=HTMX | {"HX-Target": "search-results"}
    ).content.decode()
    assert "app-db01" in live and "<html" not in live
    assert "Nothing is called" in looker.get(reverse("search"), {"q": "<script>"}).content.decode()
    assert "<script>”" not in looker.get(reverse("search"), {"q": "<script>"}).content.decode()


def test_tasks_answer_204_until_something_changes(looker: Client, inventory: Sample) -> None:
    first = looker.get(reverse("tasks"), headers=HTMX).content.decode()
    token = first.partition("?v=")[2].partition('"')[0]
    assert looker.get(reverse("tasks"), {"v": token}, headers=HTMX).status_code == 204
    Job.objects.get(status=JobStatus.RUNNING).save()
    step = looker.get(reverse("tasks"), {"v": token}, headers=HTMX)
    assert step.status_code == 200 and "HX-Trigger" not in step.headers, "a step is no news for pages"
    token = step.content.decode().partition("?v=")[2].partition('"')[0]
    events.record("vm.powered_on", "app-db02 powered on", target=inventory.off_vm, actor="alice")
    assert looker.get(reverse("tasks"), {"v": token}, headers=HTMX).headers["HX-Trigger"] == "activity"


def test_tasks_poll_costs_few_queries(
    looker: Client, inventory: Sample, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    token = looker.get(reverse("tasks")).content.decode().partition("?v=")[2].partition('"')[0]
    with django_assert_num_queries(5):  # session, user, and three of the version
        assert looker.get(reverse("tasks"), {"v": token}).status_code == 204


def test_cancel(admin: Client, looker: Client, inventory: Sample) -> None:
    job = Job.objects.get(status=JobStatus.RUNNING)
    url = reverse("cancel-task", args=[job.pk])
    assert admin.get(url).status_code == 405
    assert looker.post(url, headers=HTMX).status_code == 403
    assert 'title="Cancel"' not in looker.get(reverse("tasks")).content.decode()
    assert admin.post(url, headers=HTMX).status_code == 204
    job.refresh_from_db()
    assert job.cancel_requested
    Job.objects.filter(pk=job.pk).update(status=JobStatus.CANCELLED)
    again = admin.post(url, headers=HTMX)
    assert again.status_code == 409 and 'data-code="job_ended"' in again.content.decode()
    assert admin.post(reverse("cancel-task", args=[uuid4()])).status_code == 404


def test_error_pages(admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "There is no such page" in admin.get("/nowhere/").content.decode()
    part = admin.get("/nowhere/", headers=HTMX)
    assert part.status_code == 404 and part.headers["HX-Retarget"] == "#alerts"

    def broken(request: HttpRequest) -> None:
        raise RuntimeError("a text with a secret")

    monkeypatch.setattr(search, "search", broken)
    admin.raise_request_exception = False
    answer = admin.get(reverse("search"), {"q": "x"})
    assert answer.status_code == 500 and "a text with a secret" not in answer.content.decode()


def test_a_database_that_ends_a_deadlock_is_no_internal_error(admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def deadlock(*args: object, **kwargs: object) -> None:
        raise OperationalError("deadlock detected")

    monkeypatch.setattr(activity, "version", deadlock)
    monkeypatch.setattr(activity_service, "job_list", deadlock)
    page, api = admin.get(reverse("tasks")), admin.get("/api/v1/jobs")
    assert page.status_code == api.status_code == 503
    assert "database did not carry this out" in page.content.decode()
    assert api.json()["code"] == "database_busy"


def test_a_forged_form_is_refused() -> None:
    client = Client(enforce_csrf_checks=True)
    User.objects.create_superuser("alice")
    client.force_login(User.objects.get(username="alice"))
    answer = client.post(reverse("inventory:add-datacenter"), {"name": "North"})
    assert answer.status_code == 403 and "forged" in answer.content.decode()


def test_the_api_is_left_to_answer_for_itself() -> None:
    """Below /api/ the login wall never redirects: what is not there is a 404, not a login page."""
    assert Client().get("/api/nowhere/").status_code in (401, 404)
