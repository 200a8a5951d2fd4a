"""One job for many VMs: one connection to each host and to the key server, results of each, and what ends it early."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from encryption.engine import keywrap
from encryption.engine.key_server import KmsUnreachable, ServerAddress
from encryption.engine.metadata import from_xml
from encryption.engine.secret import Secret
from encryption.models import Key, KmsCluster, VmSecurity, WrappedSecret
from encryption.services import recrypt, recrypt_many, vm_metadata
from encryption.services.key_access import KeySession
from encryption.services.release import open_secrets
from inventory import jobs
from inventory.engine.hypervisor import HostUnreachable
from inventory.jobs import Progress
from inventory.models import Cluster, Event, Host, Job, JobStatus, VirtualMachine
from inventory.services import definitions
from tests.encryption.file_host import FileHost, MemoryKeyServer
from tests.encryption.many_vms import any_job, encrypted_vm
from tests.fakes import FakeSite

pytestmark = pytest.mark.django_db


@dataclass
class Fleet:
    """VMs on two hosts, `a-0` ... and `b-0` ..."""

    provider: KmsCluster
    hosts: dict[str, FileHost]
    vms: dict[str, VirtualMachine]

    def keys(self) -> dict[str, str]:
        rows = VmSecurity.objects.select_related("key", "virtual_machine")
        return {row.virtual_machine.name: str(row.key) for row in rows}

    def carried(self, name: str) -> str:
        vm = self.vms[name]
        found = definitions.metadata(self.hosts[name[0]].definition(vm.uuid), vm_metadata.NAMESPACE)
        assert found is not None
        return from_xml(found).kek_id


MakeFleet = Callable[[int, int], Fleet]


@pytest.fixture
def make_fleet(cluster: Cluster, site: FakeSite, keys: MemoryKeyServer) -> MakeFleet:
    def make(on_a: int, on_b: int) -> Fleet:
        provider = KmsCluster.objects.get()
        job, hosts, vms = any_job(provider), {}, {}
        with KeySession(provider) as session:
            for letter, count in (("a", on_a), ("b", on_b)):
                uri = f"qemu+tls://{letter}/system"
                host = Host.objects.create(
                    cluster=cluster, name=letter, uri=uri, state=Host.State.CONNECTED, last_seen_at=timezone.now()
                )
                hosts[letter] = FileHost()
                site.add(uri, hosts[letter])
                for number in range(count):
                    name = f"{letter}-{number:02}"
                    vms[name] = encrypted_vm(host, hosts[letter], session, job, name)
        return Fleet(provider, hosts, vms)

    return make


def run(job: Job) -> Job:
    jobs.run(str(job.pk), recrypt_many.run_recrypt_vms)
    job.refresh_from_db()
    return job


def ask(fleet: Fleet, actor: User) -> Job:
    return recrypt.recrypt_provider(cluster_id=fleet.provider.pk, actor=actor)


def test_each_host_is_opened_once_and_every_vm_has_a_key_of_its_own(
    make_fleet: MakeFleet, alice: User, site: FakeSite
) -> None:
    fleet = make_fleet(45, 3)
    before = fleet.keys()
    job = run(ask(fleet, alice))
    assert job.status == JobStatus.SUCCEEDED, job.message
    after = fleet.keys()
    assert len(set(after.values())) == 48 and not set(after.values()) & set(before.values())
    assert {name: fleet.carried(name) for name in after} == after
    assert sorted(site.opened) == ["qemu+tls://a/system", "qemu+tls://b/system"]
    assert set(job.checkpoint["results"].values()) == {"ok"} and len(job.checkpoint["results"]) == 48
    for vm in fleet.vms.values():
        assert len(open_secrets(vm.wrapped_secrets.select_related("key__cluster", "virtual_machine"))) == 2


def test_one_key_that_many_share_is_fetched_once_and_none_is_searched_for(
    make_fleet: MakeFleet, alice: User, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(3, 0)
    shared = Key.objects.all()[0]
    with KeySession(fleet.provider) as session:
        kek = session.fetch(shared)
        for vm in fleet.vms.values():
            for one in open_secrets(vm.wrapped_secrets.select_related("key__cluster", "virtual_machine")):
                one.row.wrapped, one.row.key = keywrap.wrap(kek, one.data_key), shared
                one.row.save()
    VmSecurity.objects.update(key=shared)
    asked: list[str] = []
    get_key = keys.get_key

    def counted(key_id: str) -> Secret:
        asked.append(key_id)
        return get_key(key_id)

    monkeypatch.setattr(keys, "get_key", counted)
    monkeypatch.setattr(keys, "locate", lambda **_: pytest.fail("searched for"))
    assert run(ask(fleet, alice)).status == JobStatus.SUCCEEDED
    assert len(set(fleet.keys().values())) == 3
    assert asked.count(shared.key_id) == 1 and len(asked) == 4


def test_a_host_that_is_away_holds_up_no_other(make_fleet: MakeFleet, alice: User) -> None:
    fleet = make_fleet(2, 2)
    before = fleet.keys()
    fleet.hosts["a"].is_reachable = False
    job = run(ask(fleet, alice))
    assert (job.status, job.error_code) == (JobStatus.FAILED, "some_failed")
    assert "2 of 4 VMs keep their keys (connection_refused)" in job.message
    after = fleet.keys()
    assert {name for name in after if after[name] != before[name]} == {"b-00", "b-01"}
    told = Event.objects.filter(kind="key.recrypt_failed")
    assert {event.target_name for event in told} == {"a-00", "a-01"}
    assert all("keeps its key" in event.message for event in told)


def test_a_host_that_is_lost_on_the_way_is_told_of_each(
    make_fleet: MakeFleet, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(2, 1)

    def lost(*_: object) -> None:
        raise HostUnreachable("host_lost", "the connection broke")

    monkeypatch.setattr(fleet.hosts["a"], "redefine", lost)
    job = run(ask(fleet, alice))
    assert job.error_code == "some_failed" and "(host_lost)" in job.message
    told = Event.objects.filter(kind="key.recrypt_failed")
    assert all("has its new key, but its definition on the host names the old one" in event.message for event in told)
    assert fleet.carried("b-00") == fleet.keys()["b-00"]
    for vm in fleet.vms.values():  # whatever the definition says, the rows open
        assert open_secrets(vm.wrapped_secrets.select_related("key__cluster", "virtual_machine"))


def test_a_key_provider_that_is_lost_ends_it_and_the_next_job_does_the_rest(
    make_fleet: MakeFleet, alice: User, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(3, 0)
    before = fleet.keys()
    created: list[str] = []

    def until_lost(name: str) -> None:
        if len(created) == 2:
            raise KmsUnreachable(ServerAddress("memory"), "no answer in time")
        created.append(name)

    with monkeypatch.context() as patch:
        calls_with(until_lost, keys, patch)
        job = run(ask(fleet, alice))
    assert (job.status, job.error_code, job.checkpoint["results"]) == (JobStatus.FAILED, "kms_unreachable", {})
    assert fleet.keys() == before
    assert not Event.objects.filter(kind="key.recrypt_failed").exists()
    # Two keys were made that could not be activated: they are told, and stand among the keys of the provider.
    told = {str(event.data["key_id"]): event.data["name"] for event in Event.objects.filter(kind="key.unused")}
    assert set(told.values()) == set(created) == {keys.names[key_id] for key_id in told}
    assert Key.objects.filter(key_id__in=told).count() == 2
    assert run(ask(fleet, alice)).status == JobStatus.SUCCEEDED


def test_killed_on_the_way_no_vm_gets_two_keys(
    make_fleet: MakeFleet, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(25, 0)
    job = ask(fleet, alice)
    redefine, count = fleet.hosts["a"].redefine, 0

    def killing(uuid: object, edit: object) -> None:
        nonlocal count
        count += 1
        if count == 22:
            raise Killed
        redefine(uuid, edit)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(fleet.hosts["a"], "redefine", killing)
        with pytest.raises(Killed):
            jobs.run(str(job.pk), recrypt_many.run_recrypt_vms)
    half, made = fleet.keys(), Key.objects.count()
    assert made == 50
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    assert run(job).status == JobStatus.SUCCEEDED
    assert (fleet.keys(), Key.objects.count()) == (half, made)
    assert {name: fleet.carried(name) for name in half} == half


class Killed(BaseException):
    """As by a signal: nothing catches it."""


def calls_with(hook: Callable[[str], None], keys: MemoryKeyServer, patch: pytest.MonkeyPatch) -> None:
    """`hook` gets the name of each key before it is made, in the thread that asks for it."""
    create = keys.create_key

    def hooked(*, name: str, labels: Mapping[str, str] | None = None) -> str:
        hook(name)
        return create(name=name, labels=labels)

    patch.setattr(keys, "create_key", hooked)


def test_a_key_that_cannot_be_had_costs_only_its_vm(make_fleet: MakeFleet, alice: User, keys: MemoryKeyServer) -> None:
    fleet = make_fleet(30, 0)
    before = fleet.keys()
    del keys.keys[before["a-24"]]
    keys.keys["gone"] = Secret.generate(32)  # the server counts on
    job = run(ask(fleet, alice))
    assert job.error_code == "some_failed" and "1 of 30 VMs keep their keys (kms_key_not_found)" in job.message
    after = fleet.keys()
    assert {name for name in after if after[name] == before[name]} == {"a-24"}
    assert not any(str(fleet.vms["a-24"].uuid) in name and str(job.pk) in name for name in keys.names.values())


@pytest.mark.parametrize("count", [22, 40])
def test_two_batches_cost_the_same_queries_whatever_their_size(
    make_fleet: MakeFleet, alice: User, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ask(make_fleet(count, 0), alice)
    monkeypatch.setattr(Progress, "advance", lambda self, done: None)  # writes once a second
    with CaptureQueriesContext(connection) as queries:
        run(job)
    # 84, and some room for what other parts may need; one for each VM would be 18 more with the larger ones.
    assert job.status == JobStatus.SUCCEEDED and len(queries) <= 92


def test_a_vm_that_is_busy_or_decrypted_meanwhile_keeps_out_of_it(make_fleet: MakeFleet, alice: User) -> None:
    fleet = make_fleet(3, 0)
    job = ask(fleet, alice)
    other = recrypt.recrypt_vm(vm_id=fleet.vms["a-00"].pk, actor=alice)
    run(job)
    assert (job.error_code, "1 of 3 VMs keep their keys (target_busy)" in job.message) == ("some_failed", True)
    assert Job.objects.get(pk=other.pk).status == JobStatus.PENDING


def test_what_another_job_wrote_into_a_definition_meanwhile_stays(
    make_fleet: MakeFleet, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk is added to the first VM after the rows of all were read, and before its definition is written."""
    fleet = make_fleet(2, 0)
    job, redefine = ask(fleet, alice), fleet.hosts["a"].redefine
    added: list[WrappedSecret] = []

    def adding(uuid: UUID, edit: Callable[[str], str]) -> None:
        if not added:
            vm = next(vm for vm in fleet.vms.values() if vm.uuid == uuid)
            first = vm.wrapped_secrets.all()[0]
            added.append(
                WrappedSecret.objects.create(
                    virtual_machine=vm, purpose=first.purpose, target="vdc", key=first.key, stage="in_use",
                    wrapped=bytes(first.wrapped), path="/images/vdc.luks",
                )
            )  # fmt: skip
            recrypt.recrypt_vm(vm_id=vm.pk, actor=alice)
        redefine(uuid, edit)

    monkeypatch.setattr(fleet.hosts["a"], "redefine", adding)
    assert run(job).status == JobStatus.SUCCEEDED
    vm = added[0].virtual_machine
    found = definitions.metadata(fleet.hosts["a"].definition(vm.uuid), vm_metadata.NAMESPACE)
    assert found is not None and {key.target for key in from_xml(found).secrets} == {"vda", "vdb", "vdc"}


def test_who_used_a_key_and_what_for_is_noted(make_fleet: MakeFleet, alice: User) -> None:
    fleet = make_fleet(1, 0)
    run(ask(fleet, alice))
    key = Key.objects.get(key_id=fleet.keys()["a-00"])
    assert (key.last_used_by, key.last_used_for) == ("alice", "Recrypt VMs of KMS")
    assert key.last_used_at is not None
