"""Discarding a saved state: through its URL, the API and the worker."""

from dataclasses import replace
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from inventory import jobs
from inventory.engine.hypervisor import OperationRefused
from inventory.models import Event, Host, Job, JobStatus, Severity, VirtualMachine
from inventory.services import saved_state, sync
from tests.api_client import Caller, caller
from tests.fakes import FakeHypervisor, FakeSite, vm

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
PATH = "/var/lib/libvirt/qemu/save/app-01.save"


@pytest.fixture
def saved(host: Host, hypervisor: FakeHypervisor) -> VirtualMachine:
    hypervisor.add(vm("app-01", has_managed_save=True))
    hypervisor.files[PATH] = b"LibvirtQemudSave and guest memory"
    sync.sync_host(host, hypervisor)
    Event.objects.all().delete()
    return VirtualMachine.objects.get()


def url(machine: VirtualMachine) -> str:
    return reverse("inventory:discard-saved-state", args=[machine.pk])


def run(job: Job) -> Job:
    jobs.run(str(job.pk), saved_state.run_discard_saved_state)
    job.refresh_from_db()
    return job


def test_shown_confirmed_and_done(admin: Client, saved: VirtualMachine, hypervisor: FakeHypervisor) -> None:
    page = admin.get(reverse("inventory:summary", args=["vm", saved.pk])).content.decode()
    assert "Saved state</span>" in page and "Discard Saved State…" in page and url(saved) in page
    assert "Throw away the saved state of" in admin.get(url(saved)).content.decode()
    assert admin.post(url(saved), {"confirm": "app-01"}).status_code == 302
    job = run(Job.objects.get())
    assert job.status == JobStatus.SUCCEEDED
    assert PATH not in hypervisor.files and not hypervisor.vms[saved.uuid].has_managed_save
    saved.refresh_from_db()
    assert not saved.has_managed_save
    found = list(Event.objects.order_by("id").values_list("kind", "actor", "severity"))
    assert found == [
        ("vm.discard_saved_state_requested", "alice", Severity.INFO),
        ("vm.saved_state_discarded", "alice", Severity.INFO),
        ("vm.changed", "alice", Severity.INFO),
    ]
    page = admin.get(reverse("inventory:summary", args=["vm", saved.pk])).content.decode()
    assert "Saved state" not in page and "Discard Saved State" not in page


def test_said_where_the_place_is_not_known_and_so_not_overwritten(
    saved: VirtualMachine, hypervisor: FakeHypervisor, site: FakeSite, alice: User
) -> None:
    Host.objects.update(uri="qemu+tls://kvm-a/session")
    site.add("qemu+tls://kvm-a/session", hypervisor)
    job = run(saved_state.discard_saved_state(vm_id=saved.pk, confirm="app-01", actor=alice))
    assert job.status == JobStatus.SUCCEEDED
    event = Event.objects.get(kind="vm.saved_state_discarded")
    assert event.severity == Severity.WARNING and "not overwritten" in event.message


def test_the_folder_of_a_session_daemon_is_beside_its_vtpm_state() -> None:
    host = Host(uri="qemu:///session?socket=/x/sock", vtpm_state_path="/x/cfg/libvirt/qemu/swtpm")
    assert saved_state.managed_save_path(VirtualMachine(host=host, name="a")) == "/x/cfg/libvirt/qemu/save/a.save"
    host.vtpm_state_path = "/somewhere/else"
    assert saved_state.managed_save_path(VirtualMachine(host=host, name="a")) == ""


def test_a_second_run_does_nothing_more(saved: VirtualMachine, hypervisor: FakeHypervisor, alice: User) -> None:
    job = saved_state.discard_saved_state(vm_id=saved.pk, confirm="app-01", actor=alice)
    run(job)
    Job.objects.update(status=JobStatus.PENDING)
    assert run(job).status == JobStatus.SUCCEEDED
    assert hypervisor.calls.count("discard_managed_save") == 1
    assert Event.objects.filter(kind="vm.saved_state_discarded").count() == 1


@pytest.mark.parametrize("confirm", ["", "app", "APP-01"])
def test_wrong_confirmation(admin: Client, alice: User, saved: VirtualMachine, confirm: str) -> None:
    answer = admin.post(url(saved), {"confirm": confirm})
    assert answer.status_code == 422
    found = caller(alice).post(f"/virtual-machines/{saved.pk}/discard-saved-state", {"confirm": confirm})
    assert (found.status, found.code) == (422, "confirmation_mismatch")
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [({"has_managed_save": False}, "no_saved_state"), ({"is_present": False}, "no_saved_state")],
)
def test_nothing_to_discard(
    admin: Client, alice: User, saved: VirtualMachine, change: dict[str, object], code: str
) -> None:
    VirtualMachine.objects.update(**change)
    answer = admin.post(url(saved), {"confirm": "app-01"})
    assert answer.status_code == 409 and "has no saved state" in answer.content.decode()
    found = caller(alice).post(f"/virtual-machines/{saved.pk}/discard-saved-state", {"confirm": "app-01"})
    assert (found.status, found.code) == (409, code)


def test_host_away_twice_wrong_person_nobody(admin: Client, alice: User, charlie: User, saved: VirtualMachine) -> None:
    path, body = f"/virtual-machines/{saved.pk}/discard-saved-state", {"confirm": "app-01"}
    Host.objects.update(state=Host.State.DISCONNECTED)
    assert admin.post(url(saved), body).status_code == 409
    assert caller(alice).post(path, body).code == "host_disconnected"
    Host.objects.update(state=Host.State.CONNECTED)
    looker = Client()
    looker.force_login(charlie)
    assert looker.get(url(saved)).status_code == looker.post(url(saved), body).status_code == 403
    assert caller(charlie).post(path, body).code == "not_permitted"
    assert Caller(None).post(path, body).status == 401
    assert reverse("login") in Client().post(url(saved), body).headers["Location"]
    assert caller(alice).post(f"/virtual-machines/{uuid4()}/discard-saved-state", body).status == 404
    assert caller(alice).post(path, body).status == 202
    assert caller(alice).post(path, body).code == "target_busy"
    assert admin.post(url(saved), body).status_code == 409


def test_the_host_refuses(saved: VirtualMachine, hypervisor: FakeHypervisor, alice: User) -> None:
    hypervisor.failures["discard_managed_save"] = OperationRefused("host_refused", "read-only file system")
    job = run(saved_state.discard_saved_state(vm_id=saved.pk, confirm="app-01", actor=alice))
    assert (job.status, job.error_code) == (JobStatus.FAILED, "host_refused")
    saved.refresh_from_db()
    assert saved.has_managed_save
    assert not Event.objects.filter(kind="vm.saved_state_discarded").exists()


def test_gone_before_the_worker_came(saved: VirtualMachine, hypervisor: FakeHypervisor, alice: User) -> None:
    job = saved_state.discard_saved_state(vm_id=saved.pk, confirm="app-01", actor=alice)
    hypervisor.vms[saved.uuid] = replace(hypervisor.vms[saved.uuid], has_managed_save=False)
    assert run(job).status == JobStatus.SUCCEEDED
    assert "discard_managed_save" not in hypervisor.calls
