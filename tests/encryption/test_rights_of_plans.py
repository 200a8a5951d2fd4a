"""What VM Options need the right to is decided by the steps of the plan; what decrypts waits for a second person."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import User

from encryption.models import DiskPolicy, Key, KmsCluster, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from inventory.authorize import Role
from inventory.models import Disk, Host, Job, JobStatus, PowerState, RoleAssignment, TwoPersonRule, VirtualMachine
from tests.api_client import Caller, caller

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


@pytest.fixture
def vm(host: Host) -> VirtualMachine:
    """Encrypted, powered off, BIOS, two disks."""
    Host.objects.filter(pk=host.pk).update(uri="qemu:///session")
    made = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app", power_state=PowerState.OFF)
    key = Key.objects.create(cluster=KmsCluster.objects.create(name="KMS", is_default=True), key_id="7", state="active")
    policy = StoragePolicy.objects.get(is_builtin=True, encrypts=True)
    VmSecurity.objects.create(virtual_machine=made, policy=policy, key=key)
    for target in ("vda", "vdb"):
        path = f"/i/{target}.luks"
        Disk.objects.create(
            virtual_machine=made, target=target, format="raw", source=path, capacity_bytes=2**30, is_encrypted=True
        )
        DiskPolicy.objects.create(virtual_machine=made, target=target, policy=policy)
        WrappedSecret.objects.create(
            virtual_machine=made, purpose=Purpose.DISK, target=target, key=key, wrapped=b"w", path=path,
            stage=Stage.IN_USE, size_bytes=2**30,
        )  # fmt: skip
    return made


def as_role(role: Role, name: str = "dora") -> Caller:
    user = User.objects.create_user(name)
    RoleAssignment.objects.create(user=user, role=role, assigned_by="test")
    return caller(user)


def wish(*encrypted: str, home: bool = True) -> dict[str, object]:
    yes, no = (str(StoragePolicy.objects.get(is_builtin=True, encrypts=one).pk) for one in (True, False))
    disks = {target: yes if target in encrypted else no for target in ("vda", "vdb")}
    return {"policy_id": yes if home else no, "disks": disks}


def test_a_disk_decrypted_under_an_encrypted_home_needs_the_right_to_decrypt(vm: VirtualMachine, alice: User) -> None:
    path = f"/virtual-machines/{vm.pk}/options"
    assert as_role(Role.NO_CRYPTOGRAPHY).post(path, wish("vda")).code == "not_permitted"
    made = User.objects.create_user("encrypter")
    RoleAssignment.objects.create(user=made, role=Role.CRYPTOGRAPHY_OPERATOR, assigned_by="test")
    call = caller(made)
    TwoPersonRule.objects.create(action="encryption.decrypt_vm", is_on=True)
    for chosen in (wish("vda"), wish(home=False)):
        answer = call.post(path, chosen)
        assert (answer.status, answer.body["status"]) == (202, "waiting"), answer.text
        Job.objects.all().delete()


def test_what_does_not_decrypt_does_not_wait(vm: VirtualMachine, alice: User) -> None:
    TwoPersonRule.objects.create(action="encryption.decrypt_vm", is_on=True)
    answer = caller(alice).post(f"/virtual-machines/{vm.pk}/recrypt")
    assert answer.status == 202, answer.text
    assert Job.objects.get().status == JobStatus.PENDING


def test_hardware_alone_needs_no_cryptographic_privilege(vm: VirtualMachine) -> None:
    path = f"/virtual-machines/{vm.pk}/options"
    answer = as_role(Role.NO_CRYPTOGRAPHY).post(path, wish("vda", "vdb") | {"encrypted_vmotion": "required"})
    assert (answer.status, answer.code) == (409, "nothing_to_do"), answer.text
