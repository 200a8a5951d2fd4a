"""Worker side: the test message and what it says, and the client key on its way under the console key."""

import socket
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User

from console.appliance import tasks
from console.appliance.services import syslog_links, syslog_targets
from console.models import SyslogTarget
from encryption.engine import keywrap
from encryption.services import client_keys
from encryption.services.key_access import console_key
from inventory import jobs
from inventory.models import Event, Job, JobStatus
from lab.pki import Authority, Issued
from tests.console.appliance.adapters.test_syslog_client import closed_port
from tests.console.appliance.collector import server_context
from tests.console.appliance.conftest import CollectorMaker

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
Add = Callable[..., SyslogTarget]


@pytest.fixture
def add(alice: User) -> Add:
    def make(port: int, protocol: str = "tcp", **values: object) -> SyslogTarget:
        given = {"host": "127.0.0.1", "port": port, "protocol": protocol} | values
        return syslog_targets.add_target(actor=alice, **given)  # type: ignore[arg-type]

    return make


def sent_one(target: SyslogTarget, alice: User) -> tuple[Job, SyslogTarget]:
    job = syslog_targets.send_test(target_id=target.pk, actor=alice)
    tasks.send_syslog_test(str(job.pk))
    job.refresh_from_db()
    return job, SyslogTarget.objects.get(pk=target.pk)


def test_every_job_names_a_task_of_the_appliance() -> None:
    kinds = [name for name in jobs.KINDS if name.startswith("console.")]
    names = {getattr(tasks, one).name for one in dir(tasks) if hasattr(getattr(tasks, one), "delay")}
    assert kinds and set(kinds) <= names


class TestSendTest:
    def test_over_tcp(self, add: Add, alice: User, collectors: CollectorMaker) -> None:
        collector = collectors()
        job, row = sent_one(add(collector.port), alice)
        assert (job.status, row.test_succeeded) == (JobStatus.SUCCEEDED, True)
        assert row.test_result == "sent over TCP, and read by the collector" and row.tested_at is not None
        (message,) = collector.messages
        assert b"syslog.test [" in message and str(job.pk).encode() in message and b'actor="alice"' in message
        assert Event.objects.get(kind="syslog.test_sent").job_id == job.pk
        assert (row.state, row.sent) == ("unknown", 0)  # the forwarder's, not this message's

    def test_over_tls(
        self, add: Add, alice: User, collectors: CollectorMaker, authority: Authority, identity: Issued
    ) -> None:
        target = add(collectors(server_context(identity)).port, "tls", trusted_pem=authority.certificate_pem.decode())
        _, row = sent_one(target, alice)
        assert row.test_result.startswith("sent over TLS 1.3, TLS_") and row.test_result.endswith("by the collector")

    def test_over_udp_nothing_is_promised(self, add: Add, alice: User) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0))
            receiver.settimeout(10)
            _, row = sent_one(add(receiver.getsockname()[1], "udp"), alice)
            assert b"syslog.test" in receiver.recv(9000)
        assert "only the collector can tell" in row.test_result

    def test_a_collector_that_hangs(
        self, add: Add, alice: User, collectors: CollectorMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(syslog_links, "CONFIRM_SECONDS", 0.1)
        job, row = sent_one(add(collectors(hangs=True).port), alice)
        assert job.status == JobStatus.SUCCEEDED and "did not confirm" in row.test_result

    def test_nobody_there(self, add: Add, alice: User) -> None:
        job, row = sent_one(add(closed_port()), alice)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "syslog_refused")
        assert row.test_succeeded is False and row.test_result == job.message
        assert "refuses the connection" in row.test_result and "does the collector run" in row.test_result

    def test_a_collector_that_is_not_trusted(
        self, add: Add, alice: User, collectors: CollectorMaker, identity: Issued
    ) -> None:
        job, _ = sent_one(add(collectors(server_context(identity)).port, "tls"), alice)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "syslog_server_untrusted")

    def test_a_target_that_went_meanwhile(self, add: Add, alice: User) -> None:
        target = add(9)
        job = syslog_targets.send_test(target_id=target.pk, actor=alice)
        SyslogTarget.objects.all().delete()
        tasks.send_syslog_test(str(job.pk))
        job.refresh_from_db()
        assert job.error_code == "syslog_target_not_found"

    def test_under_another_console_key(self, add: Add, alice: User) -> None:
        target = add(9, "tls")
        SyslogTarget.objects.update(client_certificate_pem="x", client_key_sealed=b"0" * 24)
        job, row = sent_one(target, alice)
        assert job.error_code == "client_key_sealed_otherwise" and "another console key" in row.test_result


class TestClientKey:
    def upload(self, target: SyslogTarget, own: Issued, alice: User) -> Job:
        return syslog_targets.upload_client_key(
            target_id=target.pk, certificate_pem=own.certificate_pem.decode(), private_key_pem=own.key_pem.decode(),
            actor=alice,
        )  # fmt: skip

    def run(self, job: Job) -> Job:
        tasks.take_syslog_client_key(str(job.pk))
        job.refresh_from_db()
        return job

    def test_it_ends_under_the_console_key(
        self, add: Add, alice: User, authority: Authority, identity: Issued, collectors: CollectorMaker
    ) -> None:
        client_keys.ensure_transport_key()
        own = authority.issue("console", client=True)
        collector = collectors(server_context(identity, clients=authority))
        target = add(collector.port, "tls", trusted_pem=authority.certificate_pem.decode())
        assert self.run(self.upload(target, own, alice)).status == JobStatus.SUCCEEDED
        row = SyslogTarget.objects.get()
        assert (row.uploaded_certificate_pem, bytes(row.uploaded_key_sealed)) == ("", b"")
        assert keywrap.unwrap(console_key(), bytes(row.client_key_sealed)).reveal() == own.key_pem
        assert "console" in Event.objects.get(kind="syslog.client_certificate_installed").message
        sent_one(target, alice)
        assert SyslogTarget.objects.get().test_succeeded and "console" in collector.clients[0]
        dump = (
            str(list(SyslogTarget.objects.values()))
            + str(list(Event.objects.values()))
            + str(list(Job.objects.values()))
        )
        assert "PRIVATE" not in dump and own.key_pem.decode().splitlines()[1] not in dump

    def test_sealed_for_another_target(self, add: Add, alice: User, authority: Authority) -> None:
        client_keys.ensure_transport_key()
        one, two = add(1, "tls"), add(2, "tls")
        own = authority.issue("console", client=True)
        self.upload(one, own, alice)
        job = self.upload(two, own, alice)
        sealed = SyslogTarget.objects.get(pk=one.pk).uploaded_key_sealed
        SyslogTarget.objects.filter(pk=two.pk).update(uploaded_key_sealed=sealed)
        assert self.run(job).error_code == "upload_sealed_otherwise"
        row = SyslogTarget.objects.get(pk=two.pk)
        assert not row.client_certificate_pem and not row.uploaded_certificate_pem

    def test_what_was_put_in_its_place_is_checked_again(self, add: Add, alice: User, authority: Authority) -> None:
        client_keys.ensure_transport_key()
        job = self.upload(add(1, "tls"), authority.issue("console", client=True), alice)
        other = authority.issue("other", client=True).certificate_pem.decode()
        SyslogTarget.objects.update(uploaded_certificate_pem=other)
        assert self.run(job).error_code == "certificate_of_another_key"

    def test_an_upload_that_is_gone(self, add: Add, alice: User, authority: Authority) -> None:
        client_keys.ensure_transport_key()
        job = self.upload(add(1, "tls"), authority.issue("console", client=True), alice)
        SyslogTarget.objects.update(uploaded_certificate_pem="", uploaded_key_sealed=b"")
        assert self.run(job).error_code == "upload_gone"
