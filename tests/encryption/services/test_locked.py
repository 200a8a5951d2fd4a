"""Locked VMs: when the keys cannot be had, with the cause and the parts; free again by Unlock, a start, or the
provider's return."""

import pytest
from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from pytest_django import DjangoCaptureOnCommitCallbacks

from encryption.engine.key_server import (
    KeyServer,
    KmsUnreachable,
    RevocationReason,
    ServerAddress,
)
from encryption.models import Key, KmsCluster, KmsServer, LockCause, VmSecurity, WrappedSecret
from encryption.services import key_access, kms_health, kms_state, locks, recrypt, unlock
from inventory.engine.hypervisor import Power
from inventory.errors import Conflict, NotFound, Refused, ServiceError, Unavailable, Untrusted
from inventory.models import Event, JobStatus, Severity
from lab import kms
from tests.encryption.adapters.conftest import serving
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.real_kms import connected, run
from tests.encryption.services.starts import security, start, try_unlock
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.usefixtures("quick_tpm")]
Sent = list[tuple[str, list[str], str]]


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    made = make_world(Shape((Disk("vda", "raw"), Disk("vdb", "raw"))))
    made.succeed(made.all_disks())
    made.hypervisor.put.clear()
    return made


def told(kind: str) -> list[Event]:
    return list(Event.objects.filter(kind=kind).order_by("id"))


def damage(world: World, *parts: str) -> None:
    for part in parts:
        row = world.secrets[part]
        wrapped = bytes(row.wrapped)
        WrappedSecret.objects.filter(pk=row.pk).update(wrapped=wrapped[:-1] + bytes([wrapped[-1] ^ 1]))


def test_key_destroyed_at_the_kms_locks_home_and_disks(world: World, keys: MemoryKeyServer) -> None:
    key_id = Key.objects.get().key_id
    keys.destroy(key_id)
    job = start(world)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "kms_key_not_found")
    found = security(world)
    assert found.lock_cause == LockCause.KEY_MISSING and found.locked_at is not None
    assert found.lock_parts == ["nvram", "vda", "vdb", "vtpm"]
    assert found.locked_parts == "home (NVRAM, vTPM state), disks vda, vdb"
    assert key_id in found.lock_detail
    (event,) = told("vm.locked")
    assert (event.severity, event.actor, event.job_id) == (Severity.ERROR, "alice", job.pk)
    assert event.data["cause"] == "key_missing_at_kms" and event.data["key_ids"] == [key_id]
    assert not world.hypervisor.put


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("vdb",), "disk vdb"),
        (("vda", "vdb"), "disks vda, vdb"),
        (("nvram",), "home (NVRAM)"),
        (("vtpm", "vda"), "home (vTPM state), disk vda"),
    ],
)
def test_damaged_secrets_name_their_parts(world: World, parts: tuple[str, ...], words: str) -> None:
    damage(world, *parts)
    assert start(world).error_code == "wrapped_secret_damaged"
    found = security(world)
    assert (found.lock_cause, found.lock_parts) == (LockCause.SECRET_DAMAGED, sorted(parts))
    assert found.locked_parts == words and words in told("vm.locked")[0].message
    assert "metadata" in found.lock_remedy
    assert not world.hypervisor.put, "a VM of which one part does not open gets no key at all"


def test_told_once_while_it_stays_and_again_for_another_cause(world: World, keys: MemoryKeyServer) -> None:
    damage(world, "vda")
    start(world)
    since = security(world).locked_at
    assert start(world).status == try_unlock(world).status == JobStatus.FAILED
    assert len(told("vm.locked")) == 1 and security(world).locked_at == since
    damage(world, "nvram")
    start(world)
    assert [event.data["parts"] for event in told("vm.locked")] == [["vda"], ["nvram", "vda"]]
    keys.destroy(Key.objects.get().key_id)
    try_unlock(world)
    assert told("vm.locked")[-1].data["cause"] == "key_missing_at_kms"
    assert security(world).locked_at == since and not told("vm.unlocked")


def test_unlock_frees_and_sends_nothing(world: World) -> None:
    good = dict(WrappedSecret.objects.values_list("pk", "wrapped"))
    damage(world, "vda", "vtpm")
    start(world)
    for pk, wrapped in good.items():
        WrappedSecret.objects.filter(pk=pk).update(wrapped=wrapped)
    job = try_unlock(world)
    assert job.status == JobStatus.SUCCEEDED
    found = security(world)
    assert (found.locked_at, found.lock_cause, found.lock_detail, found.lock_parts) == (None, "", "", [])
    (event,) = told("vm.unlocked")
    assert event.job_id == job.pk and not world.hypervisor.put
    assert try_unlock(world).status == JobStatus.SUCCEEDED
    assert len(told("vm.unlocked")) == 1, "a VM that is free is not told to be freed"


def test_a_locked_vm_that_starts_is_free(world: World) -> None:
    row = world.secrets["vda"]
    locks.lock(
        world.vm, [locks.Failure(row, Unavailable("kms_unreachable", "k does not answer", hint="x"))], actor="alice"
    )
    assert start(world).status == JobStatus.SUCCEEDED
    assert security(world).locked_at is None and len(told("vm.unlocked")) == 1


def test_a_locked_vm_that_gets_a_new_key_is_free(world: World) -> None:
    locks.lock(world.vm, [locks.Failure(world.secrets["vda"], NotFound("kms_key_not_found", "gone"))], actor="alice")
    job = run(recrypt.recrypt_vm(vm_id=world.vm.pk, actor=world.actor), recrypt.run_recrypt_vm)
    assert job.status == JobStatus.SUCCEEDED and security(world).locked_at is None


def test_unlock_of_a_vm_that_was_free_can_lock_it(world: World) -> None:
    damage(world, "vdb")
    assert try_unlock(world).error_code == "wrapped_secret_damaged"
    assert security(world).lock_parts == ["vdb"]


def test_not_encrypted_not_permitted_twice_and_gone(world: World, make_world: MakeWorld) -> None:
    plain = make_world()
    with pytest.raises(Conflict) as refused:
        unlock.unlock_vm(vm_id=plain.vm.pk, actor=world.actor)
    assert refused.value.code == "not_encrypted"
    with pytest.raises(Refused):
        unlock.unlock_vm(vm_id=world.vm.pk, actor=AnonymousUser())
    with pytest.raises(NotFound):
        unlock.unlock_vm(vm_id=world.host.pk, actor=world.actor)
    unlock.unlock_vm(vm_id=world.vm.pk, actor=world.actor)
    with pytest.raises(Conflict) as busy:
        unlock.unlock_vm(vm_id=world.vm.pk, actor=world.actor)
    assert busy.value.code == "target_busy"


ADDRESS = ServerAddress("kms.example", 5696)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Unavailable("kms_unreachable", "x"), LockCause.KMS_ERROR),
        (Conflict("no_key_server", "x"), LockCause.KMS_ERROR),
        (Conflict("kms_protocol_error", "x"), LockCause.KMS_ERROR),
        (Untrusted("kms_server_not_trusted", "x"), LockCause.KMS_UNTRUSTED),
        (Untrusted("client_key_sealed_otherwise", "x"), LockCause.CONSOLE_KEY),
        (Unavailable("console_key_missing", "x"), LockCause.CONSOLE_KEY),
        (NotFound("kms_key_not_found", "x"), LockCause.KEY_MISSING),
        (Refused("kms_not_permitted", "x"), LockCause.KEY_REFUSED),
        (Conflict("kms_wrong_key_state", "x"), LockCause.KEY_REFUSED),
        (Conflict("wrapped_secret_damaged", "x"), LockCause.SECRET_DAMAGED),
    ],
)
def test_each_failure_has_its_cause(error: ServiceError, cause: LockCause) -> None:
    assert locks.cause_of(error) is cause


def test_a_missing_console_key_locks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(cluster: KmsCluster, server: KmsServer, *_: float) -> KeyServer:
        raise Untrusted("client_key_sealed_otherwise", f"the client key for {cluster} was sealed otherwise")

    monkeypatch.setattr(key_access, "open_client", lost)
    assert start(world).error_code == "client_key_sealed_otherwise"
    assert security(world).lock_cause == LockCause.CONSOLE_KEY


# With a real key server


def test_key_servers_stopped_and_back(
    make_world: MakeWorld,
    alice: User,
    kms_layout: kms.KmsLayout,
    sent: Sent,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    monkeypatch.setattr(settings, "KMIP_TIMEOUT_SECONDS", 5)
    shape = Shape((Disk("vda", "raw"),), nvram=False, tpm=False)
    with serving(kms_layout, "before") as server:
        cluster = connected(alice, server)
        off, running, broken = (make_world(shape) for _ in range(3))
        for world in (off, running, broken):
            world.succeed(world.all_disks())
        assert start(running).status == JobStatus.SUCCEEDED
        key = Key.objects.get(virtual_machines__virtual_machine=broken.vm)

        def destroy(at: KeyServer) -> None:
            at.revoke(key.key_id, RevocationReason.UNSPECIFIED)
            at.destroy(key.key_id)

        key_access.with_key_server(cluster, destroy)
    for world in (off, broken):
        assert start(world).error_code == "kms_unreachable"
        assert security(world).lock_cause == LockCause.KMS_ERROR
        assert f"127.0.0.1:{server.port}" in security(world).lock_detail and security(world).lock_remedy
    assert running.hypervisor.vms[running.uuid].power is Power.ON and security(running).locked_at is None
    assert unlock.unlock_of_provider(str(cluster.pk)) == 0
    assert len(told("vm.locked")) == 2

    with serving(kms_layout, "after") as back:
        KmsServer.objects.update(port=back.port)
        sent.clear()
        with django_capture_on_commit_callbacks(execute=True):
            kms_health.check_cluster(str(cluster.pk))
            kms_health.check_cluster(str(cluster.pk))
        assert sent == [("encryption.unlock_of_provider", [str(cluster.pk)], "attestation")]
        assert unlock.unlock_of_provider(str(cluster.pk)) == 1
        assert start(off).status == JobStatus.SUCCEEDED
    assert security(off).locked_at is None and security(broken).lock_cause == LockCause.KEY_MISSING
    (event,) = told("vm.unlocked")
    assert (event.target_id, event.actor) == (off.vm.pk, "Bartizan")


def test_a_provider_without_locked_vms_asks_for_nothing(
    world: World, sent: Sent, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    server = KmsServer.objects.get()
    KmsServer.objects.update(state=KmsServer.State.UNREACHABLE)
    sent.clear()
    with django_capture_on_commit_callbacks(execute=True):
        kms_state.note_connected(server)
    assert sent == []


def test_a_provider_that_is_lost_again_is_asked_once(
    make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = [make_world(Shape((Disk("vda", "raw"),), nvram=False, tpm=False)) for _ in range(3)]
    for world in worlds:
        world.succeed(world.all_disks())
    asked: list[str] = []

    def lost(cluster: KmsCluster, server: KmsServer, *_: float) -> KeyServer:
        asked.append(str(server))
        raise KmsUnreachable(ADDRESS, "connection refused")

    monkeypatch.setattr(key_access, "open_client", lost)
    for world in worlds:
        start(world)
    asked.clear()
    assert unlock.unlock_of_provider(str(KmsCluster.objects.get().pk)) == 0
    assert len(asked) == 1 and VmSecurity.objects.filter(locked_at__isnull=False).count() == 3
