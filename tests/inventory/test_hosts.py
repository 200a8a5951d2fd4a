"""Hosts and places: added, connected, refused, edited, removed; by the right person and the wrong one."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import AnonymousUser, User

from inventory import jobs
from inventory.errors import Conflict, Invalid, NotFound, Refused, ServiceError
from inventory.models import Cluster, Datacenter, Event, Host, Job, JobStatus, VirtualMachine
from inventory.services import hosts, places, virtual_machines
from tests.fakes import FakeHypervisor, FakeSite, vm

pytestmark = pytest.mark.django_db
URI = "qemu+tls://kvm-new/system"


def add(cluster: Cluster, actor: User, name: str = "kvm-new", uri: str = URI) -> Job:
    return hosts.add_host(cluster_id=cluster.pk, name=name, uri=uri, actor=actor)


def run(job: Job) -> Job:
    jobs.run(str(job.pk), hosts.run_connect_host)
    job.refresh_from_db()
    return job


@pytest.fixture(autouse=True)
def _no_broker(sent: object) -> None:
    pass


def test_added_and_connected(cluster: Cluster, alice: User, site: FakeSite) -> None:
    site.add(URI).add(vm("one"), vm("two"))
    job = add(cluster, alice)
    host = Host.objects.get()
    assert (host.state, job.kind, job.target_id) == (Host.State.CONNECTING, "inventory.connect_host", host.pk)
    assert run(job).status == JobStatus.SUCCEEDED
    host.refresh_from_db()
    assert (host.state, host.cpu_model, host.virtual_machines.count()) == (Host.State.CONNECTED, "Fake-1", 2)
    kinds = list(Event.objects.order_by("id").values_list("kind", "actor"))
    assert kinds == [("host.added", "alice"), ("host.connected", "alice"), ("host.synced", "alice")]


def test_one_that_does_not_answer_can_be_tried_again(cluster: Cluster, alice: User, site: FakeSite) -> None:
    job = run(add(cluster, alice))
    host = Host.objects.get()
    assert (job.status, job.error_code) == (JobStatus.FAILED, "connection_refused")
    assert host.state == Host.State.DISCONNECTED
    assert "Connection refused" in host.state_reason
    site.add(URI)
    assert run(hosts.refresh_host(host_id=host.pk, actor=alice)).status == JobStatus.SUCCEEDED
    host.refresh_from_db()
    assert (host.state, host.state_reason) == (Host.State.CONNECTED, "")


def test_the_same_machine_twice(cluster: Cluster, alice: User, site: FakeSite) -> None:
    machine = site.add(URI)
    run(add(cluster, alice))
    site.add("qemu+ssh://kvm-new/system", FakeHypervisor(machine.host_uuid))
    job = run(add(cluster, alice, "again", "qemu+ssh://kvm-new/system"))
    assert (job.status, job.error_code) == (JobStatus.FAILED, "host_known_already")
    assert Host.objects.get(name="again").state == Host.State.DISCONNECTED


@pytest.mark.parametrize(
    ("name", "uri", "code"),
    [
        ("", URI, "name_invalid"),
        ("x" * 121, URI, "name_invalid"),
        ("a\nb", URI, "name_invalid"),
        ("kvm", "qemu+ssh://kvm/system?command=/bin/sh", "uri_parameter"),
        ("kvm", "", "uri_malformed"),
    ],
)
def test_bad_input(cluster: Cluster, alice: User, name: str, uri: str, code: str) -> None:
    with pytest.raises(Invalid) as caught:
        add(cluster, alice, name, uri)
    assert caught.value.code == code
    assert not Host.objects.exists()


def test_bad_migration_uri_and_folder(cluster: Cluster, alice: User) -> None:
    for extra in ({"migration_uri": "qemu:///system"}, {"vtpm_state_path": "relative"}):
        with pytest.raises(Invalid):
            hosts.add_host(cluster_id=cluster.pk, name="kvm", uri=URI, actor=alice, **extra)


def test_name_and_uri_are_taken_once(cluster: Cluster, alice: User, host: Host) -> None:
    for name, uri in ((host.name, URI), ("other", host.uri)):
        with pytest.raises(Conflict) as caught:
            add(cluster, alice, name, uri)
        assert caught.value.code == "host_exists"
    assert Job.objects.count() == 0


def test_edit(alice: User, host: Host, hypervisor: FakeHypervisor, site: FakeSite) -> None:
    assert hosts.edit_host(host_id=host.pk, name="renamed", uri=host.uri, actor=alice) is None
    job = hosts.edit_host(host_id=host.pk, name="renamed", uri=URI, actor=alice)
    assert job is not None
    host.refresh_from_db()
    assert (host.name, host.uri, host.state) == ("renamed", URI, Host.State.CONNECTING)
    site.add(URI)
    assert run(job).status == JobStatus.SUCCEEDED


def test_remove(alice: User, host: Host, hypervisor: FakeHypervisor) -> None:
    machine = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="vm")
    job = jobs.start(hosts.REFRESH, target=machine, actor=alice)
    with pytest.raises(Conflict) as caught:
        hosts.remove_host(host_id=host.pk, actor=alice)
    assert caught.value.code == "target_busy"
    jobs.request_cancel(job.pk, actor=alice)
    hosts.remove_host(host_id=host.pk, actor=alice)
    assert not Host.objects.exists()
    assert hypervisor.calls == []
    assert Event.objects.filter(kind="host.removed", actor="alice").count() == 1


def test_a_guard_keeps_rows_that_are_needed(alice: User, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def guard(rows: object) -> None:
        raise Conflict("keys_hang_on_it", "vm holds keys")

    monkeypatch.setattr(virtual_machines, "_GUARDS", [guard])
    with pytest.raises(Conflict, match="holds keys"):
        hosts.remove_host(host_id=host.pk, actor=alice)
    assert Host.objects.exists()


def test_remove_a_vm_only_when_it_is_gone(alice: User, host: Host) -> None:
    machine = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="vm")
    with pytest.raises(Conflict) as caught:
        virtual_machines.remove_from_inventory(vm_id=machine.pk, actor=alice)
    assert caught.value.code == "vm_present"
    VirtualMachine.objects.update(is_present=False)
    virtual_machines.remove_from_inventory(vm_id=machine.pk, actor=alice)
    assert not VirtualMachine.objects.exists()
    with pytest.raises(NotFound):
        virtual_machines.remove_from_inventory(vm_id=machine.pk, actor=alice)


def test_who_may_not(charlie: User, cluster: Cluster, host: Host) -> None:
    machine = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="vm", is_present=False)
    for actor in (charlie, AnonymousUser()):
        for attempt in (
            lambda actor=actor: hosts.add_host(cluster_id=cluster.pk, name="n", uri=URI, actor=actor),
            lambda actor=actor: hosts.edit_host(host_id=host.pk, name="n", uri=URI, actor=actor),
            lambda actor=actor: hosts.refresh_host(host_id=host.pk, actor=actor),
            lambda actor=actor: hosts.remove_host(host_id=host.pk, actor=actor),
            lambda actor=actor: places.add_datacenter(name="n", actor=actor),
            lambda actor=actor: places.add_cluster(datacenter_id=cluster.datacenter_id, name="n", actor=actor),
            lambda actor=actor: places.rename_cluster(cluster_id=cluster.pk, name="n", actor=actor),
            lambda actor=actor: places.remove_cluster(cluster_id=cluster.pk, actor=actor),
            lambda actor=actor: virtual_machines.remove_from_inventory(vm_id=machine.pk, actor=actor),
        ):
            with pytest.raises(Refused):
                attempt()
    assert not Event.objects.exists()


def test_places(alice: User) -> None:
    datacenter = places.add_datacenter(name="  DC ", actor=alice)
    cluster = places.add_cluster(datacenter_id=datacenter.pk, name="C1", actor=alice)
    assert (datacenter.name, cluster.name) == ("DC", "C1")
    with pytest.raises(Conflict) as taken:
        places.add_datacenter(name="DC", actor=alice)
    assert taken.value.code == "name_taken"
    places.rename_datacenter(datacenter_id=datacenter.pk, name="DC 2", actor=alice)
    places.rename_cluster(cluster_id=cluster.pk, name="C2", actor=alice)
    with pytest.raises(Conflict) as full:
        places.remove_datacenter(datacenter_id=datacenter.pk, actor=alice)
    assert full.value.code == "not_empty"
    places.remove_cluster(cluster_id=cluster.pk, actor=alice)
    places.remove_datacenter(datacenter_id=datacenter.pk, actor=alice)
    assert not Datacenter.objects.exists()
    assert list(Event.objects.order_by("id").values_list("kind", flat=True)) == [
        "datacenter.added", "cluster.added", "datacenter.renamed", "cluster.renamed", "cluster.removed",
        "datacenter.removed",
    ]  # fmt: skip


def test_what_is_not_there(alice: User) -> None:
    for attempt in (
        lambda: places.rename_datacenter(datacenter_id=uuid4(), name="n", actor=alice),
        lambda: places.add_cluster(datacenter_id=uuid4(), name="n", actor=alice),
        lambda: hosts.add_host(cluster_id=uuid4(), name="n", uri=URI, actor=alice),
        lambda: hosts.remove_host(host_id=uuid4(), actor=alice),
    ):
        with pytest.raises(ServiceError) as caught:
            attempt()
        assert isinstance(caught.value, NotFound)
