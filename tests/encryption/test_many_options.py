"""VM Options of many VMs, through the page and the API."""

import html
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.models import KmsCluster
from inventory.models import Disk, Event, Host, Job, PowerState, VirtualMachine

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
PAGE = "/encryption/vms/options/"
API = "/api/v1/virtual-machines/options"


@pytest.fixture
def admin(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


@pytest.fixture
def vms(host: Host) -> list[VirtualMachine]:
    """Two that are off, and one that runs."""
    KmsCluster.objects.create(name="Main KMS", is_default=True)
    Host.objects.filter(pk=host.pk).update(uri="qemu:///system")
    made = []
    for name, power in (("a", PowerState.OFF), ("b", PowerState.OFF), ("c", PowerState.ON)):
        vm = VirtualMachine.objects.create(
            host=host, uuid=uuid4(), name=f"app-{name}", power_state=power, firmware="uefi", nvram_path=f"/n/{name}",
        )  # fmt: skip
        Disk.objects.create(virtual_machine=vm, target="vda", format="raw", source=f"/i/{name}", capacity_bytes=2**30)
        made.append(vm)
    return made


def form(vms: list[VirtualMachine], **more: str) -> dict[str, Any]:
    return {"vm": [str(vm.pk) for vm in vms], **more}


def told(answer: object) -> str:
    return html.unescape(answer.content.decode())  # type: ignore[attr-defined]


def test_each_has_its_plan_and_its_job(admin: Client, vms: list[VirtualMachine]) -> None:
    page = told(admin.get(PAGE, form(vms)))
    assert "VM Options of 3 virtual machines" in page and page.count("Nothing to do") == 3
    page = told(admin.post(PAGE, form(vms, vtpm="add", preview="1")))
    assert page.count("Add a TPM 2.0 (tpm-crb)") == 3 and page.count('name="digest-') == 2
    assert "app-c is running" in page and not Job.objects.exists()
    digests = {
        f"digest-{vm.pk}": page.split(f'name="digest-{vm.pk}" value="')[1].split('"')[0] for vm in vms[:2]
    }  # fmt: skip
    VirtualMachine.objects.filter(pk=vms[1].pk).update(definition_sha256="bb")
    page = told(admin.post(PAGE, form(vms, vtpm="add", **digests)))
    assert page.count("Begun") == 1 and page.count("Not begun") == 2
    assert "app-b is not as it was when the plan was made" in page
    assert [job.target_id for job in Job.objects.all()] == [vms[0].pk]
    assert Event.objects.get().data["plan_digest"] == digests[f"digest-{vms[0].pk}"]


def test_over_the_api(admin: Client, vms: list[VirtualMachine]) -> None:
    wanted: dict[str, object] = {"virtual_machines": [str(vm.pk) for vm in vms], "encrypted_vmotion": "disabled"}
    plans = admin.post(f"{API}/plan", wanted, content_type="application/json").json()
    assert [[step["kind"] for step in one["plan"]["steps"]] for one in plans] == [["set_migration"]] * 3
    seen = {one["virtual_machine"]["id"]: one["plan"]["digest"] for one in plans}
    answer = admin.post(API, wanted | {"plan_digests": seen}, content_type="application/json")
    assert answer.status_code == 202 and all(one["job"] and not one["code"] for one in answer.json())
    again = admin.post(API, wanted, content_type="application/json").json()
    assert {one["code"] for one in again} == {"target_busy"} and all("is busy" in one["message"] for one in again)


@pytest.mark.parametrize(
    ("sent_vms", "status", "reason"),
    [([], 422, "no virtual machine was chosen"), (["x"], 422, "no virtual machine's id")],
)
def test_no_vms(admin: Client, sent_vms: list[str], status: int, reason: str) -> None:
    answer = admin.get(PAGE, {"vm": sent_vms})
    assert answer.status_code == status and reason in told(answer).lower()
    assert admin.post(API, {"virtual_machines": sent_vms}, content_type="application/json").status_code == 422


def test_one_that_is_gone_and_too_many(admin: Client, vms: list[VirtualMachine]) -> None:
    assert admin.get(PAGE, {"vm": [str(uuid4())]}).status_code == 404
    answer = admin.get(PAGE, {"vm": [str(uuid4()) for _ in range(201)]})
    assert answer.status_code == 422 and "201 VMs are too many" in told(answer)
    answer = admin.post(PAGE, form(vms, vtpm="remove"))
    assert answer.status_code == 422 and not Job.objects.exists()


def test_somebody_who_may_only_look(client: Client, charlie: User, vms: list[VirtualMachine]) -> None:
    assert client.post(PAGE, form(vms)).status_code == 302
    client.force_login(charlie)
    page = told(client.post(PAGE, form(vms, vtpm="add", preview="1")))
    assert "You may look at the plans" in page and ">Apply<" not in page
    page = told(client.post(PAGE, form(vms, vtpm="add")))
    assert page.count("Not begun") == 3 and "charlie may not" in page and not Job.objects.exists()
    answer = client.post(API, {"virtual_machines": [str(vms[0].pk)], "add_vtpm": True}, content_type="application/json")
    assert [one["code"] for one in answer.json()] == ["not_permitted"]


def test_vms_are_chosen_in_the_list(admin: Client, vms: list[VirtualMachine]) -> None:
    page = told(admin.get(reverse("inventory:vms", args=["host", vms[0].host_id])))
    assert f'formaction="{PAGE}"' in page and f'aria-label="Choose {vms[0].name}"' in page


@pytest.mark.parametrize(
    ("chosen", "code"),
    [(["x"], "vm_id_malformed"), ([], "no_vms"), ([str(uuid4())] * 201, "too_many_vms")],
    ids=["no id", "none", "too many"],
)
def test_what_cannot_be_chosen(admin: Client, vms: list[VirtualMachine], chosen: list[str], code: str) -> None:
    for answer in (admin.get(PAGE, {"vm": chosen}), admin.post(PAGE, {"vm": chosen, "vtpm": "add"})):
        assert answer.status_code == 422 and f"<code>{code}</code>" in told(answer)
    for path in (API, f"{API}/plan"):
        refused = admin.post(path, {"virtual_machines": chosen}, content_type="application/json")
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_input")
    assert not Job.objects.exists()
