"""Key providers through their pages and the API: order and addresses of servers, keys. Trust is test_key_trust_pages;
what a worker then does is tested in services/."""

import itertools
import re
from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.models import ClientKeyUpload, Key, KmsCluster, KmsServer, Purpose, WrappedSecret
from inventory.models import Event, Host, Job, VirtualMachine
from tests.api_client import Caller, caller
from tests.encryption.certificates import CA, LEAF, LEAF_KEY, NOW, fingerprint, private

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin(alice: User) -> Caller:
    return caller(alice)


@pytest.fixture
def browser(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


@pytest.fixture
def looking(charlie: User) -> Client:
    client = Client()
    client.force_login(charlie)
    return client


@pytest.fixture
def provider() -> KmsCluster:
    found = KmsCluster.objects.create(name="KMS", is_default=True)
    for position, host in enumerate(("a", "b", "c")):
        KmsServer.objects.create(cluster=found, position=position, host=host)
    return found


@pytest.fixture
def server(provider: KmsCluster) -> KmsServer:
    """The first one, whose certificate a worker has looked at."""
    found = provider.servers.all()[0]
    show(found, LEAF + CA)
    return found


def show(server: KmsServer, pem: str) -> None:
    server.certificate_pem, server.certificate_fingerprint = pem, fingerprint(pem)
    server.certificate_seen_at, server.certificate_not_after = NOW, NOW + timedelta(days=99)
    server.save()


@pytest.fixture
def key(provider: KmsCluster) -> Key:
    return Key.objects.create(cluster=provider, key_id="kmip-7", name="bartizan/x", state=Key.State.ACTIVE)


@pytest.fixture
def protects(key: Key, host: Host) -> VirtualMachine:
    vm = VirtualMachine.objects.create(host=host, uuid=uuid4(), name="app")
    WrappedSecret.objects.create(virtual_machine=vm, purpose=Purpose.NVRAM, key=key, wrapped=b"x", path="/x")
    return vm


def page(which: str, *args: object) -> str:
    return reverse(f"encryption:kms-{which}", args=args)


class TestServers:
    def test_they_change_places(self, browser: Client, admin: Caller, provider: KmsCluster) -> None:
        a, b, c = provider.servers.all()

        def order() -> list[str]:
            return [one.host for one in provider.servers.all()]

        assert browser.post(page("move-server", c.pk, "up")).status_code == 302
        assert order() == ["a", "c", "b"]
        assert admin.post(f"/key-servers/{a.pk}/move", {"direction": "down"}).body["position"] == 1
        assert order() == ["c", "a", "b"]
        told = Event.objects.count()
        assert browser.post(page("move-server", b.pk, "down")).status_code == 302  # at the end already
        assert admin.post(f"/key-servers/{c.pk}/move", {"direction": "up"}).status == 200
        assert order() == ["c", "a", "b"] and Event.objects.count() == told
        shown = browser.get(page("cluster", provider.pk)).content.decode()
        assert re.findall(r"<code>(\w):5696</code>", shown) == ["c", "a", "b"]

    def test_no_direction(self, browser: Client, admin: Caller, server: KmsServer) -> None:
        assert browser.post(page("move-server", server.pk, "left")).status_code == 422
        assert admin.post(f"/key-servers/{server.pk}/move", {"direction": "left"}).code == "direction_invalid"
        assert browser.get(page("move-server", server.pk, "up")).status_code == 405

    def test_another_address_forgets_what_was_found(self, browser: Client, server: KmsServer) -> None:
        KmsServer.objects.update(state="connected", vendor="x", server_trusts_console=True)
        assert 'value="a"' in browser.get(page("edit-server", server.pk)).content.decode()
        assert browser.post(page("edit-server", server.pk), {"host": "kms2", "port": "5700"}).status_code == 302
        server.refresh_from_db()
        assert (str(server), server.state, server.vendor) == ("kms2:5700", "unknown", "")
        assert (server.certificate_pem, server.server_trusts_console, server.position) == ("", None, 0)
        told = Event.objects.get(kind="kms.server_edited")
        assert told.data == {"server": "kms2:5700", "before": "a:5696"}
        browser.post(page("edit-server", server.pk), {"host": "kms2", "port": "5700"})
        assert Event.objects.filter(kind="kms.server_edited").count() == 1

    @pytest.mark.parametrize(
        ("host", "port", "code"), [("b", 5696, "server_taken"), ("a b", 1, "host_invalid"), ("a", 0, "port_invalid")]
    )
    def test_an_address_that_cannot_be(
        self, browser: Client, admin: Caller, server: KmsServer, host: str, port: int, code: str
    ) -> None:
        answer = admin("PUT", f"/key-servers/{server.pk}", {"host": host, "port": port})
        assert answer.code == code
        assert browser.post(page("edit-server", server.pk), {"host": host, "port": port}).status_code in (409, 422)
        server.refresh_from_db()
        assert str(server) == "a:5696"


class TestKeys:
    def test_its_page_tells_what_it_protects_and_who_used_it(
        self, looking: Client, key: Key, protects: VirtualMachine
    ) -> None:
        for target, actor in ((protects, "bob"), (key.cluster, "carol")):
            Event.objects.create(
                kind="key.released" if target == protects else "key.revoked", actor=actor, message="m",
                target_kind="vm" if target == protects else "kms", target_id=target.pk, target_name="t",
                data={"key_id": "kmip-7"} if target != protects else {},
            )  # fmt: skip
        shown = looking.get(page("key", key.pk)).content.decode()
        for text in ("kmip-7", "NVRAM of app", "bob", "carol", "Active", "AES-256"):
            assert text in shown
        assert page("destroy-key", key.pk) not in shown and page("revoke-key", key.pk) not in shown

    def test_pages_of_the_list(self, looking: Client, provider: KmsCluster) -> None:
        for number in range(120):
            Key.objects.create(cluster=provider, key_id=f"key-{number:03}")
        pages = [looking.get(page("cluster", provider.pk), {"page": n}).content.decode() for n in (1, 2, 3)]
        ids = [set(re.findall(r"key-\d{3}", text)) for text in pages]
        assert all(ids) and not any(one & other for one, other in itertools.combinations(ids[:2], 2))
        assert len(set().union(*ids)) == 120
        assert "Page 1 of" in pages[0]
        for odd in ("x", "0", "-1", "99999999999", "\u0661"):
            assert looking.get(page("cluster", provider.pk), {"page": odd}).status_code == 200

    def test_destroying_asks_for_its_id(self, browser: Client, admin: Caller, key: Key) -> None:
        assert "for ever" in browser.get(page("destroy-key", key.pk)).content.decode()
        for wrong in ("", "kmip-8"):
            assert browser.post(page("destroy-key", key.pk), {"confirm": wrong}).status_code == 422
        assert admin.post(f"/keys/{key.pk}/destroy", {"confirm": "kmip-8"}).code == "confirmation_mismatch"
        assert not Job.objects.exists()
        assert browser.post(page("destroy-key", key.pk), {"confirm": "kmip-7"}).status_code == 302
        assert Job.objects.get().params == {"key": str(key.pk)}
        assert admin.post(f"/keys/{key.pk}/destroy", {"confirm": "kmip-7"}).code == "target_busy"

    def test_one_in_use_stays(self, browser: Client, admin: Caller, key: Key, protects: VirtualMachine) -> None:
        answer = browser.post(page("destroy-key", key.pk), {"confirm": "kmip-7"})
        assert answer.status_code == 409 and "NVRAM of app" in answer.content.decode()
        for path, body in (("destroy", {"confirm": "kmip-7"}), ("revoke", {"reason": "superseded"})):
            assert admin.post(f"/keys/{key.pk}/{path}", body).code == "key_in_use"
        assert browser.post(page("revoke-key", key.pk), {"reason": "superseded"}).status_code == 409
        assert not Job.objects.exists()
        assert browser.post(page("revoke-key", key.pk), {"reason": "key_compromise"}).status_code == 302

    def test_reasons_and_ended_keys(self, browser: Client, admin: Caller, key: Key) -> None:
        assert admin.post(f"/keys/{key.pk}/revoke", {"reason": "boredom"}).code == "reason_invalid"
        assert browser.post(page("revoke-key", key.pk), {"reason": "boredom"}).status_code == 422
        Key.objects.update(state=Key.State.DESTROYED)
        assert admin.post(f"/keys/{key.pk}/revoke", {"reason": "superseded"}).code == "key_ended"
        assert admin.post(f"/keys/{key.pk}/destroy", {"confirm": "kmip-7"}).code == "key_ended"
        assert page("destroy-key", key.pk) not in browser.get(page("key", key.pk)).content.decode()

    def test_refreshed_by_a_worker(self, browser: Client, admin: Caller, provider: KmsCluster) -> None:
        assert browser.post(page("refresh-keys", provider.pk)).status_code == 302
        assert Job.objects.get().kind == "encryption.refresh_keys"
        assert admin.post(f"/key-providers/{provider.pk}/keys/refresh").code == "target_busy"

    def test_one_that_is_not_there(self, browser: Client, admin: Caller) -> None:
        assert browser.get(page("key", uuid4())).status_code == 404
        assert admin.get(f"/keys/{uuid4()}").code == "key_not_found"

    def test_a_provider_whose_keys_are_destroyed_can_go(self, admin: Caller, key: Key) -> None:
        assert admin("DELETE", f"/key-providers/{key.cluster_id}").code == "key_provider_in_use"
        Key.objects.update(state=Key.State.DESTROYED)
        assert admin("DELETE", f"/key-providers/{key.cluster_id}").status == 204

    def test_one_destroyed_there_that_something_hangs_on_keeps_it(
        self, admin: Caller, key: Key, protects: VirtualMachine
    ) -> None:
        Key.objects.update(state=Key.State.DESTROYED)
        assert admin("DELETE", f"/key-providers/{key.cluster_id}").code == "key_provider_in_use"


class TestExistingKeys:
    def test_looked_for_by_a_worker(self, browser: Client, admin: Caller, provider: KmsCluster) -> None:
        assert browser.post(page("adopt-key", provider.pk), {"wanted": " old-key "}).status_code == 302
        assert Job.objects.get().params == {"wanted": "old-key"}
        assert admin.post(f"/key-providers/{provider.pk}/keys/adopt", {"key": "old-key"}).code == "target_busy"

    @pytest.mark.parametrize("wanted", ["", " ", "x" * 256, "a\x00b"])
    def test_no_identifier(self, browser: Client, admin: Caller, provider: KmsCluster, wanted: str) -> None:
        assert browser.post(page("adopt-key", provider.pk), {"wanted": wanted}).status_code == 422
        answer = admin.post(f"/key-providers/{provider.pk}/keys/adopt", {"key": wanted})
        assert answer.status == 422 and answer.code in ("key_identifier_invalid", "invalid_input")
        assert not Job.objects.exists()

    def test_one_that_is_listed(self, browser: Client, admin: Caller, key: Key) -> None:
        assert admin.post(f"/key-providers/{key.cluster_id}/keys/adopt", {"key": "kmip-7"}).code == "key_known"
        assert browser.post(page("adopt-key", key.cluster_id), {"wanted": "kmip-7"}).status_code == 409

    def test_shown_as_made_elsewhere_and_destroying_it_warns(self, browser: Client, key: Key) -> None:
        Key.objects.update(is_foreign=True)
        assert "Not made here" in browser.get(page("cluster", key.cluster_id)).content.decode()
        assert "does not know may need it" in browser.get(page("destroy-key", key.pk)).content.decode()


def test_who_may_only_look_changes_nothing(
    looking: Client, charlie: User, provider: KmsCluster, server: KmsServer, key: Key
) -> None:
    before = [list(model.objects.values()) for model in (KmsCluster, KmsServer, Key)]
    call, one, all_ = caller(charlie), f"/key-servers/{server.pk}", f"/key-providers/{provider.pk}"
    for path, body in (
        (f"{one}/move", {"direction": "up"}), (f"{one}/fetch-certificate", None),
        (f"{one}/accept-certificate", {"fingerprint": fingerprint(LEAF)}),
        (f"{all_}/make-client-certificate", {"method": "console_ca"}), (f"{all_}/use-client-certificate", None),
        (f"{all_}/keys/refresh", None), (f"{all_}/keys/adopt", {"key": "x"}),
        (f"/keys/{key.pk}/revoke", {"reason": "superseded"}),
        (f"/keys/{key.pk}/destroy", {"confirm": "kmip-7"}),
    ):  # fmt: skip
        assert call.post(path, body).code == "not_permitted", path
    for path, given in (
        (one, {"host": "x"}),
        (f"{all_}/client-identity", {"certificate_pem": LEAF, "private_key_pem": private(LEAF_KEY)}),
    ):
        assert call("PUT", path, given).code == "not_permitted", path
    trusted = f"{all_}/trusted-certificates/{fingerprint(LEAF)}"
    assert call("DELETE", trusted).code == "not_permitted"
    for which, args in (
        ("edit-server", [server.pk]), ("move-server", [server.pk, "down"]), ("fetch-certificate", [server.pk]),
        ("review-certificate", [server.pk]), ("make-client", [provider.pk, "self_signed"]),
        ("upload-client", [provider.pk]), ("use-client", [provider.pk]), ("refresh-keys", [provider.pk]),
        ("adopt-key", [provider.pk]), ("distrust", [provider.pk, fingerprint(LEAF)]),
        ("revoke-key", [key.pk]), ("destroy-key", [key.pk]),
    ):  # fmt: skip
        assert looking.post(page(which, *args)).status_code == 403, which
    assert [list(model.objects.values()) for model in (KmsCluster, KmsServer, Key)] == before
    assert not Job.objects.exists() and not ClientKeyUpload.objects.exists()


def test_nobody_is_sent_to_the_login(provider: KmsCluster, key: Key) -> None:
    for path in (page("cluster", provider.pk), page("key", key.pk), page("download", provider.pk, "console-ca")):
        assert Client().get(path).headers["Location"].startswith("/login/")
