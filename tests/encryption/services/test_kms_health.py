"""Health of key servers: what a check notes, failover, both directions of trust missing in each way, alarms."""

import socket
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from pytest_django import DjangoCaptureOnCommitCallbacks
from pytest_django.fixtures import Settings

from encryption.engine import keywrap
from encryption.engine.key_server import KeyServer, RevocationReason
from encryption.engine.secret import Secret
from encryption.models import ClientKeyUpload, Key, KmsCluster, KmsServer, Purpose, TransportKey, WrappedSecret
from encryption.services import key_access, key_providers, kms_health
from inventory.errors import Unavailable
from inventory.models import Cluster, Event, JobStatus, Severity
from lab import kms
from lab.pki import Authority, Issued
from tests.encryption.adapters.conftest import RunningKms, expired, other_ca, serving
from tests.encryption.adapters.fake_server import fake_server, tls_context
from tests.encryption.services.real_kms import bare, connected, run, some_vm

__all__ = ["other_ca"]
pytestmark = pytest.mark.django_db


def use_identity(cluster: KmsCluster, issued: Issued) -> None:
    cluster.client_certificate_pem = issued.certificate_pem.decode()
    cluster.client_key_sealed = keywrap.wrap(key_access.console_key(), Secret(issued.key_pem))
    cluster.save()


def checked(cluster: KmsCluster) -> KmsServer:
    kms_health.check_cluster(str(cluster.pk))
    return cluster.servers.all()[0]


def told(kind: str) -> list[Event]:
    return list(Event.objects.filter(kind=kind).order_by("id"))


def test_a_good_server_is_noted_and_told_once(alice: User, kms_server: RunningKms) -> None:
    cluster = connected(alice, kms_server)
    checked(cluster)
    server = checked(cluster)
    assert server.state == KmsServer.State.CONNECTED and server.latency_ms is not None and server.vendor
    assert (server.console_trusts_server, server.server_trusts_console) == (True, True)
    assert (server.state_code, server.state_reason) == ("", "")
    assert "CN=localhost" in server.certificate_subject and "KMS" in server.certificate_issuer
    assert len(server.certificate_fingerprint) == 64 and server.certificate_not_after is not None
    assert len(told("kms.server_connected")) == 1 and not told("kms.server_lost")


def test_failover_names_the_server_that_failed_and_both_down_names_both(
    alice: User, kms_layout: kms.KmsLayout, cluster: Cluster
) -> None:
    vm = some_vm(cluster)
    with serving(kms_layout, "second") as second:
        with serving(kms_layout, "first") as first:
            provider = connected(alice, first, second)
            job = key_providers.check(cluster_id=provider.pk, actor=alice)
            assert run(job, kms_health.check_key_provider).status == JobStatus.SUCCEEDED
            key = key_access.make_key(provider, vm, name="bartizan/failover", job=job)
        with key_access.fetched_key(key) as kek:
            assert len(kek) == 32
        (lost,) = told("kms.server_lost")
        assert f"127.0.0.1:{first.port}" in lost.message and lost.severity == Severity.ERROR
        assert lost.data["code"] == "kms_unreachable"
        key.refresh_from_db()
        assert key.last_used_at is not None
    with pytest.raises(Unavailable) as caught, key_access.fetched_key(key):
        pytest.fail("no server is there")
    assert caught.value.code == "kms_unreachable" and caught.value.hint
    assert all(f"127.0.0.1:{one.port}" in caught.value.message for one in (first, second))
    assert [event.data["server"] for event in told("kms.server_lost")] == [
        f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}",
    ]  # fmt: skip
    job = run(key_providers.check(cluster_id=provider.pk, actor=alice), kms_health.check_key_provider)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "kms_unreachable")


def test_the_server_is_not_trusted(alice: User, kms_server: RunningKms, other_ca: Authority) -> None:
    cluster = connected(alice, kms_server)
    key_providers.trust_server(cluster_id=cluster.pk, certificate_pem=other_ca.certificate_pem.decode(), actor=alice)
    server = checked(cluster)
    assert (server.state, server.state_code) == (KmsServer.State.UNTRUSTED, "kms_server_ca_unknown")
    assert (server.console_trusts_server, server.server_trusts_console) == (False, None)
    assert server.certificate_fingerprint  # there to be reviewed nevertheless


def test_the_server_has_another_name(alice: User, kms_server: RunningKms, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = connected(alice, kms_server)
    KmsServer.objects.update(host="kms.example")
    target = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", kms_server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: target)
    server = checked(cluster)
    assert (server.state_code, server.console_trusts_server) == ("kms_server_name_mismatch", False)


def test_the_servers_certificate_has_expired(
    alice: User, kms_server: RunningKms, other_ca: Authority, tmp_path: Path
) -> None:
    cluster = connected(alice, kms_server)
    KmsCluster.objects.update(trusted_pem=other_ca.certificate_pem.decode())
    with fake_server(tls_context(tmp_path, expired(other_ca, "fake", server=True)), lambda *_: None) as address:
        KmsServer.objects.update(host=address.host, port=address.port)
        server = checked(KmsCluster.objects.get(pk=cluster.pk))
    assert (server.state_code, server.console_trusts_server) == ("kms_server_certificate_expired", False)
    (warning,) = told("kms.certificate_expiring")
    assert "has expired" in warning.message


@pytest.mark.parametrize("way", ["unknown", "expired"])
def test_the_client_is_not_trusted(alice: User, kms_server: RunningKms, other_ca: Authority, way: str) -> None:
    cluster = bare(alice, kms_server)
    authority = Authority.create(kms_server.layout.ca, kms.CA_NAME)
    stranger = other_ca.issue("stranger", client=True)
    use_identity(cluster, stranger if way == "unknown" else expired(authority, "console"))
    server = checked(cluster)
    code = "kms_client_ca_unknown" if way == "unknown" else "kms_client_certificate_expired"
    assert (server.state, server.state_code) == (KmsServer.State.UNTRUSTED, code)
    assert (server.console_trusts_server, server.server_trusts_console) == (True, False)
    assert str(server) in server.state_reason and ";" in server.state_reason  # and the remedy


def test_nothing_was_set_up_yet(alice: User, kms_server: RunningKms) -> None:
    cluster = bare(alice, kms_server)
    server = checked(cluster)
    assert (server.state_code, server.server_trusts_console) == ("kms_client_certificate_missing", False)
    KmsCluster.objects.update(trusted_pem="")
    server = checked(KmsCluster.objects.get())
    assert (server.state_code, server.console_trusts_server) == ("kms_server_not_trusted", False)


def test_a_near_end_is_told_once_for_each_certificate(
    alice: User, kms_server: RunningKms, other_ca: Authority, tmp_path: Path
) -> None:
    cluster = bare(alice, kms_server)
    authority = Authority.create(kms_server.layout.ca, kms.CA_NAME)
    use_identity(cluster, authority.issue("console", client=True, days=29))
    soon = other_ca.issue("fake", dns=["localhost"], ips=["127.0.0.1"], server=True, days=5)
    with fake_server(tls_context(tmp_path, soon), lambda *_: None) as address:
        KmsServer.objects.update(host=address.host, port=address.port)
        for _ in range(2):
            checked(KmsCluster.objects.get())
    server, client = sorted(told("kms.certificate_expiring"), key=lambda event: event.data["days"])
    assert "key server" in server.message and server.data["days"] == 4
    assert "client certificate" in client.message and client.data["days"] == 28
    assert {server.severity, client.severity} == {Severity.WARNING}
    use_identity(KmsCluster.objects.get(), authority.issue("console", client=True, days=3))
    checked(KmsCluster.objects.get())
    assert len(told("kms.certificate_expiring")) == 3


def test_a_server_that_hangs_costs_its_time_limit_only(alice: User, kms_server: RunningKms, settings: Settings) -> None:
    settings.KMIP_TIMEOUT_SECONDS = 1
    cluster = connected(alice, kms_server)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        KmsServer.objects.update(host="127.0.0.1", port=silent.getsockname()[1])
        server = checked(cluster)
    assert (server.state, server.state_code) == (KmsServer.State.UNREACHABLE, "kms_unreachable")
    assert (server.console_trusts_server, server.server_trusts_console) == (None, None)


def test_each_provider_is_a_message_of_its_own(alice: User, sent: list[tuple[str, list[str], str]]) -> None:
    providers = [key_providers.add_provider(name=name, host=name, port=5696, actor=alice) for name in ("a", "b")]
    key_providers.add_server(cluster_id=providers[0].pk, host="a2", port=5696, actor=alice)
    key_providers.add_cluster(name="without servers", actor=alice)
    assert kms_health.check_all() == 2
    assert sorted(sent) == sorted(("encryption.check_kms_cluster", [str(one.pk)], "attestation") for one in providers)
    assert TransportKey.objects.count() == 1
    kms_health.check_cluster("00000000-0000-0000-0000-000000000007")  # removed meanwhile


def test_a_change_of_trust_asks_for_a_check(
    alice: User,
    other_ca: Authority,
    sent: list[tuple[str, list[str], str]],
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    provider = key_providers.add_provider(name="a", host="a", port=5696, actor=alice)
    with django_capture_on_commit_callbacks(execute=True):
        key_providers.edit_server(server_id=provider.servers.all()[0].pk, host="b", port=5696, actor=alice)
    assert sent == [("encryption.check_kms_cluster", [str(provider.pk)], "attestation")]


def test_uploads_that_nobody_took_go(alice: User) -> None:
    provider = key_providers.add_cluster(name="a", actor=alice)
    ClientKeyUpload.objects.create(cluster=provider, certificate_pem="x", sealed=b"x")
    kms_health.check_all()
    assert ClientKeyUpload.objects.exists()
    ClientKeyUpload.objects.update(created_at=timezone.now() - timedelta(minutes=61))
    kms_health.check_all()
    assert not ClientKeyUpload.objects.exists()


def test_a_key_that_was_destroyed_there_is_an_alarm(alice: User, kms_server: RunningKms, cluster: Cluster) -> None:
    provider, vm = connected(alice, kms_server), some_vm(cluster)
    job = key_providers.check(cluster_id=provider.pk, actor=alice)
    key = key_access.make_key(provider, vm, name="bartizan/alarm", job=job)
    WrappedSecret.objects.create(virtual_machine=vm, purpose=Purpose.NVRAM, key=key, wrapped=b"x", path="/x")
    checked(provider)
    key.refresh_from_db()
    assert (key.state, key.algorithm) == (Key.State.ACTIVE, "AES-256") and key.checked_at is not None

    def end(server: KeyServer) -> None:
        server.revoke(key.key_id, RevocationReason.UNSPECIFIED)
        server.destroy(key.key_id)

    key_access.with_key_server(provider, end)
    checked(provider)
    key.refresh_from_db()
    assert key.state == Key.State.ACTIVE  # read once a day, not with every check
    Key.objects.update(checked_at=timezone.now() - timedelta(hours=25))
    checked(provider)
    key.refresh_from_db()
    assert key.state == Key.State.MISSING
    (alarm,) = told("key.state_changed")
    assert alarm.severity == Severity.ERROR and key.key_id in alarm.message
