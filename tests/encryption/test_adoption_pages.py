"""Key providers that locked VMs name: offered as an identity, taken over onto another one, over pages and the API."""

from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from encryption.models import KmsCluster, LockCause, StoragePolicy, VmSecurity
from inventory.models import Event, Host, Job, VirtualMachine
from tests.api_client import Caller, caller
from tests.encryption.world import provider

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


@pytest.fixture
def foreign(host: Host) -> UUID:
    """The identity that one locked VM names."""
    identity = uuid4()
    vm = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app-01", is_nvram_encrypted=True)
    VmSecurity.objects.create(
        virtual_machine=vm, policy=StoragePolicy.objects.get(encrypts=True), locked_at=timezone.now(),
        lock_cause=LockCause.PROVIDER_UNKNOWN, lock_detail="not known", foreign_kms=identity,
        foreign_kms_name="Old KMS",
    )  # fmt: skip
    return identity


def adopt_url(cluster: KmsCluster) -> str:
    return reverse("encryption:kms-adopt", args=[cluster.pk])


def test_the_identity_is_offered_and_taken(admin: Client, foreign: UUID) -> None:
    page = admin.get(reverse("encryption:kms-add")).content.decode()
    assert f"same as in VMs: Old KMS, {foreign} (1 locked VM)" in page
    values = {"name": "New KMS", "host": "kms", "port": "5696"}
    assert admin.post(reverse("encryption:kms-add"), {**values, "identity": str(uuid4())}).status_code == 422
    assert admin.post(reverse("encryption:kms-add"), {**values, "identity": str(foreign)}).status_code == 302
    assert KmsCluster.objects.get().pk == foreign
    assert Event.objects.get(kind="kms.added").data["identity"] == str(foreign)


def test_keys_are_asked_to_be_taken_over(admin: Client, foreign: UUID) -> None:
    owner = provider("New KMS")
    assert adopt_url(owner) in admin.get(reverse("encryption:kms-cluster", args=[owner.pk])).content.decode()
    assert "Old KMS" in admin.get(adopt_url(owner)).content.decode()
    assert admin.post(adopt_url(owner), {"identity": str(uuid4())}).status_code == 422
    assert admin.post(adopt_url(owner), {"identity": str(foreign)}).status_code == 302
    job = Job.objects.get()
    assert (job.kind, job.target_id, job.params) == ("encryption.adopt_keys", owner.pk, {"identity": str(foreign)})
    assert admin.post(adopt_url(owner), {"identity": str(foreign)}).status_code == 409


def test_not_offered_where_nothing_is_locked(admin: Client, db: None) -> None:
    owner = provider()
    assert adopt_url(owner) not in admin.get(reverse("encryption:kms-cluster", args=[owner.pk])).content.decode()


def test_the_wrong_person_and_no_provider(charlie: User, client: Client, foreign: UUID) -> None:
    owner = provider()
    assert reverse("login") in client.post(adopt_url(owner)).headers["Location"]
    client.force_login(charlie)
    assert client.get(adopt_url(owner)).status_code == client.post(adopt_url(owner)).status_code == 403
    assert not Job.objects.exists()


def test_over_the_api(alice: User, charlie: User, foreign: UUID) -> None:
    owner, asks = provider("New KMS"), caller(alice)
    told = asks.get("/foreign-key-providers").body
    assert told == [{"identity": str(foreign), "name": "Old KMS", "vms": 1}]
    path = f"/key-providers/{owner.pk}/adopt"
    refused = asks.post(path, {"identity": str(uuid4())})
    assert (refused.status, refused.code) == (422, "identity_unknown")
    assert caller(charlie).post(path, {"identity": str(foreign)}).code == "not_permitted"
    assert Caller(None).post(path, {"identity": str(foreign)}).status == 401
    assert asks.post(f"/key-providers/{uuid4()}/adopt", {"identity": str(foreign)}).status == 404
    assert asks.post(path, {"identity": str(foreign)}).status == 202
    assert asks.post(path, {"identity": str(foreign)}).code == "target_busy"
    values = {"name": "Old again", "host": "kms"}
    assert asks.post("/key-providers", {**values, "identity": str(foreign)}).status == 201
    taken = asks.post("/key-providers", {**values, "name": "Twice", "identity": str(foreign)})
    assert (taken.status, taken.code) == (409, "identity_taken")


def test_unlock_may_be_asked_of_a_vm_without_keys(admin: Client, foreign: UUID) -> None:
    vm = VirtualMachine.objects.get()
    assert admin.post(reverse("encryption:vm-unlock", args=[vm.pk])).status_code == 302
    page = admin.get(reverse("encryption:vm-card", args=[vm.pk])).content.decode()
    assert "Locked: No such key provider: not known" in page
