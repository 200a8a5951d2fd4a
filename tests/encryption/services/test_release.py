"""Keys reach a host for the moment of a start; what stands in the way has a code of its own."""

import socket
from dataclasses import replace

import pytest
from django.conf import settings
from django.contrib.auth.models import User

from encryption.models import Key, KmsCluster, KmsServer, Stage, WrappedSecret
from encryption.services import client_keys, key_providers
from inventory import jobs
from inventory.engine.hypervisor import OperationRefused, Power
from inventory.errors import Conflict
from inventory.models import Event, Job, JobStatus
from inventory.services import power, saved_state, sync
from lab import kms
from tests.encryption.adapters.conftest import RunningKms
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.usefixtures("quick_tpm")]


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    made = make_world(Shape((Disk("vda", "raw"), Disk("vdb", "raw"))))
    made.succeed(made.all_disks())
    made.hypervisor.put.clear()
    return made


def start(world: World) -> Job:
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    job = power.power_on(vm_id=world.vm.pk, actor=world.actor)
    jobs.run(str(job.pk), power.run_power_on)
    job.refresh_from_db()
    assert not world.hypervisor.secrets, "whatever came of it, the host keeps none"
    return job


def refuse_start(world: World, code: str) -> None:
    job = start(world)
    assert (job.status, job.error_code) == (JobStatus.FAILED, code), job.message
    assert world.hypervisor.vms[world.uuid].power is Power.OFF


def test_every_secret_is_sent_with_its_usage_and_taken_back(world: World) -> None:
    assert start(world).status == JobStatus.SUCCEEDED
    rows, passphrases = world.secrets, world.passphrases()
    assert {(one.uuid, one.usage, one.vtpm, one.value) for one in world.hypervisor.put} == {
        (
            row.secret_uuid,
            f"vtpm-{world.uuid}" if part == "vtpm" else row.path,
            part == "vtpm",
            passphrases[row.secret_uuid].reveal(),
        )
        for part, row in rows.items()
    }
    event = Event.objects.get(kind="key.released")
    assert event.data["secrets"] == 4 and event.actor == "alice"


def test_taken_back_after_a_start_that_failed(world: World) -> None:
    world.hypervisor.failures["power_on"] = OperationRefused("start_failed", "no memory")
    refuse_start(world, "start_failed")
    assert len(world.hypervisor.put) == 4


def test_plain_vm_needs_no_key_server(make_world: MakeWorld) -> None:
    assert start(make_world()).status == JobStatus.SUCCEEDED


def test_a_saved_state_is_never_resumed(world: World) -> None:
    """Made between the request and the start; then known already when it is requested."""
    job = power.power_on(vm_id=world.vm.pk, actor=world.actor)
    world.hypervisor.vms[world.uuid] = replace(world.hypervisor.vms[world.uuid], has_managed_save=True)
    jobs.run(str(job.pk), power.run_power_on)
    job.refresh_from_db()
    assert (job.status, job.error_code) == (JobStatus.FAILED, "managed_save_present")
    assert world.hypervisor.vms[world.uuid].power is Power.OFF and not world.hypervisor.put
    with pytest.raises(Conflict) as caught:
        power.power_on(vm_id=world.vm.pk, actor=world.actor)
    assert caught.value.code == "managed_save_present" and "discard its saved state" in caught.value.hint
    job = saved_state.discard_saved_state(vm_id=world.vm.pk, confirm=world.vm.name, actor=world.actor)
    jobs.run(str(job.pk), saved_state.run_discard_saved_state)
    assert start(world).status == JobStatus.SUCCEEDED


def test_a_plain_vm_resumes_from_its_saved_state(make_world: MakeWorld) -> None:
    made = make_world()
    made.hypervisor.vms[made.uuid] = replace(made.hypervisor.vms[made.uuid], has_managed_save=True)
    assert start(made).status == JobStatus.SUCCEEDED


def test_key_destroyed_at_the_key_server(world: World, keys: MemoryKeyServer) -> None:
    keys.destroy(Key.objects.get().key_id)
    refuse_start(world, "kms_key_not_found")


def test_wrapped_secret_that_is_damaged(world: World) -> None:
    row = world.secrets["vda"]
    damaged = bytes(row.wrapped[:-1]) + bytes([bytes(row.wrapped)[-1] ^ 1])
    WrappedSecret.objects.filter(pk=row.pk).update(wrapped=damaged)
    refuse_start(world, "wrapped_secret_damaged")


def test_interrupted_change_does_not_keep_a_vm_down(world: World) -> None:
    """The definition is switched, the rows do not know it yet: what the definition opens is sent."""
    WrappedSecret.objects.exclude(purpose="vtpm").update(stage=Stage.ENCRYPTING)
    assert start(world).status == JobStatus.SUCCEEDED
    assert len(world.hypervisor.put) == 4


def test_vtpm_between_definition_and_state(world: World) -> None:
    WrappedSecret.objects.filter(purpose="vtpm").update(stage=Stage.ENCRYPTING)
    refuse_start(world, "change_unfinished")


# With a real key server: trust, failover


@pytest.fixture
def trusted(alice: User, kms_server: RunningKms) -> KmsCluster:
    made = key_providers.add_provider(name="Lab", host="127.0.0.1", port=kms_server.port, actor=alice)
    key_providers.trust_server(cluster_id=made.pk, certificate_pem=kms_server.ca_pem.decode(), actor=alice)
    jobs.run(str(key_providers.request_client_key(cluster_id=made.pk, actor=alice).pk), client_keys.create_client_key)
    made.refresh_from_db()
    signed = kms.sign_client_csr(kms_server.layout, made.client_csr_pem.encode())
    return key_providers.install_client_certificate(cluster_id=made.pk, certificate_pem=signed.decode(), actor=alice)


@pytest.fixture
def encrypted(make_world: MakeWorld, trusted: KmsCluster) -> World:
    made = make_world(Shape((Disk("vda", "raw"),), nvram=False, tpm=False))
    made.succeed(made.all_disks())
    return made


@pytest.fixture
def dead_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_second_server_is_asked_and_the_first_is_named(encrypted: World, trusted: KmsCluster, dead_port: int) -> None:
    KmsServer.objects.update(position=1)
    first = KmsServer.objects.create(cluster=trusted, position=0, host="127.0.0.1", port=dead_port)
    assert start(encrypted).status == JobStatus.SUCCEEDED
    event = Event.objects.get(kind="kms.server_lost")
    assert event.data["server"] == str(first) and str(first) in event.message
    first.refresh_from_db()
    assert first.state == KmsServer.State.UNREACHABLE


def test_no_server_answers(encrypted: World, dead_port: int) -> None:
    KmsServer.objects.update(port=dead_port)
    refuse_start(encrypted, "kms_unreachable")


def test_another_console_key(encrypted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "CONSOLE_KEY", "00" * 32)
    refuse_start(encrypted, "client_key_sealed_otherwise")


def test_no_console_key(encrypted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "CONSOLE_KEY", "")
    refuse_start(encrypted, "console_key_missing")


def test_no_client_certificate(encrypted: World) -> None:
    KmsCluster.objects.update(client_certificate_pem="")
    refuse_start(encrypted, "kms_client_certificate_missing")


def test_no_trusted_certificate(encrypted: World) -> None:
    KmsCluster.objects.update(trusted_pem="")
    refuse_start(encrypted, "kms_server_not_trusted")


def test_encryption_with_the_key_server_down_changes_nothing(
    make_world: MakeWorld, trusted: KmsCluster, dead_port: int
) -> None:
    made = make_world()
    KmsServer.objects.update(port=dead_port)
    made.refuse(made.all_disks(), "kms_unreachable")
    made.check_plain()
