"""Refusals that are known at once, each through its page and its API operation: same code, nothing begun.

What has a test of its own is not repeated here; what only a worker finds out is in test_job_refusals.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.engine import keywrap
from encryption.models import Key, KmsCluster, KmsServer, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from encryption.services import certificates, recrypt
from inventory.models import Disk, Event, Host, Job, PowerState, VirtualMachine
from tests.api_client import caller
from tests.encryption.certificates import LEAF, LEAF_KEY

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
NOBODY = UUID(int=7)


@pytest.fixture
def vm(host: Host) -> VirtualMachine:
    """Powered off, UEFI, a vTPM, two plain disks; its host's files are reached by workers."""
    Host.objects.filter(pk=host.pk).update(uri="qemu:///session", vtpm_state_path="/tpm")
    made = VirtualMachine.objects.create(
        host=host, uuid=uuid4(), name="app-01", power_state=PowerState.OFF, firmware="uefi", nvram_path="/n/VARS.fd",
        tpm_model="tpm-crb", tpm_version="2.0",
    )  # fmt: skip
    for target in ("vda", "vdb"):
        Disk.objects.create(
            virtual_machine=made, target=target, format="raw", source=f"/i/{target}.raw", capacity_bytes=2**30
        )
    return made


@pytest.fixture
def provider(db: None) -> KmsCluster:
    made = KmsCluster.objects.create(name="Main KMS", is_default=True)
    KmsServer.objects.create(cluster=made, position=0, host="kms")
    return made


def protect(vm: VirtualMachine, stage: Stage = Stage.IN_USE) -> None:
    key = Key.objects.create(cluster=KmsCluster.objects.get(), key_id="7", state=Key.State.ACTIVE)
    VmSecurity.objects.create(
        virtual_machine=vm, policy=StoragePolicy.objects.get(name="VM Encryption Policy"), key=key
    )
    WrappedSecret.objects.create(
        virtual_machine=vm, purpose=Purpose.DISK, target="vda", key=key, wrapped=b"w", path="/i/vda.luks", stage=stage
    )
    Disk.objects.filter(virtual_machine=vm, target="vda").update(is_encrypted=True)


# VM Options: what the plan refuses


def running(vm: VirtualMachine) -> None:
    VirtualMachine.objects.update(power_state=PowerState.ON)


def without_provider(vm: VirtualMachine) -> None:
    KmsCluster.objects.all().delete()


def without_tpm_folder(vm: VirtualMachine) -> None:
    Host.objects.update(vtpm_state_path="", uri="qemu:///session")


def foreign_home(vm: VirtualMachine) -> None:
    VirtualMachine.objects.update(is_nvram_encrypted=True)


def foreign_disk(vm: VirtualMachine) -> None:
    protect(vm)
    Disk.objects.filter(target="vdb").update(is_encrypted=True)


def disk(**values: object) -> Callable[[VirtualMachine], None]:
    return lambda vm: (Disk.objects.filter(target="vda").update(**values), None)[1]


def shared(vm: VirtualMachine) -> None:
    other = VirtualMachine.objects.create(host=vm.host, uuid=uuid4(), name="other")
    Disk.objects.create(virtual_machine=other, target="vda", source="/i/vda.raw")


def nothing(vm: VirtualMachine) -> None:
    """As it is."""


@pytest.mark.parametrize(
    ("spoil", "home", "disks", "code"),
    [
        (nothing, False, ["vda"], "home_not_encrypted"),
        (without_provider, True, ["vda"], "no_key_provider"),
        (running, True, [], "home_in_use"),
        (foreign_home, True, ["vda"], "foreign_home"),
        (foreign_disk, True, ["vda"], "foreign_disk"),
        (without_tpm_folder, True, [], "vtpm_state_unknown"),
        (shared, True, ["vda"], "disk_shared"),
        (disk(source="/dev/sda"), True, ["vda"], "disk_is_device"),
        (disk(source=""), True, ["vda"], "disk_without_file"),
        (disk(format="vmdk"), True, ["vda"], "disk_format"),
        (nothing, False, [], "nothing_to_do"),
    ],
)
def test_plan_of_the_options(
    admin: Client, alice: User, provider: KmsCluster, vm: VirtualMachine, spoil: Callable[[VirtualMachine], None],
    home: bool, disks: list[str], code: str,
) -> None:  # fmt: skip
    spoil(vm)
    yes, no = (StoragePolicy.objects.get(name=name).pk for name in ("VM Encryption Policy", "No encryption"))
    chosen = {target: yes if target in disks else no for target in ("vda", "vdb")}
    body = {"policy_id": yes if home else no, "disks": chosen}
    told = caller(alice).post(f"/virtual-machines/{vm.pk}/options", body)
    assert (told.status, told.code) == (409, code), told.text
    form = {"policy": str(body["policy_id"])} | {f"disk-{target}": str(policy) for target, policy in chosen.items()}
    answer = admin.post(reverse("encryption:vm-options", args=[vm.pk]), form)
    assert answer.status_code == 409
    assert told.body["hint"].lower() in answer.content.decode().lower()
    assert not Job.objects.exists()


# Everything else


@dataclass(frozen=True, slots=True)
class Case:
    """A page with what is posted to it, and the operation with its body."""

    page: str
    form: dict[str, Any]
    method: str
    path: str
    body: Any
    status: int = 409


def only_server(vm: VirtualMachine, provider: KmsCluster, monkeypatch: pytest.MonkeyPatch) -> Case:
    protect(vm)
    server = provider.servers.get().pk
    return Case(reverse("encryption:kms-remove-server", args=[server]), {}, "DELETE", f"/key-servers/{server}", None)


def no_such_leftover(vm: VirtualMachine, provider: KmsCluster, monkeypatch: pytest.MonkeyPatch) -> Case:
    page = reverse("encryption:destroy-leftover", args=[NOBODY])
    return Case(page, {"confirm": "x"}, "POST", f"/leftovers/{NOBODY}/destroy", {"confirm": "x"}, 404)


def no_such_leftover_to_keep(vm: VirtualMachine, provider: KmsCluster, monkeypatch: pytest.MonkeyPatch) -> Case:
    page = reverse("encryption:keep-leftover", args=[NOBODY])
    return Case(page, {"reason": "x"}, "POST", f"/leftovers/{NOBODY}/keep", {"reason": "x"}, 404)


def keyed_vm(vm: VirtualMachine, provider: KmsCluster, monkeypatch: pytest.MonkeyPatch) -> Case:
    protect(vm)
    VirtualMachine.objects.update(is_present=False)
    return Case(reverse("inventory:remove-vm", args=[vm.pk]), {}, "DELETE", f"/virtual-machines/{vm.pk}", None)


def keyed_host(vm: VirtualMachine, provider: KmsCluster, monkeypatch: pytest.MonkeyPatch) -> Case:
    protect(vm)
    return Case(reverse("inventory:remove-host", args=[vm.host_id]), {}, "DELETE", f"/hosts/{vm.host_id}", None)


def long_key(vm: VirtualMachine, provider: KmsCluster, monkeypatch: pytest.MonkeyPatch) -> Case:
    """As RSA with 16,384 bits would be; such a key takes minutes to make."""
    monkeypatch.setattr(keywrap, "MAX_SECRET_BYTES", 64)
    key = certificates.key_pem(LEAF_KEY).reveal().decode()
    page = reverse("encryption:kms-upload-client", args=[provider.pk])
    body = {"certificate_pem": LEAF, "private_key_pem": key}
    form = {"certificate": LEAF, "private_key": key}
    return Case(page, form, "PUT", f"/key-providers/{provider.pk}/client-identity", body, 422)


def nobody_to_recrypt(vm: VirtualMachine, provider: KmsCluster, monkeypatch: pytest.MonkeyPatch) -> Case:
    page = reverse("encryption:kms-recrypt", args=[provider.pk])
    return Case(page, {}, "POST", f"/key-providers/{provider.pk}/recrypt", None)


def too_many_to_recrypt(vm: VirtualMachine, provider: KmsCluster, monkeypatch: pytest.MonkeyPatch) -> Case:
    protect(vm)
    monkeypatch.setattr(recrypt, "MAX_VMS", 0)
    return nobody_to_recrypt(vm, provider, monkeypatch)


@pytest.mark.parametrize(
    ("case", "code"),
    [
        (only_server, "key_server_needed"),
        (no_such_leftover, "leftover_not_found"),
        (no_such_leftover_to_keep, "leftover_not_found"),
        (keyed_vm, "vm_has_keys"),
        (keyed_host, "vm_has_keys"),
        (long_key, "client_key_too_long"),
        (nobody_to_recrypt, "nothing_to_do"),
        (too_many_to_recrypt, "too_many"),
    ],
)
def test_page_and_operation_refuse_alike(
    admin: Client, alice: User, provider: KmsCluster, vm: VirtualMachine, monkeypatch: pytest.MonkeyPatch,
    case: Callable[[VirtualMachine, KmsCluster, pytest.MonkeyPatch], Case], code: str,
) -> None:  # fmt: skip
    made = case(vm, provider, monkeypatch)
    told = caller(alice)(made.method, made.path, made.body)
    assert (told.status, told.code) == (made.status, code), told.text
    answer = admin.post(made.page, made.form)
    assert answer.status_code == made.status
    assert told.body["message"][1:] in answer.content.decode()
    assert not Job.objects.exists() and not Event.objects.exclude(kind__startswith="api_token").exists()
