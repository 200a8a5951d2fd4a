"""Migration over pages and the API: the dialog, its refusals, Encrypted vMotion, the matrix of hosts."""

from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from encryption.models import Key, MigrationProbe, StoragePolicy, VmMigration, VmSecurity, WrappedSecret
from inventory.models import Cluster, Datastore, Disk, Event, Host, Job, VirtualMachine
from tests.api_client import Caller, caller
from tests.encryption.world import provider

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
GIB = 2**30


@pytest.fixture
def vm(host: Host) -> VirtualMachine:
    """Running, plain, with a disk on storage of its host alone."""
    made = VirtualMachine.objects.create(
        host=host, uuid=uuid4(), name="app-01", power_state="on", memory_bytes=GIB, machine="q35"
    )
    Disk.objects.create(virtual_machine=made, target="vda", format="raw", source="/images/vda.raw", capacity_bytes=GIB)
    return made


@pytest.fixture
def target(cluster: Cluster) -> Host:
    made = Host.objects.create(
        cluster=cluster, name="kvm-b", uri="qemu+tls://kvm-b/system", state=Host.State.CONNECTED,
        memory_free_bytes=4 * GIB,
    )  # fmt: skip
    return made


@pytest.fixture
def store(target: Host) -> Datastore:
    return Datastore.objects.create(
        host=target, name="store", kind="dir", path="/store", is_active=True, available_bytes=10 * GIB
    )


@pytest.fixture
def encrypted(vm: VirtualMachine) -> VirtualMachine:
    key = Key.objects.create(cluster=provider(), key_id="7")
    VmSecurity.objects.create(
        virtual_machine=vm, policy=StoragePolicy.objects.get(name="VM Encryption Policy"), key=key
    )
    WrappedSecret.objects.create(
        virtual_machine=vm, purpose="disk", target="vda", key=key, wrapped=b"planted", path="/x", stage="in_use"
    )
    vm.disks.update(is_encrypted=True)
    return vm


@pytest.fixture
def admin(alice: User, client: Client) -> Client:
    client.force_login(alice)
    return client


def url(name: str, *ids: object) -> str:
    return reverse(f"encryption:{name}", args=ids)


def not_ready(source: Host, target: Host, **changes: Any) -> MigrationProbe:
    values = {
        "is_ready": False, "code": "migration_tls_untrusted", "reason": "the certificate has no known issuer",
        "remedy": "issue both from one CA", "checked_at": timezone.now(), **changes,
    }  # fmt: skip
    return MigrationProbe.objects.create(source=source, target=target, **values)


class TestDialog:
    def test_hosts_with_what_is_known_of_them(
        self, admin: Client, vm: VirtualMachine, target: Host, store: Datastore
    ) -> None:
        not_ready(vm.host, target)
        page = admin.get(url("vm-migrate", vm.pk)).content.decode()
        assert "kvm-b" in page and "Not ready" in page and "no known issuer" in page and "Compatible" in page
        assert "Opportunistic" in page and "Transfer memory and disks" in page
        summary = admin.get(reverse("inventory:summary", args=["vm", vm.pk])).content.decode()
        assert url("vm-migrate", vm.pk) in summary

    def test_of_an_encrypted_vm_the_mode_is_fixed(
        self, admin: Client, encrypted: VirtualMachine, target: Host, store: Datastore
    ) -> None:
        page = admin.get(url("vm-migrate", encrypted.pk)).content.decode()
        assert "Required" in page and "would travel decrypted otherwise" in page

    def test_no_other_host(self, admin: Client, vm: VirtualMachine) -> None:
        page = admin.get(url("vm-migrate", vm.pk)).content.decode()
        assert "There is no other host" in page
        assert admin.post(url("vm-migrate", vm.pk), {}).status_code == 422

    def test_the_plan_follows_the_input(
        self, admin: Client, vm: VirtualMachine, target: Host, store: Datastore
    ) -> None:
        address = url("vm-migrate-plan", vm.pk)
        page = admin.get(address, {"target": str(target.pk), "datastore": "auto"}).content.decode()
        assert "Create the files of vda on kvm-b" in page
        page = admin.get(address, {"target": str(target.pk), "datastore": "stay"}).content.decode()
        assert "is on storage that kvm-b does not share" in page
        assert admin.get(address, {"target": str(uuid4()), "datastore": "x"}).status_code == 200

    def test_asked_and_twice(
        self, admin: Client, alice: User, vm: VirtualMachine, target: Host, store: Datastore
    ) -> None:
        values = {"target": str(target.pk), "datastore": "auto"}
        answer = admin.post(url("vm-migrate", vm.pk), values)
        assert answer.headers["Location"] == reverse("inventory:monitor", args=["vm", vm.pk])
        job = Job.objects.get()
        assert job.kind == "encryption.migrate_vm"
        assert job.params == {"source": str(vm.host_id), "target": str(target.pk), "datastore": str(store.pk)}
        event = Event.objects.get()
        assert event.kind == "vm.migration_requested" and event.data["mode"] == "opportunistic"
        assert admin.post(url("vm-migrate", vm.pk), values).status_code == 409
        again = caller(alice)("POST", route(vm), {"target_host_id": str(target.pk), "datastore_id": str(store.pk)})
        assert (again.status, again.code) == (409, "target_busy")

    @pytest.mark.parametrize("values", [{}, {"target": "x"}, {"datastore": "x"}, {"target": str(uuid4())}])
    def test_bad_input(
        self, admin: Client, vm: VirtualMachine, target: Host, store: Datastore, values: dict[str, str]
    ) -> None:
        given = {"target": str(target.pk), "datastore": "auto", **values} if values else {}
        assert admin.post(url("vm-migrate", vm.pk), given).status_code == 422
        assert not Job.objects.exists()

    def test_somebody_who_may_only_look(
        self, client: Client, charlie: User, vm: VirtualMachine, target: Host, cluster: Cluster
    ) -> None:
        client.force_login(charlie)
        for address in (url("vm-migrate", vm.pk), url("vm-encrypted-vmotion", vm.pk), url("cluster-probe", cluster.pk)):
            assert client.get(address).status_code == 403
            assert client.post(address, {"target": str(target.pk), "datastore": "stay"}).status_code == 403
        call = caller(charlie)
        assert call("POST", route(vm), {"target_host_id": str(target.pk)}).code == "not_permitted"
        assert call("PUT", vmotion(vm), {"mode": "disabled"}).code == "not_permitted"
        assert call("POST", probe(cluster)).code == "not_permitted"
        assert not Job.objects.exists()


REFUSALS = [
    ("vm", {"is_present": False}, "vm_not_present"),
    ("source", {"state": "disconnected"}, "host_disconnected"),
    ("vm", {"is_persistent": False}, "vm_transient"),
    ("vm", {"power_state": "crashed"}, "vm_crashed"),
    ("vm", {"has_managed_save": True}, "vm_suspended"),
    ("vm", {"snapshot_count": 1}, "vm_has_snapshots"),
    ("disk", {"is_encrypted": True}, "foreign_keys"),
    ("disk", {"source": "/dev/sdb"}, "disk_not_copyable"),
    ("disk", {"capacity_bytes": 20 * GIB}, "space_missing"),
    ("disk", {"capacity_bytes": 0}, "size_unknown"),
    ("target", {"state": "disconnected"}, "target_disconnected"),
    ("target", {"uri": "qemu:///session?socket=/x"}, "migration_uri_missing"),
    ("target", {"memory_free_bytes": 1}, "memory_missing"),
]


class TestRefusals:
    @pytest.mark.parametrize(("what", "changes", "code"), REFUSALS)
    def test_by_page_and_api(
        self, admin: Client, alice: User, vm: VirtualMachine, target: Host, store: Datastore, what: str,
        changes: dict[str, Any], code: str,
    ) -> None:  # fmt: skip
        rows = {
            "vm": VirtualMachine.objects.filter(pk=vm.pk),
            "disk": vm.disks.all(),
            "source": Host.objects.filter(pk=vm.host_id),
            "target": Host.objects.filter(pk=target.pk),
        }
        rows[what].update(**changes)
        self.refused(admin, alice, vm, target, store, code)

    def refused(
        self, admin: Client, alice: User, vm: VirtualMachine, target: Host, store: Datastore, code: str
    ) -> None:
        answer = admin.post(url("vm-migrate", vm.pk), {"target": str(target.pk), "datastore": str(store.pk)})
        assert answer.status_code == 409
        wanted = {"target_host_id": str(target.pk), "datastore_id": str(store.pk)}
        call = caller(alice)
        refusal = call("POST", route(vm), wanted)
        assert (refusal.status, refusal.code) == (409, code)
        planned = call("POST", f"{route(vm)}/plan", wanted)
        assert code in [one["code"] for one in planned.body["refusals"]]
        assert not Job.objects.exists()

    def test_required_toward_a_host_that_cannot(
        self, admin: Client, alice: User, encrypted: VirtualMachine, target: Host, store: Datastore
    ) -> None:
        not_ready(encrypted.host, target)
        self.refused(admin, alice, encrypted, target, store, "migration_tls_untrusted")

    def test_the_same_name_or_vm_there(
        self, admin: Client, alice: User, vm: VirtualMachine, target: Host, store: Datastore
    ) -> None:
        other = VirtualMachine.objects.create(host=target, uuid=uuid4(), name=vm.name)
        self.refused(admin, alice, vm, target, store, "name_taken")
        VirtualMachine.objects.filter(pk=other.pk).update(uuid=vm.uuid)
        self.refused(admin, alice, vm, target, store, "uuid_taken")

    def test_an_unfinished_change(
        self, admin: Client, alice: User, encrypted: VirtualMachine, target: Host, store: Datastore
    ) -> None:
        encrypted.wrapped_secrets.update(stage="encrypting")
        self.refused(admin, alice, encrypted, target, store, "change_unfinished")

    def test_storage_that_is_not_shared(
        self, admin: Client, alice: User, vm: VirtualMachine, target: Host, store: Datastore
    ) -> None:
        answer = admin.post(url("vm-migrate", vm.pk), {"target": str(target.pk), "datastore": "stay"})
        assert answer.status_code == 409
        refusal = caller(alice)("POST", route(vm), {"target_host_id": str(target.pk)})
        assert (refusal.status, refusal.code) == (409, "datastore_needed")

    def test_a_datastore_of_no_use(
        self, admin: Client, alice: User, vm: VirtualMachine, target: Host, store: Datastore
    ) -> None:
        Datastore.objects.update(kind="logical")
        wanted = {"target_host_id": str(target.pk), "datastore_id": str(store.pk)}
        answer = caller(alice)("POST", route(vm), wanted)
        assert (answer.status, answer.code) == (422, "datastore_unsupported")
        wanted["datastore_id"] = str(uuid4())
        assert caller(alice)("POST", route(vm), wanted).code == "datastore_not_found"
        wanted["target_host_id"] = str(uuid4())
        assert caller(alice)("POST", route(vm), wanted).code == "host_not_found"

    def test_the_host_it_is_on(self, alice: User, vm: VirtualMachine) -> None:
        answer = caller(alice)("POST", route(vm), {"target_host_id": str(vm.host_id)})
        assert (answer.status, answer.code) == (409, "migration_same_host")


class TestMode:
    def test_set_over_page_and_api(self, admin: Client, alice: User, vm: VirtualMachine) -> None:
        assert caller(alice).get(vmotion(vm)).body == {
            "mode": "opportunistic", "effective": "opportunistic", "is_fixed": False
        }  # fmt: skip
        assert admin.post(url("vm-encrypted-vmotion", vm.pk), {"mode": "required"}).status_code == 302
        assert VmMigration.objects.get().encrypted == "required"
        assert caller(alice)("PUT", vmotion(vm), {"mode": "disabled"}).body["effective"] == "disabled"
        changes = Event.objects.filter(kind="vm.encrypted_vmotion_changed").order_by("id")
        assert list(changes.values_list("data__after", flat=True)) == ["required", "disabled"]
        caller(alice)("PUT", vmotion(vm), {"mode": "disabled"})
        assert changes.count() == 2

    def test_bad_input(self, admin: Client, alice: User, vm: VirtualMachine) -> None:
        assert admin.post(url("vm-encrypted-vmotion", vm.pk), {"mode": "never"}).status_code == 422
        assert caller(alice)("PUT", vmotion(vm), {"mode": "never"}).status == 422
        assert not VmMigration.objects.exists()

    def test_of_an_encrypted_vm_it_is_fixed(self, admin: Client, alice: User, encrypted: VirtualMachine) -> None:
        answer = admin.post(url("vm-encrypted-vmotion", encrypted.pk), {"mode": "disabled"})
        assert answer.status_code == 409 and "fixed" in answer.content.decode()
        refusal = caller(alice)("PUT", vmotion(encrypted), {"mode": "opportunistic"})
        assert (refusal.status, refusal.code) == (409, "encrypted_vmotion_fixed")
        assert caller(alice)("PUT", vmotion(encrypted), {"mode": "required"}).status == 200
        assert caller(alice).get(vmotion(encrypted)).body["is_fixed"]


class TestMatrix:
    def test_hosts_by_hosts_and_who_is_stuck(
        self, admin: Client, alice: User, encrypted: VirtualMachine, target: Host, cluster: Cluster
    ) -> None:
        not_ready(encrypted.host, target)
        not_ready(target, encrypted.host, is_ready=True, code="", reason="", remedy="")
        page = admin.get(url("cluster-migration", cluster.pk)).content.decode()
        assert "To kvm-b" in page and "Ready" in page and "no known issuer" in page
        assert "can do so to no host of its cluster" in page
        found = caller(alice).get(f"/clusters/{cluster.pk}/encrypted-migration").body
        assert {(one["source_id"], one["is_ready"]) for one in found["probes"]} == {
            (str(encrypted.host_id), False), (str(target.pk), True)
        }  # fmt: skip
        assert [one["name"] for one in found["stuck"]] == ["app-01"]
        assert (
            url("cluster-migration", cluster.pk)
            in admin.get(reverse("inventory:monitor", args=["cluster", cluster.pk])).content.decode()
        )

    def test_a_vm_whose_migration_failed(
        self, admin: Client, vm: VirtualMachine, target: Host, cluster: Cluster
    ) -> None:
        Job.objects.create(
            kind="encryption.migrate_vm", target_kind="vm", target_id=vm.pk, target_name="app-01", actor="alice",
            status="failed", message="the target did not answer",
        )  # fmt: skip
        address = url("cluster-migration", cluster.pk)
        assert "The target did not answer" in admin.get(address).content.decode()
        Event.objects.create(
            kind="vm.migrated", target_kind="vm", target_id=vm.pk, target_name="app-01", actor="alice", message="x"
        )
        assert "The target did not answer" not in admin.get(address).content.decode()

    def test_probe_over_page_and_api(
        self, admin: Client, alice: User, host: Host, target: Host, cluster: Cluster
    ) -> None:
        assert "Not tried" in admin.get(url("cluster-migration", cluster.pk)).content.decode()
        assert admin.get(url("cluster-probe", cluster.pk)).status_code == 200
        answer = admin.post(url("cluster-probe", cluster.pk))
        assert answer.headers["Location"] == url("cluster-migration", cluster.pk)
        assert Job.objects.get().kind == "encryption.probe_migration"
        again = caller(alice)("POST", probe(cluster))
        assert (again.status, again.code) == (409, "target_busy")

    def test_too_few_hosts(self, admin: Client, alice: User, host: Host, cluster: Cluster) -> None:
        answer = admin.post(url("cluster-probe", cluster.pk))
        assert answer.status_code == 409 and "fewer than two" in answer.content.decode()
        assert caller(alice)("POST", probe(cluster)).code == "too_few_hosts"
        assert caller(alice)("POST", f"/clusters/{uuid4()}/encrypted-migration/probe").code == "cluster_not_found"


def test_targets_over_the_api(alice: User, vm: VirtualMachine, target: Host, store: Datastore) -> None:
    call: Caller = caller(alice)
    (found,) = call.get(f"/virtual-machines/{vm.pk}/migration-targets").body
    assert (found["host"], found["is_possible"], found["datastore_id"]) == ("kvm-b", True, str(store.pk))
    assert found["probe"] is None and found["plan"]["mode"] == "opportunistic" and found["plan"]["live"]
    assert (
        call("POST", route(vm), {"target_host_id": found["host_id"], "datastore_id": found["datastore_id"]}).status
        == 202
    )


def route(vm: VirtualMachine) -> str:
    return f"/virtual-machines/{vm.pk}/migrate"


def vmotion(vm: VirtualMachine) -> str:
    return f"/virtual-machines/{vm.pk}/encrypted-vmotion"


def probe(cluster: Cluster) -> str:
    return f"/clusters/{cluster.pk}/encrypted-migration/probe"
