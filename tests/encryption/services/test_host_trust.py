"""No attestation, no keys: VMs of a host that may not be trusted stay off, locked, and are free when it passes."""

from collections.abc import Iterator

import pytest
from pytest_django import DjangoCaptureOnCommitCallbacks

from attestation.models import HostAttestation, VerdictReason
from attestation.services import enrolment, verifier, verifier_identity
from encryption.models import LockCause
from encryption.services import host_trust, unlock
from inventory.engine.hypervisor import Power
from inventory.models import Event, JobStatus
from tests.attestation.simulated import SimulatedAgent, simulated_agent
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.real_kms import run
from tests.encryption.services.starts import security, start
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_tpm")]
Sent = list[tuple[str, list[str], str]]


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    made = make_world(Shape((Disk("vda", "raw"),)))
    made.succeed(made.all_disks())
    made.hypervisor.put.clear()
    return made


@pytest.fixture
def agent(world: World) -> Iterator[SimulatedAgent]:
    """Of the world's host, which is enrolled by it and not attested yet."""
    with simulated_agent("agent-w", verifier_identity.ca_pem()) as found:
        enrolment.enrol_host(
            host_id=world.host.pk, registration_id=found.registered().pk, actor=world.actor, reason="compared"
        )
        yield found


def attest(world: World) -> None:
    assert verifier.attest_hosts([world.host.pk], reason=VerdictReason.SCHEDULE) == 1


def test_a_host_that_passes_gets_keys_and_the_verdict_is_noted(world: World, agent: SimulatedAgent) -> None:
    assert start(world).status == JobStatus.SUCCEEDED
    verdict = HostAttestation.objects.get(host=world.host).verdict
    assert verdict is not None and verdict.reason == VerdictReason.GATE
    event = Event.objects.get(kind="key.released")
    assert f"verdict={verdict.pk}" in event.data["gate"]
    found = security(world)
    assert (found.released_host, found.released_verdict) == (world.host.name, verdict.pk)


def test_a_vm_of_a_host_without_a_tpm_starts_and_no_verdict_is_noted(world: World) -> None:
    assert start(world).status == JobStatus.SUCCEEDED
    assert security(world).released_verdict is None and security(world).released_at is not None


def test_a_failed_host_gets_no_key_and_its_vm_is_locked(world: World, agent: SimulatedAgent) -> None:
    agent.signs_another_nonce = True
    job = start(world)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "host_attestation_failed")
    assert "gets no keys" in job.message and world.hypervisor.put == []
    assert world.hypervisor.vms[world.uuid].power is Power.OFF
    found = security(world)
    assert found.lock_cause == LockCause.HOST_UNTRUSTED and found.lock_parts == ["nvram", "vda", "vtpm"]
    assert found.lock_remedy and found.released_at is None
    assert not Event.objects.filter(kind="key.released").exists()


def test_unlock_asks_the_host_again(world: World, agent: SimulatedAgent) -> None:
    agent.signs_another_nonce = True
    start(world)
    job = run(unlock.unlock_vm(vm_id=world.vm.pk, actor=world.actor), unlock.run_unlock_vm)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "host_attestation_failed")
    agent.signs_another_nonce = False
    job = run(unlock.unlock_vm(vm_id=world.vm.pk, actor=world.actor), unlock.run_unlock_vm)
    assert job.status == JobStatus.SUCCEEDED and security(world).locked_at is None


def test_locked_vms_are_free_when_their_host_passes_again(
    world: World, agent: SimulatedAgent, sent: Sent, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    agent.signs_another_nonce = True
    start(world)
    agent.signs_another_nonce = False
    sent.clear()
    with django_capture_on_commit_callbacks(execute=True):
        attest(world)
    assert ("encryption.unlock_on_host", [str(world.host.pk)], "attestation") in sent
    assert host_trust.unlock_on_host(str(world.host.pk)) == 1
    assert security(world).locked_at is None
    assert start(world).status == JobStatus.SUCCEEDED


def test_secrets_are_taken_back_from_a_host_that_fails(
    world: World, agent: SimulatedAgent, sent: Sent, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    attest(world)
    left = world.secrets["vda"].secret_uuid
    world.hypervisor.secrets[left] = b"left behind"
    agent.signs_another_nonce = True
    sent.clear()
    with django_capture_on_commit_callbacks(execute=True):
        attest(world)
    assert ("encryption.withdraw_from_host", [str(world.host.pk)], "attestation") in sent
    assert host_trust.withdraw_from_host(str(world.host.pk)) == 1
    assert left not in world.hypervisor.secrets
    assert Event.objects.get(kind="key.withdrawn").data["secrets"] == 1
    assert host_trust.withdraw_from_host(str(world.host.pk)) == 0


def test_running_vms_keep_running_on_a_host_that_fails(world: World, agent: SimulatedAgent) -> None:
    assert start(world).status == JobStatus.SUCCEEDED
    agent.signs_another_nonce = True
    attest(world)
    host_trust.withdraw_from_host(str(world.host.pk))
    assert world.hypervisor.vms[world.uuid].power is Power.ON


def test_a_silent_host_gets_none_when_its_verdict_is_old(world: World, agent: SimulatedAgent) -> None:
    agent.stop()
    job = start(world)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "host_unreachable_for_attestation")
    assert security(world).lock_cause == LockCause.HOST_UNTRUSTED
