"""A lab that was destroyed and made anew leaves no rows behind that nobody could open or remove."""

import uuid

import pytest

from encryption.models import Key, KmsCluster, Purpose, StoragePolicy, VmSecurity, WrappedSecret
from inventory.models import Cluster, Datacenter, Event, Host, VirtualMachine
from lab import register

pytestmark = pytest.mark.django_db


@pytest.fixture
def provider(db: None) -> KmsCluster:
    return KmsCluster.objects.create(name=register.KEY_PROVIDER, is_lab=True, trusted_pem="old CA")


def encrypted_vm(provider: KmsCluster, host: str, cluster: Cluster) -> VirtualMachine:
    owner = Host.objects.create(cluster=cluster, name=host, uri=f"qemu:///session?socket=/{host}")
    vm = VirtualMachine.objects.create(host=owner, uuid=uuid.uuid4(), name=f"vm on {host}")
    key = Key.objects.create(cluster=provider, key_id=host)
    policy = StoragePolicy.objects.get(name="VM Encryption Policy")
    VmSecurity.objects.create(virtual_machine=vm, policy=policy, key=key)
    WrappedSecret.objects.create(virtual_machine=vm, purpose=Purpose.NVRAM, key=key, wrapped=b"0" * 40, path="/x")
    return vm


@pytest.fixture
def lab_cluster(db: None) -> Cluster:
    datacenter = Datacenter.objects.create(name=register.DATACENTER)
    return Cluster.objects.create(datacenter=datacenter, name=register.CLUSTER)


def test_everything_of_a_removed_lab_is_forgotten(provider: KmsCluster, lab_cluster: Cluster) -> None:
    encrypted_vm(provider, "host-a", lab_cluster)
    register.forget_removed_lab("new CA")
    assert not VirtualMachine.objects.exists() and not Host.objects.exists()
    assert not WrappedSecret.objects.exists() and not KmsCluster.objects.exists()
    assert Event.objects.filter(kind="lab.forgotten").count() == 1


def test_the_same_lab_keeps_everything(provider: KmsCluster, lab_cluster: Cluster) -> None:
    vm = encrypted_vm(provider, "host-a", lab_cluster)
    register.forget_removed_lab("old CA")
    assert vm.wrapped_secrets.count() == 1
    assert not Event.objects.filter(kind="lab.forgotten").exists()


def test_a_vm_outside_the_lab_keeps_its_key(provider: KmsCluster, lab_cluster: Cluster) -> None:
    encrypted_vm(provider, "host-a", lab_cluster)
    elsewhere = Cluster.objects.create(datacenter=Datacenter.objects.create(name="East"), name="Prod")
    real = encrypted_vm(provider, "kvm01", elsewhere)
    register.forget_removed_lab("new CA")
    assert list(VirtualMachine.objects.all()) == [real]
    assert real.wrapped_secrets.get().key.cluster == provider
    provider.refresh_from_db()
    assert provider.name.startswith("Lab KMS (removed ")
