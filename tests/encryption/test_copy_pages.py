"""Clone, export, import and the list of exports, over pages and the API."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from encryption.models import Bundle, Key, StoragePolicy, VmSecurity, WrappedSecret
from inventory.models import Datastore, Disk, Event, Host, Job, VirtualMachine
from tests.api_client import Caller, caller
from tests.encryption.world import provider

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


@pytest.fixture
def vm(host: Host) -> VirtualMachine:
    """Plain, powered off, with a TPM."""
    made = VirtualMachine.objects.create(
        host=host, uuid=uuid4(), name="app-01", power_state="off", firmware="uefi", nvram_path="/n", tpm_model="tpm-crb"
    )
    Disk.objects.create(virtual_machine=made, target="vda", format="raw", source="/images/vda.raw")
    return made


@pytest.fixture
def encrypted(vm: VirtualMachine) -> VirtualMachine:
    key = Key.objects.create(cluster=provider(), key_id="7")
    VmSecurity.objects.create(virtual_machine=vm, policy=StoragePolicy.objects.get(encrypts=True), key=key)
    for purpose, target in (("disk", "vda"), ("nvram", ""), ("vtpm", "")):
        WrappedSecret.objects.create(
            virtual_machine=vm, purpose=purpose, target=target, key=key, wrapped=b"planted", path="/x", stage="in_use"
        )
    vm.disks.update(is_encrypted=True)
    VirtualMachine.objects.update(is_nvram_encrypted=True, is_tpm_encrypted=True)
    vm.refresh_from_db()
    return vm


@pytest.fixture
def bundle() -> Bundle:
    return Bundle.objects.create(
        folder="app-01-20260101-120000", state="complete", vm_name="app-01", vm_uuid=uuid4(), size_bytes=2**30,
        made_at=timezone.now(), made_by="bob", console="elsewhere", kms_cluster=uuid4(), kms_cluster_name="Far KMS",
        key_id="9",
    )  # fmt: skip


@pytest.fixture
def store(host: Host) -> Datastore:
    return Datastore.objects.create(host=host, name="store", kind="dir", path="/images", is_active=True)


def url(name: str, *ids: object) -> str:
    return reverse(f"encryption:{name}", args=ids)


def text(client: Client, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200
    found = answer.content.decode()
    assert "planted" not in found
    return found


class TestClone:
    def test_the_dialog_offers_what_the_vm_has(self, admin: Client, encrypted: VirtualMachine) -> None:
        page = text(admin, url("vm-clone", encrypted.pk))
        assert 'name="key"' in page and 'name="vtpm"' in page and "volume keys" in page and "BitLocker" in page
        assert 'value="app-01-clone"' in page
        assert url("vm-clone", encrypted.pk) in text(admin, reverse("inventory:summary", args=["vm", encrypted.pk]))

    def test_a_plain_one_has_no_key(self, admin: Client, vm: VirtualMachine) -> None:
        VirtualMachine.objects.update(tpm_model="")
        page = text(admin, url("vm-clone", vm.pk))
        assert 'name="key"' not in page and 'name="vtpm"' not in page
        assert admin.post(url("vm-clone", vm.pk), {"name": "app-02"}).status_code == 302
        assert Job.objects.get().params == {"name": "app-02", "key": "new", "vtpm": "copy"}

    def test_asked_and_twice(self, admin: Client, encrypted: VirtualMachine) -> None:
        values = {"name": "app-02", "key": "same", "vtpm": "replace"}
        answer = admin.post(url("vm-clone", encrypted.pk), values)
        assert answer.headers["Location"] == reverse("inventory:monitor", args=["vm", encrypted.pk])
        job = Job.objects.get()
        assert (job.kind, job.params) == ("encryption.clone_vm", values)
        assert Event.objects.get().kind == "vm.clone_requested"
        assert admin.post(url("vm-clone", encrypted.pk), values).status_code == 409

    @pytest.mark.parametrize(
        "values", [{}, {"name": "a/b"}, {"name": "x", "key": "none"}, {"name": "x", "vtpm": "both"}]
    )
    def test_bad_input(self, admin: Client, encrypted: VirtualMachine, values: dict[str, str]) -> None:
        given = {"key": "new", "vtpm": "copy", **values}
        assert admin.post(url("vm-clone", encrypted.pk), given).status_code == 422
        assert not Job.objects.exists()

    @pytest.mark.parametrize(
        ("values", "why"),
        [
            ({"power_state": "on"}, "is not powered off"),
            ({"snapshot_count": 2}, "has snapshots"),
            ({"has_managed_save": True}, "is suspended to a file"),
        ],
    )
    def test_not_now(self, admin: Client, alice: User, vm: VirtualMachine, values: dict[str, object], why: str) -> None:
        VirtualMachine.objects.update(**values)
        page = text(admin, reverse("inventory:summary", args=["vm", vm.pk]))
        assert why in page and url("vm-clone", vm.pk) not in page
        answer = admin.post(url("vm-clone", vm.pk), {"name": "app-02", "vtpm": "copy"})
        assert answer.status_code == 409 and why in answer.content.decode()
        codes = {"vm_running", "vm_has_snapshots", "vm_suspended"}
        assert caller(alice).post(f"/virtual-machines/{vm.pk}/clone", {"name": "app-02"}).code in codes
        assert caller(alice).post(f"/virtual-machines/{vm.pk}/export", {"in_clear": True}).code in codes

    def test_api(self, alice: User, charlie: User, vm: VirtualMachine) -> None:
        path, asks = f"/virtual-machines/{vm.pk}/clone", caller(alice)
        assert asks.post(path, {"name": "app-01"}).code == "name_taken"
        assert asks.post(path, {"name": ".."}).code == "name_invalid"
        assert asks.post(path, {"name": "x", "key": "none"}).status == 422
        assert caller(charlie).post(path, {"name": "x"}).code == "not_permitted"
        assert Caller(None).post(path, {"name": "x"}).status == 401
        assert asks.post(f"/virtual-machines/{uuid4()}/clone", {"name": "x"}).code == "vm_not_found"
        VirtualMachine.objects.update(is_present=False)
        assert asks.post(path, {"name": "x"}).code == "vm_not_present"
        VirtualMachine.objects.update(is_present=True)
        assert asks.post(path, {"name": "x", "vtpm": "replace"}).status == 202
        assert asks.post(path, {"name": "x"}).code == "target_busy"

    def test_unfinished_change(self, admin: Client, alice: User, encrypted: VirtualMachine) -> None:
        WrappedSecret.objects.update(stage="switched")
        values = {"name": "x", "key": "new", "vtpm": "copy"}
        assert admin.post(url("vm-clone", encrypted.pk), values).status_code == 409
        assert caller(alice).post(f"/virtual-machines/{encrypted.pk}/clone", {"name": "x"}).code == "change_unfinished"


class TestExport:
    def test_ciphertext_only(self, admin: Client, encrypted: VirtualMachine) -> None:
        page = text(admin, url("vm-export", encrypted.pk))
        assert "Only ciphertext leaves" in page and 'name="in_clear"' not in page
        assert admin.post(url("vm-export", encrypted.pk)).status_code == 302
        assert Job.objects.get().params == {"in_clear": False}

    def test_in_clear_must_be_said(self, admin: Client, alice: User, vm: VirtualMachine) -> None:
        assert "not encrypted" in text(admin, url("vm-export", vm.pk))
        answer = admin.post(url("vm-export", vm.pk))
        assert answer.status_code == 409 and "readable to all who get the folder" in answer.content.decode()
        assert caller(alice).post(f"/virtual-machines/{vm.pk}/export", {}).code == "export_in_clear"
        assert not Job.objects.exists()
        assert admin.post(url("vm-export", vm.pk), {"in_clear": "on"}).status_code == 302
        assert Job.objects.get().params == {"in_clear": True}

    def test_a_plain_part_of_an_encrypted_vm(self, admin: Client, alice: User, encrypted: VirtualMachine) -> None:
        Disk.objects.create(virtual_machine=encrypted, target="vdb", format="raw", source="/images/vdb.raw")
        assert "cannot be exported" in text(admin, url("vm-export", encrypted.pk))
        assert admin.post(url("vm-export", encrypted.pk), {"in_clear": "on"}).status_code == 409
        path = f"/virtual-machines/{encrypted.pk}/export"
        assert caller(alice).post(path, {"in_clear": True}).code == "parts_in_clear"

    def test_keys_elsewhere(self, admin: Client, alice: User, encrypted: VirtualMachine) -> None:
        WrappedSecret.objects.all().delete()
        assert admin.post(url("vm-export", encrypted.pk), {"in_clear": "on"}).status_code == 409
        path = f"/virtual-machines/{encrypted.pk}/export"
        assert caller(alice).post(path, {"in_clear": True}).code == "keys_not_ours"

    def test_the_wrong_person(self, charlie: User, client: Client, vm: VirtualMachine) -> None:
        client.force_login(charlie)
        for name in ("vm-export", "vm-clone"):
            assert client.get(url(name, vm.pk)).status_code == client.post(url(name, vm.pk)).status_code == 403
        assert caller(charlie).post(f"/virtual-machines/{vm.pk}/export", {}).code == "not_permitted"
        assert not Job.objects.exists()


class TestImport:
    def values(self, found: Bundle, store: Datastore, **others: str) -> dict[str, str]:
        return {"bundle": str(found.pk), "datastore": str(store.pk), "name": "app-01", "identity": "move"} | others

    def test_asked_and_twice(self, admin: Client, host: Host, bundle: Bundle, store: Datastore) -> None:
        page = text(admin, url("import-vm", host.pk))
        assert bundle.folder in page and "store: /images" in page
        assert url("import-vm", host.pk) in text(admin, reverse("inventory:summary", args=["host", host.pk]))
        assert admin.post(url("import-vm", host.pk), self.values(bundle, store)).status_code == 302
        job = Job.objects.get()
        assert (job.kind, job.target_kind, job.target_id) == ("encryption.import_vm", "bundle", bundle.pk)
        assert admin.post(url("import-vm", host.pk), self.values(bundle, store)).status_code == 409
        assert "Import VM" in text(admin, reverse("inventory:monitor", args=["host", host.pk]))

    def test_nothing_there(self, admin: Client, host: Host) -> None:
        page = text(admin, url("import-vm", host.pk))
        assert "No exported VM is in the exchange folder" in page and "Import</button>" not in page

    def test_bad_input(self, admin: Client, host: Host, bundle: Bundle, store: Datastore) -> None:
        for others in ({"bundle": str(uuid4())}, {"datastore": "x"}, {"name": "a/b"}, {"identity": "both"}):
            assert admin.post(url("import-vm", host.pk), self.values(bundle, store, **others)).status_code == 422
        assert admin.post(url("import-vm", uuid4()), self.values(bundle, store)).status_code == 404
        assert not Job.objects.exists()

    def test_it_is_here_already(self, admin: Client, host: Host, bundle: Bundle, store: Datastore) -> None:
        VirtualMachine.objects.create(host=host, uuid=bundle.vm_uuid or uuid4(), name="old")
        answer = admin.post(url("import-vm", host.pk), self.values(bundle, store))
        assert answer.status_code == 409 and "This VM is here already" in answer.content.decode()
        assert admin.post(url("import-vm", host.pk), self.values(bundle, store, identity="copy")).status_code == 302

    def test_api(self, alice: User, charlie: User, host: Host, bundle: Bundle, store: Datastore) -> None:
        path, asks = f"/hosts/{host.pk}/import", caller(alice)
        body = {"bundle_id": str(bundle.pk), "datastore_id": str(store.pk), "name": "app-01"}
        VirtualMachine.objects.create(host=host, uuid=bundle.vm_uuid or uuid4(), name="old")
        assert asks.post(path, body).code == "vm_exists"
        assert asks.post(path, {**body, "name": "old", "identity": "copy"}).code == "name_taken"
        assert asks.post(path, {**body, "name": "/", "identity": "copy"}).code == "name_invalid"
        assert asks.post(path, {**body, "bundle_id": str(uuid4())}).code == "bundle_not_found"
        assert asks.post(path, {**body, "datastore_id": str(uuid4())}).code == "datastore_not_found"
        assert asks.post(f"/hosts/{uuid4()}/import", body).code == "host_not_found"
        assert caller(charlie).post(path, body).code == "not_permitted"
        assert Caller(None).post(path, body).status == 401
        Datastore.objects.update(kind="logical")
        assert asks.post(path, {**body, "identity": "copy"}).code == "datastore_unsupported"
        Datastore.objects.update(kind="dir")
        Host.objects.update(state="disconnected")
        assert asks.post(path, {**body, "identity": "copy"}).code == "host_disconnected"
        Host.objects.update(state="connected")
        Bundle.objects.update(state="unusable", reason="damaged")
        assert asks.post(path, {**body, "identity": "copy"}).code == "bundle_unusable"
        Bundle.objects.update(state="complete")
        assert asks.post(path, {**body, "identity": "copy"}).status == 202
        assert asks.post(path, {**body, "identity": "copy"}).code == "target_busy"


class TestList:
    def test_shown(self, admin: Client, bundle: Bundle) -> None:
        Bundle.objects.create(folder="bad", state="unusable", reason="the manifest is not JSON")
        Bundle.objects.create(folder="plain", state="complete", is_clear=True)
        page = text(admin, url("bundles"))
        for words in (bundle.folder, "Far KMS", "elsewhere", "In clear", "the manifest is not JSON", "1 GiB"):
            assert words in page

    def test_deleted_and_twice(self, admin: Client, alice: User, bundle: Bundle) -> None:
        assert bundle.folder in text(admin, url("bundle-delete", bundle.pk))
        assert admin.post(url("bundle-delete", bundle.pk)).status_code == 302
        assert Job.objects.get().kind == "encryption.delete_bundle"
        assert admin.post(url("bundle-delete", bundle.pk)).status_code == 409
        assert caller(alice)("DELETE", f"/exported-vms/{bundle.pk}").code == "target_busy"
        assert caller(alice)("DELETE", f"/exported-vms/{uuid4()}").code == "bundle_not_found"
        assert admin.post(url("bundle-delete", uuid4())).status_code == 404

    def test_looked_for(
        self, admin: Client, alice: User, sent: list[tuple[str, list[str], str]],
        django_capture_on_commit_callbacks: object,
    ) -> None:  # fmt: skip
        with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]
            assert admin.post(url("bundles-look")).status_code == 302
            assert caller(alice).post("/exported-vms/look").status == 204
        assert [name for name, _, _ in sent].count("encryption.look_for_bundles") == 2

    def test_api(self, alice: User, bundle: Bundle) -> None:
        found = caller(alice).get("/exported-vms").body
        assert found["total"] == 1 and found["items"][0]["folder"] == bundle.folder

    def test_the_wrong_person(self, charlie: User, client: Client, bundle: Bundle, host: Host) -> None:
        client.force_login(charlie)
        page = text(client, url("bundles"))
        assert bundle.folder in page and url("bundle-delete", bundle.pk) not in page
        for address in (url("bundles-look"), url("bundle-delete", bundle.pk), url("import-vm", host.pk)):
            assert client.get(address).status_code == client.post(address).status_code == 403
        assert caller(charlie)("DELETE", f"/exported-vms/{bundle.pk}").code == "not_permitted"
        assert caller(charlie).post("/exported-vms/look").code == "not_permitted"
        assert not Job.objects.exists()
