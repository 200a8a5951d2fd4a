"""Keys at a real key server: revoked, destroyed, their states read, and what is in use left alone."""

import os
from datetime import timedelta

import pytest
from django.contrib.auth.models import User

from encryption.adapters.kmip_client import KmipClient
from encryption.engine.key_server import KeyAttributes, KeyState, NotPermitted
from encryption.models import Key, KmsCluster, Purpose, StoragePolicy, VmSecurity, WrappedSecret
from encryption.services import key_access, key_lifecycle, key_providers, keys, kms_health
from inventory.errors import Conflict, NotFound
from inventory.models import Cluster, Event, Job, JobStatus, VirtualMachine
from tests.encryption.adapters.conftest import RunningKms
from tests.encryption.services.real_kms import connected, run, some_vm

pytestmark = pytest.mark.django_db


@pytest.fixture
def vm(cluster: Cluster) -> VirtualMachine:
    return some_vm(cluster)


@pytest.fixture
def provider(alice: User, kms_server: RunningKms) -> KmsCluster:
    return connected(alice, kms_server)


def new_key(provider: KmsCluster, vm: VirtualMachine, actor: User) -> Key:
    job = run(key_providers.check(cluster_id=provider.pk, actor=actor), kms_health.check_key_provider)
    return key_access.make_key(provider, vm, name=f"bartizan/{vm.uuid}/{os.urandom(8).hex()}", job=job)


def protect(key: Key, vm: VirtualMachine) -> None:
    WrappedSecret.objects.create(virtual_machine=vm, purpose=Purpose.NVRAM, key=key, wrapped=b"x", path="/x")


def test_an_unused_key_is_destroyed_there(alice: User, provider: KmsCluster, vm: VirtualMachine) -> None:
    key = new_key(provider, vm, alice)
    job = run(keys.destroy(key_id=key.pk, confirm=f" {key.key_id} ", actor=alice), key_lifecycle.destroy_key)
    assert job.status == JobStatus.SUCCEEDED
    key.refresh_from_db()
    assert key.state == Key.State.DESTROYED
    with pytest.raises(NotFound) as caught, key_access.fetched_key(key):
        pytest.fail("it is gone")
    assert caught.value.code == "kms_key_not_found"
    assert Event.objects.get(kind="key.destroyed").data["key_id"] == key.key_id
    with pytest.raises(Conflict) as twice:
        keys.destroy(key_id=key.pk, confirm=key.key_id, actor=alice)
    assert twice.value.code == "key_ended"
    key_providers.remove_cluster(cluster_id=provider.pk, actor=alice)  # nothing hangs on it any more


def test_a_key_that_is_taken_meanwhile_stays(alice: User, provider: KmsCluster, vm: VirtualMachine) -> None:
    key = new_key(provider, vm, alice)
    job = keys.destroy(key_id=key.pk, confirm=key.key_id, actor=alice)
    protect(key, vm)
    run(job, key_lifecycle.destroy_key)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "key_in_use")
    with key_access.fetched_key(key) as kek:
        assert len(kek) == 32


@pytest.mark.parametrize("how", ["secret", "security", "job"])
def test_in_use_in_each_way(alice: User, provider: KmsCluster, vm: VirtualMachine, how: str) -> None:
    key = new_key(provider, vm, alice)
    if how == "secret":
        protect(key, vm)
    elif how == "security":
        policy = StoragePolicy.objects.filter(encrypts=True)[0]
        VmSecurity.objects.create(virtual_machine=vm, policy=policy, key=key)
    else:
        job = Job.objects.create(kind="x", target_kind="vm", target_id=vm.pk, target_name="app", actor="alice")
        Key.objects.update(name=key_access.new_key_name(vm, job.pk))
    with pytest.raises(Conflict) as destroying:
        keys.destroy(key_id=key.pk, confirm=key.key_id, actor=alice)
    with pytest.raises(Conflict) as revoking:
        keys.revoke(key_id=key.pk, reason="superseded", actor=alice)
    assert destroying.value.code == revoking.value.code == "key_in_use"
    assert destroying.value.hint
    assert not Job.objects.filter(kind__in=("encryption.destroy_key", "encryption.revoke_key")).exists()


@pytest.mark.parametrize("by", ["id", "name"])
def test_a_key_of_an_earlier_console_is_found_and_listed(
    alice: User, provider: KmsCluster, vm: VirtualMachine, by: str
) -> None:
    made = new_key(provider, vm, alice)
    Key.objects.all().delete()
    job = keys.adopt(cluster_id=provider.pk, wanted=f" {made.key_id if by == 'id' else made.name} ", actor=alice)
    assert run(job, key_lifecycle.adopt_key).status == JobStatus.SUCCEEDED, job.message
    key = Key.objects.get()
    assert (key.key_id, key.name, key.state, key.is_foreign) == (made.key_id, made.name, Key.State.ACTIVE, True)
    assert abs(key.created_at - made.created_at) < timedelta(minutes=5)
    assert Event.objects.get(kind="key.adopted").data["key_id"] == made.key_id
    with key_access.fetched_key(key) as kek:
        assert len(kek) == 32
    with pytest.raises(Conflict) as twice:
        keys.adopt(cluster_id=provider.pk, wanted=made.key_id, actor=alice)
    assert twice.value.code == "key_known"
    again = run(keys.adopt(cluster_id=provider.pk, wanted=made.name, actor=alice), key_lifecycle.adopt_key)
    assert again.error_code == "key_known"


def test_keys_that_are_not_adopted(
    alice: User, provider: KmsCluster, vm: VirtualMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(wanted: str) -> str:
        return run(keys.adopt(cluster_id=provider.pk, wanted=wanted, actor=alice), key_lifecycle.adopt_key).error_code

    assert tried("nothing of that name") == "kms_key_not_found"
    twin = f"twin {os.urandom(8).hex()}"
    ids = [key_access.with_key_server(provider, lambda server: server.create_key(name=twin)) for _ in range(2)]
    assert tried(twin) == "key_name_ambiguous"

    def weak(self: KmipClient, key_id: str) -> KeyAttributes:
        return KeyAttributes(key_id, (), KeyState.ACTIVE, "AES", 128, frozenset())

    monkeypatch.setattr(KmipClient, "attributes", weak)
    assert tried(ids[0]) == "key_unfit"
    assert not Key.objects.exists()


def test_revoked_and_still_given_out(alice: User, provider: KmsCluster, vm: VirtualMachine) -> None:
    key = new_key(provider, vm, alice)
    job = run(keys.revoke(key_id=key.pk, reason="superseded", actor=alice), key_lifecycle.revoke_key)
    assert job.status == JobStatus.SUCCEEDED
    key.refresh_from_db()
    assert key.state == Key.State.DEACTIVATED
    with key_access.fetched_key(key) as kek:
        assert len(kek) == 32
    assert run(
        keys.revoke(key_id=key.pk, reason="superseded", actor=alice), key_lifecycle.revoke_key
    ).status == JobStatus.SUCCEEDED  # fmt: skip


def test_a_compromised_key_in_use_can_be_marked(alice: User, provider: KmsCluster, vm: VirtualMachine) -> None:
    key = new_key(provider, vm, alice)
    protect(key, vm)
    run(keys.revoke(key_id=key.pk, reason="key_compromise", actor=alice), key_lifecycle.revoke_key)
    key.refresh_from_db()
    assert key.state == Key.State.COMPROMISED
    with key_access.fetched_key(key) as kek:
        assert len(kek) == 32


def test_states_are_read_and_strange_keys_only_counted(alice: User, provider: KmsCluster, vm: VirtualMachine) -> None:
    known, other = (new_key(provider, vm, alice) for _ in range(2))
    Key.objects.filter(pk=known.pk).update(state=Key.State.PRE_ACTIVE, algorithm="?")
    other.delete()
    job = run(keys.request_refresh(cluster_id=provider.pk, actor=alice), key_lifecycle.refresh_keys)
    assert job.status == JobStatus.SUCCEEDED
    known.refresh_from_db()
    assert (known.state, known.algorithm) == (Key.State.ACTIVE, "AES-256")
    told = Event.objects.get(kind="kms.keys_refreshed")
    assert told.data["keys"] == 1 and told.data["unknown"] >= 1
    assert Key.objects.count() == 1


def test_a_key_that_may_not_be_asked_about_hides_no_other(
    alice: User, provider: KmsCluster, vm: VirtualMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, ours = (new_key(provider, vm, alice) for _ in range(2))
    Key.objects.update(state=Key.State.PRE_ACTIVE)
    ask = KmipClient.attributes

    def strict(client: KmipClient, key_id: str) -> KeyAttributes:
        if key_id == foreign.key_id:
            raise NotPermitted(client.address, "get attributes", key_id)
        return ask(client, key_id)

    monkeypatch.setattr(KmipClient, "attributes", strict)
    kms_health.check_cluster(str(provider.pk))
    foreign.refresh_from_db()
    ours.refresh_from_db()
    assert (foreign.state, ours.state) == (Key.State.PRE_ACTIVE, Key.State.ACTIVE)
    assert foreign.checked_at is not None


def test_the_row_is_not_the_servers_word(alice: User, provider: KmsCluster, vm: VirtualMachine) -> None:
    """Revoked there by somebody else: destroying goes on from what is."""
    key = new_key(provider, vm, alice)
    run(keys.revoke(key_id=key.pk, reason="superseded", actor=alice), key_lifecycle.revoke_key)
    Key.objects.update(state=Key.State.ACTIVE)
    assert key_access.with_key_server(provider, lambda server: server.state(key.key_id)) is KeyState.DEACTIVATED
    job = run(keys.destroy(key_id=key.pk, confirm=key.key_id, actor=alice), key_lifecycle.destroy_key)
    assert job.status == JobStatus.SUCCEEDED
