"""Two-person approval: what is asked for waits, and begins when somebody else approves it."""

import json
from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from attestation.engine.reference import ReferenceValues
from attestation.engine.reference_json import to_json
from encryption.models import Key, KmsCluster, KmsServer
from inventory import jobs
from inventory.authorize import SYSTEM, Role
from inventory.models import Cluster, Event, Host, Job, JobStatus, RoleAssignment, TwoPersonRule, VirtualMachine
from inventory.services import approvals
from tests.api_client import Caller, caller

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]

DESTROY = "encryption.destroy_key"
Sent = list[tuple[str, list[str], str]]


@pytest.fixture
def bob(db: None) -> User:
    """Another administrator."""
    return User.objects.create_user("bob", is_superuser=True)


@pytest.fixture
def key(db: None) -> Key:
    provider = KmsCluster.objects.create(name="KMS", is_default=True)
    KmsServer.objects.create(cluster=provider, position=0, host="kms.example")
    return Key.objects.create(cluster=provider, key_id="kmip-7", state=Key.State.ACTIVE)


@pytest.fixture
def waiting(alice: User, key: Key) -> Job:
    """What alice has asked for."""
    approvals.switch_on(action=DESTROY, actor=alice)
    return asked(alice, key)


def asked(user: User, key: Key) -> Job:
    answer = caller(user).post(f"/keys/{key.pk}/destroy", {"confirm": "kmip-7"})
    assert answer.status == 202, answer.text
    return Job.objects.get(pk=answer.body["id"])


def approve(call: Caller, job: Job) -> tuple[int, str]:
    answer = call.post(f"/jobs/{job.pk}/approve")
    return answer.status, "" if answer.status == 202 else answer.code


def test_without_the_rule_nothing_waits(alice: User, key: Key) -> None:
    assert asked(alice, key).status == JobStatus.PENDING


def test_it_waits_and_begins_when_another_approves(
    alice: User, bob: User, waiting: Job, sent: Sent, django_capture_on_commit_callbacks: object
) -> None:
    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]
        assert waiting.status == JobStatus.WAITING
        jobs.run(str(waiting.pk), lambda job, progress: pytest.fail("it ran unapproved"))
        jobs.resume_interrupted(timezone.now() + timedelta(hours=1))
    assert sent == []
    assert approve(caller(alice), waiting) == (403, "second_person_needed")
    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]
        assert approve(caller(bob), waiting) == (202, "")
    assert [(name, arguments) for name, arguments, _ in sent] == [(DESTROY, [str(waiting.pk)])]
    waiting.refresh_from_db()
    assert (waiting.status, waiting.actor, waiting.approved_by) == (JobStatus.PENDING, "alice", "bob")
    told = Event.objects.filter(job=waiting).order_by("id").values_list("kind", "actor")
    assert list(told) == [
        ("job.approval_requested", "alice"), ("key.destroy_requested", "alice"), ("job.approved", "bob"),
    ]  # fmt: skip
    assert approve(caller(bob), waiting) == (409, "job_not_waiting")


def test_through_the_pages(alice: User, bob: User, waiting: Job) -> None:
    theirs, own = Client(), Client()
    theirs.force_login(bob)
    own.force_login(alice)
    url = reverse("approve-task", args=[waiting.pk])
    assert url in theirs.get(reverse("approvals")).content.decode()
    assert url in theirs.get(reverse("tasks")).content.decode()
    page = own.get(reverse("approvals")).content.decode()
    assert url not in page and "Somebody else approves it" in page
    page = theirs.get(url).content.decode()
    assert "waits for the approval" in page and "kmip-7" in page, "which key it is"
    assert own.post(url).status_code == 403
    assert theirs.post(url).status_code == 302
    waiting.refresh_from_db()
    assert waiting.approved_by == "bob"
    assert theirs.post(url).status_code == 409
    assert theirs.get(reverse("approve-task", args=[uuid4()])).status_code == 404


def test_one_without_the_right_approves_nothing(waiting: Job) -> None:
    user = User.objects.create_user("dora")
    RoleAssignment.objects.create(user=user, role=Role.AUDITOR, assigned_by="test")
    assert approve(caller(user), waiting) == (403, "not_permitted")
    client = Client()
    client.force_login(user)
    assert client.post(reverse("approve-task", args=[waiting.pk])).status_code == 403
    assert "You do not hold the right" in client.get(reverse("approvals")).content.decode()


def test_who_asked_and_has_lost_the_right(alice: User, bob: User, waiting: Job) -> None:
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert approve(caller(bob), waiting) == (409, "requester_lost_right")
    Job.objects.filter(pk=waiting.pk).update(actor="nobody")
    assert approve(caller(bob), waiting) == (409, "requester_lost_right")


def test_it_does_not_wait_for_ever(bob: User, waiting: Job) -> None:
    Job.objects.filter(pk=waiting.pk).update(created_at=timezone.now() - approvals.LASTS - timedelta(minutes=1))
    assert approve(caller(bob), waiting) == (409, "approval_expired")


def test_what_waits_keeps_nobody_from_the_target(alice: User, bob: User, waiting: Job, key: Key) -> None:
    other = caller(alice).post(f"/key-providers/{key.cluster_id}/check")
    assert other.status == 202
    assert approve(caller(bob), waiting) == (409, "target_busy")
    Job.objects.filter(pk=other.body["id"]).update(status=JobStatus.SUCCEEDED)
    assert approve(caller(bob), waiting) == (202, "")


def test_the_same_is_not_asked_for_twice(alice: User, waiting: Job, key: Key) -> None:
    answer = caller(alice).post(f"/keys/{key.pk}/destroy", {"confirm": "kmip-7"})
    assert (answer.status, answer.code) == (409, "approval_pending")


def test_a_key_is_not_revoked_by_one_either(alice: User, bob: User, key: Key) -> None:
    """It would be as lost as a destroyed one."""
    approvals.switch_on(action=DESTROY, actor=alice)
    answer = caller(alice).post(f"/keys/{key.pk}/revoke", {"reason": "key_compromise"})
    job = Job.objects.get(pk=answer.body["id"])
    assert (job.kind, job.status) == ("encryption.revoke_key", JobStatus.WAITING)
    assert approve(caller(alice), job) == (403, "second_person_needed")
    assert approve(caller(bob), job) == (202, "")


def test_it_is_cancelled_like_any_other(alice: User, bob: User, waiting: Job) -> None:
    assert caller(alice).post(f"/jobs/{waiting.pk}/cancel").status == 202
    waiting.refresh_from_db()
    assert waiting.status == JobStatus.CANCELLED
    assert approve(caller(bob), waiting) == (409, "job_not_waiting")


def test_a_target_that_is_gone(bob: User, waiting: Job, key: Key) -> None:
    Job.objects.filter(pk=waiting.pk).update(target_id=uuid4())
    assert approve(caller(bob), waiting) == (409, "target_gone")


def test_the_products_own_jobs_do_not_wait(host: Host) -> None:
    TwoPersonRule.objects.create(action="encryption.decrypt_vm", is_on=True)
    vm = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app")
    kind = jobs.KINDS["encryption.apply_options"]
    assert jobs.start(kind, target=vm, actor=SYSTEM, rule="encryption.decrypt_vm").status == JobStatus.PENDING


# The switches


def test_on_by_one_and_off_by_two(alice: User, bob: User) -> None:
    call = caller(alice)
    on = call.post(f"/two-person-rules/{DESTROY}/on").body
    assert [one["action"] for one in on if one["is_on"]] == [DESTROY]
    assert Event.objects.get(kind="two_person.switched_on").data["rule"] == DESTROY
    job = Job.objects.get(pk=call.post(f"/two-person-rules/{DESTROY}/off").body["id"])
    assert job.status == JobStatus.WAITING
    assert approve(call, job) == (403, "second_person_needed")
    assert approve(caller(bob), job) == (202, "")
    jobs.run(str(job.pk), approvals.run_switch_off)
    assert not TwoPersonRule.objects.get().is_on
    off = Event.objects.get(kind="two_person.switched_off")
    assert (off.actor, off.data["approved_by"]) == ("alice", "bob")
    assert call.post(f"/two-person-rules/{DESTROY}/off").code == "two_person_rule_off"
    for verb in ("on", "off"):
        assert call.post(f"/two-person-rules/make.tea/{verb}").code == "two_person_rule_not_found"


def test_the_switch_on_its_page(admin: Client, looker: Client) -> None:
    url = reverse("switch-two-person-rule", args=[DESTROY])
    assert "Switch on" in admin.get(url).content.decode()
    assert admin.post(url).status_code == 302
    assert "Two persons" in looker.get(reverse("approvals")).content.decode()
    assert admin.post(url).status_code == 302
    assert Job.objects.get().status == JobStatus.WAITING
    assert admin.get(reverse("switch-two-person-rule", args=["make.tea"])).status_code == 404
    assert looker.get(url).status_code == 403
    assert looker.post(url).status_code == 403


def test_off_on_the_command_line(alice: User) -> None:
    approvals.switch_on(action=DESTROY, actor=alice)
    call_command("two_person", off=DESTROY)
    assert not jobs.needs_second_person(DESTROY)
    assert Event.objects.get(kind="two_person.switched_off").actor == "Bartizan"


def test_reference_values_of_every_cluster(alice: User, bob: User, cluster: Cluster) -> None:
    """The cluster's own switch is off; the console's rule holds all the same."""
    approvals.switch_on(action="attestation.edit_references", actor=alice)
    body = {"body": json.loads(to_json(ReferenceValues(secure_boot=False))), "reason": "first"}
    path = f"/clusters/{cluster.pk}/reference-values"
    made = caller(alice).post(path, body)
    assert made.status == 201, made.text
    where = f"/reference-values/{made.body['id']}/approve"
    assert caller(alice).post(where).code == "second_person_needed"
    assert caller(bob).post(where).status == 200
