"""Key providers, storage policies and VM options over REST; and that nothing sealed or wrapped ever comes out."""

import base64
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from console.api import api
from encryption.models import (
    ClientKeyUpload,
    Key,
    KmsCluster,
    KmsServer,
    Purpose,
    Stage,
    StoragePolicy,
    TransportKey,
    VmSecurity,
    WrappedSecret,
)
from inventory.alarms import raise_alarm
from inventory.models import Disk, Event, Host, Job, VirtualMachine
from tests.api_client import ROOT, Caller, caller

pytestmark = pytest.mark.django_db
NOBODY = "00000000-0000-0000-0000-000000000007"
PLANTED = b"planted-sealed-or-wrapped-bytes!"


@pytest.fixture
def admin(alice: User) -> Caller:
    return caller(alice)


@pytest.fixture
def looker(charlie: User) -> Caller:
    return caller(charlie)


@pytest.fixture
def provider(db: None) -> KmsCluster:
    found = KmsCluster.objects.create(name="KMS", is_default=True)
    KmsServer.objects.create(cluster=found, position=0, host="kms.corp.example")
    return found


@pytest.fixture
def vm(host: Host) -> VirtualMachine:
    """Powered off, BIOS, one raw disk."""
    found = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app", power_state="off")
    Disk.objects.create(
        virtual_machine=found, target="vda", format="raw", source="/images/vda.img", capacity_bytes=1024
    )
    return found


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(public_key: ec.EllipticCurvePublicKey, key: ec.EllipticCurvePrivateKey) -> str:
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder().subject_name(name("client")).issuer_name(name("KMS CA")).public_key(public_key)
        .serial_number(7).not_valid_before(now).not_valid_after(now + timedelta(days=30)).sign(key, hashes.SHA256())
    )  # fmt: skip
    return built.public_bytes(serialization.Encoding.PEM).decode()


def encrypted(provider: KmsCluster, vm: VirtualMachine) -> Key:
    """`vm` as it is after its encryption, with bytes that must not come out."""
    key = Key.objects.create(cluster=provider, key_id="kmip-7", state=Key.State.ACTIVE)
    policy = StoragePolicy.objects.filter(encrypts=True)[0]
    VmSecurity.objects.create(virtual_machine=vm, policy=policy, key=key)
    WrappedSecret.objects.create(
        virtual_machine=vm, purpose=Purpose.DISK, target="vda", key=key, wrapped=PLANTED, path="/images/vda.luks",
        stage=Stage.IN_USE, size_bytes=1024,
    )  # fmt: skip
    return key


class TestKeyProviders:
    def test_the_first_one_is_the_default(self, admin: Caller) -> None:
        first = admin.post("/key-providers", {"name": "KMS", "host": "kms.corp.example"})
        assert (first.status, first.body["is_default"]) == (201, True)
        assert [(one["host"], one["port"], one["state"]) for one in first.body["servers"]] == [
            ("kms.corp.example", 5696, "unknown")
        ]
        second = admin.post("/key-providers", {"name": "Other", "host": "other", "port": 5700})
        assert second.body["is_default"] is False
        admin.post(f"/key-providers/{second.body['id']}/default")
        assert [(one["name"], one["is_default"]) for one in admin.get("/key-providers").body] == [
            ("KMS", False), ("Other", True),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("wanted", "status", "code"),
        [
            ({"name": "kms", "host": "h"}, 409, "name_taken"),
            ({"name": " ", "host": "h"}, 422, "name_missing"),
            ({"name": "x" * 81, "host": "h"}, 422, "name_invalid"),
            ({"name": "a\x00b", "host": "h"}, 422, "name_invalid"),
            ({"name": "New", "host": "a b"}, 422, "host_invalid"),
            ({"name": "New", "host": "a\x00b"}, 422, "host_invalid"),
            ({"name": "New", "host": "h", "port": 70000}, 422, "port_invalid"),
            ({"name": "New", "host": "h", "port": "x"}, 422, "invalid_input"),
            ({"name": "New"}, 422, "invalid_input"),
            ({"name": "New", "host": "h", "is_lab": True}, 422, "invalid_input"),
        ],
    )
    def test_bad_input(
        self, admin: Caller, provider: KmsCluster, wanted: dict[str, object], status: int, code: str
    ) -> None:
        answer = admin.post("/key-providers", wanted)
        assert (answer.status, answer.code) == (status, code)
        assert KmsCluster.objects.count() == 1

    def test_servers(self, admin: Caller, provider: KmsCluster) -> None:
        path = f"/key-providers/{provider.pk}/servers"
        added = admin.post(path, {"host": "[2001:db8::1]", "port": 5696})
        assert (added.status, added.body["position"], added.body["host"]) == (201, 1, "2001:db8::1")
        assert admin.post(path, {"host": "2001:db8::1"}).code == "server_taken"
        assert admin.get(f"/key-servers/{added.body['id']}").body == added.body
        assert admin("DELETE", f"/key-servers/{added.body['id']}").status == 204
        assert admin("DELETE", f"/key-servers/{added.body['id']}").code == "key_server_not_found"

    def test_trust_in_both_directions(self, admin: Caller, provider: KmsCluster) -> None:
        path = f"/key-providers/{provider.pk}"
        ours, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        trusted = admin(
            "PUT", f"{path}/trusted-certificates", {"certificate_pem": certificate(theirs.public_key(), theirs)}
        )
        assert trusted.body["trusted"][0]["issuer"] == "CN=KMS CA"
        assert admin.get(f"{path}/client-request").code == "no_signing_request"
        request = x509.CertificateSigningRequestBuilder().subject_name(name("bartizan")).sign(ours, hashes.SHA256())
        pem = request.public_bytes(serialization.Encoding.PEM).decode()
        KmsCluster.objects.update(client_csr_pem=pem, client_key_next_sealed=PLANTED)
        assert admin.get(f"{path}/client-request").body == {"pem": pem}
        install = f"{path}/client-certificate"
        wrong = admin("PUT", install, {"certificate_pem": certificate(theirs.public_key(), theirs)})
        assert (wrong.status, wrong.code) == (422, "certificate_of_another_key")
        done = admin("PUT", install, {"certificate_pem": certificate(ours.public_key(), theirs)})
        assert (done.status, done.body["client_certificate"][0]["subject"]) == (200, "CN=client")
        assert done.body["has_client_request"] is False
        assert admin("PUT", install, {"certificate_pem": certificate(ours.public_key(), theirs)}).status == 409

    @pytest.mark.parametrize("pem", ["", "x", "-----BEGIN PRIVATE KEY-----\nplanted-private\n", "x" * 65_537])
    def test_a_text_that_is_no_certificate(self, admin: Caller, provider: KmsCluster, pem: str) -> None:
        answer = admin("PUT", f"/key-providers/{provider.pk}/trusted-certificates", {"certificate_pem": pem})
        assert answer.status == 422
        assert "planted-private" not in answer.text

    def test_work_for_a_worker_is_a_job_and_one_at_a_time(self, admin: Caller, provider: KmsCluster) -> None:
        made = admin.post(f"/key-providers/{provider.pk}/client-key")
        assert (made.status, made.body["target"]) == (202, {"kind": "kms", "id": str(provider.pk), "name": "KMS"})
        checked = admin.post(f"/key-providers/{provider.pk}/check")
        assert (checked.status, checked.code) == (409, "target_busy")

    def test_one_with_keys_stays(self, admin: Caller, provider: KmsCluster, vm: VirtualMachine) -> None:
        key = encrypted(provider, vm)
        assert admin("DELETE", f"/key-providers/{provider.pk}").code == "key_provider_in_use"
        (found,) = admin.get(f"/key-providers/{provider.pk}/keys").body["items"]
        assert (found["key_id"], found["state"]) == (key.key_id, "active")
        assert found["virtual_machines"] == [{"id": str(vm.pk), "name": "app"}]

    def test_one_without_keys_goes(self, admin: Caller, provider: KmsCluster) -> None:
        assert admin("DELETE", f"/key-providers/{provider.pk}").status == 204
        assert admin.get(f"/key-providers/{provider.pk}").code == "key_provider_not_found"

    def test_lists_cost_the_same_for_three_and_for_forty(
        self, looker: Caller, provider: KmsCluster, host: Host
    ) -> None:
        policy = StoragePolicy.objects.filter(encrypts=True)[0]
        looker.get("/me")

        def grow(first: int, last: int) -> None:
            for number in range(first, last):
                other = KmsCluster.objects.create(name=f"KMS {number}")
                KmsServer.objects.create(cluster=other, position=0, host="h")
                vm = VirtualMachine.objects.create(host=host, uuid=uuid4(), name=f"vm {number}")
                key = Key.objects.create(cluster=provider, key_id=str(number))
                VmSecurity.objects.create(virtual_machine=vm, policy=policy, key=key)
                WrappedSecret.objects.create(
                    virtual_machine=vm, purpose=Purpose.NVRAM, key=key, wrapped=PLANTED, path="/x"
                )

        def cost(path: str) -> tuple[int, int]:
            with CaptureQueriesContext(connection) as queries:
                answer = looker.get(path, page_size=100)
            return len(answer.body["items"] if isinstance(answer.body, dict) else answer.body), len(queries)

        paths = ("/key-providers", f"/key-providers/{provider.pk}/keys")
        grow(0, 3)
        before = [cost(path) for path in paths]
        grow(3, 40)
        after = [cost(path) for path in paths]
        assert [queries for _, queries in after] == [queries for _, queries in before]
        assert [rows for rows, _ in after] == [41, 40]


class TestVmOptions:
    @pytest.fixture
    def wish(self, provider: KmsCluster) -> dict[str, object]:
        policy = StoragePolicy.objects.filter(encrypts=True)[0].pk
        return {"policy_id": policy, "disks": {"vda": policy}}

    def test_policies(self, looker: Caller) -> None:
        found = looker.get("/storage-policies").body
        assert {one["encrypts"] for one in found} == {True, False}

    def test_what_is(self, looker: Caller, provider: KmsCluster, vm: VirtualMachine) -> None:
        path = f"/virtual-machines/{vm.pk}/options"
        before = looker.get(path).body
        assert (before["policy"]["encrypts"], before["key_provider"], before["parts"]) == (False, None, [])
        assert [disk["target"] for disk in before["disks"]] == ["vda"]
        encrypted(provider, vm)
        after = looker.get(path).body
        assert (after["policy"]["encrypts"], after["key_provider"]["name"], after["key_id"]) == (True, "KMS", "kmip-7")
        assert [(part["purpose"], part["target"], part["stage"]) for part in after["parts"]] == [
            ("disk", "vda", "in_use")
        ]

    def test_the_plan_changes_nothing(self, looker: Caller, vm: VirtualMachine, wish: dict[str, object]) -> None:
        before = Job.objects.count(), Event.objects.count()
        answer = looker.post(f"/virtual-machines/{vm.pk}/options/plan", wish)
        assert answer.status == 200
        assert "encrypt_disk" in [step["kind"] for step in answer.body["steps"]]
        assert answer.body["new_bytes"] == 1024
        assert (Job.objects.count(), Event.objects.count()) == before

    def test_applying_is_a_job_of_the_vm(self, admin: Caller, vm: VirtualMachine, wish: dict[str, object]) -> None:
        Host.objects.update(uri="qemu:///system")  # so that a worker reaches the files
        path = f"/virtual-machines/{vm.pk}/options"
        started = admin.post(path, wish)
        assert (started.status, started.body["kind"]) == (202, "encryption.apply_options")
        assert started.body["target"]["id"] == str(vm.pk)
        assert admin.post(path, wish).code == "target_busy"

    def test_a_refusal_of_the_plan_is_a_conflict(
        self, admin: Caller, vm: VirtualMachine, wish: dict[str, object]
    ) -> None:
        path = f"/virtual-machines/{vm.pk}/options"
        VirtualMachine.objects.filter(pk=vm.pk).update(is_persistent=False)
        refusals = admin.post(f"{path}/plan", wish).body["refusals"]
        answer = admin.post(path, wish)
        assert (answer.status, answer.code) == (409, refusals[0]["code"])
        assert not Job.objects.exists()

    @pytest.mark.parametrize(
        ("change", "code"),
        [({"has_managed_save": True}, "managed_save_present"), ({"snapshot_count": 1}, "snapshots_present")],
    )
    def test_refused_while_libvirt_keeps_a_state_of_it(
        self, admin: Caller, vm: VirtualMachine, wish: dict[str, object], change: dict[str, object], code: str
    ) -> None:
        Host.objects.update(uri="qemu:///system")
        VirtualMachine.objects.filter(pk=vm.pk).update(**change)
        answer = admin.post(f"/virtual-machines/{vm.pk}/options", wish)
        assert (answer.status, answer.code) == (409, code)
        assert answer.body["hint"] and not Job.objects.exists()

    def test_who_may_only_look_may_not_apply(self, looker: Caller, vm: VirtualMachine, wish: dict[str, object]) -> None:
        answer = looker.post(f"/virtual-machines/{vm.pk}/options", wish)
        assert (answer.status, answer.code) == (403, "not_permitted")
        assert not Job.objects.exists()

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"policy_id": "00000000-0000-0000-0000-000000000007"}, "policy_not_found"),
            ({"policy_id": "x"}, "invalid_input"),
            ({"disks": "vda"}, "invalid_input"),
            ({"disks": ["vda"]}, "invalid_input"),
            ({"disks": {"vda": True}}, "invalid_input"),
            ({"disks": {"x" * 33: NOBODY}}, "invalid_input"),
            ({"disks": {f"sd{n}": NOBODY for n in range(257)}}, "invalid_input"),
            ({"disks": {"vda": NOBODY}}, "policy_not_found"),
            ({"key_provider_id": "00000000-0000-0000-0000-000000000007"}, "key_provider_not_found"),
            ({"key": "planted"}, "invalid_input"),
        ],
    )
    def test_bad_input(
        self, admin: Caller, vm: VirtualMachine, wish: dict[str, object], change: dict[str, object], code: str
    ) -> None:
        for path in ("options", "options/plan"):
            assert admin.post(f"/virtual-machines/{vm.pk}/{path}", wish | change).code == code

    def test_a_vm_that_is_not_there(self, admin: Caller, wish: dict[str, object]) -> None:
        path = f"/virtual-machines/{uuid4()}/options"
        assert {admin.get(path).code, admin.post(path, wish).code} == {"vm_not_found"}


def test_one_who_may_only_look_changes_no_key_provider(looker: Caller, provider: KmsCluster) -> None:
    path, server = f"/key-providers/{provider.pk}", KmsServer.objects.get()
    before = list(KmsCluster.objects.values()), list(KmsServer.objects.values())
    for method, address, body in (
        ("POST", "/key-providers", {"name": "New", "host": "h"}),
        ("DELETE", path, None),
        ("POST", f"{path}/default", None),
        ("POST", f"{path}/servers", {"host": "h"}),
        ("DELETE", f"/key-servers/{server.pk}", None),
        ("PUT", f"{path}/trusted-certificates", {"certificate_pem": "x"}),
        ("POST", f"{path}/client-key", None),
        ("PUT", f"{path}/client-certificate", {"certificate_pem": "x"}),
        ("POST", f"{path}/check", None),
    ):
        answer = looker(method, address, body)
        assert (answer.status, answer.code) == (403, "not_permitted"), address
    assert (list(KmsCluster.objects.values()), list(KmsServer.objects.values())) == before
    assert not Job.objects.exists()


def test_nothing_sealed_or_wrapped_is_in_any_answer(
    admin: Caller, provider: KmsCluster, vm: VirtualMachine, sent: list[object]
) -> None:
    """Every GET of the API, with an object behind every id of this app, in all the writings that bytes could have."""
    KmsCluster.objects.update(
        client_key_sealed=PLANTED, client_key_next_sealed=PLANTED, client_ca_key_sealed=PLANTED,
        client_ca_pem=certificate((ca := ec.generate_private_key(ec.SECP256R1())).public_key(), ca),
    )  # fmt: skip
    TransportKey.objects.create(public_pem="x", private_sealed=PLANTED)
    ClientKeyUpload.objects.create(cluster=provider, certificate_pem="x", sealed=PLANTED)
    key = encrypted(provider, vm)
    job = admin.post(f"/key-providers/{provider.pk}/check").body["id"]
    ids = {
        "datacenter_id": vm.host.cluster.datacenter_id, "cluster_id": vm.host.cluster_id, "host_id": vm.host_id,
        "vm_id": vm.pk, "job_id": job, "key_id": key.pk, "what": "console-ca",
        "policy_id": StoragePolicy.objects.all()[0].pk,
        "event_id": Event.objects.all()[0].pk if Event.objects.exists() else 1,
        "provider_id": provider.pk, "server_id": KmsServer.objects.get().pk, "view": "hosts", "kind": "host",
        "alarm_id": raise_alarm("tests.planted", "an alarm", target=vm).pk,
        "nv_index": 1, "target_id": vm.host_id, "verdict_id": 1, "reference_id": uuid4(),
        "datastore_id": vm.host.datastores.create(name="images", kind="dir").pk,
    }  # fmt: skip
    writings = (PLANTED.decode(), PLANTED.hex(), PLANTED.hex().upper(), base64.b64encode(PLANTED).decode()[:-4])
    answered = 0
    for path, operations in api.get_openapi_schema()["paths"].items():
        if "get" in operations:
            # Ids of other apps' objects lead nowhere.
            answer = admin.get(path.removeprefix(ROOT).format_map(defaultdict(uuid4, ids)), text="a")
            answered += answer.status == 200
            assert not any(one in answer.text for one in writings), path
    assert answered >= 25
    # The search would find them: the rows do hold them.
    assert bytes(WrappedSecret.objects.get().wrapped) == bytes(KmsCluster.objects.get().client_key_sealed) == PLANTED


def test_states_in_the_schema_are_the_models(admin: Caller) -> None:
    schema = admin.get("/openapi.json").body["components"]["schemas"]
    assert schema["KeyServerOut"]["properties"]["state"]["enum"] == KmsServer.State.values
    assert schema["KeyOut"]["properties"]["state"]["enum"] == Key.State.values
