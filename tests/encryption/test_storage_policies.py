"""Storage policies through their URLs and over REST: who may, what is refused, and what their use costs to show."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from encryption.models import Compliance, DiskPolicy, Key, KmsCluster, StoragePolicy, VmSecurity
from encryption.services.options import Wish
from inventory.models import Disk, Event, Host, Job, JobStatus, TargetKind, VirtualMachine
from tests.api_client import Caller, caller

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


@pytest.fixture
def call(alice: User) -> Caller:
    return caller(alice)


@pytest.fixture
def own(db: None) -> StoragePolicy:
    return StoragePolicy.objects.create(name="Gold", encrypts=True, max_key_age_days=90)


@pytest.fixture
def builtin(db: None) -> StoragePolicy:
    return StoragePolicy.objects.get(is_builtin=True, encrypts=True)


@pytest.fixture
def vm(host: Host) -> VirtualMachine:
    return VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app-01")


def put_under(vm: VirtualMachine, policy: StoragePolicy) -> None:
    provider, _ = KmsCluster.objects.get_or_create(name="KMS")
    key = Key.objects.create(cluster=provider, key_id=uuid4().hex)
    VmSecurity.objects.create(virtual_machine=vm, policy=policy, key=key)


def typed(**changes: str) -> dict[str, str]:
    return {"name": "Silver", "description": "", "encrypts": "yes", "max_key_age_days": ""} | changes


def test_created_cloned_edited_deleted(admin: Client) -> None:
    answer = admin.post(reverse("encryption:policy-add"), typed(max_key_age_days="30", description="for  tests"))
    made = StoragePolicy.objects.get(name="Silver")
    assert answer.headers["Location"] == reverse("encryption:policy", args=[made.pk])
    assert (made.encrypts, made.max_key_age_days, made.is_builtin, made.description) == (True, 30, False, "for tests")
    admin.post(reverse("encryption:policy-clone", args=[made.pk]), {"name": "Copper"})
    copy = StoragePolicy.objects.get(name="Copper")
    assert (copy.encrypts, copy.max_key_age_days, copy.description) == (True, 30, "for tests")
    admin.post(reverse("encryption:policy-edit", args=[copy.pk]), typed(name="Zinc", encrypts="no"))
    copy.refresh_from_db()
    assert (copy.name, copy.encrypts, copy.max_key_age_days) == ("Zinc", False, None)
    assert admin.post(reverse("encryption:policy-delete", args=[copy.pk])).status_code == 302
    assert not StoragePolicy.objects.filter(pk=copy.pk).exists()
    kinds = list(Event.objects.order_by("id").values_list("kind", flat=True))
    assert kinds == ["policy.created", "policy.created", "policy.edited", "policy.deleted"]


def test_over_rest(call: Caller) -> None:
    made = call.post("/storage-policies", {"name": "Silver", "max_key_age_days": 3650})
    assert (made.status, made.body["max_key_age_days"], made.body["encrypts"]) == (201, 3650, True)
    path = f"/storage-policies/{made.body['id']}"
    edited = call("PUT", path, {"name": "Silver 2", "description": "x"})
    assert (edited.body["name"], edited.body["max_key_age_days"]) == ("Silver 2", None)
    assert call.post(f"{path}/clone", {"name": "Copper"}).body["name"] == "Copper"
    assert call.get(path).body["virtual_machine_count"] == 0
    assert call("DELETE", path).status == 204
    assert call.get(path).code == "policy_not_found"


@pytest.mark.parametrize(
    ("wanted", "status", "code", "told"),
    [
        ({"name": " "}, 422, "name_missing", "This field is required"),
        ({"name": "a\x7fb"}, 422, "name_invalid", "cannot be printed"),
        ({"name": "vm ENCRYPTION policy"}, 409, "name_taken", "already"),
        ({"max_key_age_days": 0}, 422, "max_key_age_invalid", "greater than or equal to 1"),
        ({"max_key_age_days": 3651}, 422, "max_key_age_invalid", "less than or equal to 3650"),
        ({"max_key_age_days": 5, "encrypts": False}, 422, "max_key_age_invalid", "has no keys"),
        ({"description": "a\x07b"}, 422, "description_invalid", "cannot be printed"),
    ],
)
def test_bad_input(
    admin: Client, call: Caller, own: StoragePolicy, wanted: dict[str, object], status: int, code: str, told: str
) -> None:
    page = {key: "no" if value is False else str(value) for key, value in wanted.items()}
    for address in (reverse("encryption:policy-add"), reverse("encryption:policy-edit", args=[own.pk])):
        answer = admin.post(address, typed(**page))
        assert answer.status_code == status and told in answer.content.decode()
    body = {"name": "Silver"} | wanted
    assert call.post("/storage-policies", body).code == code
    assert call("PUT", f"/storage-policies/{own.pk}", body).code == code
    own.refresh_from_db()
    assert own.name == "Gold" and StoragePolicy.objects.count() == 3


def test_a_built_in_one_stays_and_can_be_cloned(admin: Client, call: Caller, builtin: StoragePolicy) -> None:
    path = f"/storage-policies/{builtin.pk}"
    for name, body in (("policy-edit", typed()), ("policy-delete", {})):
        answer = admin.post(reverse(f"encryption:{name}", args=[builtin.pk]), body)
        assert answer.status_code == 403 and "lone it, and use the clone" in answer.content.decode()
    assert call("PUT", path, {"name": "Mine"}).code == call("DELETE", path).code == "policy_builtin"
    assert call.post(f"{path}/clone", {"name": "Mine"}).body["is_builtin"] is False
    assert "Delete…" not in admin.get(reverse("encryption:policy", args=[builtin.pk])).content.decode()


@pytest.mark.parametrize("use", ["home", "disk", "job"])
def test_one_in_use_cannot_go_nor_stop_encrypting(
    admin: Client, call: Caller, own: StoragePolicy, builtin: StoragePolicy, vm: VirtualMachine, use: str
) -> None:
    if use == "home":
        put_under(vm, own)
    elif use == "disk":
        put_under(vm, builtin)
        DiskPolicy.objects.create(virtual_machine=vm, target="vda", policy=own)
    else:
        Job.objects.create(
            kind="encryption.apply_options", target_kind=TargetKind.VIRTUAL_MACHINE, target_id=vm.pk, target_name="app",
            actor="alice", params=Wish(builtin.pk, {"vda": own.pk}).as_params(),
        )  # fmt: skip
    path = f"/storage-policies/{own.pk}"
    for name, body in (("policy-edit", typed(encrypts="no")), ("policy-delete", {})):
        answer = admin.post(reverse(f"encryption:{name}", args=[own.pk]), body)
        assert answer.status_code == 409 and "Gold is in use" in answer.content.decode()
    assert call("PUT", path, {"name": "Gold", "encrypts": False}).code == "policy_in_use"
    assert call("DELETE", path).code == "policy_in_use"
    assert call("PUT", path, {"name": "Gold 2", "max_key_age_days": 7}).body["max_key_age_days"] == 7
    Job.objects.update(status=JobStatus.SUCCEEDED)
    DiskPolicy.objects.all().delete()
    VmSecurity.objects.all().delete()
    assert call("DELETE", path).status == 204


def test_who_may_only_look(charlie: User, own: StoragePolicy) -> None:
    client, call = Client(), caller(charlie)
    client.force_login(charlie)
    assert "Gold" in client.get(reverse("encryption:policies")).content.decode()
    assert "Edit…" not in client.get(reverse("encryption:policy", args=[own.pk])).content.decode()
    for name in ("policy-edit", "policy-clone", "policy-delete"):
        assert client.post(reverse(f"encryption:{name}", args=[own.pk]), typed()).status_code == 403
    assert client.post(reverse("encryption:policy-add"), typed()).status_code == 403
    for method, path in (("POST", ""), ("PUT", f"/{own.pk}"), ("DELETE", f"/{own.pk}"), ("POST", f"/{own.pk}/clone")):
        body = None if method == "DELETE" else {"name": "x"}
        assert call(method, f"/storage-policies{path}", body).code == "not_permitted"
    assert StoragePolicy.objects.count() == 3 and not Event.objects.filter(kind__startswith="policy").exists()


def test_one_that_is_not_there(admin: Client, call: Caller) -> None:
    for name in ("policy", "policy-edit", "policy-clone", "policy-delete"):
        assert admin.get(reverse(f"encryption:{name}", args=[uuid4()])).status_code == 404
    path = f"/storage-policies/{uuid4()}"
    assert call("PUT", path, {"name": "x"}).code == call("DELETE", path).code == "policy_not_found"
    assert call.post(f"{path}/clone", {"name": "x"}).code == call.get(f"{path}/virtual-machines").code
    assert call.get(f"{path}/virtual-machines").code == "policy_not_found"


def test_its_use_is_shown_and_costs_the_same_for_two_and_for_forty(
    admin: Client, call: Caller, own: StoragePolicy, host: Host
) -> None:
    call.get("/me")

    def grow(first: int, last: int) -> None:
        for number in range(first, last):
            vm = VirtualMachine.objects.create(host=host, uuid=uuid4(), name=f"vm {number}")
            put_under(vm, own)
            DiskPolicy.objects.create(virtual_machine=vm, target="vda", policy=own)
            state = Compliance.State.NONCOMPLIANT if number % 2 else Compliance.State.COMPLIANT
            Compliance.objects.create(virtual_machine=vm, state=state)
            StoragePolicy.objects.create(name=f"policy {number}")

    def cost() -> list[int]:
        found = []
        for address in (reverse("encryption:policies"), reverse("encryption:policy", args=[own.pk])):
            with CaptureQueriesContext(connection) as queries:
                admin.get(address)
            found.append(len(queries))
        for path in ("/storage-policies", f"/storage-policies/{own.pk}/virtual-machines"):
            with CaptureQueriesContext(connection) as queries:
                call.get(path)
            found.append(len(queries))
        return found

    grow(0, 2)
    few = cost()
    grow(2, 40)
    assert cost() == few
    use = call.get(f"/storage-policies/{own.pk}").body
    assert (use["virtual_machine_count"], use["disk_count"], use["noncompliant_count"]) == (40, 40, 20)
    rows = call.get(f"/storage-policies/{own.pk}/virtual-machines").body
    assert rows["total"] == 40
    assert rows["items"][1] | {"virtual_machine": None} == {
        "virtual_machine": None, "is_home": True, "disks": ["vda"], "compliance": "noncompliant",
    }  # fmt: skip


def test_a_policy_that_does_not_encrypt_is_not_for_a_home(admin: Client, call: Caller, vm: VirtualMachine) -> None:
    scratch = StoragePolicy.objects.create(name="Scratch", encrypts=False)
    Disk.objects.create(virtual_machine=vm, target="vda", format="raw", source="/i/vda.raw")
    body = {"policy_id": scratch.pk, "disks": {}}
    for path in ("options", "options/plan"):
        assert call.post(f"/virtual-machines/{vm.pk}/{path}", body).code == "policy_not_for_home"
    answer = admin.post(
        reverse("encryption:vm-options", args=[vm.pk]), {"policy": str(scratch.pk), "disk-vda": str(scratch.pk)}
    )
    assert answer.status_code == 422 and "not one of the available choices" in answer.content.decode()
