"""VM Options and the state of the key provider: what is known to fail is refused by page and API alike, what may be
over by then is a warning."""

import html
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from encryption.models import Key, KmsCluster, KmsServer, LockCause, Purpose, StoragePolicy, VmSecurity, WrappedSecret
from inventory.models import Disk, Host, Job, PowerState, VirtualMachine

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


@pytest.fixture
def provider(db: None) -> KmsCluster:
    made = KmsCluster.objects.create(name="Main KMS", is_default=True)
    for position in range(2):
        made.servers.create(position=position, host=f"kms{position}.example")
    return made


@pytest.fixture
def vm(host: Host, provider: KmsCluster) -> VirtualMachine:
    """With an encrypted disk vda, and a plain one."""
    Host.objects.filter(pk=host.pk).update(uri="qemu:///system")
    made = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app-01", power_state=PowerState.OFF)
    for target in ("vda", "vdb"):
        Disk.objects.create(
            virtual_machine=made, target=target, format="raw", source=f"/i/{target}", capacity_bytes=2**30,
            is_encrypted=target == "vda",
        )  # fmt: skip
    key = Key.objects.create(cluster=provider, key_id="7", state=Key.State.ACTIVE)
    VmSecurity.objects.create(virtual_machine=made, policy=StoragePolicy.objects.get(encrypts=True), key=key)
    WrappedSecret.objects.create(
        virtual_machine=made, purpose=Purpose.DISK, target="vda", key=key, wrapped=b"x", path="/i/vda", stage="in_use"
    )
    return made


def policy(*, encrypts: bool) -> str:
    return str(StoragePolicy.objects.get(is_builtin=True, encrypts=encrypts).pk)


def ask(admin: Client, vm: VirtualMachine, **more: Any) -> tuple[Any, Any]:
    """To encrypt vdb, too: by the page and by the API."""
    yes = policy(encrypts=True)
    page = admin.post(
        reverse("encryption:vm-options", args=[vm.pk]), {"policy": yes, "disk-vda": yes, "disk-vdb": yes, **more}
    )
    Job.objects.filter(status="pending").update(status="cancelled")
    wish = {"policy_id": yes, "disks": {"vda": yes, "vdb": yes}}
    path = f"/api/v1/virtual-machines/{vm.pk}/options"
    return page, admin.post(path, wish, content_type="application/json")


def lock(cause: LockCause) -> None:
    VmSecurity.objects.update(locked_at=timezone.now(), lock_cause=cause, lock_detail="key 7 is not there")


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (lambda: KmsServer.objects.update(state="untrusted"), "key_provider_untrusted", "do not trust each other"),
        (lambda: Key.objects.update(state=Key.State.MISSING), "key_missing", "no longer at its key provider"),
        (lambda: Key.objects.update(state=Key.State.DESTROYED), "key_missing", "no longer at its key provider"),
        (lambda: lock(LockCause.KEY_MISSING), "vm_locked", "is locked, and this needs its keys: key 7 is not there"),
        (lambda: lock(LockCause.KMS_ERROR), "vm_locked", "is locked, and this needs its keys"),
    ],
)
def test_refused(admin: Client, vm: VirtualMachine, spoil: Any, code: str, words: str) -> None:
    spoil()
    page, api = ask(admin, vm)
    assert page.status_code == 409 and words in html.unescape(page.content.decode())
    assert api.status_code == 409 and api.json()["code"] == code and api.json()["hint"]
    assert not Job.objects.exists()
    shown = html.unescape(admin.get(reverse("encryption:vm-options", args=[vm.pk])).content.decode())
    assert words in shown.split('id="id_vtpm_reasons"')[1].split("</ul>")[0]


@pytest.mark.parametrize("states", [("connected", "untrusted"), ("unreachable", "unreachable"), ("unknown", "unknown")])
def test_begun_all_the_same(admin: Client, vm: VirtualMachine, provider: KmsCluster, states: tuple[str, str]) -> None:
    for position, state in enumerate(states):
        provider.servers.filter(position=position).update(state=state)
    page, _ = ask(admin, vm, preview="1")
    told = "No server of the key provider answered" in html.unescape(page.content.decode())
    assert told == ("unreachable" in states)
    Job.objects.all().delete()
    page, api = ask(admin, vm)
    assert (page.status_code, api.status_code) == (302, 202)


def test_a_host_that_is_not_trusted_holds_up_no_worker(admin: Client, vm: VirtualMachine) -> None:
    lock(LockCause.HOST_UNTRUSTED)
    page, api = ask(admin, vm)
    assert (page.status_code, api.status_code) == (302, 202)


def test_a_vm_with_a_key_needs_no_default_key_provider(admin: Client, vm: VirtualMachine) -> None:
    KmsCluster.objects.update(is_default=False)
    page, api = ask(admin, vm)
    assert (page.status_code, api.status_code) == (302, 202)
