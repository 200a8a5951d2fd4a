"""Leftovers through their URLs and the API: shown, destroyed by typing the name, kept with a reason, and refusals."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from encryption.models import Leftover
from inventory.models import Datastore, Host, Job, VirtualMachine
from inventory.services import approvals
from tests.api_client import Caller, caller

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


@pytest.fixture
def store(host: Host) -> Datastore:
    return Datastore.objects.create(host=host, name="images", kind="dir", path="/images", is_active=True)


@pytest.fixture
def row(host: Host, store: Datastore) -> Leftover:
    vm = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app-01")
    Leftover.objects.create(host=host, path="/save/app-01.save", kind="saved_state", fingerprint="x")
    return Leftover.objects.create(
        host=host, path="/images/vda.raw", kind="original", size_bytes=2**30, fingerprint="x", virtual_machine=vm,
        evidence=["the encrypted part was made from this file"],
    )  # fmt: skip


def url(name: str, *args: object) -> str:
    return reverse(f"encryption:{name}", args=args)


def text_of(who: Client, address: str) -> str:
    answer = who.get(address)
    assert answer.status_code == 200
    return answer.content.decode()


def test_listed_on_the_host_and_on_the_datastore(admin: Client, row: Leftover, store: Datastore) -> None:
    page = text_of(admin, url("host-leftovers", row.host_id))
    assert "/images/vda.raw" in page and "/save/app-01.save" in page and "The encrypted part was made" in page
    assert "app-01</a>" in page and url("destroy-leftover", row.pk) in page
    page = text_of(admin, url("datastore-leftovers", store.pk))
    assert "/images/vda.raw" in page and "/save/app-01.save" not in page
    for kind, pk in (("host", row.host_id), ("datastore", store.pk)):
        assert ">Leftovers</a>" in text_of(admin, reverse("inventory:monitor", args=[kind, pk]))


def test_one_who_may_only_look(looker: Client, row: Leftover) -> None:
    page = text_of(looker, url("host-leftovers", row.host_id))
    assert "/images/vda.raw" in page and "destroy" not in page and "Find leftovers" not in page
    for name in ("destroy-leftover", "keep-leftover"):
        assert looker.get(url(name, row.pk)).status_code == 403
        assert looker.post(url(name, row.pk), {"confirm": "vda.raw", "reason": "x"}).status_code == 403
    assert looker.post(url("find-leftovers", row.host_id)).status_code == 403
    assert not Job.objects.exists() and not Leftover.objects.filter(kept_at__isnull=False).exists()


def test_destroyed_by_typing_its_name(admin: Client, row: Leftover) -> None:
    assert "Overwrite and delete" in text_of(admin, url("destroy-leftover", row.pk))
    assert admin.post(url("destroy-leftover", row.pk), {"confirm": "vda.raw"}).status_code == 302
    job = Job.objects.get()
    assert (job.kind, job.target_id, job.params) == (
        "encryption.destroy_leftover", row.host_id, {"leftover": str(row.pk)},
    )  # fmt: skip
    answer = admin.post(url("destroy-leftover", row.pk), {"confirm": "vda.raw"})
    assert answer.status_code == 409 and "is busy" in answer.content.decode()


def test_where_two_are_needed_it_waits(admin: Client, alice: User, row: Leftover) -> None:
    approvals.switch_on(action="encryption.destroy_disk", actor=alice)
    assert admin.post(url("destroy-leftover", row.pk), {"confirm": "vda.raw"}).status_code == 302
    job = Job.objects.get()
    assert (job.status, job.approval_right) == ("waiting", "encryption.destroy_leftover")
    assert caller(alice).post(f"/leftovers/{row.pk}/destroy", {"confirm": "vda.raw"}).code == "approval_pending"
    assert caller(alice).post(f"/jobs/{job.pk}/approve").code == "second_person_needed"
    bob = User.objects.create_user("bob", is_superuser=True)
    assert caller(bob).post(f"/jobs/{job.pk}/approve").status == 202


def test_kept(admin: Client, row: Leftover) -> None:
    assert admin.post(url("keep-leftover", row.pk), {"reason": "for the auditors"}).status_code == 302
    page = text_of(admin, url("host-leftovers", row.host_id))
    assert "Kept by alice" in page and "for the auditors" in page and url("destroy-leftover", row.pk) not in page


def test_find_is_a_job(admin: Client, row: Leftover) -> None:
    assert admin.post(url("find-leftovers", row.host_id)).status_code == 302
    assert Job.objects.get().kind == "encryption.find_leftovers"
    assert admin.post(url("find-leftovers", row.host_id)).status_code == 409


def test_nobody_and_nothing(row: Leftover, admin: Client) -> None:
    for address in (url("host-leftovers", row.host_id), url("destroy-leftover", row.pk)):
        assert reverse("login") in Client().get(address).headers["Location"]
    for name in ("destroy-leftover", "keep-leftover", "host-leftovers", "datastore-leftovers", "find-leftovers"):
        assert admin.get(url(name, uuid4())).status_code == 404
    assert admin.post(url("host-leftovers", row.host_id)).status_code == 405


REFUSALS = [
    ({"kind": "backing_file"}, {}, "vda.raw", 409, "leftover_in_use"),
    ({"kept_at": timezone.now(), "kept_by": "bob", "kept_reason": "y"}, {}, "vda.raw", 409, "leftover_kept"),
    ({}, {"state": Host.State.DISCONNECTED}, "vda.raw", 409, "host_disconnected"),
    ({}, {}, "vda", 422, "confirmation_mismatch"),
    ({}, {}, "/images/vda.raw", 422, "confirmation_mismatch"),
]


@pytest.mark.parametrize(("change", "host_change", "confirm", "status", "code"), REFUSALS)
def test_destruction_refused(
    admin: Client, alice: User, row: Leftover, change: dict[str, object], host_change: dict[str, object],
    confirm: str, status: int, code: str,
) -> None:  # fmt: skip
    Leftover.objects.filter(pk=row.pk).update(**change)
    Host.objects.update(**host_change)
    assert admin.post(url("destroy-leftover", row.pk), {"confirm": confirm}).status_code == status
    found = caller(alice).post(f"/leftovers/{row.pk}/destroy", {"confirm": confirm})
    assert (found.status, found.code) == (status, code)
    assert found.body["hint"] and not Job.objects.exists()


def test_keeping_needs_a_reason(admin: Client, alice: User, row: Leftover) -> None:
    assert admin.post(url("keep-leftover", row.pk), {"reason": " "}).status_code == 422
    found = caller(alice).post(f"/leftovers/{row.pk}/keep", {"reason": "  "})
    assert (found.status, found.code) == (422, "reason_missing")


class TestApi:
    def test_listed(self, charlie: User, row: Leftover, store: Datastore) -> None:
        looks = caller(charlie)
        found = looks.get(f"/hosts/{row.host_id}/leftovers").body
        assert found["total"] == 2
        assert found["items"][0]["path"] == "/images/vda.raw"
        assert found["items"][0]["virtual_machine"]["name"] == "app-01"
        assert "fingerprint" not in found["items"][0]
        assert looks.get(f"/datastores/{store.pk}/leftovers").body["total"] == 1
        assert looks.get(f"/datastores/{uuid4()}/leftovers").code == "datastore_not_found"

    def test_find_destroy_keep(self, alice: User, row: Leftover) -> None:
        asks = caller(alice)
        assert asks.post(f"/leftovers/{row.pk}/keep", {"reason": "for the auditors"}).body["kept_by"] == "alice"
        other = Leftover.objects.exclude(pk=row.pk).get()
        assert asks.post(f"/leftovers/{other.pk}/destroy", {"confirm": "app-01.save"}).status == 202
        assert asks.post(f"/hosts/{row.host_id}/leftovers/find").code == "target_busy"

    def test_who_may_not(self, charlie: User, row: Leftover) -> None:
        for path, body in (
            (f"/leftovers/{row.pk}/destroy", {"confirm": "vda.raw"}),
            (f"/leftovers/{row.pk}/keep", {"reason": "x"}),
            (f"/hosts/{row.host_id}/leftovers/find", None),
        ):
            assert caller(charlie).post(path, body).code == "not_permitted"
            assert Caller(None).post(path, body).status == 401

    def test_host_away(self, alice: User, row: Leftover) -> None:
        Host.objects.update(state=Host.State.DISCONNECTED)
        assert caller(alice).post(f"/hosts/{row.host_id}/leftovers/find").code == "host_disconnected"


def test_the_list_costs_the_same_for_three_and_for_forty(admin: Client, row: Leftover) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            admin.get(url("host-leftovers", row.host_id))
        return len(queries)

    before = cost()
    for number in range(40):
        Leftover.objects.create(
            host=row.host, path=f"/images/{number}", kind="original", fingerprint="x",
            virtual_machine=row.virtual_machine,
        )  # fmt: skip
    assert cost() == before
