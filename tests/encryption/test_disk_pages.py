"""Hard disks through their URLs and the API: each refusal by both, who may, and that what is shown fits."""

from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.models import DiskPolicy, Key, KmsCluster, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from inventory.models import Datastore, Host, Job, PowerState, VirtualMachine
from inventory.services import approvals
from tests.api_client import Caller, caller

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
GIB = 2**30


@pytest.fixture
def store(host: Host) -> Datastore:
    return Datastore.objects.create(
        host=host, name="images", kind="dir", path="/images", is_active=True, available_bytes=100 * GIB
    )


@pytest.fixture
def vm(host: Host, store: Datastore) -> VirtualMachine:
    """Plain, off, one disk."""
    made = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app-01", power_state=PowerState.OFF)
    made.disks.create(target="vda", format="raw", source="/images/vda.raw", capacity_bytes=GIB)
    return made


@pytest.fixture
def protected(vm: VirtualMachine) -> VirtualMachine:
    """Encrypted, with a detached disk."""
    key = Key.objects.create(cluster=KmsCluster.objects.create(name="KMS"), key_id="kmip-7")
    VmSecurity.objects.create(virtual_machine=vm, policy=StoragePolicy.objects.get(pk=policy(True)), key=key)
    DiskPolicy.objects.create(virtual_machine=vm, target="vda", policy_id=policy(False))
    detached(vm, key)
    return vm


def detached(vm: VirtualMachine, key: Key) -> WrappedSecret:
    return WrappedSecret.objects.create(
        virtual_machine=vm, purpose=Purpose.DISK, target="vdb", key=key, wrapped=b"planted-wrapped-secret",
        path="/images/vdb.luks", plain_format="raw", size_bytes=GIB, stage=Stage.DETACHED,
    )  # fmt: skip


def policy(encrypts: bool) -> UUID:
    return StoragePolicy.objects.filter(encrypts=encrypts, is_builtin=True)[0].pk


def url(name: str, *args: object) -> str:
    return reverse(f"encryption:{name}", args=args)


def post(who: Client, api: Caller, vm: VirtualMachine, what: str, values: dict[str, object]) -> tuple[int, int, str]:
    """The same by the page and by the API: both answers, and the API's code."""
    if what == "add":
        size = values.get("size_gib", 1)
        page = who.post(url("add-disk", vm.pk), {"size_gib": size, "image_format": "raw", **values})
        body = {"size_bytes": int(float(str(size)) * GIB), "image_format": values.get("image_format", "raw"),
                "datastore_id": values["datastore"], "policy_id": values["policy"]}  # fmt: skip
        answer = api.post(f"/virtual-machines/{vm.pk}/disks", body)
    elif what == "attach":
        page = who.post(url("attach-disk", vm.pk), values)
        body = {"path": values["path"], "policy_id": values["policy"]}
        answer = api.post(f"/virtual-machines/{vm.pk}/disks/attach", body)
    else:
        page = who.post(url("detach-disk", vm.pk, values["target"]))
        answer = api.post(f"/virtual-machines/{vm.pk}/disks/{values['target']}/detach")
    return page.status_code, answer.status, "" if answer.status < 400 else answer.code


def test_the_page_shows_disks_policies_and_detached_ones(admin: Client, protected: VirtualMachine) -> None:
    page = admin.get(url("vm-disks", protected.pk)).content.decode()
    row = WrappedSecret.objects.get()
    assert "/images/vda.raw" in page and "No encryption" in page
    assert "/images/vdb.luks" in page and "kmip-7" in page and url("destroy-disk", row.pk) in page
    assert f"{url('attach-disk', protected.pk)}?path=/images/vdb.luks" in page
    assert url("detach-disk", protected.pk, "vda") in page and "planted" not in page
    dialog = admin.get(url("attach-disk", protected.pk) + "?path=/images/vdb.luks").content.decode()
    assert 'value="/images/vdb.luks"' in dialog
    assert "images (/images)" in admin.get(url("add-disk", protected.pk)).content.decode()
    assert "Take vda out of" in admin.get(url("detach-disk", protected.pk, "vda")).content.decode()


def test_why_nothing_can_be_changed_now(admin: Client, vm: VirtualMachine) -> None:
    VirtualMachine.objects.update(power_state=PowerState.ON)
    page = admin.get(url("vm-disks", vm.pk)).content.decode()
    assert "is not powered off" in page and url("add-disk", vm.pk) not in page


def test_jobs_and_twice(admin: Client, alice: User, vm: VirtualMachine, store: Datastore) -> None:
    values: dict[str, dict[str, object]] = {
        "add": {"datastore": str(store.pk), "policy": str(policy(False))},
        "attach": {"path": "/images/other.raw", "policy": str(policy(False))},
        "detach": {"target": "vda"},
    }
    for what, given in values.items():
        assert post(admin, caller(alice), vm, what, given) == (302, 409, "target_busy")
        job = Job.objects.get()
        assert job.kind == f"encryption.{what}_disk" and job.target_id == vm.pk
        job.delete()


READINESS = [
    ({"power_state": "on"}, {}, "vm_running"),
    ({"has_managed_save": True}, {}, "managed_save_present"),
    ({"snapshot_count": 1}, {}, "snapshots_present"),
    ({"is_present": False}, {}, "vm_gone"),
    ({"is_persistent": False}, {}, "vm_transient"),
    ({}, {"state": "disconnected"}, "host_disconnected"),
]


@pytest.mark.parametrize("what", ["add", "attach", "detach"])
@pytest.mark.parametrize(("change", "host_change", "code"), READINESS)
def test_the_vms_state_forbids(
    admin: Client, alice: User, vm: VirtualMachine, store: Datastore, what: str, change: dict[str, object],
    host_change: dict[str, object], code: str,
) -> None:  # fmt: skip
    VirtualMachine.objects.update(**change)
    Host.objects.update(**host_change)
    values = {"datastore": str(store.pk), "policy": str(policy(False)), "path": "/images/x.raw", "target": "vda"}
    assert post(admin, caller(alice), vm, what, dict(values)) == (409, 409, code)
    assert not Job.objects.exists()


def test_add_refused(admin: Client, alice: User, vm: VirtualMachine, store: Datastore) -> None:
    api = caller(alice)
    plain: dict[str, object] = {"datastore": str(store.pk), "policy": str(policy(False))}
    for change, expected in (
        ({"policy": str(policy(True))}, (409, 409, "vm_not_encrypted")),
        ({"policy": str(policy(True)), "image_format": "qcow2"}, (422, 422, "format_invalid")),
        ({"size_gib": 101}, (409, 409, "space_missing")),
        ({"image_format": "vmdk"}, (422, 422, "format_invalid")),
    ):
        assert post(admin, api, vm, "add", plain | change) == expected
    path, good = f"/virtual-machines/{vm.pk}/disks", {
        "size_bytes": 512, "datastore_id": store.pk, "policy_id": policy(False),
    }  # fmt: skip
    assert api.post(path, good | {"size_bytes": 513}).code == "size_invalid"
    assert api.post(path, good | {"datastore_id": uuid4()}).code == "datastore_not_found"
    assert api.post(path, good | {"policy_id": uuid4()}).code == "policy_not_found"
    Datastore.objects.update(is_active=False)
    assert api.post(path, good).code == "datastore_unfit"
    for number in range(26):
        vm.disks.get_or_create(target=f"vd{chr(97 + number)}")
    Datastore.objects.update(is_active=True)
    assert post(admin, api, vm, "add", plain) == (409, 409, "too_many_disks")
    assert not Job.objects.exists()


def test_attach_refused_on_a_plain_vm(admin: Client, alice: User, vm: VirtualMachine) -> None:
    key = Key.objects.create(cluster=KmsCluster.objects.create(name="KMS"), key_id="kmip-7")
    detached(VirtualMachine.objects.create(host=vm.host, uuid=uuid4(), name="other"), key)
    other = vm.host.virtual_machines.get(name="other")
    other.disks.create(target="vda", source="/images/taken.raw")
    for path, encrypts, expected in (
        ("/images/vdb.luks", True, (409, 409, "encrypted_disk_on_plain_vm")),
        ("/images/taken.raw", False, (409, 409, "disk_in_use")),
        ("/images/vda.raw", False, (409, 409, "disk_in_use")),
        ("/etc/shadow", False, (422, 422, "path_invalid")),
        ("/images/../etc/shadow", False, (422, 422, "path_invalid")),
        ("images/x", False, (422, 422, "path_invalid")),
        ("/images/a\nb", False, (422, 422, "path_invalid")),
    ):
        values: dict[str, object] = {"path": path, "policy": str(policy(encrypts))}
        assert post(admin, caller(alice), vm, "attach", values) == expected, path
    assert not Job.objects.exists()


def test_attach_refused_on_an_encrypted_vm(admin: Client, alice: User, protected: VirtualMachine) -> None:
    for path, encrypts, code in (
        ("/images/plain.raw", True, "plain_disk_under_encrypting_policy"),
        ("/images/vdb.luks", False, "encrypted_disk_under_plain_policy"),
    ):
        values: dict[str, object] = {"path": path, "policy": str(policy(encrypts))}
        assert post(admin, caller(alice), protected, "attach", values) == (409, 409, code)
    page = admin.post(url("attach-disk", protected.pk), {"path": "/images/plain.raw", "policy": str(policy(True))})
    assert "change its policy in VM Options" in page.content.decode(), "the way to do it"


def test_detach_of_what_is_not_there(admin: Client, alice: User, vm: VirtualMachine) -> None:
    assert post(admin, caller(alice), vm, "detach", {"target": "vdx"}) == (409, 409, "disk_unknown")


def test_where_two_are_needed_a_destruction_waits(admin: Client, alice: User, protected: VirtualMachine) -> None:
    approvals.switch_on(action="encryption.destroy_disk", actor=alice)
    row = WrappedSecret.objects.get(stage=Stage.DETACHED)
    assert admin.post(url("destroy-disk", row.pk), {"confirm": "vdb.luks"}).status_code == 302
    job = Job.objects.get()
    assert (job.status, job.approval_right) == ("waiting", "encryption.destroy_disk")
    answer = caller(alice).post(f"/detached-disks/{row.pk}/destroy", {"confirm": "vdb.luks"})
    assert (answer.status, answer.code) == (409, "approval_pending")


def test_destroy_detached(admin: Client, alice: User, protected: VirtualMachine) -> None:
    row, api = WrappedSecret.objects.get(), caller(alice)
    address, path = url("destroy-disk", row.pk), f"/detached-disks/{row.pk}/destroy"
    assert "the only key to it" in admin.get(address).content.decode()
    assert admin.post(address, {"confirm": "vdb"}).status_code == 422
    assert api.post(path, {"confirm": "vdb"}).code == "confirmation_mismatch"
    Host.objects.update(state=Host.State.DISCONNECTED)
    assert admin.post(address, {"confirm": "vdb.luks"}).status_code == 409
    assert api.post(path, {"confirm": "vdb.luks"}).code == "host_disconnected"
    Host.objects.update(state=Host.State.CONNECTED)
    assert api.get(f"/virtual-machines/{protected.pk}/detached-disks").body == [
        {"id": str(row.pk), "target": "vdb", "path": "/images/vdb.luks", "size_bytes": GIB, "key_id": "kmip-7"}
    ]
    assert admin.post(address, {"confirm": "vdb.luks"}).status_code == 302
    assert api.post(path, {"confirm": "vdb.luks"}).code == "target_busy"
    assert api.post(f"/detached-disks/{uuid4()}/destroy", {"confirm": "x"}).code == "disk_not_found"


def test_who_may_not(charlie: User, protected: VirtualMachine, store: Datastore) -> None:
    looker, row = Client(), WrappedSecret.objects.get()
    looker.force_login(charlie)
    page = looker.get(url("vm-disks", protected.pk)).content.decode()
    assert "/images/vda.raw" in page and "detach/" not in page and "destroy/" not in page
    values = {"datastore": str(store.pk), "policy": str(policy(False)), "path": "/images/x.raw", "target": "vda"}
    for what in ("add", "attach", "detach"):
        assert post(looker, caller(charlie), protected, what, dict(values)) == (403, 403, "not_permitted")
    assert looker.post(url("destroy-disk", row.pk), {"confirm": "vdb.luks"}).status_code == 403
    assert caller(charlie).post(f"/detached-disks/{row.pk}/destroy", {"confirm": "vdb.luks"}).code == "not_permitted"
    for name, args in (("vm-disks", [protected.pk]), ("add-disk", [protected.pk]), ("destroy-disk", [row.pk])):
        assert reverse("login") in Client().get(url(name, *args)).headers["Location"]
    assert not Job.objects.exists()
