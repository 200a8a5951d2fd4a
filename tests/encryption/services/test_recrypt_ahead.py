"""Recrypt of many VMs: keys of the next batch are made while this one is at work, and none of them gets lost."""

import threading
from collections.abc import Sequence

import pytest
from django.contrib.auth.models import User

from encryption.engine.key_server import KeyOrder, KmsError, KmsUnreachable, ServerAddress
from encryption.models import Key, KmsServer
from encryption.services import recrypt, recrypt_many
from inventory import jobs
from inventory.engine.hypervisor import HostUnreachable
from inventory.jobs import Progress
from inventory.models import Event, Job, JobStatus
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.test_recrypt_many import Killed, MakeFleet, ask, calls_with, make_fleet, run

__all__ = ["make_fleet"]

pytestmark = pytest.mark.django_db


def test_the_keys_of_the_next_batch_are_asked_for_by_another_thread(
    make_fleet: MakeFleet, alice: User, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(45, 3)
    by_other: list[bool] = []
    calls_with(lambda _: by_other.append(threading.current_thread() is not threading.main_thread()), keys, monkeypatch)
    assert run(ask(fleet, alice)).status == JobStatus.SUCCEEDED
    # The first batch of each host waits for its keys: until the host answers, none are made for it.
    assert (by_other.count(False), by_other.count(True)) == (20 + 3, 25)
    assert len(keys.keys) == 96


def test_a_key_provider_that_is_lost_ahead_ends_it_after_the_keys_that_were_made(
    make_fleet: MakeFleet, alice: User, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, created = make_fleet(45, 0), 0
    before = fleet.keys()

    def lose_the_31st(_: str) -> None:
        nonlocal created
        created += 1
        if created > 30:
            raise KmsUnreachable(ServerAddress("memory"), "no answer in time")

    with monkeypatch.context() as patch:
        calls_with(lose_the_31st, keys, patch)
        job = run(ask(fleet, alice))
    assert (job.status, job.error_code, created) == (JobStatus.FAILED, "kms_unreachable", 31)
    after = fleet.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert len(changed) == 20 and all(fleet.carried(name) == after[name] for name in changed)
    assert set(after.values()) <= set(keys.keys) and len(keys.keys) == 75
    assert Event.objects.filter(kind="key.unused").count() == 10


def test_cancelled_a_batch_with_new_keys_is_finished_and_none_is_made_for_the_next(
    make_fleet: MakeFleet, alice: User, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(45, 0)
    before, job = fleet.keys(), ask(fleet, alice)

    def cancel(_: str) -> None:
        Job.objects.filter(pk=job.pk).update(cancel_requested=True)

    # Looked for at every turn, not once a second.
    monkeypatch.setattr(Progress, "advance", lambda self, done: self.step("recrypting"))
    calls_with(cancel, keys, monkeypatch)
    assert run(job).status == JobStatus.CANCELLED
    after = fleet.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert len(changed) == 20 and all(fleet.carried(name) == after[name] for name in changed)
    assert len(keys.keys) == 65 and list(job.checkpoint["results"].values()) == ["ok"] * 20


def test_killed_before_keys_that_were_made_ahead_are_used_the_next_run_finds_them(
    make_fleet: MakeFleet, alice: User, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(25, 0)
    job, all_made = ask(fleet, alice), threading.Event()
    made: list[str] = []

    def killed(*_: object) -> None:
        assert all_made.wait(30)
        raise Killed

    def tell_the_last(name: str) -> None:
        made.append(name)
        if len(made) == 25:  # and the other thread ends only after this one
            all_made.set()

    with monkeypatch.context() as patch:
        calls_with(tell_the_last, keys, patch)
        patch.setattr(fleet.hosts["a"], "redefine", killed)
        with pytest.raises(Killed):
            jobs.run(str(job.pk), recrypt_many.run_recrypt_vms)
    assert (len(keys.keys), Key.objects.count()) == (50, 45)
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    assert run(job).status == JobStatus.SUCCEEDED
    after = fleet.keys()
    assert (len(keys.keys), Key.objects.count()) == (50, 50)
    assert {name: fleet.carried(name) for name in after} == after


def test_keys_that_one_server_made_are_activated_and_fetched_at_the_next(
    make_fleet: MakeFleet, alice: User, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(25, 0)
    KmsServer.objects.create(cluster=fleet.provider, host="second", position=1)
    before, activate = len(keys.keys), keys.activate_keys

    def lost_when_activating(key_ids: Sequence[str]) -> tuple[KmsError | None, ...]:
        monkeypatch.setattr(keys, "activate_keys", activate)
        return (KmsUnreachable(ServerAddress("first"), "no answer in time", outcome_unknown=True),) * len(key_ids)

    monkeypatch.setattr(keys, "activate_keys", lost_when_activating)
    job = run(ask(fleet, alice))
    assert job.status == JobStatus.SUCCEEDED, job.message
    assert len(keys.keys) == before + 25
    assert set(fleet.keys().values()) == set(list(keys.keys)[before:])
    assert not Event.objects.filter(kind="key.unused").exists()
    assert Event.objects.filter(kind="kms.server_lost").count() == 1


@pytest.mark.parametrize("is_back", [True, False])
def test_keys_that_may_have_been_made_without_an_answer_are_looked_for(
    make_fleet: MakeFleet, alice: User, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch, is_back: bool
) -> None:
    fleet = make_fleet(2, 0)
    before, create = fleet.keys(), keys.create_keys

    def without_an_answer(orders: Sequence[KeyOrder]) -> tuple[str | KmsError, ...]:
        create(orders[:1])
        return (KmsUnreachable(ServerAddress("memory"), "no answer in time", outcome_unknown=True),) * len(orders)

    def away(**_: object) -> tuple[str, ...]:
        raise KmsUnreachable(ServerAddress("memory"), "refuses the connection")

    with monkeypatch.context() as patch:
        patch.setattr(keys, "create_keys", without_an_answer)
        if not is_back:
            patch.setattr(keys, "locate", away)
        job = run(ask(fleet, alice))
    assert (job.error_code, fleet.keys()) == ("kms_unreachable", before)
    (made,) = set(keys.keys) - set(before.values())
    (event,) = Event.objects.filter(kind="key.unused")
    if is_back:
        assert (event.data["key_id"], event.data["name"]) == (made, keys.names[made])
        assert Key.objects.filter(key_id=made).exists()
    else:
        assert (event.severity, len(event.data["names"])) == ("warning", 2) and keys.names[made] in event.data["names"]
        assert "Up to 2 keys that protect nothing may have been made at KMS" in event.message
    assert run(ask(fleet, alice)).status == JobStatus.SUCCEEDED


def test_killed_with_keys_made_for_a_vm_that_is_busy_when_it_goes_on_they_are_told(
    make_fleet: MakeFleet, alice: User, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(2, 0)
    job = ask(fleet, alice)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(recrypt_many, "take_over", killed)
        with pytest.raises(Killed):
            jobs.run(str(job.pk), recrypt_many.run_recrypt_vms)
    job.refresh_from_db()
    assert set(job.checkpoint["making"]) == {str(vm.pk) for vm in fleet.vms.values()} and len(keys.keys) == 4
    other = recrypt.recrypt_vm(vm_id=fleet.vms["a-00"].pk, actor=alice)
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)
    assert "1 of 2 VMs keep their keys (target_busy)" in run(job).message
    assert len(keys.keys) == 4 and fleet.keys()["a-01"] == fleet.carried("a-01")
    (event,) = Event.objects.filter(kind="key.unused")
    assert str(fleet.vms["a-00"].uuid) in event.data["name"]
    assert Job.objects.get(pk=other.pk).status == JobStatus.PENDING


def test_a_host_that_is_lost_leaves_no_key_untold_that_was_made_ahead(
    make_fleet: MakeFleet, alice: User, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(30, 0)

    def lost(*_: object) -> None:
        raise HostUnreachable("host_lost", "the connection broke")

    monkeypatch.setattr(fleet.hosts["a"], "redefine", lost)
    job = run(ask(fleet, alice))
    assert job.error_code == "some_failed" and len(keys.keys) == 60
    # Twenty are in use, whatever the definitions say; ten were made for the next batch, which the host could not get.
    assert Event.objects.filter(kind="key.unused").count() == 10
    assert Key.objects.count() == 60
