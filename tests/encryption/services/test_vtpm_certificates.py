"""Certificates are read from a VM's vTPM, and replaced in it, by the real swtpm under the VM's own key."""

import os
import shutil
from pathlib import Path

import pytest

from encryption.adapters import memory_folder, swtpm
from encryption.engine import keywrap, vtpm_state
from encryption.engine.secret import Secret
from encryption.models import Purpose, VtpmEndorsement
from encryption.services import vtpm_certificates, vtpm_endorsement
from encryption.services.vtpm import vtpm_of
from inventory.engine.hypervisor import Power
from inventory.models import Event, Job, JobStatus
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.real_tpm import certificate_for, endorsements, make_state
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
INDEX = 0x01C00002


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this test alone, to see what is left there."""
    (tmp_path / "memory").mkdir()
    monkeypatch.setattr(memory_folder, "MEMORY", tmp_path / "memory")


@pytest.fixture(params=["near", "far"])
def world(make_world: MakeWorld, keys: MemoryKeyServer, request: pytest.FixtureRequest) -> World:
    """A VM whose vTPM a host has made, encrypted."""
    made = make_world(Shape(disks=(), nvram=False, remote=request.param == "far"))
    shutil.rmtree(made.tpm_folder)
    make_state(made.tpm_folder)
    made.succeed(made.wish())
    return made


def read(world: World) -> Job:
    job = vtpm_certificates.read_certificates(vm_id=world.vm.pk, actor=world.actor)
    return world.run_by(job, vtpm_endorsement.run_read_vtpm)


def replace(world: World, certificate: bytes) -> Job:
    return vtpm_certificates.replace_certificate(
        vm_id=world.vm.pk, nv_index=INDEX, certificate=certificate, actor=world.actor
    )


def passphrase_of(world: World) -> Secret:
    return world.passphrases()[world.secrets["vtpm"].secret_uuid]


def left_in_memory() -> list[str]:
    return [path.name for path in memory_folder.MEMORY.glob(f"{memory_folder.PREFIX}*")]


def test_read_from_a_running_vm_and_nothing_is_touched(world: World) -> None:
    world.hypervisor.put_secret(world.secrets["vtpm"].secret_uuid, usage="x", vtpm=True, value=b"x")
    world.hypervisor.power_on(world.uuid)
    before = swtpm.state_file(world.tpm_folder).read_bytes()
    job = read(world)
    assert job.status == JobStatus.SUCCEEDED, job.message
    shown = vtpm_of(vm_id=world.vm.pk, actor=world.actor)
    assert [one.row.kind for one in shown.certificates] == ["RSA 2048", "ECC P-384"]
    for one in shown.certificates:
        assert one.facts is not None and one.facts.names_its_key
        assert one.signer == "swtpm-localca of the host where the vTPM was made"
    assert "256" in shown.evidence and "encrypted" in shown.evidence.lower() and shown.checked_at is not None
    assert swtpm.state_file(world.tpm_folder).read_bytes() == before
    assert left_in_memory() == [] and Event.objects.filter(kind="vm.vtpm_read").count() == 1


def test_a_customers_certificate_goes_in_and_the_state_stays_encrypted(world: World) -> None:
    read(world)
    key = bytes(VtpmEndorsement.objects.get(nv_index=INDEX).public_key)
    job = world.run_by(replace(world, certificate_for(key)), vtpm_endorsement.run_replace_certificate)
    assert job.status == JobStatus.SUCCEEDED, job.message
    (shown, _) = vtpm_of(vm_id=world.vm.pk, actor=world.actor).certificates
    assert shown.facts is not None and shown.facts.issuer == "CN=Customer CA"
    assert shown.signer == "another certificate authority"
    state = swtpm.state_file(world.tpm_folder).read_bytes()
    assert vtpm_state.parse(state, file_bytes=len(state)).key_bits == 256
    assert {path.name for path in world.tpm_folder.iterdir()} <= {"tpm2-00.permall"}
    copy = world.folder / "copy"
    shutil.copytree(world.tpm_folder, copy)
    found = {one.index: one for one in endorsements(copy, passphrase_of(world))}
    assert found[INDEX].certificate == bytes(VtpmEndorsement.objects.get(nv_index=INDEX).certificate)
    assert found[INDEX].public_key == key
    assert Event.objects.get(kind="vm.vtpm_certificate_replaced").data["issuer"] == "CN=Customer CA"


def test_killed_while_the_state_is_exchanged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    read(world)
    key = bytes(VtpmEndorsement.objects.get(nv_index=INDEX).public_key)
    real = world.hypervisor.create_file

    def killing(path: str, *, size: int, head: bytes = b"", like: str = "") -> None:
        if path.endswith("permall"):
            raise Killed  # the old state is deleted, the new one stands beside its place
        real(path, size=size, head=head, like=like)

    def renaming(*_: object) -> None:
        raise Killed

    job = replace(world, certificate_for(key))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(world.hypervisor, "create_file", killing)
        patch.setattr(os, "rename", renaming)
        world.run_by(job, vtpm_endorsement.run_replace_certificate)
    Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING)
    again = world.run_by(job, vtpm_endorsement.run_replace_certificate)
    assert again.status == JobStatus.SUCCEEDED, again.message
    assert {path.name for path in world.tpm_folder.iterdir()} == {"tpm2-00.permall"}
    copy = world.folder / "copy"
    shutil.copytree(world.tpm_folder, copy)
    assert endorsements(copy, passphrase_of(world))[0].public_key == key


def test_a_wrong_key_is_named_and_nothing_is_changed(world: World, keys: MemoryKeyServer) -> None:
    row = world.secrets["vtpm"]
    before = swtpm.state_file(world.tpm_folder).read_bytes()
    kek = keys.get_key(row.key.key_id)
    row.wrapped = keywrap.wrap(kek, Secret.generate(32))
    row.save()
    job = read(world)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "vtpm_key_mismatch")
    assert "vTPM key does not fit the state" in job.message
    assert swtpm.state_file(world.tpm_folder).read_bytes() == before
    assert not VtpmEndorsement.objects.exists() and left_in_memory() == []


def test_a_vtpm_that_never_ran(world: World) -> None:
    shutil.rmtree(world.tpm_folder)
    assert read(world).error_code == "vtpm_without_state"


def test_a_key_that_is_not_ours(world: World) -> None:
    world.vm.wrapped_secrets.filter(purpose=Purpose.VTPM).delete()
    assert read(world).error_code == "foreign_home"


def test_started_before_the_worker_looks(world: World) -> None:
    read(world)
    key = bytes(VtpmEndorsement.objects.get(nv_index=INDEX).public_key)
    job = replace(world, certificate_for(key))
    before = swtpm.state_file(world.tpm_folder).read_bytes()
    world.hypervisor.put_secret(world.secrets["vtpm"].secret_uuid, usage="x", vtpm=True, value=b"x")
    world.hypervisor.power_on(world.uuid)
    assert world.hypervisor.virtual_machine(world.uuid).power is Power.ON
    assert world.run_by(job, vtpm_endorsement.run_replace_certificate).error_code == "vm_running"
    assert swtpm.state_file(world.tpm_folder).read_bytes() == before


def test_plain_state_is_read_in_memory_only(make_world: MakeWorld) -> None:
    made = make_world(Shape(disks=(), nvram=False))
    shutil.rmtree(made.tpm_folder)
    make_state(made.tpm_folder)
    assert read(made).status == JobStatus.SUCCEEDED
    assert VtpmEndorsement.objects.count() == 2 and left_in_memory() == []


def test_bytes_that_are_no_state(make_world: MakeWorld) -> None:
    made = make_world(Shape(disks=(), nvram=False))
    assert read(made).error_code == "vtpm_key_mismatch", "swtpm cannot tell it from one"
