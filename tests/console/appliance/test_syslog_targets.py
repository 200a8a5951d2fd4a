"""Syslog targets through their pages and the API. What the forwarder and workers do is tested in services/."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from console.appliance.services import syslog_targets
from console.models import SyslogTarget
from encryption.models import TransportKey
from encryption.services import client_keys
from inventory import alarms
from inventory.models import Alarm, Event, Job, Severity
from inventory.services import event_chain
from tests.api_client import Caller, caller
from tests.encryption.certificates import CA, CA_KEY, LEAF, LEAF_KEY, NOW, certificate, fingerprint, private

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
PATH = "/syslog-targets"
GIVEN = {"host": "logs.example", "port": 6514, "protocol": "tls"}


@pytest.fixture
def api(alice: User) -> Caller:
    return caller(alice)


@pytest.fixture
def target(alice: User) -> SyslogTarget:
    return syslog_targets.add_target(host="logs.example", port=6514, protocol="tls", trusted_pem=CA, actor=alice)


def url(name: str, *args: object) -> str:
    return reverse(f"appliance:{name}", args=args)


def form(**values: Any) -> dict[str, Any]:
    return {"host": "logs.example", "port": 6514, "protocol": "tls", "trusted": ""} | values


def shown(client: Client) -> str:
    return client.get(url("syslog")).content.decode()


class TestWhoMay:
    def test_dialogs(self, admin: Client, looker: Client, target: SyslogTarget) -> None:
        named = ("edit", "remove", "test", "upload-client", "remove-client")
        dialogs = [url("syslog-add"), *(url(f"syslog-{name}", target.pk) for name in named)]
        before = Event.objects.count()
        for address in dialogs:
            assert admin.get(address).status_code == 200, address
            assert admin.put(address).status_code == 405, address
            for method in ("get", "post"):
                answer = getattr(looker, method)(address)
                assert answer.status_code == 403 and "charlie may not" in answer.content.decode(), address
                answer = getattr(Client(), method)(address)
                assert answer.status_code == 302 and reverse("login") in answer.headers["Location"], address
        assert SyslogTarget.objects.count() == 1 and Event.objects.exclude(kind="access.denied").count() == before

    def test_the_page_is_for_all_who_may_look(self, looker: Client, target: SyslogTarget) -> None:
        page = shown(looker)
        assert "tls://logs.example:6514" in page and "Add target" not in page and "Edit…" not in page
        assert looker.post(url("syslog")).status_code == 405
        assert looker.get(url("index")).headers["Location"] == url("syslog")
        there = looker.get(url("syslog-target", target.pk)).headers["Location"]
        assert there == f"{url('syslog')}#target-{target.pk}" and f'id="target-{target.pk}"' in page

    def test_of_a_target_that_is_gone(self, admin: Client, api: Caller) -> None:
        for name in ("target", "edit", "remove", "test", "upload-client", "remove-client"):
            assert admin.get(url(f"syslog-{name}", uuid4())).status_code == 404, name
        for method, path, body in (
            ("GET", "", None), ("PUT", "", GIVEN), ("DELETE", "", None), ("POST", "/test", None),
            ("DELETE", "/client-certificate", None),
            ("PUT", "/client-certificate", {"certificate_pem": LEAF, "private_key_pem": private(LEAF_KEY)}),
        ):  # fmt: skip
            answer = api(method, f"{PATH}/{uuid4()}{path}", body)
            assert (answer.status, answer.code) == (404, "syslog_target_not_found"), (method, path)


class TestAddAndEdit:
    def test_added_by_page_and_api(self, admin: Client, api: Caller) -> None:
        assert admin.post(url("syslog-add"), form(trusted=CA, logs="on")).headers["Location"] == url("syslog")
        row = SyslogTarget.objects.get()
        assert (row.slot, row.includes_logs, row.trusted_pem) == (1, True, CA)
        answer = api.post(PATH, {"host": "[2001:db8::1]", "port": 514, "protocol": "udp"})
        assert answer.status == 201
        assert (answer.body["host"], answer.body["state"], answer.body["backlog"]) == ("2001:db8::1", "unknown", 3)
        page = shown(admin)
        assert "udp://[2001:db8::1]:514" in page and "UDP loses messages" in page and fingerprint(CA) in page
        told = Event.objects.filter(kind="syslog.target_added").order_by("id")
        assert [event.target_name for event in told] == ["tls://logs.example:6514", "udp://[2001:db8::1]:514"]
        assert told[0].data == {
            "address": "tls://logs.example:6514", "logs": True, "trusted": [fingerprint(CA)],
        }  # fmt: skip

    def test_it_begins_with_what_was_not_sealed_yet(self, alice: User) -> None:
        for _ in range(3):
            Event.objects.create(kind="x", target_kind="console", target_name="x", actor="x", message="x")
        event_chain.seal()
        added = syslog_targets.add_target(host="a", port=1, protocol="tcp", actor=alice)
        assert (added.cursor, added.sent) == (3, 3)
        assert syslog_targets.status(added.pk, actor=alice).backlog == 1
        event_chain.seal()
        assert syslog_targets.status(added.pk, actor=alice).backlog == 1

    def test_a_fourth_is_refused_by_page_api_and_database(self, admin: Client, api: Caller, alice: User) -> None:
        for number in range(3):
            assert api.post(PATH, GIVEN | {"port": 1000 + number}).status == 201
        answer = api.post(PATH, GIVEN)
        assert (answer.status, answer.code) == (409, "syslog_targets_full")
        refused = admin.post(url("syslog-add"), form())
        assert refused.status_code == 409 and "3 syslog targets already" in refused.content.decode()
        assert "Add target" not in shown(admin)
        for slot in (1, 4, 0):
            with pytest.raises(IntegrityError), transaction.atomic():
                SyslogTarget.objects.create(slot=slot, host="x", port=1, protocol="tcp")
        # The place of one that goes is free again.
        gone = SyslogTarget.objects.get(slot=2)
        assert admin.post(url("syslog-remove", gone.pk)).status_code == 302
        assert api.post(PATH, GIVEN).status == 201
        assert SyslogTarget.objects.get(port=6514).slot == 2

    @pytest.mark.parametrize(
        ("values", "code"),
        [
            ({"host": " "}, "host_invalid"),
            ({"host": "a b"}, "host_invalid"),
            ({"host": "tls://logs.example"}, "host_invalid"),
            ({"host": "logs\x00"}, "host_invalid"),
            ({"port": 0}, "port_invalid"),
            ({"port": 65536}, "port_invalid"),
            ({"port": -1}, "port_invalid"),
            ({"protocol": "relp"}, "protocol_invalid"),
            ({"trusted_pem": "no certificate"}, "certificate_invalid"),
            ({"trusted_pem": private(LEAF_KEY)}, "private_key_given"),
            ({"trusted_pem": CA, "protocol": "tcp"}, "certificate_without_tls"),
        ],
    )
    def test_bad_input(self, admin: Client, api: Caller, target: SyslogTarget, values: Any, code: str) -> None:
        before = SyslogTarget.objects.values().get()
        for method, path in (("POST", PATH), ("PUT", f"{PATH}/{target.pk}")):
            answer = api(method, path, GIVEN | {"port": 7} | values)
            assert (answer.status, answer.code) == (422, code)
        given = form(port=7) | {("trusted" if name == "trusted_pem" else name): one for name, one in values.items()}
        for address in (url("syslog-add"), url("syslog-edit", target.pk)):
            assert admin.post(address, given).status_code == 422, address
        assert SyslogTarget.objects.values().get() == before

    def test_the_same_address_twice(self, admin: Client, api: Caller, target: SyslogTarget, alice: User) -> None:
        again = GIVEN | {"host": "LOGS.example"}
        assert api.post(PATH, again).code == "syslog_target_taken"
        assert admin.post(url("syslog-add"), form()).status_code == 409
        assert api.post(PATH, GIVEN | {"protocol": "tcp"}).status == 201  # another way to the same machine
        other = SyslogTarget.objects.get(slot=2)
        assert api("PUT", f"{PATH}/{other.pk}", again).code == "syslog_target_taken"
        assert admin.post(url("syslog-edit", other.pk), form()).status_code == 409

    def test_an_edited_one_goes_on_where_it_stood(self, admin: Client, api: Caller, target: SyslogTarget) -> None:
        SyslogTarget.objects.update(
            cursor=5, sent=7, state="down", state_code="x", client_certificate_pem=LEAF, client_key_sealed=b"k"
        )
        alarms.raise_alarm(syslog_targets.DOWN_ALARM, "down", target=target, severity=Severity.ERROR)
        assert admin.get(url("syslog-edit", target.pk)).context["form"].initial["trusted"] == CA
        assert admin.post(url("syslog-edit", target.pk), form(host="b.example", trusted=CA)).status_code == 302
        target.refresh_from_db()
        assert (target.host, target.cursor, target.sent, target.state) == ("b.example", 5, 7, "unknown")
        assert bytes(target.client_key_sealed) == b"k"
        assert not Alarm.objects.filter(cleared_at=None).exists()
        answer = api("PUT", f"{PATH}/{target.pk}", GIVEN | {"protocol": "tcp", "port": 601})
        assert answer.body["client_certificate"] == answer.body["trusted"] == []
        target.refresh_from_db()
        assert bytes(target.client_key_sealed) == b""
        told = Event.objects.filter(kind="syslog.target_edited").order_by("id")
        assert told[0].message == "Syslog target tls://logs.example:6514 is tls://b.example:6514 now"
        assert told.count() == 2

    def test_an_edit_without_a_change_is_none(self, api: Caller, target: SyslogTarget) -> None:
        SyslogTarget.objects.update(state="up")
        assert api("PUT", f"{PATH}/{target.pk}", GIVEN | {"trusted_pem": CA}).status == 200
        assert SyslogTarget.objects.get().state == "up"
        assert not Event.objects.filter(kind="syslog.target_edited").exists()

    def test_removed(self, api: Caller, admin: Client, target: SyslogTarget) -> None:
        alarms.raise_alarm(syslog_targets.DOWN_ALARM, "down", target=target, severity=Severity.ERROR)
        assert api("DELETE", f"{PATH}/{target.pk}").status == 204
        assert not SyslogTarget.objects.exists() and not Alarm.objects.filter(cleared_at=None).exists()
        assert Event.objects.get(kind="syslog.target_removed").severity == "warning"
        assert "No targets yet" in shown(admin)


class TestState:
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"state": "up"}, ["Up", "Since"]),
            ({"state": "down", "state_code": "syslog_refused", "state_reason": "x refuses"}, ["Down", "x refuses"]),
            ({"state": "unknown", "protocol": "udp"}, ["Not known", "UDP does not tell"]),
        ],
    )
    def test_what_the_page_says(self, admin: Client, target: SyslogTarget, values: Any, words: list[str]) -> None:
        SyslogTarget.objects.update(checked_at=timezone.now(), **values)
        page = shown(admin)
        assert all(word in page for word in words), words
        assert "does it run?" not in page

    def test_without_a_forwarder_nothing_is_known(self, admin: Client, api: Caller, target: SyslogTarget) -> None:
        SyslogTarget.objects.update(state="up", checked_at=timezone.now() - timedelta(seconds=61))
        assert "does it run?" in shown(admin)
        (listed,) = api.get(PATH).body
        assert (listed["state"], listed["is_followed"]) == ("unknown", False)
        SyslogTarget.objects.update(checked_at=timezone.now())
        assert api.get(f"{PATH}/{target.pk}").body["state"] == "up"

    def test_the_queries_do_not_grow(self, alice: User) -> None:
        for number in (1, 2, 3):
            syslog_targets.add_target(host="a", port=number, protocol="tcp", actor=alice)
            with CaptureQueriesContext(
                connection,
            ) as queries:
                assert len(syslog_targets.targets(actor=alice)) == number
            assert len(queries) == 3

    def test_a_test_message_is_a_job(self, admin: Client, api: Caller, target: SyslogTarget) -> None:
        assert admin.post(url("syslog-test", target.pk)).status_code == 302
        job = Job.objects.get()
        assert (job.kind, job.target_kind, job.target_id) == ("console.send_syslog_test", "syslog", target.pk)
        answer = api.post(f"{PATH}/{target.pk}/test")
        assert (answer.status, answer.code) == (409, "target_busy")
        SyslogTarget.objects.update(tested_at=timezone.now(), test_succeeded=False, test_result="it refuses")
        assert "it refuses" in shown(admin)


class TestClientCertificate:
    BODY = {"certificate_pem": LEAF, "private_key_pem": private(LEAF_KEY)}

    def test_uploaded_it_is_sealed_at_once(self, admin: Client, api: Caller, target: SyslogTarget) -> None:
        client_keys.ensure_transport_key()
        given = {"certificate": LEAF, "private_key": private(LEAF_KEY)}
        assert admin.post(url("syslog-upload-client", target.pk), given).status_code == 302
        row = SyslogTarget.objects.get()
        assert row.uploaded_certificate_pem == LEAF and not row.client_certificate_pem
        assert b"PRIVATE" not in bytes(row.uploaded_key_sealed) and len(row.uploaded_key_sealed) > 384
        assert Job.objects.get().params == {}
        Job.objects.all().delete()
        assert api("PUT", f"{PATH}/{target.pk}/client-certificate", self.BODY).status == 202

    def test_before_the_workers_have_a_key_for_it(self, admin: Client, api: Caller, target: SyslogTarget) -> None:
        assert not TransportKey.objects.exists()
        answer = api("PUT", f"{PATH}/{target.pk}/client-certificate", self.BODY)
        assert (answer.status, answer.code) == (503, "transport_key_missing")
        given = {"certificate": LEAF, "private_key": private(LEAF_KEY)}
        assert admin.post(url("syslog-upload-client", target.pk), given).status_code == 503

    @pytest.mark.parametrize(
        ("cert", "key", "code"),
        [
            (CA, private(LEAF_KEY), "certificate_of_another_key"),
            (LEAF, "no key", "client_key_invalid"),
            (LEAF, private(LEAF_KEY, b"password"), "client_key_encrypted"),
            (certificate("x", "y", LEAF_KEY, CA_KEY, until=NOW - timedelta(1)), private(LEAF_KEY),
             "client_certificate_expired"),
        ],
        ids=["another", "no key", "password", "expired"],
    )  # fmt: skip
    def test_what_cannot_be_used(
        self, admin: Client, api: Caller, target: SyslogTarget, cert: str, key: str, code: str
    ) -> None:
        body = {"certificate_pem": cert, "private_key_pem": key}
        answer = api("PUT", f"{PATH}/{target.pk}/client-certificate", body)
        assert (answer.status, answer.code) == (422, code)
        answer_page = admin.post(url("syslog-upload-client", target.pk), {"certificate": cert, "private_key": key})
        assert answer_page.status_code == 422 and key not in answer_page.content.decode()
        assert not Job.objects.exists()

    def test_only_for_tls(self, admin: Client, api: Caller, target: SyslogTarget) -> None:
        SyslogTarget.objects.update(protocol="tcp", trusted_pem="")
        answer = api("PUT", f"{PATH}/{target.pk}/client-certificate", self.BODY)
        assert (answer.status, answer.code) == (409, "syslog_target_without_tls")
        given = {"certificate": LEAF, "private_key": private(LEAF_KEY)}
        assert admin.post(url("syslog-upload-client", target.pk), given).status_code == 409

    def test_removed(self, admin: Client, api: Caller, target: SyslogTarget) -> None:
        path = f"{PATH}/{target.pk}/client-certificate"
        assert (api("DELETE", path).status, api("DELETE", path).code) == (409, "no_client_certificate")
        assert admin.post(url("syslog-remove-client", target.pk)).status_code == 409
        SyslogTarget.objects.update(client_certificate_pem=LEAF, client_key_sealed=b"k")
        assert "Remove client certificate" in shown(admin)
        assert admin.post(url("syslog-remove-client", target.pk)).status_code == 302
        row = SyslogTarget.objects.get()
        assert (row.client_certificate_pem, bytes(row.client_key_sealed)) == ("", b"")
        assert Event.objects.filter(kind="syslog.client_certificate_removed").count() == 1
