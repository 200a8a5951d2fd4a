"""Locked VMs through their URLs and the API: badge, alert, Unlock, who may, and what is refused."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from encryption.models import Key, KmsCluster, LockCause, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from inventory.models import Event, Host, Job, PowerState, VirtualMachine
from tests.api_client import Caller, caller

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
BADGE = "label label-danger"  # of a VM that has not crashed: locked


@pytest.fixture
def plain(host: Host) -> VirtualMachine:
    return VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app-01", power_state=PowerState.OFF)


@pytest.fixture
def free(plain: VirtualMachine) -> VirtualMachine:
    """Encrypted."""
    key = Key.objects.create(cluster=KmsCluster.objects.create(name="KMS"), key_id="7")
    policy = StoragePolicy.objects.get(encrypts=True)
    VmSecurity.objects.create(virtual_machine=plain, policy=policy, key=key)
    WrappedSecret.objects.create(
        virtual_machine=plain, purpose=Purpose.DISK, target="vda", key=key, wrapped=b"planted-wrapped-secret",
        path="/i/vda.luks", stage=Stage.IN_USE,
    )  # fmt: skip
    return plain


@pytest.fixture
def locked(free: VirtualMachine) -> VirtualMachine:
    VmSecurity.objects.update(
        locked_at=timezone.now(), lock_cause=LockCause.KMS_ERROR, lock_parts=["vda"],
        lock_detail="key server kms:5696 does not answer", lock_remedy="start it",
    )  # fmt: skip
    return VirtualMachine.objects.get(pk=free.pk)


def unlock_url(vm: VirtualMachine) -> str:
    return reverse("encryption:vm-unlock", args=[vm.pk])


def page(who: Client, name: str, *args: object) -> str:
    answer = who.get(reverse(name, args=args))
    assert answer.status_code == 200
    found = answer.content.decode()
    assert "planted" not in found
    return found


def test_shown_with_cause_parts_remedy_and_unlock(admin: Client, locked: VirtualMachine) -> None:
    found = page(admin, "inventory:summary", "vm", locked.pk)
    assert BADGE in found and "Locked</span>" in found
    for found in (page(admin, "encryption:vm-options", locked.pk), page(admin, "encryption:vm-card", locked.pk)):
        assert "Locked: KMS cluster error: key server kms:5696 does not answer" in found
        assert "disk vda" in found and "Start it" in found and unlock_url(locked) in found


def test_one_that_may_look_sees_it_without_unlock(looker: Client, locked: VirtualMachine) -> None:
    assert BADGE in page(looker, "inventory:summary", "vm", locked.pk)
    for found in (page(looker, "encryption:vm-options", locked.pk), page(looker, "encryption:vm-card", locked.pk)):
        assert "KMS cluster error" in found and unlock_url(locked) not in found


def test_a_free_vm_shows_none_of_it_and_the_action_says_why(admin: Client, free: VirtualMachine) -> None:
    found = page(admin, "inventory:summary", "vm", free.pk)
    assert BADGE not in found
    assert "Unlock…" in found and "It is not locked" in found
    assert "Locked" not in page(admin, "encryption:vm-card", free.pk)
    assert unlock_url(free) not in found, "an action that cannot be used does nothing"


def test_marked_in_lists_and_tree_and_counted(looker: Client, locked: VirtualMachine) -> None:
    cluster = locked.host.cluster
    assert "Locked" in page(looker, "inventory:vms", "cluster", cluster.pk)
    below = looker.get(reverse("inventory:tree-children", args=["hosts", "host", locked.host_id])).content.decode()
    assert 'aria-label="app-01, powered off, locked"' in below and 'class="i danger"' in below
    for place in (("datacenter", cluster.datacenter_id), ("cluster", cluster.pk), ("host", locked.host_id)):
        assert "<dt>Locked</dt>" in page(looker, "inventory:summary", *place)
    assert "<dt>Locked</dt>" in page(looker, "inventory:root")
    VmSecurity.objects.update(locked_at=None)
    assert "<dt>Locked</dt>" not in page(looker, "inventory:root")
    below = looker.get(reverse("inventory:tree-children", args=["hosts", "host", locked.host_id])).content.decode()
    assert "locked" not in below


def test_the_action_of_a_locked_vm_leads_to_the_dialog(admin: Client, locked: VirtualMachine) -> None:
    found = page(admin, "inventory:summary", "vm", locked.pk)
    assert "Unlock…" in found and unlock_url(locked) in found and "It is not locked" not in found
    assert "Fetch the keys of app-01" in page(admin, "encryption:vm-unlock", locked.pk)
    assert not Job.objects.exists()


def test_a_plain_vm_has_no_such_action(admin: Client, plain: VirtualMachine) -> None:
    found = page(admin, "inventory:summary", "vm", plain.pk)
    assert "Unlock…" not in found and BADGE not in found


def test_unlock_and_twice(admin: Client, locked: VirtualMachine, sent: list[tuple[str, list[str], str]]) -> None:
    answer = admin.post(unlock_url(locked))
    assert answer.status_code == 302
    assert answer.headers["Location"] == reverse("inventory:monitor", args=["vm", locked.pk])
    job = Job.objects.get()
    assert (job.kind, job.target_id, job.actor) == ("encryption.unlock_vm", locked.pk, "alice")
    assert Event.objects.get().kind == "vm.unlock_requested"
    answer = admin.post(unlock_url(locked))
    assert answer.status_code == 409 and "app-01 is busy: Unlock VM" in answer.content.decode()
    assert Job.objects.count() == 1


def test_not_encrypted(admin: Client, plain: VirtualMachine) -> None:
    answer = admin.post(unlock_url(plain))
    assert answer.status_code == 409 and "app-01 is not encrypted" in answer.content.decode()
    assert not Job.objects.exists()


def test_the_wrong_person_nobody_and_no_vm(looker: Client, admin: Client, locked: VirtualMachine) -> None:
    assert looker.get(unlock_url(locked)).status_code == looker.post(unlock_url(locked)).status_code == 403
    assert reverse("login") in Client().post(unlock_url(locked)).headers["Location"]
    assert admin.post(reverse("encryption:vm-unlock", args=[uuid4()])).status_code == 404
    assert not Job.objects.exists()


class TestApi:
    def path(self, vm: VirtualMachine, what: str) -> str:
        return f"/virtual-machines/{vm.pk}/{what}"

    def test_told_in_the_options(self, alice: User, locked: VirtualMachine) -> None:
        lock = caller(alice).get(self.path(locked, "options")).body["lock"]
        assert lock.pop("since")
        assert lock == {
            "cause": "kms_error", "detail": "key server kms:5696 does not answer", "remedy": "start it",
            "parts": ["vda"],
        }  # fmt: skip

    def test_null_while_free(self, alice: User, free: VirtualMachine) -> None:
        assert caller(alice).get(self.path(free, "options")).body["lock"] is None

    def test_unlock_and_twice(self, alice: User, locked: VirtualMachine) -> None:
        asks = caller(alice)
        answer = asks.post(self.path(locked, "unlock"))
        assert answer.status == 202 and answer.body["kind"] == "encryption.unlock_vm"
        answer = asks.post(self.path(locked, "unlock"))
        assert (answer.status, answer.code) == (409, "target_busy")

    def test_refused(self, alice: User, charlie: User, plain: VirtualMachine) -> None:
        answer = caller(alice).post(self.path(plain, "unlock"))
        assert (answer.status, answer.code) == (409, "not_encrypted")
        answer = caller(charlie).post(self.path(plain, "unlock"))
        assert (answer.status, answer.code) == (403, "not_permitted")
        assert Caller(None).post(self.path(plain, "unlock")).status == 401
        assert caller(alice).post(f"/virtual-machines/{uuid4()}/unlock").status == 404
        assert not Job.objects.exists()
