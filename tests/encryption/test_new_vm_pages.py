"""New virtual machines through the page and the API: who may, what is refused and how it is said."""

import html
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from lxml.html import fromstring as parsed

from encryption.models import KmsCluster, StoragePolicy
from inventory.engine.abilities import HostAbilities
from inventory.models import (
    Cluster,
    Datastore,
    Disk,
    Event,
    Host,
    Job,
    PowerState,
    RoleAssignment,
    VirtualMachine,
)
from tests.api_client import caller

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
CAN = HostAbilities(
    virtualization="kvm", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True, viommu=True, nested="vmx",
    secure_loader="/f/OVMF_CODE_4M.ms.fd", plain_loader="/f/OVMF_CODE_4M.fd",
)  # fmt: skip
GIB = 2**30
PAGE, PLAN = "/encryption/vms/new/", "/encryption/vms/new/plan/"


@pytest.fixture
def store(host: Host) -> Datastore:
    Host.objects.filter(pk=host.pk).update(uri="qemu:///system", abilities=CAN.as_row(), state="connected")
    return Datastore.objects.create(
        host=host, name="images", kind="dir", path="/images", is_active=True, capacity_bytes=2**40,
        available_bytes=2**40,
    )  # fmt: skip


@pytest.fixture
def provider(db: None) -> KmsCluster:
    return KmsCluster.objects.create(name="Main KMS", is_default=True)


def policy(*, encrypts: bool) -> str:
    return str(StoragePolicy.objects.get(is_builtin=True, encrypts=encrypts).pk)


def form(store: Datastore, more: Mapping[str, str] | None = None, *, encrypts: bool = True) -> dict[str, str]:
    """As a browser sends it: the second disk has no size, so it is none."""
    chosen = policy(encrypts=encrypts)
    disks = {f"disk-{number}": chosen for number in "123"} | {"size-1": "20", "size-2": "", "size-3": ""}
    hardware = {"name": "web-01", "guest": "linux", "vcpus": "2", "memory_gib": "4", "firmware": "uefi"}
    return {"datastore": str(store.pk), "policy": chosen, **hardware, **disks, **(more or {})}


def body(store: Datastore, *, encrypts: bool = True, **more: Any) -> dict[str, Any]:
    chosen = policy(encrypts=encrypts)
    disks = [{"size_bytes": 20 * GIB, "policy_id": chosen}]
    return {"name": "web-01", "policy_id": chosen, "disks": disks, **more}


def route(store: Datastore) -> str:
    return f"/datastores/{store.pk}/virtual-machines"


def told(answer: Any) -> str:
    return html.unescape(answer.content.decode())


def test_the_page_offers_what_the_place_has(admin: Client, store: Datastore, provider: KmsCluster) -> None:
    other = Host.objects.create(cluster=store.host.cluster, name="kvm-other", uri="qemu+tls://other/system")
    Datastore.objects.create(host=other, name="away", kind="dir", path="/a", is_active=True)  # not connected yet
    for query in ("", f"?host={store.host_id}", f"?cluster={store.host.cluster_id}"):
        page = told(admin.get(PAGE + query))
        assert f"{store.host}: images (1024.0 GiB free)" in page and "kvm-other" not in page.split("<form")[-1]
    empty = Cluster.objects.create(datacenter=store.host.cluster.datacenter, name="Empty")
    assert "No connected host here" in told(admin.get(f"{PAGE}?cluster={empty.pk}"))
    assert admin.get(f"{PAGE}?host=nothing").status_code == 422
    assert admin.get(f"{PAGE}?host={empty.pk}").status_code == 404
    for kind, place in (
        ("host", store.host),
        ("cluster", store.host.cluster),
        ("datacenter", store.host.cluster.datacenter),
    ):
        page = told(admin.get(f"/inventory/{kind}/{place.pk}/"))
        assert f"{PAGE}?{kind}={place.pk}" in page and "New Virtual Machine…" in page


def test_planned_and_created(admin: Client, store: Datastore, provider: KmsCluster) -> None:
    sent = form(store, {"vtpm": "add", "secure_boot": "on", "size-2": "1.5"})
    for page in (told(admin.post(PLAN, sent)), told(admin.post(PAGE, {**sent, "preview": "1"}))):
        assert "Make vda, 20.0 GiB: a LUKS image, encrypted from the first byte" in page
        assert "Make vdb, 1.5 GiB" in page and "vdc" not in page and "Add a TPM 2.0" in page
        assert "Define web-01: 2 CPUs, 4.0 GiB of memory, UEFI with Secure Boot; it stays off" in page
        assert "{new secret of vda}" in page and "a data key each for vda, vdb, NVRAM, vTPM state" in page
        assert "until the originals are deleted" not in page
    assert not Job.objects.exists()
    digest = told(admin.post(PLAN, sent)).split('name="plan_digest" value="')[1].split('"')[0]
    answer = admin.post(PAGE, {**sent, "plan_digest": digest})
    assert answer.status_code == 302
    job = Job.objects.get()
    assert (job.kind, job.target_id, job.actor) == ("encryption.create_vm", store.host_id, "alice")
    assert [one["size"] for one in job.params["disks"]] == [20 * GIB, 3 * GIB // 2] and job.params["vtpm"] is True
    event = Event.objects.get(kind="vm.creation_requested")
    assert event.data["plan_digest"] == job.params["plan"]["digest"] == digest
    again = admin.post(PAGE, {**sent, "name": "web-02"})
    assert again.status_code == 409 and "is busy" in told(again)


def test_over_the_api(admin: Client, store: Datastore, provider: KmsCluster, alice: User) -> None:
    ask = caller(alice)
    planned = ask.post(f"{route(store)}/plan", body(store, vtpm=True, guest="windows"))
    assert planned.status == 200 and not planned.body["refusals"]
    assert any("sda" in step["text"] for step in planned.body["steps"]) and planned.body["definition_difference"]
    other = ask.post(route(store), body(store, vtpm=False, guest="windows", plan_digest=planned.body["digest"]))
    assert (other.status, other.code) == (409, "plan_outdated")
    made = ask.post(route(store), body(store, vtpm=True, guest="windows", plan_digest=planned.body["digest"]))
    assert made.status == 202 and made.body["kind"] == "encryption.create_vm"


@pytest.mark.parametrize(
    ("sent", "asked", "status", "code"),
    [
        ({"name": "a<b"}, {"name": "a<b"}, 422, "name_invalid"),
        ({"name": "there"}, {"name": "there"}, 409, "name_taken"),
        ({"network": "a b"}, {"network": "a b"}, 422, "network_invalid"),
        ({"iso": "/etc/shadow"}, {"iso": "/etc/shadow"}, 422, "path_invalid"),
        ({"iso": "/images/old.raw"}, {"iso": "/images/old.raw"}, 422, "path_invalid"),
        ({"iso": "/images/disk.iso"}, {"iso": "/images/disk.iso"}, 409, "disk_in_use"),
        ({"memory_gib": "0.0625", "vcpus": "512"}, {"vcpus": 513}, None, "vcpus_invalid"),
        (None, {"memory_bytes": 1000}, None, "memory_invalid"),
        (None, {"disks": []}, None, "no_disk"),
        ({"size-1": "100000"}, {"disks": "huge"}, 409, "space_missing"),
        ({"firmware": "bios", "secure_boot": "on"}, {"firmware": "bios", "secure_boot": True}, 409,
         "secure_boot_needs_uefi"),
        ({"firmware": "bios", "vtpm": "add"}, {"firmware": "bios", "vtpm": True}, 409, "vtpm_needs_uefi"),
        ({"encrypted_vmotion": "disabled"}, {"encrypted_vmotion": "disabled"}, 409, "vmotion_fixed"),
        ({"firmware": "bios", "disk-1": "plain"}, {"firmware": "bios", "disks": "plain"}, 409, "nothing_to_encrypt"),
    ],
)  # fmt: skip
def test_refused(
    admin: Client, store: Datastore, provider: KmsCluster, alice: User, sent: dict[str, str] | None,
    asked: dict[str, Any], status: int | None, code: str,
) -> None:  # fmt: skip
    there = VirtualMachine.objects.create(host=store.host, uuid=uuid4(), name="there", power_state=PowerState.OFF)
    Disk.objects.create(virtual_machine=there, target="vda", source="/images/disk.iso")
    disks = {"plain": (20 * GIB, False), "huge": (100_000 * GIB, True)}
    if str(asked.get("disks")) in disks:
        size, encrypts = disks[asked["disks"]]
        asked = {**asked, "disks": [{"size_bytes": size, "policy_id": policy(encrypts=encrypts)}]}
    answer = caller(alice).post(route(store), body(store, **asked))
    assert answer.code == code and (status is None or answer.status == status), answer.text
    if sent is not None and status is not None:
        if sent.get("disk-1") == "plain":
            sent = {**sent, "disk-1": policy(encrypts=False)}
        page = admin.post(PAGE, form(store, sent))
        assert (
            page.status_code == status and answer.body["message"].split(":")[-1].strip().lower() in told(page).lower()
        )
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    ("spoil", "status", "code"),
    [
        (lambda store: Host.objects.update(abilities={}), 409, "host_not_asked"),
        (lambda store: Host.objects.update(abilities={**CAN.as_row(), "q35": False}), 409, "q35_not_on_host"),
        (lambda store: Host.objects.update(abilities={**CAN.as_row(), "plain_loader": ""}), 409,
         "plain_uefi_not_on_host"),
        (lambda store: KmsCluster.objects.all().delete(), 409, "no_key_provider"),
        (lambda store: Datastore.objects.update(is_active=False), 422, "datastore_unsupported"),
        (lambda store: Host.objects.update(state="disconnected"), 409, "host_disconnected"),
        (lambda store: Datastore.objects.all().delete(), 404, "datastore_not_found"),
    ],
)  # fmt: skip
def test_what_is_not_there(
    admin: Client, store: Datastore, provider: KmsCluster, alice: User, spoil: Any, status: int, code: str
) -> None:
    sent, asked, address = form(store), body(store), route(store)
    spoil(store)
    answer = caller(alice).post(address, asked)
    assert (answer.status, answer.code) == (status, code) and not Job.objects.exists()
    page = admin.post(PAGE, sent)
    assert page.status_code in {status, 422}  # a datastore that is not offered is no choice of the form


def test_input_that_is_not_whole(admin: Client, store: Datastore, provider: KmsCluster) -> None:
    assert admin.post(PAGE, form(store, {"name": "", "size-1": ""})).status_code == 422
    assert "Plan" not in told(admin.post(PLAN, form(store, {"name": ""})))
    assert "is no file on a datastore" in told(admin.post(PLAN, form(store, {"iso": "/etc/shadow"})))
    assert admin.get(PLAN).status_code == 405


def test_who_may_not(looker: Client, client: Client, store: Datastore, provider: KmsCluster) -> None:
    for answer in (looker.get(PAGE), looker.post(PAGE, form(store)), looker.post(PLAN, form(store))):
        assert answer.status_code == 403
    assert "New Virtual Machine" not in told(looker.get(f"/inventory/host/{store.host_id}/"))
    asked = caller(User.objects.get(username="charlie"))
    assert asked.post(route(store), body(store)).status == 403
    assert Client().get(PAGE).headers["Location"].startswith(reverse("login"))
    assert not Job.objects.exists()


def test_of_one_cluster_alone(client: Client, store: Datastore, provider: KmsCluster) -> None:
    """Who has the role there makes VMs there, and nowhere else."""
    erin = User.objects.create_user("erin")
    RoleAssignment.objects.create(user=erin, role="cryptography_operator", cluster=store.host.cluster)
    other = Cluster.objects.create(datacenter=store.host.cluster.datacenter, name="Other")
    client.force_login(erin)
    here = f"?cluster={store.host.cluster_id}"
    assert "images" in told(client.get(PAGE + here)) and client.get(f"{PAGE}?cluster={other.pk}").status_code == 403
    assert client.get(PAGE).status_code == 403
    assert "Define web-01" in told(client.post(PLAN + here, form(store)))
    Host.objects.filter(pk=store.host_id).update(cluster=other)
    assert client.post(PAGE + here, form(store)).status_code == 422  # it is none of the choices there
    assert caller(erin).post(route(store), body(store)).status == 403
    Host.objects.filter(pk=store.host_id).update(cluster=RoleAssignment.objects.get(user=erin).cluster)
    assert client.post(PAGE + here, form(store)).status_code == 302


def test_an_encrypted_one_needs_the_right_to_encrypt(
    client: Client, store: Datastore, provider: KmsCluster, cluster: Cluster
) -> None:
    """Administrators without cryptography make plain VMs."""
    dana = User.objects.create_user("dana")
    RoleAssignment.objects.create(user=dana, role="no_cryptography_administrator")
    client.force_login(dana)
    answer = client.post(PAGE, form(store))
    assert answer.status_code == 403 and "create_encrypted_vm" in told(answer) and not Job.objects.exists()
    assert client.post(PAGE, form(store, encrypts=False)).status_code == 302


def test_place_that_is_none(admin: Client, store: Datastore) -> None:
    """Of the page alone: over the API the datastore is the place."""
    nowhere = "00000000-0000-0000-0000-000000000007"
    for asked, status, code in (("x", 422, "place_id_malformed"), (nowhere, 404, "place_not_found")):
        for address in (PAGE, PLAN):
            answer = admin.get(address, {"host": asked}) if address == PAGE else admin.post(f"{PLAN}?host={asked}")
            assert answer.status_code == status and f"<code>{code}</code>" in answer.content.decode()
    assert not Job.objects.exists()


def located(answer: Any, path: str) -> Any:
    return parsed(told(answer)).xpath(path)


def controls(answer: Any) -> dict[str, tuple[str, bool]]:
    """What each control of boot and TPM shows, and whether it can be used."""
    found = {}
    for name in ("vtpm", "secure_boot", "vbs"):
        (select,) = located(answer, f'//select[@name="{name}"]')
        (shown,) = select.xpath("option[@selected]/@value")
        found[name] = (str(shown), "disabled" not in select.attrib)
    return found


def test_bios_switches_off_what_needs_uefi(admin: Client, store: Datastore, provider: KmsCluster) -> None:
    """As VM Options: a control that cannot be used says why; before there is a plan, and with scripts or without."""
    wanted = {"vtpm": "add", "secure_boot": "on", "vbs": "on"}
    off = {"vtpm": ("keep", False), "secure_boot": ("off", False), "vbs": ("off", False)}
    assert all(is_usable for _, is_usable in controls(admin.get(PAGE)).values())
    unchanged = admin.post(PLAN, form(store, wanted))
    assert "Add a TPM 2.0" in told(unchanged) and "new-vm-options" not in told(unchanged)
    answer = admin.post(PLAN, form(store, wanted | {"firmware": "bios"}))
    assert controls(answer) == off and "a TPM 2.0 needs UEFI. <span" in told(answer)
    assert "Define web-01" in told(answer) and "needs UEFI" not in told(answer).partition("new-vm-options")[0]
    assert controls(admin.post(PLAN, form(store, wanted | {"firmware": "bios", "name": ""}))) == off
    (unusable,) = located(answer, '//input[@name="unusable"]/@value')
    again = admin.post(PLAN, form(store, {"firmware": "bios", "unusable": unusable}))
    assert "new-vm-options" not in told(again), "a control that somebody is at is not replaced for nothing"
    assert controls(admin.post(PAGE, form(store, wanted | {"firmware": "bios", "preview": "1"}))) == off
    back = controls(admin.post(PLAN, form(store, {"unusable": unusable})))
    assert all(is_usable for _, is_usable in back.values())
    refused = admin.post(PAGE, form(store, wanted | {"firmware": "bios"}))
    assert refused.status_code == 409 and controls(refused) == off
    assert not Job.objects.exists()


def test_what_the_chosen_host_cannot_give_is_off(admin: Client, store: Datastore, provider: KmsCluster) -> None:
    weak = Host.objects.create(
        cluster=store.host.cluster, name="kvm-z", uri="qemu+tls://kvm-z/system", state="connected",
        abilities={**CAN.as_row(), "vtpm": False},
    )  # fmt: skip
    other = Datastore.objects.create(
        host=weak, name="images", kind="dir", path="/images", is_active=True, available_bytes=2**40
    )
    answer = admin.post(PLAN, form(other, {"vtpm": "add"}))
    assert controls(answer)["vtpm"] == ("keep", False) and controls(answer)["secure_boot"] == ("off", True)
    assert "no TPM emulator" in told(answer)
    KmsCluster.objects.all().delete()
    assert "no key provider" in told(admin.post(PLAN, form(store, {"vtpm": "add", "unusable": "other"})))
