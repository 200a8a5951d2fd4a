"""Recrypt by schedule: keys that are older than the storage policies allow, found as time goes on."""

from datetime import datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from encryption.engine.key_server import KmsUnreachable, ServerAddress
from encryption.models import DiskPolicy, Key, Stage, StoragePolicy, VmSecurity
from encryption.services import key_providers, keys, recrypt, recrypt_many, rotation
from inventory import jobs
from inventory.models import Event, Job, JobStatus
from tests.api_client import caller
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import Disk, Shape, World

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_tpm")]
SMALL = Shape((Disk("vda", "raw"),), nvram=False, tpm=False)


@pytest.fixture
def world(make_world: MakeWorld, keys: MemoryKeyServer) -> World:
    made = make_world(SMALL)
    made.succeed(made.all_disks())
    return made


def limit(world: World, days: int | None) -> StoragePolicy:
    """The VM's home policy allows keys of so many days."""
    policy = StoragePolicy.objects.create(name=f"Rotate {days}", max_key_age_days=days)
    VmSecurity.objects.filter(virtual_machine=world.vm).update(policy=policy)
    return policy


def after(days: float) -> datetime:
    return timezone.now() + timedelta(days=days)


def run(job: Job) -> Job:
    jobs.run(str(job.pk), recrypt_many.run_recrypt_vms)
    job.refresh_from_db()
    return job


def test_a_key_that_is_too_old_is_replaced_once(world: World) -> None:
    limit(world, 90)
    old = world.secrets["vda"].key
    assert rotation.start_due(after(89.9)) == []
    (job,) = rotation.start_due(after(91.5))
    assert rotation.start_due(after(91.5)) == [], "while it runs"
    assert run(job).status == JobStatus.SUCCEEDED
    assert world.secrets["vda"].key != old
    event = Event.objects.get(kind="vm.recrypted")
    assert event.actor == "Bartizan" and event.job == job
    assert event.message.endswith("by policy Rotate 90, key age 91 days")
    assert "1 VMs of KMS" in Event.objects.get(kind="key.rotation_started").message
    assert rotation.start_due(after(2)) == [], "the key is new"


def test_the_strictest_policy_of_home_and_disks_counts(world: World) -> None:
    limit(world, 90)
    strict = StoragePolicy.objects.create(name="Monthly", max_key_age_days=30)
    plain = StoragePolicy.objects.create(name="Plain", max_key_age_days=1, encrypts=False)
    DiskPolicy.objects.update_or_create(virtual_machine=world.vm, target="vda", defaults={"policy": strict})
    DiskPolicy.objects.create(virtual_machine=world.vm, target="vdb", policy=plain)
    assert rotation.start_due(after(29)) == []
    (job,) = rotation.start_due(after(31))
    assert run(job).status == JobStatus.SUCCEEDED
    assert "by policy Monthly" in Event.objects.get(kind="vm.recrypted").message


def test_a_policy_of_a_disk_alone_counts_too(world: World) -> None:
    strict = StoragePolicy.objects.create(name="Monthly", max_key_age_days=30)
    DiskPolicy.objects.update_or_create(virtual_machine=world.vm, target="vda", defaults={"policy": strict})
    assert len(rotation.start_due(after(31))) == 1


@pytest.mark.parametrize("why", ["no limit", "gone", "locked", "busy", "other job of the provider"])
def test_vms_that_are_not_taken(world: World, alice: User, why: str) -> None:
    limit(world, None if why == "no limit" else 10)
    security = VmSecurity.objects.filter(virtual_machine=world.vm)
    if why == "gone":
        world.vm.is_present = False
        world.vm.save()
    elif why == "locked":
        security.update(locked_at=timezone.now())
    elif why == "busy":
        recrypt.recrypt_vm(vm_id=world.vm.pk, actor=alice)
    elif why == "other job of the provider":
        key_providers.check(cluster_id=world.secrets["vda"].key.cluster_id, actor=alice)
    assert rotation.start_due(after(1000)) == []


def test_what_fails_is_tried_again_the_next_day(world: World, make_world: MakeWorld) -> None:
    second = make_world(SMALL)
    second.succeed(second.all_disks())
    row = second.secrets["vda"]
    row.stage = Stage.SWITCHED
    row.save()
    limit(world, 10)
    policy = VmSecurity.objects.get(virtual_machine=world.vm).policy
    VmSecurity.objects.update(policy=policy)
    (job,) = rotation.start_due(after(11))
    assert (run(job).status, job.error_code) == (JobStatus.FAILED, "some_failed")
    Key.objects.update(created_at=timezone.now() - timedelta(days=20))
    assert rotation.start_due(timezone.now() + timedelta(hours=23)) == []
    row.stage = Stage.IN_USE
    row.save()
    (job,) = rotation.start_due(timezone.now() + timedelta(hours=25))
    assert run(job).status == JobStatus.SUCCEEDED


def test_a_lost_provider_is_asked_once_a_day(
    world: World, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(world, 10)

    def lost(_: str) -> None:
        raise KmsUnreachable(ServerAddress("memory"), "no answer in time")

    Key.objects.update(created_at=after(-20))
    monkeypatch.setattr(keys, "get_key", lost)
    (job,) = rotation.start_due()
    assert (run(job).status, job.error_code) == (JobStatus.FAILED, "kms_unreachable")
    assert rotation.start_due(after(0.1)) == rotation.start_due(after(0.9)) == []
    assert len(rotation.start_due(after(1.1))) == 1


def test_shown_with_the_key_and_the_vm(world: World, alice: User, client: Client) -> None:
    policy = limit(world, 30)
    key = world.secrets["vda"].key
    client.force_login(alice)
    due = f"{key.created_at + timedelta(days=30):%Y-%m-%d}"
    options = client.get(reverse("encryption:vm-options", args=[world.vm.pk])).content.decode()
    assert "Next key (UTC)" in options and due in options and "by Rotate 30" in options
    assert due in client.get(reverse("encryption:kms-cluster", args=[key.cluster_id])).content.decode()
    assert caller(alice).get(f"/keys/{key.pk}").body["due_at"].startswith(due)
    found = keys.key(key.pk, actor=alice)
    assert found.due_at == key.created_at + timedelta(days=30)
    StoragePolicy.objects.filter(pk=policy.pk).update(max_key_age_days=None)
    assert keys.key(key.pk, actor=alice).due_at is None
