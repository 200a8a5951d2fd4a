"""Alarms through their pages and over REST: listed, acknowledged, counted, dropped with their object, forgotten."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from inventory.alarms import clear_alarm, raise_alarm
from inventory.authorize import SYSTEM
from inventory.errors import Unavailable
from inventory.models import Alarm, Event, Host, Severity, VirtualMachine
from inventory.services import hosts, housekeeping
from tests.api_client import Caller, caller
from tests.fakes import FakeHypervisor

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


@pytest.fixture
def call(alice: User) -> Caller:
    return caller(alice)


@pytest.fixture
def alarm(host: Host) -> Alarm:
    return raise_alarm(
        "host.odd", "kvm-a is odd", target=host, severity=Severity.ERROR, remedy="look at it", evidence=["seen <here>"]
    )


def kinds() -> list[str]:
    return list(Event.objects.filter(kind__startswith="alarm").order_by("id").values_list("kind", flat=True))


def test_the_page_shows_what_it_is_and_what_to_do(admin: Client, alarm: Alarm, host: Host) -> None:
    page = admin.get(reverse("alarms")).content.decode()
    assert "kvm-a is odd" in page and "Look at it" in page and "seen &lt;here&gt;" in page
    assert reverse("inventory:summary", args=["host", host.pk]) in page
    assert 'id="alarm-count" class="count">1<' in page
    monitor = admin.get(reverse("inventory:monitor", args=["host", host.pk]), {"show": "alarms"}).content.decode()
    assert "kvm-a is odd" in monitor and "seen &lt;here&gt;" in monitor
    assert 'id="alarm-count" class="count" hx-swap-oob="true">1<' in admin.get(reverse("tasks")).content.decode()


def test_one_that_is_over_is_shown_only_among_all(admin: Client, alarm: Alarm, host: Host) -> None:
    assert clear_alarm("host.odd", target=host)
    assert "kvm-a is odd" not in admin.get(reverse("alarms"), {"show": "live", "page": "x"}).content.decode()
    page = admin.get(reverse("alarms"), {"show": "all", "page": "999"}).content.decode()
    assert "kvm-a is odd" in page and "Over" in page and 'hx-post="/alarms/' not in page
    assert not clear_alarm("host.odd", target=host)
    assert kinds() == ["alarm.raised", "alarm.cleared"]


@pytest.mark.parametrize("htmx", [False, True])
def test_acknowledged_once_and_still_live(admin: Client, alarm: Alarm, htmx: bool) -> None:
    address = reverse("acknowledge-alarm", args=[alarm.pk])
    for _ in range(2):
        answer = admin.post(address, headers={"HX-Request": "true"} if htmx else {})
        assert answer.status_code == (204 if htmx else 302)
    alarm.refresh_from_db()
    assert (alarm.acknowledged_by, alarm.cleared_at) == ("alice", None)
    assert kinds() == ["alarm.raised", "alarm.acknowledged"]
    page = admin.get(reverse("alarms")).content.decode()
    assert "Acknowledged" in page and 'id="alarm-count" class="count" hidden' in page


def test_a_plain_browser_goes_back_to_where_it_was_and_nowhere_else(admin: Client, alarm: Alarm) -> None:
    address = reverse("acknowledge-alarm", args=[alarm.pk])
    back = "http://testserver/inventory/"
    assert admin.post(address, headers={"Referer": back}).headers["Location"] == back
    assert admin.post(address, headers={"Referer": "http://evil.example/"}).headers["Location"] == "/alarms/"


def test_refusals(admin: Client, looker: Client, call: Caller, charlie: User, alarm: Alarm, host: Host) -> None:
    address, path = reverse("acknowledge-alarm", args=[alarm.pk]), f"/alarms/{alarm.pk}/acknowledge"
    assert looker.post(address).status_code == 403
    assert caller(charlie).post(path).code == "not_permitted"
    assert "Acknowledge<" not in looker.get(reverse("alarms")).content.decode()
    gone = uuid4()
    assert admin.post(reverse("acknowledge-alarm", args=[gone])).status_code == 404
    assert call.post(f"/alarms/{gone}/acknowledge").code == call.get(f"/alarms/{gone}").code == "alarm_not_found"
    clear_alarm("host.odd", target=host)
    assert admin.post(address).status_code == 409
    assert call.post(path).code == "alarm_over"
    assert admin.get(address).status_code == 405
    assert Client().post(address).headers["Location"].startswith("/login/")


def test_over_rest(call: Caller, alarm: Alarm, host: Host) -> None:
    other = raise_alarm("host.other", "something else", target=host)
    clear_alarm("host.other", target=host)
    assert [one["id"] for one in call.get("/alarms").body["items"]] == [str(alarm.pk), str(other.pk)]
    assert [one["id"] for one in call.get("/alarms", is_live=False).body["items"]] == [str(other.pk)]
    assert call.get("/alarms", severity="error", target_kind="host", target_id=host.pk).body["total"] == 1
    assert call.get("/alarms", kind="host.none").body["total"] == 0
    assert call.post(f"/alarms/{alarm.pk}/acknowledge").body["acknowledged_by"] == "alice"
    found = call.get(f"/alarms/{alarm.pk}").body
    assert (found["message"], found["remedy"], found["evidence"]) == ("kvm-a is odd", "look at it", ["seen <here>"])


def test_lists_cost_the_same_for_two_and_for_forty(admin: Client, call: Caller, host: Host) -> None:
    call.get("/me")

    def cost() -> list[int]:
        found = []
        for read in (
            lambda: admin.get(reverse("alarms")),
            lambda: admin.get(reverse("inventory:monitor", args=["host", host.pk]), {"show": "alarms"}),
            lambda: call.get("/alarms"),
        ):
            with CaptureQueriesContext(connection) as queries:
                read()
            found.append(len(queries))
        return found

    for number in range(2):
        raise_alarm(f"host.{number}", "odd", target=host)
    few = cost()
    for number in range(2, 40):
        raise_alarm(f"host.{number}", "odd", target=host)
    assert cost() == few


def test_a_second_sighting_brings_it_up_to_date_without_an_event(alarm: Alarm, host: Host) -> None:
    raise_alarm("host.odd", "kvm-a is very odd", target=host, evidence=["more"])
    found = Alarm.objects.get()
    assert (found.pk, found.message, found.evidence) == (alarm.pk, "kvm-a is very odd", ["more"])
    assert kinds() == ["alarm.raised"]


class TestHosts:
    def test_a_lost_host_until_it_is_back(self, host: Host, hypervisor: FakeHypervisor) -> None:
        hosts.disconnected(host, Unavailable("connection_refused", "refused", hint="start it"))
        found = Alarm.objects.get()
        assert (found.kind, found.remedy, found.severity) == ("host.disconnected", "start it", "error")
        assert list(Event.objects.values_list("kind", flat=True)) == ["host.disconnected"]
        hosts.connected(host, hypervisor)
        found.refresh_from_db()
        assert found.cleared_at is not None
        assert not Event.objects.filter(kind="alarm.cleared").exists()

    def test_a_removed_host_takes_its_alarms_along(self, host: Host) -> None:
        vm = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app")
        raise_alarm("host.odd", "odd", target=host)
        raise_alarm("vm.odd", "odd", target=vm)
        hosts.remove_host(host_id=host.pk, actor=SYSTEM)
        assert not Alarm.objects.filter(cleared_at=None).exists()


def test_housekeeping_forgets_what_was_over_90_days_ago(alarm: Alarm, host: Host) -> None:
    clear_alarm("host.odd", target=host)
    raise_alarm("host.odd", "again", target=host)
    assert housekeeping.prune_alarms() == 0
    assert housekeeping.prune_alarms(timezone.now() + timedelta(days=91)) == 1
    assert Alarm.objects.get().message == "again"
